"""Importing xllamacpp so that its threads get along with whatever else runs."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from icl_optimizer.errors import MissingDependencyError

_MOST_THREADS = 8  # small models gain nothing from more
_SWITCHES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_sleeps: bool | None = None


def import_xllamacpp() -> ModuleType:
    """Import xllamacpp, with worker threads that sleep while they wait.

    They meet hundreds of times per token. OpenMP lets them spin there by default, and then a token
    takes seconds as soon as another process needs one of the cores. It reads its switches once,
    when the first library that uses it is loaded: to no avail if that was torch.

    Raises:
        MissingDependencyError: It is not installed.
    """
    global _sleeps
    chosen = any(switch in os.environ for switch in _SWITCHES)
    if _sleeps is None:
        _sleeps = chosen or not {"torch", "xllamacpp"} & set(sys.modules)
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = "0"
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the embedded model needs xllamacpp. Install it: pip install 'icl-optimizer[local]'"
        ) from error
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]


def default_threads() -> int:
    """Return one thread for each physical core this process may use, at most 8.

    A single one where threads would spin (torch was imported first).
    """
    return min(_physical_cores(), _MOST_THREADS) if _sleeps else 1


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """Return the CPUs that share a core with ``cpu``; itself where the system does not tell."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return file.read_text().strip() if file.is_file() else str(cpu)
