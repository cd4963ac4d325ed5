"""Requests of one batch side by side, with their answers in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ask_each(ask: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """Return ``ask`` of every item in order, up to ``workers`` at once.

    The first failure is raised, and what was not begun by then is not asked.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        return [ask(item) for item in items]
    pool = ThreadPoolExecutor(workers)
    try:
        # in a copy of this context each, which watches the counters
        asked = [pool.submit(copy_context().run, ask, item) for item in items]
        return [future.result() for future in asked]
    finally:
        pool.shutdown(cancel_futures=True)
