"""An answer on its way to a client, at the server's pace and not at the client's."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from icl_optimizer.environments.fleet.servers import is_count
from icl_optimizer.environments.fleet.upstream import DONE, UpstreamError
from icl_optimizer.router.requests import RouterError

if TYPE_CHECKING:
    from icl_optimizer.environments.fleet.servers import Served
    from icl_optimizer.router.journey import Books, Journey

HELD_BYTES = 4 << 20
"""Bytes of an answer that wait for a slow client; beyond, the server waits, too."""


class Delivery:
    """Reads an answer in a task of its own, so that a slow client does not hold a server's slot.

    Args:
        journey: The request.
        served: Its answer.
        first: What was read of it already.
        books: Told what becomes of it.
    """

    def __init__(
        self, journey: Journey, served: Served, first: Sequence[bytes], books: Books
    ) -> None:
        """Begin to read."""
        self._journey, self._served, self._books = journey, served, books
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._over = False
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._read(first))

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the answer as it comes."""
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._held -= len(chunk)
                self._changed.set()
                yield chunk
            if self._over:
                return
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Stop reading, if that is not over yet: the client went away."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        # a task that is cancelled before its first step has run nothing of its body
        self._books.cancelled(self._journey, self._served)
        await self._served.close()

    async def _read(self, first: Sequence[bytes]) -> None:
        try:
            for chunk in first:
                await self._pass_on(chunk)
            async for chunk in self._served:
                await self._pass_on(chunk)
        except UpstreamError as error:
            self._books.broke_off(self._journey, self._served, error)
            await self._put(_told(error))
        except asyncio.CancelledError:
            self._books.cancelled(self._journey, self._served)
            raise
        except Exception as error:
            # a fault of the router's own; the client must not take the rest for the whole
            failure = UpstreamError(f"the router failed ({type(error).__name__})", "open")
            self._books.broke_off(self._journey, self._served, failure)
            await self._put(_told(failure))
        finally:
            self._over = True
            self._changed.set()
            await self._served.close()

    async def _pass_on(self, chunk: bytes) -> None:
        if self._served.finished and (chunk == DONE or not self._served.streams):
            # before the client holds the whole answer it is on disk
            self._books.answered(self._journey, self._served)
        if not self._hides(chunk):
            await self._put(chunk)

    def _hides(self, chunk: bytes) -> bool:
        """Return whether an event is for the books alone: the client did not ask for counts."""
        return self._journey.counts_for_us and b'"usage"' in chunk and is_count(chunk)

    async def _put(self, chunk: bytes) -> None:
        while self._held > HELD_BYTES:
            self._changed.clear()
            await self._changed.wait()
        self._chunks.append(chunk)
        self._held += len(chunk)
        self._changed.set()


def _told(error: UpstreamError) -> bytes:
    """Return the event that ends an answer which broke off."""
    told = RouterError(502, f"the answer broke off: {error}").to_json()
    return b"data: " + json.dumps(told).encode() + b"\n\n"
