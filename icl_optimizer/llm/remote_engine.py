"""llama.cpp's requests over HTTP."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Message
from icl_optimizer.llm.engine import pieces
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.labels import Token
from icl_optimizer.llm.parameters import TIMEOUT_S
from icl_optimizer.llm.provider_errors import call_provider, read_answer, status_error
from icl_optimizer.llm.requests import announce
from icl_optimizer.llm.usage import Usage

if TYPE_CHECKING:
    import httpx


class RemoteEngine:
    """Asks a llama.cpp server over HTTP; safe from several threads.

    The key, if the server wants one, is that of ``OPENAI_API_KEY``.

    Args:
        url: The base URL of its OpenAI interface, for example ``http://127.0.0.1:8080/v1``.
        model: The name sent with each request; gateways choose by it.
        name: The spec, for messages.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, url: str, model: str, name: str, timeout: float = TIMEOUT_S) -> None:
        """Keep the address; nothing is sent."""
        self._root = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._name = name
        self._timeout = timeout
        self._known: dict[str, Any] | None = None
        self._client: httpx.Client | None = None
        self._closed = False
        self._opening = threading.Lock()

    @property
    def context_size(self) -> int:
        """Tokens of prompt and answer together, in one slot."""
        return int(self.properties["default_generation_settings"]["n_ctx"])

    @property
    def slots(self) -> int:
        """How many requests the server works on at once."""
        return int(self.properties["total_slots"])

    @property
    def properties(self) -> dict[str, Any]:
        """What the server says of itself, asked once.

        Raises:
            ModelError: It does not answer, or not as llama.cpp does.
        """
        if self._known is None:
            announce(Usage())
            answer = self._ask("GET", "/props")
            if "json" not in answer.headers.get("content-type", ""):
                raise self._not_llamacpp()
            found = self._content(answer)
            if not _has_probabilities(found):
                raise self._not_llamacpp()
            self._known = found
        return self._known

    def is_llamacpp(self) -> bool:
        """Whether a llama.cpp server answers, of a version that lists probabilities.

        Raises:
            ModelError: Nobody answers, or the server is not ready.
        """
        try:
            return bool(self.properties)
        except ModelError as error:
            # other servers, and gateways before them, refuse what they do not know in many ways
            if error.kind in ("request", "key"):
                return False
            raise

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a completion request."""
        return self._http("POST", "/v1/completions", {"model": self._model, **body})

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Run a chat request with the model's own chat template."""
        return self._http("POST", "/v1/chat/completions", {"model": self._model, **body})

    def embed(self, texts: list[str]) -> dict[str, Any]:
        """Run an embedding request."""
        return self._http("POST", "/v1/embeddings", {"model": self._model, "input": texts})

    def tokenize(self, text: str) -> list[Token]:
        """Return id and text of each token, special ones recognised as in a completion."""
        announce(Usage())
        answer = self._http("POST", "/tokenize", {"content": text, "with_pieces": True})
        return read_answer(self._name, lambda: pieces(answer))

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages in the model's chat format, up to the start of the reply."""
        body = {"messages": [dict(message) for message in messages]}
        announce(Usage())
        answer = self._http("POST", "/apply-template", body)
        return read_answer(self._name, lambda: str(answer["prompt"]))

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    def _http(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._content(self._ask(method, path, body))

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        client = self._connected()
        answer = call_provider(
            self._name, lambda: client.request(method, self._root + path, json=body)
        )
        if answer.status_code >= 400:
            raise status_error(self._name, answer.status_code, answer.text, answer.headers)
        return answer

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        content = read_answer(self._name, answer.json)
        if not isinstance(content, dict):
            raise ModelError(f"'{self._name}' sent something else than an object.", "malformed")
        return content

    def _not_llamacpp(self) -> ModelError:
        return ModelError(
            f"'{self._name}' does not answer like llama.cpp: GET {self._root}/props tells no "
            "settings of a version that lists probabilities.",
            "request",
        )

    def _connected(self) -> httpx.Client:
        import httpx

        if self._closed:
            raise ConfigurationError(f"the model '{self._name}' was closed.")
        with self._opening:
            if self._client is None:
                key = os.environ.get("OPENAI_API_KEY")
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                self._client = httpx.Client(headers=headers, timeout=self._timeout)
            return self._client


def _has_probabilities(properties: Mapping[str, Any]) -> bool:
    """Whether ``/props`` is that of a llama.cpp with all that is asked of it here."""
    settings = properties.get("default_generation_settings")
    if not isinstance(settings, Mapping) or "total_slots" not in properties:
        return False
    fields = settings.get("params")
    return isinstance(fields, Mapping) and "post_sampling_probs" in fields and "n_ctx" in settings
