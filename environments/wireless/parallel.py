"""A second thread for array work that releases the interpreter's lock, as NumPy's loops do."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def in_halves(work: Callable[[int, int], None], n: int, least: int) -> None:
    """Call ``work(start, end)`` for the range ``0..n``, a long one as two halves side by side.

    The halves must not depend on each other; then the result does not depend on the threads. More
    threads than two would mostly wait for the interpreter's lock.

    Args:
        work: What to do for part of the range.
        n: Length of the range.
        least: Length from which a second thread is worth its while.
    """
    if n < least or _cores() < 2:
        work(0, n)
        return
    # a forked child has its parent's helper without the thread, hence one per process
    other = _helper(os.getpid()).submit(work, n // 2, n)
    try:
        work(0, n // 2)
    finally:
        other.result()


@cache
def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _helper(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="radio")
