"""What is installed and which models answer, for ``icl-optimizer doctor``."""

from __future__ import annotations

import http.client
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.llm.base import Capabilities
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.llamacpp import LlamaCpp
from icl_optimizer.llm.loading import load_llm
from icl_optimizer.llm.redaction import redact
from icl_optimizer.llm.weights import INSTALL_COMMAND, find_weights

_OLLAMA_PORT = 11434
_OLLAMA_TIMEOUT_S = 0.3
_REQUIRED = (
    "numpy",
    "pandas",
    "pydantic",
    "jinja2",
    "gymnasium",
    "langchain-core",
    "langchain-openai",
    "langchain-ollama",
    "typer",
    "rich",
    "joblib",
    "scipy",
    "scikit-learn",
)
_OPTIONAL = {
    "xllamacpp": "local",
    "torch": "rl",
    "stable-baselines3": "rl",
    "matplotlib": "report",
    "plotly": "report",
}
_REMEDIES = {
    "connection": "start its server, or correct the address",
    "timeout": "wait longer: ?timeout=SECONDS",
    "key": "set its key in the environment",
    "rate limit": "wait, or ask for a higher limit",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        ok: Whether it is there and works.
        detail: Version, size, answer, or what went wrong.
        remedy: How to get it; empty when nothing is to be done.
        required: Whether the library works without it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = False


def diagnose(specs: Sequence[str] = ()) -> list[Finding]:
    """Look at the installation; runs the embedded model once and asks only this machine.

    Args:
        specs: Models to try beside, wherever they are; each is asked a few tiny questions.
    """
    return [
        _python(),
        *(_package(name, "pip install icl-optimizer", True) for name in _REQUIRED),
        *(
            _package(name, f"pip install 'icl-optimizer[{extra}]'")
            for name, extra in _OPTIONAL.items()
        ),
        _weights(),
        _embedded_model(),
        _ollama(_OLLAMA_PORT),
        _openai_key(),
        *map(_model, specs),
    ]


def _python() -> Finding:
    return Finding(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
        required=True,
    )


def _package(name: str, remedy: str, required: bool = False) -> Finding:
    try:
        return Finding(name, True, version(name), required=required)
    except PackageNotFoundError:
        return Finding(name, False, "not installed", remedy, required)


def _weights() -> Finding:
    try:
        file = find_weights()
    except MissingDependencyError:
        return Finding("embedded weights", False, "not installed", INSTALL_COMMAND)
    return Finding("embedded weights", True, f"{file.name}, {file.stat().st_size / 1e6:.0f} MB")


def _embedded_model() -> Finding:
    name = "embedded model"
    try:
        with LlamaCpp(context_size=256) as model:
            right, wrong = model.score(["The capital of France is"], [" Paris", " blue"])[0]
            milliseconds = 1000 * model.usage.seconds
    except (MissingDependencyError, ConfigurationError, ModelError) as error:
        return Finding(name, False, str(error), INSTALL_COMMAND)
    detail = (
        f"log P(Paris) = {right:.2f}, log P(blue) = {wrong:.2f} after 'The capital of France is', "
        f"{milliseconds:.0f} ms; scores, generates, embeds"
    )
    return Finding(name, bool(right > wrong), detail, "" if right > wrong else INSTALL_COMMAND)


def _model(spec: str) -> Finding:
    """Load a model, ask it for one word, and say what else it can do."""
    try:
        with load_llm(spec) as model:
            capabilities = model.capabilities
            model.generate(["Reply with yes."], max_tokens=4)
            milliseconds = 1000 * model.usage.seconds
    except (MissingDependencyError, ConfigurationError, ModelError) as error:
        return Finding(spec, False, redact(str(error)), _REMEDIES.get(_kind(error), ""))
    return Finding(spec, True, f"answers in {milliseconds:.0f} ms; {describe(capabilities)}")


def _kind(error: Exception) -> str:
    return error.kind if isinstance(error, ModelError) else ""


def describe(capabilities: Capabilities) -> str:
    """Return what a model can do as a list of words."""
    top = capabilities.top_logprobs
    listed = f" of {top} tokens" if top else ""
    parts = (
        (True, f"label scores{listed}" if capabilities.logprobs else "no label scores"),
        (capabilities.likelihoods, "likelihoods"),
        (True, "held to labels" if capabilities.constrained else "not held to labels"),
        (capabilities.embeddings, "embeddings"),
        (True, f"context {capabilities.context_size or 'unknown'}"),
    )
    return ", ".join(text for shown, text in parts if shown)


def _ollama(port: int) -> Finding:
    name = "ollama server"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_OLLAMA_TIMEOUT_S)
    try:
        connection.request("GET", "/api/tags")
        models = json.loads(connection.getresponse().read())["models"]
        names = ", ".join(str(model["name"]) for model in models) or "no model pulled yet"
    except OSError:
        return Finding(name, False, f"nothing answers on port {port}", "start it: ollama serve")
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        return Finding(name, False, f"something else answers on port {port}")
    finally:
        connection.close()
    return Finding(name, True, f"port {port}: {names}")


def _openai_key() -> Finding:
    if os.environ.get("OPENAI_API_KEY"):
        return Finding("OPENAI_API_KEY", True, "set")
    return Finding(
        "OPENAI_API_KEY", False, "not set", "set it in the environment to use openai:MODEL"
    )
