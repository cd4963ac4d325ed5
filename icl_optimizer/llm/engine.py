"""llama.cpp's server inside this process, loaded once for each set of settings."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.native import default_threads, import_xllamacpp
from icl_optimizer.llm.provider_errors import status_error

_HOST = "127.0.0.1"
_SILENT, _INFO = -1, 3


@dataclass(frozen=True)
class EngineSettings:
    """What two models must have in common to share one set of loaded weights.

    Attributes:
        model_path: The GGUF file.
        context_size: Tokens of prompt and answer together.
        threads: CPU threads; None for ``default_threads()``.
        cache_mib: Memory for the prefixes of earlier prompts, in MiB.
        embedding: Pool embeddings (mean over tokens) instead of completing text.
        verbose: Let llama.cpp log to stderr.
    """

    model_path: Path
    context_size: int
    threads: int | None
    cache_mib: int
    embedding: bool = False
    verbose: bool = False


class Engine:
    """One running llama.cpp server with one slot; requests from several threads queue up.

    llama.cpp always opens a loopback port next to the in-process interface. It is used here to
    tokenize, and a random key keeps other users of the machine out.
    """

    def __init__(self, settings: EngineSettings, port: int = 0, key: str | None = None) -> None:
        """Load the weights.

        Args:
            settings: What to load and how.
            port: Loopback port, 0 for any free one.
            key: What HTTP clients must send; None for a random one, empty for none.

        Raises:
            ConfigurationError: llama.cpp could not load the file.
        """
        xllamacpp = import_xllamacpp()
        self._key = secrets.token_hex(16) if key is None else key
        params = _parameters(xllamacpp, settings, port, self._key)
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ConfigurationError(
                f"llama.cpp could not load '{settings.model_path.name}' ({error}). It must be a "
                "GGUF file of a supported model, and the port must be free."
            ) from error
        # A server that is freed before its queue runs never ends; an answer shows that it runs.
        self._server.handle_metrics()
        self.asked = False
        self.address = str(self._server.listening_address)
        properties = self._http("GET", "/props")
        self.context_size = int(properties["default_generation_settings"]["n_ctx"])

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a completion request (llama.cpp's ``/v1/completions``)."""
        self.asked = True
        return _checked(self._server.handle_completions(dict(body)))

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a chat request (``/v1/chat/completions``) with the model's own chat template."""
        return _checked(self._server.handle_chat_completions(dict(body)))

    def embed(self, texts: list[str]) -> dict[str, Any]:
        """Run an embedding request (``/v1/embeddings``)."""
        return _checked(self._server.handle_embeddings({"input": texts}))

    def tokenize(self, text: str) -> list[tuple[int, str]]:
        """Return id and text of each token, special ones recognised as in a completion."""
        answer = self._http("POST", "/tokenize", {"content": text, "with_pieces": True})
        return pieces(answer)

    def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the messages in the model's chat format, up to the start of the reply."""
        answer = self._http("POST", "/apply-template", {"messages": [dict(m) for m in messages]})
        return str(answer["prompt"])

    def _http(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        # http.client never goes through a proxy from the environment, unlike urllib.
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=60)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            return _checked(json.loads(connection.getresponse().read()))
        finally:
            connection.close()


_engines: WeakValueDictionary[tuple[int, EngineSettings], Engine] = WeakValueDictionary()
_loading = threading.Lock()


def shared_engine(settings: EngineSettings, *, fresh: bool = False) -> Engine:
    """Return the engine for ``settings``, loading it when nobody in this process holds one.

    A ``fresh`` one has seen no prompt yet and takes the place of the one held so far.

    It is freed when its last user lets go. A forked child loads its own, since threads of the
    parent's server do not survive the fork.
    """
    with _loading:
        key = (os.getpid(), settings)
        engine = _engines.get(key)
        if engine is None or fresh:
            engine = _engines[key] = Engine(settings)
        return engine


def _parameters(xllamacpp: Any, settings: EngineSettings, port: int, key: str) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(settings.model_path)
    params.model_alias = {settings.model_path.stem}
    params.verbosity = _INFO if settings.verbose else _SILENT
    params.n_parallel = 1
    params.n_ctx = settings.context_size
    threads = settings.threads or default_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = settings.cache_mib
    # Probing the memory first makes loading many times slower.
    params.fit_params = False
    params.hostnames = [_HOST]
    params.port = port
    params.ui = False
    params.endpoint_metrics = True
    if key:
        params.api_keys = [key]
    if settings.embedding:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # A pooled text must fit into one batch.
        params.n_batch = params.n_ubatch = settings.context_size
    return params


def pieces(answer: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return id and text of each token in an answer to ``/tokenize``."""
    return [(int(token["id"]), _piece(token["piece"])) for token in answer["tokens"]]


def _piece(piece: str | list[int]) -> str:
    """Return a token's text; llama.cpp gives bytes where a token is part of a character."""
    return piece if isinstance(piece, str) else bytes(piece).decode(errors="backslashreplace")


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if error:
        raise status_error("llama.cpp", int(error.get("code", 500)), json.dumps(answer), {})
    return answer
