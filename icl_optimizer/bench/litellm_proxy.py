"""LiteLLM's proxy as a process, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.studies.child import WATCH, Child, free_port

PYTHON_ENV = "ICL_OPTIMIZER_LITELLM_PYTHON"
"""Environment variable: a Python that has ``litellm[proxy]``."""
HOME = Path.home() / ".cache" / "icl-optimizer" / "litellm"
"""Where it is looked for without that variable."""
VERSION = "litellm[proxy]>=1.106,<1.107"
INSTALL = f"python -m venv {HOME} && {HOME}/bin/pip install '{VERSION}'"
KEY = "sk-0123456789abcdef0123456789abcdef"
_RUN = WATCH + "from litellm import run_server\nrun_server()\n"


class LiteLLMProxy(Child):
    """A proxy without a database, as LiteLLM advises for production, with one worker.

    Args:
        upstreams: Base URL of each deployment by name; all serve one model.
        folder: For its configuration and what it prints.
        strategy: LiteLLM's own routing strategy.

    Attributes:
        url: Base URL for clients.
        headers: What a request needs.
        model: Name of the model.

    Raises:
        MissingDependencyError: LiteLLM's proxy is not installed.
    """

    model = "stub"

    def __init__(self, upstreams: Mapping[str, str], folder: Path, strategy: str) -> None:
        """Start it and wait until it answers."""
        python = find_python()
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / f"{strategy}.yaml"
        config.write_text(yaml.safe_dump(self._config(upstreams, strategy)))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        self.headers = {"Authorization": f"Bearer {KEY}"}
        command = [
            *(str(python), "-c", _RUN, "--config", str(config)),
            *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        ]
        env = {
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            # its table of prices is not fetched
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        health = f"http://127.0.0.1:{port}/health/liveliness"
        super().__init__(command, health, folder / f"{strategy}.log", env)

    def _config(self, upstreams: Mapping[str, str], strategy: str) -> dict[str, Any]:
        deployments = [
            {
                "model_name": self.model,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": url,
                    "api_key": "none",
                },
                "model_info": {"id": name},
            }
            for name, url in upstreams.items()
        ]
        return {
            "model_list": deployments,
            "router_settings": {"routing_strategy": strategy},
            "litellm_settings": {"set_verbose": False, "telemetry": False},
            "general_settings": {"master_key": KEY},
        }


def find_python() -> Path:
    """Return a Python that has LiteLLM's proxy.

    It is asked for in :data:`PYTHON_ENV`, else looked for in :data:`HOME`, else it is this one.

    Raises:
        ConfigurationError: The variable names no such Python.
        MissingDependencyError: There is none.
    """
    named = os.environ.get(PYTHON_ENV)
    if named is not None:
        if not _has_proxy(Path(named)):
            raise ConfigurationError(
                f"{PYTHON_ENV} is '{named}'; allowed: a Python that has '{VERSION}'."
            )
        return Path(named)
    for python in (HOME / "bin" / "python", Path(sys.executable)):
        if _has_proxy(python):
            return python
    raise MissingDependencyError(f"the peer is LiteLLM's proxy, in its own environment: {INSTALL}.")


def litellm_version(python: Path) -> str:
    """Return the version of LiteLLM that a Python has."""
    code = "from importlib.metadata import version; print(version('litellm'))"
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def _has_proxy(python: Path) -> bool:
    code = (
        "from importlib.util import find_spec\n"
        "raise SystemExit(not (find_spec('litellm') and find_spec('fastapi')))"
    )
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False
