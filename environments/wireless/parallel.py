"""Threads for array work that releases the interpreter's lock, as NumPy's inner loops do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def for_each(work: Callable[[int], None], items: Sequence[int]) -> None:
    """Call ``work`` with every item, on as many threads as there are cores; a single item here.

    The calls must not depend on one another; then neither does the result on the threads.
    """
    if len(items) > 1 and (threads := _cores()) > 1:
        # a forked child has its parent's executor without the threads, hence one per process
        list(_executor(os.getpid(), threads).map(work, items))
    else:
        for item in items:
            work(item)


@cache
def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _executor(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="radio")
