"""Who gets into the router, and whether those who do not can keep others out."""

from __future__ import annotations

import json
import re
import shutil
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from icl_optimizer.rollout import progress
from icl_optimizer.studies.access_tricks import PROMPT, ask_raw, tricks
from icl_optimizer.studies.router_process import KEY, RouterProcess, fleet_at
from icl_optimizer.studies.slow_connections import finish_slow, start_slow
from icl_optimizer.studies.stub_process import StubProcess
from icl_optimizer.studies.tables import write_study

SLOW = 10_000
SECONDS = 20.0
_PAUSE_S = 0.05
_GAUGE = re.compile(r"^(router_connections\w*) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Attempt:
    """One row of the table.

    Attributes:
        what: Was tried.
        tried: How often.
        answers: Statuses that came back, and how often; 0 is a closed connection.
        reached: Requests that reached a server.
        logged: Lines with a key or a prompt in what the router wrote.
    """

    what: str
    tried: int
    answers: str
    reached: int
    logged: int


@dataclass
class Meanwhile:
    """What others saw of the router while slow clients held it.

    Attributes:
        asked: Their requests.
        answered: Those with an answer.
        longest_s: The longest of them.
        most_open: Connections open at once.
        evicted: Connections closed to make room.
        grown_mb: What the router's memory grew by.
    """

    asked: int = 0
    answered: int = 0
    longest_s: float = 0.0
    most_open: int = 0
    evicted: int = 0
    grown_mb: float = 0.0


def run_router_access(
    out: Path,
    seeds: int = 20,
    *,
    slow: int = SLOW,
    seconds: float = SECONDS,
    progress_bar: bool = True,
) -> Path:
    """Try to get in, and write ``router-access.csv`` and ``router-access.md``.

    Args:
        out: Folder for the tables.
        seeds: How often each trick is tried.
        slow: Slow connections.
        seconds: How long they are held.
        progress_bar: Whether to draw one.
    """
    folder = out / "router-access"
    shutil.rmtree(folder, ignore_errors=True)
    log = folder / "decisions.jsonl"
    with StubProcess() as stub:
        fleet = fleet_at({"one": stub.url, "two": stub.url}, queue_size=100, slots=100)
        with RouterProcess(fleet, folder, options=["--log", str(log)]) as router:
            attempts = _attempts(router, stub, folder, seeds, progress_bar)
            seen = _slow(router, slow, seconds)
            attempts.append(_last(slow, seen, folder))
    frame = pd.DataFrame([{**asdict(each), **asdict(seen)} for each in attempts])
    return write_study(out, "router-access", frame, _table(attempts))


def _attempts(
    router: RouterProcess, stub: StubProcess, folder: Path, times: int, progress_bar: bool
) -> list[Attempt]:
    port = _port(router)
    found = []
    cases = tricks(KEY, times)
    with progress("router-access", len(cases), shown=progress_bar) as advance:
        for what, requests in cases.items():
            before = stub.counts().received
            answers = Counter(ask_raw(port, request) for request in requests)
            reached = stub.counts().received - before
            found.append(Attempt(what, len(requests), _text(answers), reached, _logged(folder)))
            if not _asks(router):
                raise RuntimeError(f"after '{what}' the router answers nobody")
            advance(1)
    return found


def _slow(router: RouterProcess, number: int, seconds: float) -> Meanwhile:
    """Let slow clients come, and ask as somebody with a key meanwhile."""
    seen = Meanwhile()
    before = _memory_mb(router.pid)
    process = start_slow(_port(router), number, seconds)
    while process.poll() is None:
        began = time.monotonic()
        seen.asked += 1
        seen.answered += _asks(router)
        seen.longest_s = max(seen.longest_s, time.monotonic() - began)
        gauges = _connections(router)
        seen.most_open = max(seen.most_open, gauges["router_connections"])
        seen.evicted = gauges["router_connections_evicted"]
        time.sleep(_PAUSE_S)
    counts = finish_slow(process)
    if counts.opened < number:
        raise RuntimeError(f"{counts.opened} of {number} slow connections were opened")
    seen.grown_mb = _memory_mb(router.pid) - before
    return seen


def _last(number: int, seen: Meanwhile, folder: Path) -> Attempt:
    told = (
        f"at most {seen.most_open} open at once, {seen.evicted} closed to make room; meanwhile "
        f"{seen.answered} of {seen.asked} requests of others answered, the slowest in "
        f"{seen.longest_s:.2f} s; {seen.grown_mb:.0f} MB more memory"
    )
    return Attempt("slow connections", number, told, 0, _logged(folder))


def _table(attempts: list[Attempt]) -> list[list[str]]:
    header = ["what was tried", "times", "answers", "reached a server", "key or prompt logged"]
    rows = [
        [each.what, f"{each.tried:,}", each.answers, str(each.reached), str(each.logged)]
        for each in attempts
    ]
    return [header, *rows]


def _text(answers: Counter[int]) -> str:
    return ", ".join(f"{status} × {n}" for status, n in sorted(answers.items()))


def _port(router: RouterProcess) -> int:
    return int(router.root.rpartition(":")[2])


def _asks(router: RouterProcess) -> bool:
    """Whether somebody with a key gets an answer."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    headers = {**router.headers, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{router.url}/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bool(json.loads(answer.read())["choices"])
    except (OSError, ValueError, KeyError):
        return False


def _connections(router: RouterProcess) -> dict[str, int]:
    request = urllib.request.Request(f"{router.root}/metrics", headers=router.headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = _GAUGE.findall(answer.read().decode())
    return {name: int(float(value)) for name, value in found}


def _memory_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def _logged(folder: Path) -> int:
    """Return how many lines of all that the router wrote hold a key or a prompt."""
    texts = [file.read_text(errors="replace") for file in folder.iterdir() if file.is_file()]
    lines = [line for text in texts for line in text.splitlines()]
    return sum(KEY in line or PROMPT in line for line in lines)
