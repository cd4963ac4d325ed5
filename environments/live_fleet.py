"""A fleet at work beside a program that is not asynchronous: a thread with an event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from icl_optimizer.closing import Closing
from icl_optimizer.environments.fleet.config import DEMO, FleetConfig, load_fleet
from icl_optimizer.environments.fleet.servers import Fleet

Source = str | Mapping[str, Any] | FleetConfig
T = TypeVar("T")

_SHARED: dict[str, FleetThread] = {}
"""Fleets that :func:`shared_fleet` holds open, by what they were opened from."""


class FleetThread(Closing):
    """Opens a fleet on an event loop of its own; ``demo`` is started before and stopped after.

    Args:
        source: A fleet file, ``demo``, or a fleet's fields.

    Attributes:
        fleet: The servers; to be touched on the loop only.

    Raises:
        ConfigurationError: The fleet's description is not valid.
        ConnectionError: The demo fleet did not start.
    """

    def __init__(self, source: Source) -> None:
        """Start everything; nothing is left running where that fails."""
        self._held = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()
        self._held.callback(self._stop)
        try:
            self.fleet = self.call(self._opened(self._running(source)))
        except BaseException:
            self._held.close()
            raise
        self._held.callback(lambda: self.call(self._closed()))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Close the wires, end the loop, and stop what was started."""
        self._held.close()

    def _running(self, source: Source) -> FleetConfig:
        if source != DEMO:
            return load_fleet(source)
        from icl_optimizer.environments.fleet.demo import DemoFleet

        return self._held.enter_context(DemoFleet()).config

    @staticmethod
    async def _opened(config: FleetConfig) -> Fleet:
        return await Fleet(config).__aenter__()

    async def _closed(self) -> None:
        """Cancel what is still under way, and close the wires."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.fleet.__aexit__(None, None, None)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@contextmanager
def shared_fleet(source: Source) -> Iterator[FleetThread]:
    """Keep a fleet open; live environments on the same source use it meanwhile."""
    key = _key(source)
    with FleetThread(source) as thread:
        _SHARED[key] = thread
        try:
            yield thread
        finally:
            del _SHARED[key]


def find_shared(source: Source) -> FleetThread | None:
    """Return the open fleet of this source, if there is one."""
    return _SHARED.get(_key(source))


def _key(source: Source) -> str:
    if isinstance(source, FleetConfig):
        return source.model_dump_json()
    return json.dumps(source, sort_keys=True, default=str)
