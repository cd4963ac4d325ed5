"""What worker processes do with a unit, in tests of engines."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

from icl_optimizer.comparison.engines import Runner
from icl_optimizer.comparison.unit import UnitResult
from icl_optimizer.comparison.work import Work

_kept: list[bytes] = []


def killing(place: Path, policy: str, times: int) -> Runner:
    """Return a runner whose process is killed so many times when it meets ``policy``."""
    return partial(_run, place, policy, times)


def _run(place: Path, policy: str, times: int, work: Work) -> tuple[UnitResult, Exception | None]:
    started = place / f"{work.policy}-{work.seed}"
    with started.open("a") as file:
        file.write(".")
    if work.policy == policy and len(started.read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return UnitResult(explanation={"who": f"{work.policy}-{work.seed}"}), None


def growing(work: Work) -> tuple[UnitResult, Exception | None]:
    """Keep 400 MB for good, as a language model does, and say which process this is."""
    # it is looked at a second after the last time
    time.sleep(1.2)
    _kept.append(b"x" * 400_000_000)
    return UnitResult(explanation={"who": os.getpid()}), None


def failing(work: Work) -> tuple[UnitResult, Exception | None]:
    """Raise what nobody expects."""
    raise KeyError(work.policy)
