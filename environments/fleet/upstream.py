"""The wire to one language-model server: requests in OpenAI's form, answers as they come."""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import aiohttp
from aiohttp.client_exceptions import (
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ServerDisconnectedError,
)

from icl_optimizer.environments.fleet.config import ServerConfig
from icl_optimizer.errors import ConfigurationError, FailureKind, ModelError
from icl_optimizer.llm.provider_errors import status_error
from icl_optimizer.llm.spec import Spec, parse_spec

T = TypeVar("T")

Path = Literal["chat/completions", "completions"]
"""What a request asks for, below ``/v1``."""
DONE = b"data: [DONE]\n\n"
OLLAMA = "http://127.0.0.1:11434"
_OPENAI = "https://api.openai.com/v1"
_CONNECT_S = 5.0
_HEALTH_S = 5.0
_CALLERS = (None, 400, 422)
"""Statuses that other servers would give, too."""
_TOO_LARGE = 413
_MISSING = (402, 404, 405, 501)
"""Statuses of a server that does not have what its spec says, or is not paid for."""
_LARGEST = 16 << 20
"""Bytes of one answer, or of one event of a stream, that are still read."""


class UpstreamError(ModelError):
    """A server did not answer as it should.

    Attributes:
        status: The HTTP status that it answered with, None where it did not come to that.
    """

    @property
    def callers(self) -> bool:
        """Whether the request was wrong, so that no server will take it."""
        return self.kind == "request" and self.status in _CALLERS

    @property
    def blames(self) -> bool:
        """Whether it tells something about the server that failed."""
        return self.kind not in ("request", "open")

    def __init__(
        self,
        message: str,
        kind: FailureKind,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        """Keep what went wrong."""
        super().__init__(message, kind, retry_after)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with all attributes."""
        return type(self), (str(self), self.kind, self.retry_after, self.status)


async def _nothing() -> None:
    return None


@dataclass
class Answer:
    """What a server answers.

    Attributes:
        content_type: Of the body.
        chunks: One complete server-sent event after the other, the last one :data:`DONE`; or the
            JSON body as the only item. Whatever goes wrong meanwhile is an :class:`UpstreamError`.
        close: Lets go of the connection, whether all was read or not.
    """

    content_type: str
    chunks: AsyncIterator[bytes]
    close: Callable[[], Awaitable[None]] = _nothing


class Upstream(ABC):
    """One server, whatever it speaks."""

    async def open(self) -> None:  # noqa: B027  (most have nothing to get ready)
        """Get ready; an embedded model loads its weights here."""

    @abstractmethod
    async def send(self, path: Path, body: Mapping[str, Any]) -> Answer:
        """Send a request in OpenAI's form.

        Raises:
            UpstreamError: It was refused, or nobody answered.
        """

    @abstractmethod
    async def healthy(self) -> bool:
        """Return whether somebody answers who could serve requests."""

    @abstractmethod
    async def close(self) -> None:
        """Close connections, and the model where it is embedded."""


class HttpUpstream(Upstream):
    """A server that speaks OpenAI's API.

    Args:
        name: Of the server, for messages.
        url: Base URL, with ``/v1``.
        model: Name of the model; it replaces what callers ask for. Empty: their name stays.
        key: Sent as bearer token, where there is one.
        timeout_s: Longest silence, seconds.
        defaults: Fields of requests that do not name them.
    """

    def __init__(
        self,
        name: str,
        url: str,
        model: str = "",
        key: str | None = None,
        timeout_s: float = 60.0,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the address; nothing is sent."""
        self.name, self.url, self.model = name, url.rstrip("/"), model
        self._timeout_s, self._defaults = timeout_s, dict(defaults or {})
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Prepare connections; none is opened."""
        # no limit of its own: the server's slots and queue are the limit
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(None, sock_connect=_CONNECT_S, sock_read=self._timeout_s)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, trust_env=False, headers=self._headers
        )

    async def send(self, path: Path, body: Mapping[str, Any]) -> Answer:
        """Send a request in OpenAI's form."""
        fields = {**self._defaults, **body}
        if self.model:
            fields["model"] = self.model
        data = json.dumps(fields, ensure_ascii=False).encode()
        try:
            response = await self._post(path, data)
        except (ServerDisconnectedError, ClientOSError) as error:
            if isinstance(error, ClientConnectorError):
                raise self._unreachable(error) from None
            # a kept connection that the server has closed meanwhile; a new one tells for sure
            response = await self._guarded(self._post(path, data))
        except (ClientError, OSError, TimeoutError) as error:
            raise self._unreachable(error) from None
        if response.status >= 400:
            raise await self._refused(response)
        streams = response.content_type == "text/event-stream"
        chunks = self._events(response) if streams else self._whole(response)

        async def close() -> None:
            # a connection in the middle of an answer cannot be used again
            response.close()

        return Answer(response.headers.get("Content-Type", "application/json"), chunks, close)

    async def healthy(self) -> bool:
        """Return whether the list of models, which every server has, is answered."""
        try:
            limit = aiohttp.ClientTimeout(_HEALTH_S)
            async with self._open_session.get(f"{self.url}/models", timeout=limit) as response:
                # who asks for another key, or does not list models, is there at least
                return response.status < 500
        except (ClientError, OSError, TimeoutError):
            return False

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError(f"server '{self.name}' was not opened; open() comes first")
        return self._session

    async def _post(self, path: Path, data: bytes) -> aiohttp.ClientResponse:
        return await self._open_session.post(f"{self.url}/{path}", data=data, allow_redirects=False)

    async def _guarded(self, work: Awaitable[T]) -> T:
        """Return what ``work`` returns; what the client raises becomes :class:`UpstreamError`."""
        try:
            return await work
        except (ClientError, OSError, TimeoutError) as error:
            failure = self._unreachable(error)
        raise failure

    def _unreachable(self, error: Exception) -> UpstreamError:
        if isinstance(error, TimeoutError):
            return UpstreamError(f"server '{self.name}' was silent for too long", "timeout")
        text = f"server '{self.name}' cannot be reached or hung up ({type(error).__name__})"
        return UpstreamError(text, "connection")

    async def _refused(self, response: aiohttp.ClientResponse) -> UpstreamError:
        try:
            text = (await self._guarded(response.content.read(10_000))).decode(errors="replace")
        finally:
            response.close()
        error = status_error(self.name, response.status, text, response.headers)
        if not isinstance(error, ModelError):
            # a prompt that is too long for this server, and perhaps not for another one
            return UpstreamError(str(error), "request", None, _TOO_LARGE)
        kind = "server" if response.status in _MISSING else error.kind
        return UpstreamError(str(error), kind, error.retry_after, response.status)

    async def _whole(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        body = b""
        while data := await self._guarded(response.content.readany()):
            body += data
            if len(body) > _LARGEST:
                response.close()
                raise UpstreamError(f"server '{self.name}' sent more than 16 MiB", "malformed")
        response.release()
        try:
            told = json.loads(body)
        except ValueError:
            told = None
        if not isinstance(told, dict) or not told.get("choices"):
            raise UpstreamError(f"server '{self.name}' sent no answer in its JSON", "malformed")
        yield body

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield server-sent events, each whole."""
        held = b""
        while data := await self._guarded(response.content.readany()):
            held += data
            # a line's end may arrive in two parts
            whole, torn = (held[:-1], b"\r") if held.endswith(b"\r") else (held, b"")
            *events, rest = whole.replace(b"\r\n", b"\n").split(b"\n\n")
            held = rest + torn
            if len(held) > _LARGEST:
                break
            for event in events:
                if event.removeprefix(b"data:").strip() == b"[DONE]":
                    # keeps the connection where the end of the body came along
                    response.release()
                    yield DONE
                    return
                if event.strip():
                    yield event + b"\n\n"
        response.close()
        raise UpstreamError(f"server '{self.name}' ended in the middle of its answer", "connection")


class EmbeddedUpstream(HttpUpstream):
    """A llama.cpp model inside this process, reached through its own port on loopback.

    Args:
        config: The server; its spec names the model.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Keep the spec; the weights are loaded by :meth:`open`."""
        super().__init__(config.name, "", timeout_s=config.timeout_s)
        self._spec = config.llm
        self._held = ExitStack()

    async def open(self) -> None:
        """Load the weights."""
        self.url = await asyncio.to_thread(self._serve)
        await super().open()

    async def close(self) -> None:
        """Close the connections and let go of the weights."""
        await super().close()
        self._held.close()

    def _serve(self) -> str:
        from icl_optimizer.llm.llamacpp import LlamaCpp
        from icl_optimizer.llm.loading import load_llm

        model = load_llm(self._spec)
        assert isinstance(model, LlamaCpp)
        self._held.enter_context(model)
        return self._held.enter_context(model.serve())


def open_upstream(config: ServerConfig) -> Upstream:
    """Return the wire to a server; nothing is sent.

    ``openai:`` and ``ollama:`` are passed on as they are, to the base URL, to OpenAI, or to
    Ollama's ``/v1``; ``llamacpp`` runs in this process; whatever else LangChain knows is asked
    through its class.

    Raises:
        ConfigurationError: The spec is not valid, or the key's variable is not set.
        MissingDependencyError: Something has to be installed first.
    """
    from icl_optimizer.llm.loading import validate_spec

    validate_spec(config.llm)
    spec = parse_spec(config.llm)
    key = _key(config)
    if spec.provider == "openai":
        url = spec.url or os.environ.get("OPENAI_BASE_URL", _OPENAI)
        if key is None and (not spec.url or "api.openai.com" in url):
            key = os.environ.get("OPENAI_API_KEY")
        return HttpUpstream(config.name, url, spec.model, key, config.timeout_s, _defaults(spec))
    if spec.provider == "ollama":
        return HttpUpstream(
            config.name, _ollama_url(spec), spec.model, key, config.timeout_s, _defaults(spec)
        )
    if spec.provider == "llamacpp":
        return EmbeddedUpstream(config)
    from icl_optimizer.environments.fleet.chat_upstream import ChatUpstream

    return ChatUpstream(config)


def _key(config: ServerConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigurationError(
            f"server '{config.name}': the environment variable {config.api_key_env} is not set; "
            "allowed: one that holds the server's key."
        )
    return key


_PASSED_ON = ("temperature", "top_p", "seed", "max_tokens", "repeat_penalty")


def _defaults(spec: Spec) -> dict[str, Any]:
    """Return the parameters of a spec that belong into its requests."""
    return {name: json.loads(value) for name, value in spec.query.items() if name in _PASSED_ON}


def _ollama_url(spec: Spec) -> str:
    base = spec.query.get("base_url") or os.environ.get("OLLAMA_HOST") or OLLAMA
    if "://" not in base:
        base = f"http://{base}"
    return base.rstrip("/").removesuffix("/v1") + "/v1"
