"""What becomes of requests and of what was learned when something around the router fails."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from icl_optimizer.rollout import progress
from icl_optimizer.studies.load import LoadPlan, LoadResult, finish_load, start_load
from icl_optimizer.studies.router_process import RouterProcess, fleet_at
from icl_optimizer.studies.stub_process import StubProcess
from icl_optimizer.studies.stub_server import StubFault, StubFaultKind, StubSettings
from icl_optimizer.studies.tables import write_study

SERVERS = ("a", "b", "c")
POLICY = "table"
RATE = 20.0
DURATION_S = 16.0
TOKENS, TTFT_S, TOKEN_S = 16, 0.05, 0.01
SILENCE_S = 2.0
"""Longest silence of a server; the defaults are a minute and 20 seconds to the first token."""
SLOW_S = 4.0
"""Time after which a client that takes nothing is cut off; the default is 30 seconds."""
_LONG, _PADDING = 2000, 6000
"""Tokens and characters of each: an answer that no buffer between router and client holds."""
_BEGIN_S = 60.0


@dataclass
class Scene:
    """Everything that may fail.

    Attributes:
        stubs: The servers by name.
        router: In front of them.
        pool: What the router has learned.
        slow: Slow clients at work, if any.
    """

    stubs: Mapping[str, StubProcess]
    router: RouterProcess
    pool: Path
    slow: subprocess.Popen[bytes] | None = None

    def order(self, kind: StubFaultKind) -> None:
        """Let the first server misbehave."""
        self.stubs[SERVERS[0]].order(StubFault(kind=kind))

    def rows(self) -> int:
        """Return how many outcomes are on disk."""
        if not self.pool.exists():
            return 0
        connection = sqlite3.connect(self.pool)
        try:
            return int(connection.execute("SELECT count(*) FROM outcomes").fetchone()[0])
        finally:
            connection.close()


Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Fault:
    """Something that fails for the middle half of the load.

    Attributes:
        name: In the table.
        begin: Makes it fail.
        end: Makes it work again.
        long: Whether servers' answers are long, where a request asks for that.
    """

    name: str
    begin: Act
    end: Act
    long: bool = False


@dataclass
class Result:
    """One row of the table.

    Attributes:
        fault: What failed.
        sent: Requests.
        answered: With a whole answer.
        errors: With an error that says what happened, by kind.
        lost: With neither.
        lost_streams: Of these, streams of which tokens had arrived.
        elsewhere: Attempts that failed and were made again at another server.
        learned: Outcomes on disk at the end.
        pending: Outcomes that were in memory only, at most.
        p99_s: Of the answered ones, from due to end.
        cut_off: Clients that took nothing for too long.
    """

    fault: str
    sent: int = 0
    answered: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    lost_streams: int = 0
    elsewhere: int = 0
    learned: int = 0
    pending: int = 0
    p99_s: float = 0.0
    cut_off: int = 0


def _nothing(scene: Scene) -> None:
    pass


def _ordered(kind: StubFaultKind) -> tuple[Act, Act]:
    return lambda scene: scene.order(kind), lambda scene: scene.order("none")


def _kill_one(scene: Scene) -> None:
    scene.stubs[SERVERS[0]].kill()


def _restart_one(scene: Scene) -> None:
    scene.stubs[SERVERS[0]].restart()


def _kill_all(scene: Scene) -> None:
    for stub in scene.stubs.values():
        stub.kill()


def _restart_all(scene: Scene) -> None:
    for stub in scene.stubs.values():
        stub.restart()


def _slow_clients(scene: Scene) -> None:
    plan = LoadPlan(
        url=scene.router.url,
        rate=2.0,
        duration_s=4.0,
        stream_share=1.0,
        max_tokens=_LONG,
        headers=scene.router.headers,
        timeout_s=4 * SLOW_S,
        read_pause_s=2 * SLOW_S,
    )
    scene.slow = start_load(plan)


FAULTS = (
    Fault("none", _nothing, _nothing),
    Fault("a server is killed, and back", _kill_one, _restart_one),
    Fault("a server hangs", *_ordered("hang")),
    Fault("a server answers 500", *_ordered("500")),
    Fault("a server resets connections", *_ordered("reset")),
    Fault("a server cuts answers in the middle", *_ordered("cut")),
    Fault("all servers are killed, and back", _kill_all, _restart_all),
    Fault(
        "the router is killed and restarted",
        lambda scene: scene.router.kill(),
        lambda scene: scene.router.restart(),
    ),
    Fault(
        "the disk of the pool is full",
        lambda scene: scene.router.fill_disk(),
        lambda scene: scene.router.free_disk(),
    ),
    Fault("8 clients do not read", _slow_clients, _nothing, long=True),
)


def run_router_faults(
    out: Path,
    seeds: int = 1,
    *,
    faults: tuple[Fault, ...] = FAULTS,
    duration_s: float = DURATION_S,
    progress_bar: bool = True,
) -> Path:
    """Write ``router-faults.csv`` and ``router-faults.md``; return the latter's path.

    Args:
        out: Folder for both.
        seeds: Repetitions of each fault, with other arrivals.
        faults: What fails, one after the other.
        duration_s: Seconds of load per fault.
        progress_bar: Whether to draw one.
    """
    folder = out / "router-faults"
    shutil.rmtree(folder, ignore_errors=True)
    results = []
    with progress("router-faults", len(faults) * seeds, shown=progress_bar) as advance:
        for number, fault in enumerate(faults):
            for seed in range(seeds):
                where = folder / f"{number:02}-{seed}"
                results.append(_run(fault, where, seed, duration_s))
                advance(1)
    frame = pd.DataFrame([asdict(result) for result in results])
    return write_study(out, "router-faults", frame, _table(results))


def _run(fault: Fault, folder: Path, seed: int, duration_s: float) -> Result:
    with ExitStack() as held:
        scene = _scene(held, folder, long=fault.long)
        load = start_load(
            LoadPlan(
                url=scene.router.url,
                rate=RATE,
                duration_s=duration_s,
                arrivals="poisson",
                seed=seed,
                stream_share=0.5,
                max_tokens=TOKENS,
                headers=scene.router.headers,
            )
        )
        try:
            pending = _disturb(scene, fault, duration_s)
        except BaseException:
            load.kill()
            load.communicate()
            raise
        sent = finish_load(load)
        if scene.slow is not None:
            finish_load(scene.slow)
        cut_off = scene.router.status()["totals"]["cancelled"]
        # what waits for the disk is written with the next outcome, or at the end
        scene.router.close()
        return _result(fault.name, sent, scene.rows(), pending, cut_off)


def _scene(held: ExitStack, folder: Path, *, long: bool) -> Scene:
    usual = {"tokens": TOKENS, "ttft_s": TTFT_S, "token_s": TOKEN_S}
    fields = {"tokens": _LONG, "padding": _PADDING} if long else usual
    settings = [StubSettings.model_validate({"name": name, **fields}) for name in SERVERS]
    stubs = {each.name: held.enter_context(StubProcess(each)) for each in settings}
    urls = {name: stub.url for name, stub in stubs.items()}
    fleet = fleet_at(urls, slots=8, queue_size=50, timeout_s=SILENCE_S)
    pool = folder / "pool.sqlite"
    limits = {"first_token_timeout_s": SILENCE_S, "client_timeout_s": SLOW_S}
    options = [part for name, s in limits.items() for part in ("--set", f"{name}={s:g}")]
    options += ["--pool", str(pool)]
    router = held.enter_context(RouterProcess(fleet, folder, POLICY, options))
    return Scene(stubs, router, pool)


def _disturb(scene: Scene, fault: Fault, duration_s: float) -> int:
    """Let the fault hold for the middle half; return how many outcomes waited for the disk."""
    limit = time.monotonic() + _BEGIN_S
    while scene.router.status()["totals"]["requests"] == 0 and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(duration_s / 4)
    fault.begin(scene)
    time.sleep(duration_s / 2)
    waited = scene.router.status()["totals"]["pool_pending"] if scene.router.running else 0
    fault.end(scene)
    return int(waited)


def _result(name: str, sent: LoadResult, learned: int, pending: int, cut_off: int) -> Result:
    samples = sent.samples
    told = [s.detail for s in samples if s.became == "error"]
    return Result(
        name,
        len(samples),
        sent.count("answered"),
        dict(Counter(told)),
        sent.lost,
        sum(s.became == "broken" and s.streamed for s in samples),
        sum(s.became == "answered" and s.attempts > 1 for s in samples),
        learned,
        pending,
        sent.percentile(99),
        cut_off,
    )


def _table(results: list[Result]) -> list[list[str]]:
    header = [
        *("fault", "sent", "answered", "of these at another server", "clear errors", "lost"),
        *("outcomes on disk", "waited for the disk", "p99, s", "clients cut off"),
    ]
    return [header] + [
        [
            r.fault,
            str(r.sent),
            str(r.answered),
            str(r.elsewhere),
            _counts(r.errors),
            str(r.lost) + (f" ({r.lost_streams} in mid-stream)" if r.lost_streams else ""),
            str(r.learned),
            str(r.pending),
            f"{r.p99_s:.2f}",
            str(r.cut_off),
        ]
        for r in results
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} x {what}" for what, number in counts.items()) or "0"
