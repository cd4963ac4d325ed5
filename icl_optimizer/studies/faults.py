"""What remains of a run when the model's server misbehaves, one fault at a time."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from icl_optimizer.comparison.config import ComparisonConfig, default_config
from icl_optimizer.comparison.runner import compare
from icl_optimizer.errors import ModelError
from icl_optimizer.llm import LlamaCpp, load_llm
from icl_optimizer.llm.guard import GuardOptions
from icl_optimizer.llm.resilience import BreakerPolicy, RetryPolicy
from icl_optimizer.report.loading import load_run
from icl_optimizer.report.models import failures
from icl_optimizer.rollout import progress
from icl_optimizer.studies.faulty_server import Fault, faulty_server
from icl_optimizer.studies.tables import write_study

INTERACTIONS = 60
DECIDERS = ("score", "generate")
PATIENCE = GuardOptions(
    retry=RetryPolicy(attempts=3, base=0.05, cap=0.5, max_wait=2.0),
    breaker=BreakerPolicy(failures=4, cool_down=0.3),
)
"""As the defaults, on a scale of seconds instead of minutes."""

FAULTS: dict[str, Fault | None] = {
    "none": None,
    "refused connection, from the start": Fault(kind="refused"),
    "hangs, every 10th request": Fault(kind="hang", every=10),
    "429 with Retry-After, every 3rd": Fault(kind="429 retry-after", every=3, retry_after=0.2),
    "429 without, every 3rd": Fault(kind="429", every=3),
    "500, every 3rd": Fault(kind="500", every=3),
    "truncated JSON, every 3rd": Fault(kind="truncated json", every=3),
    "empty choices, every 3rd": Fault(kind="empty choices", every=3),
    "text outside the labels, every 3rd": Fault(kind="off-label text", every=3),
    "reset in mid-answer, every 3rd": Fault(kind="reset", every=3),
    "500 to everything after 10 requests": Fault(kind="500", start=10),
    "killed after 10 requests, back after 1 s": Fault(kind="restart", start=10, down=1.0),
}


UNWRITABLE = "cache folder that cannot be written"


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        fault: What went wrong.
        decider: How the model was asked.
        ended: ``completed``, or the error that stopped the run.
        decided: Interactions with a decision, after a resumption where the run was stopped.
        optimality: At the end.
        fallback_rate: Share of queries that experience answered.
        retries: Requests sent again.
        failures: Requests that failed for good.
        report: What the report says.
    """

    fault: str
    decider: str
    ended: str
    decided: int
    optimality: float
    fallback_rate: float
    retries: int
    failures: int
    report: str


def run_faults(out: Path, seeds: int = 1, *, progress_bar: bool = True) -> Path:
    """Run 60 interactions under each fault and write ``faults.csv`` and ``faults.md``.

    Args:
        out: Folder for the tables; the runs lie in ``faults/`` below.
        seeds: Repetitions in each run.
        progress_bar: Whether to draw one.
    """
    cases = [(name, decider) for decider in DECIDERS for name in (*FAULTS, UNWRITABLE)]
    results = []
    runs = out / "faults"
    shutil.rmtree(runs, ignore_errors=True)
    with (
        LlamaCpp() as embedded,
        embedded.serve() as url,
        progress("faults", len(cases), shown=progress_bar) as advance,
    ):
        for number, (name, decider) in enumerate(cases):
            results.append(_run(url, name, decider, seeds, runs / f"{number:02}"))
            advance(1)
    frame = pd.DataFrame([vars(result) for result in results])
    return write_study(out, "faults", frame, _table(results))


def _run(url: str, name: str, decider: str, seeds: int, folder: Path) -> Result:
    config = default_config(
        "offloading",
        policies=("icl", "random", "oracle"),
        llm="openai:smollm2@http://127.0.0.1/v1",
        interactions=INTERACTIONS,
        seeds=seeds,
        eval_tasks=200,
        sweeps=False,
        icl={"decider": decider},
    )
    with _misbehaving(url, name) as address:
        ended = _compare(config, address, folder, _access(name, folder))
    if ended != "completed":
        # the fault is over: what was stopped goes on
        _compare(config, url, folder, PATIENCE, resume=True)
    return _read(folder, name, decider, ended)


@contextmanager
def _misbehaving(url: str, name: str) -> Iterator[str]:
    fault = FAULTS.get(name)
    if fault is None:
        yield url
        return
    with faulty_server(url, fault) as address:
        yield address


def _compare(
    config: ComparisonConfig,
    url: str,
    folder: Path,
    access: GuardOptions,
    *,
    resume: bool = False,
) -> str:
    """Return ``completed``, or the error that stopped the comparison."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with load_llm(f"openai:smollm2@{url}", timeout=4) as model:
                compare(
                    config, folder, resume=resume, progress_bar=False, model=model, access=access
                )
    except ModelError as error:
        return f"stopped: {error}".replace(url, "URL")
    return "completed"


def _access(name: str, folder: Path) -> GuardOptions:
    if name != UNWRITABLE:
        return PATIENCE
    # no folder can be made below a file
    file = folder.with_suffix(".file")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return PATIENCE.model_copy(update={"cache": file / "answers"})


def _read(folder: Path, name: str, decider: str, ended: str) -> Result:
    run = load_run(folder)
    values = pd.concat([pd.read_csv(folder / f) for f in ("results.csv", "timings.csv")])
    mine = values[values["policy"] == "icl"]

    def mean(metric: str) -> float:
        rows = mine[mine["metric"] == metric]
        return float(rows[rows["step"] == rows["step"].max()]["value"].mean())

    learned = mine[(mine["split"] == "train") & (mine["metric"] == "reward")]
    return Result(
        name,
        decider,
        ended,
        int(learned.groupby("seed").size().min()),
        mean("optimality"),
        mean("fallback_rate"),
        round(mean("llm_retries")),
        round(mean("llm_failures")),
        " ".join(failures(run)) or "nothing",
    )


def _table(results: list[Result]) -> list[list[str]]:
    header = [
        *("fault", "decider", "run", "decided", "optimality at 60", "by experience"),
        *("retries", "failed for good", "the report says"),
    ]
    return [header] + [
        [
            r.fault,
            r.decider,
            r.ended,
            f"{r.decided} of {INTERACTIONS}",
            f"{r.optimality:.2f}",
            f"{r.fallback_rate:.0%}",
            str(r.retries),
            str(r.failures),
            r.report,
        ]
        for r in results
    ]
