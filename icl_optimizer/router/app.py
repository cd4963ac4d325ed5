"""The router as an OpenAI-compatible endpoint, with health, metrics, status and a live page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from icl_optimizer.router.checks import read_request
from icl_optimizer.router.guards import Access, Bounds, Limits, Shield
from icl_optimizer.router.keys import Keys
from icl_optimizer.router.metrics import CONTENT_TYPE
from icl_optimizer.router.replies import Refusal, error_body, send_json
from icl_optimizer.router.requests import RouterError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from icl_optimizer.environments.fleet.upstream import Path
    from icl_optimizer.router.requests import Routed, RoutedRequest
    from icl_optimizer.router.router import Router

MODEL = "auto"
"""The model that the endpoint offers: whichever server the policy chooses."""
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Paths of the live page: its file and media type. They hold no data."""


def build_app(
    router: Router, keys: Keys, limits: Limits | None = None, *, open_to_all: bool = False
) -> Starlette:
    """Return the endpoint as an ASGI application.

    Args:
        router: Running already, and left running.
        keys: Of the callers.
        limits: What callers may take; None for those of the router's settings.
        open_to_all: Whether callers without keys may use any host name.
    """
    bounds = limits or Limits.of(router.settings)
    public = {"/health", *PAGE} | ({"/metrics"} if router.settings.open_metrics else set())
    app = Starlette(
        routes=[*_routes(router), *_pages()],
        middleware=[
            Middleware(Shield, metrics=router.metrics),
            Middleware(Access, keys=keys, public=public, open_to_all=open_to_all),
            Middleware(Bounds, limits=bounds),
        ],
        exception_handlers={HTTPException: _refuse},
    )
    # a slash more is another path
    app.router.redirect_slashes = False
    app.state.draining = False
    return app


def _routes(router: Router) -> list[Route]:
    began = int(time.time())

    async def models(request: Request) -> Response:
        model = {"id": MODEL, "object": "model", "created": began, "owned_by": "icl-optimizer"}
        return _json({"object": "list", "data": [model]})

    async def health(request: Request) -> Response:
        if request.app.state.draining:
            return _json({"status": "draining"}, 503)
        up = any(server.health.state != "cooling" for server in router.fleet.servers)
        return _json({"status": "ok" if up else "no server"}, 200 if up else 503)

    async def metrics(request: Request) -> Response:
        router.status()  # brings the gauges up to date
        return Response(router.metrics.render(), media_type=CONTENT_TYPE)

    async def status(request: Request) -> Response:
        return _json({**router.status(), "draining": request.app.state.draining})

    return [
        Route("/v1/chat/completions", Completions(router, "chat/completions"), methods=["POST"]),
        Route("/v1/completions", Completions(router, "completions"), methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/status", status),
    ]


def _pages() -> list[Route]:
    folder = files("icl_optimizer.router") / "page"

    def page(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
        content = (folder / name).read_bytes()

        async def send(request: Request) -> Response:
            return Response(content, media_type=media_type)

        return send

    return [Route(path, page(*each)) for path, each in PAGE.items()]


class Completions:
    """Checks a request, routes it, and passes the answer on as it comes."""

    def __init__(self, router: Router, path: Path) -> None:
        """Serve one of OpenAI's paths."""
        self._router = router
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["app"].state.draining:
            text = "the router is about to end; allowed: to ask another one, or later"
            headers = [(b"retry-after", b"1"), (b"connection", b"close")]
            raise Refusal(503, text, "draining", "server_error", headers)
        request = await read_request(scope, receive, self._path)
        if request is not None:
            await _while_there(self._answer(request, send), receive)

    async def _answer(self, request: RoutedRequest, send: Send) -> None:
        try:
            routed = await self._router.route(request)
        except RouterError as error:
            await _send_error(send, error)
            return
        try:
            if request.streams:
                await _send_stream(send, routed)
            else:
                await _send_whole(send, routed)
        finally:
            await routed.close()


async def _while_there(work: Awaitable[None], receive: Receive) -> None:
    """Do something that ends when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = [each for each in (task, gone) if not each.done()]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_stream(send: Send, routed: Routed) -> None:
    """Send events as they come; an error after the first one is an event, too."""
    await send(_start(routed, []))
    try:
        async for chunk in routed.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except RouterError as error:
        event = b"data: " + json.dumps(error.to_json()).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _send_whole(send: Send, routed: Routed) -> None:
    try:
        body = b"".join([chunk async for chunk in routed.chunks])
    except RouterError as error:
        await _send_error(send, error)
        return
    await send(_start(routed, [(b"content-length", str(len(body)).encode())]))
    await send({"type": "http.response.body", "body": body})


def _start(routed: Routed, more: list[tuple[bytes, bytes]]) -> dict[str, object]:
    headers = [(b"content-type", routed.media_type.encode("latin-1")), *more]
    given = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in routed.headers.items()]
    return {"type": "http.response.start", "status": routed.status, "headers": headers + given}


async def _send_error(send: Send, error: RouterError) -> None:
    headers = []
    if error.retry_after is not None:
        # whole seconds; a little late rather than too early
        headers = [(b"retry-after", str(max(1, -int(-error.retry_after // 1))).encode())]
    await send_json(send, error.status, json.dumps(error.to_json()).encode(), headers)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer a path or a method that is not there."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = "method" if status == 405 else "path"
    allowed = "see GET /v1/models, POST /v1/chat/completions, POST /v1/completions"
    code = "method_not_allowed" if status == 405 else "not_found"
    body = error_body(f"there is no such {what}; {allowed}", "invalid_request_error", code)
    headers = dict(getattr(error, "headers", None) or {})
    return Response(body, status, headers, "application/json")


def _json(content: object, status: int = 200) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")
