"""Engines: the same results wherever units run, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import tiny_runners
from loopback import Reply, serve
from tiny_runners import failing, growing, killing

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.engines import ATTEMPTS, Engine, Processes, RayCluster
from icl_optimizer.comparison.ray_session import ray_session
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.store import RunStore
from icl_optimizer.comparison.unit import Row, UnitResult
from icl_optimizer.comparison.work import Work, limited_threads
from icl_optimizer.errors import ConfigurationError, ModelError, WorkerError
from icl_optimizer.llm.guard import GuardOptions
from icl_optimizer.studies.scale import table

TABLES = ("results.csv", "results.parquet", "explain.json", "config.json")
SMALL: dict[str, Any] = {"users": 2, "horizon": 10, "radio.n_resource_blocks": 4}
LEARNERS = ("bandit", "knn", "random", "dqn")


def config(**fields: Any) -> ComparisonConfig:
    usual: dict[str, Any] = {
        "environment": "offloading",
        "settings": SMALL,
        "policies": LEARNERS,
        "seeds": 2,
        "interactions": 20,
        "drl_interactions": 40,
        "train": True,
        "eval_tasks": 20,
        "sweeps": False,
    }
    return ComparisonConfig(**usual | fields)


def tables(folder: Path, names: Sequence[str] = TABLES) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the tables of a run in this process."""
    place = tmp_path_factory.mktemp("runs") / "here"
    return tables(compare(config(), place, progress_bar=False))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Keep one Ray session for all tests that need one; starting it takes seconds."""
    with ray_session(None, 2) as ray:
        # its workers do not find the tests' modules
        ray.cloudpickle.register_pickle_by_value(tiny_runners)
        yield


def works(*policies: str) -> list[Work]:
    return [Work(config(), policy, seed) for policy in policies for seed in (0, 1)]


def check_a_lost_worker(engine: Engine, asked: list[Work], place: Path) -> None:
    done = list(engine.run(asked))
    assert sorted(one.index for one in done) == list(range(len(asked)))
    for one in done:
        work = asked[one.index]
        assert one.result.explanation == {"who": f"{work.policy}-{work.seed}"}
    # the others ran once
    starts = {path.name: len(path.read_text()) for path in place.iterdir()}
    assert starts == {f"{w.policy}-{w.seed}": 1 + (w.policy == "knn") for w in asked}


@pytest.mark.slow
def test_two_processes_give_the_same_files(wanted: dict[str, bytes], tmp_path: Path) -> None:
    assert tables(compare(config(), tmp_path / "two", jobs=2, progress_bar=False)) == wanted


@pytest.mark.slow
def test_ray_gives_the_same_files(wanted: dict[str, bytes], tmp_path: Path, cluster: None) -> None:
    assert tables(compare(config(), tmp_path / "r", engine="ray", progress_bar=False)) == wanted


@pytest.mark.llm
@pytest.mark.slow
def test_the_embedded_model_gives_the_same_files_everywhere(tmp_path: Path, cluster: None) -> None:
    # the second unit of a process meets a model that has been asked before
    small = {"settings": SMALL | {"horizon": 4}, "eval_tasks": 4, "interactions": 3}
    asked = config(policies=("icl",), seeds=2, **small)
    here, two, far = (
        tables(compare(asked, tmp_path / name, progress_bar=False, **options))
        for name, options in {
            "here": {},
            "two": {"jobs": 2},
            "far": {"engine": "ray"},
        }.items()
    )
    assert here == two
    assert here == far


@pytest.mark.slow
def test_a_process_that_has_grown_goes_on(recwarn: pytest.WarningsRecorder) -> None:
    ran = list(Processes(1, growing).run(works("bandit", "random")[:3]))
    assert len({str(one.result.explanation) for one in ran}) == 1
    assert not recwarn.list


def test_a_lost_process_takes_its_unit_alone(tmp_path: Path) -> None:
    engine = Processes(2, killing(tmp_path, "knn", 1))
    check_a_lost_worker(engine, works("bandit", "knn", "random"), tmp_path)


def test_a_unit_that_kills_every_process_is_named(tmp_path: Path) -> None:
    engine = Processes(1, killing(tmp_path, "knn", 99))
    with pytest.raises(
        WorkerError, match=r"policy 'knn' with seed \d on offloading .*lost 3 times"
    ):
        list(engine.run(works("knn")))
    assert max(len(path.read_text()) for path in tmp_path.glob("knn-*")) == ATTEMPTS


@pytest.mark.slow
def test_ray_runs_a_lost_unit_again_and_names_one_it_cannot_run(
    tmp_path: Path, cluster: None
) -> None:
    engine = RayCluster(runner=killing(tmp_path, "knn", 1))
    check_a_lost_worker(engine, works("bandit", "knn", "random"), tmp_path)
    with pytest.raises(WorkerError, match=r"policy 'dqn' with seed 0 .*lost 3 times"):
        list(RayCluster(runner=killing(tmp_path, "dqn", 99)).run(works("dqn")[:1]))
    assert len((tmp_path / "dqn-0").read_text()) == ATTEMPTS
    with pytest.raises(KeyError, match="bandit"):
        list(RayCluster(runner=failing).run(works("bandit")))
    many = Work(config(threads=3), "bandit", 0)
    with pytest.raises(ConfigurationError, match="threads is 3; allowed: 1 to 2"):
        list(RayCluster(runner=failing).run([many]))


def test_what_nobody_expects_is_passed_on() -> None:
    with pytest.raises(KeyError, match="bandit"):
        list(Processes(2, failing).run(works("bandit")))


ARGUMENTS = (
    *("compare", "offloading", "--policies", *LEARNERS[:3], "--seeds", "3"),
    *("--interactions", "60", "--eval-tasks", "200", "--no-sweeps", "--quiet"),
    *(part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")),
)


def command(folder: Path, *further: str) -> list[str]:
    call = "from icl_optimizer.cli import main; main()"
    return [sys.executable, "-c", call, *ARGUMENTS, "--out", str(folder), *further]


def units(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("units/*-?.json")}


def started(folder: Path) -> subprocess.Popen[bytes]:
    """Return a run in two processes that has finished a unit, and others not."""
    process = subprocess.Popen(command(folder, "--jobs", "2"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not units(folder):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of that run in one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    small = {"policies": LEARNERS[:3], "seeds": 3, "interactions": 60, "eval_tasks": 200}
    asked = config(**small, drl_interactions=None, train=False)
    return compare(asked, folder, progress_bar=False)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(alone: Path, tmp_path: Path) -> None:
    with started(tmp_path / "run") as process:
        victim = psutil.Process(process.pid).children()[0]
        victim.kill()
        assert process.wait(120) == 0
    assert tables(tmp_path / "run", TABLES[:3]) == tables(alone, TABLES[:3])


@pytest.mark.slow
def test_a_killed_run_is_resumed(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(folder) as process:
        workers = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    # nobody goes on behind the back of the one that resumes
    assert not psutil.wait_procs(workers, 20)[1]
    before = units(folder)
    assert 0 < len(before) < 9
    subprocess.run(command(folder, "--resume"), check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert {path: units(folder)[path] for path in before} == before
    assert tables(folder, TABLES[:3]) == tables(alone, TABLES[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "rya"}, "unknown engine 'rya'. Did you mean 'ray'?"),
        ({"jobs": 0}, "jobs is 0; allowed: 1 or more"),
        ({"ray_address": "here:1"}, "ray_address is 'here:1' with engine 'local'"),
    ],
)
def test_bad_options_end_before_any_work(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as error:
        compare(config(), tmp_path / "run", progress_bar=False, **options)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_threads_are_limited_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info

    torch = pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with limited_threads(1):
            assert torch.get_num_threads() == 1
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
            assert os.environ["OMP_NUM_THREADS"] == "1"
        assert torch.get_num_threads() == 2
        assert os.environ["OMP_NUM_THREADS"] == "5"
    finally:
        torch.set_num_threads(before)


def test_the_study_holds_the_fastest_against_one_worker() -> None:
    columns = ["engine", "jobs", "repetition", "seconds", "units", "same"]
    rows = [
        ("local", 1, 0, 100.0, 9, True),
        ("local", 2, 0, 60.0, 9, True),
        ("local", 1, 1, 90.0, 9, True),
        ("local", 2, 1, 50.0, 9, False),
    ]
    assert table(pd.DataFrame(rows, columns=columns))[1:] == [
        ["local", "1", "9", "90", "1.00", "yes"],
        ["local", "2", "9", "50", "1.80", "no"],
    ]


def test_a_stopped_unit_counts_until_it_is_finished(tmp_path: Path) -> None:
    mine, other = (RunStore(tmp_path / n, config(), resume=False) for n in ("a", "b"))
    row = Row("offloading", "default", "bandit", "", 0, "eval", 10, "reward", 1.0)
    for store in (mine, other):
        store.keep_partial("bandit", 0, UnitResult([row]))
    other.keep("bandit", 0, UnitResult([row, replace(row, step=20)]))
    mine.copy(other, "bandit", 0)
    # as a kill between the two writes leaves it
    other.keep_partial("bandit", 0, UnitResult([row]))
    for store in (mine, other):
        store.write_tables()
        assert len((store.folder / "results.csv").read_text().splitlines()) == 3
        assert json.loads((store.folder / "explain.json").read_text())["stopped"] == []


def test_what_a_kill_leaves_of_the_first_write_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "config.partial").write_text("{")
    RunStore(tmp_path, config(), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_model_that_does_not_answer_is_met_before_any_unit(
    tmp_path: Path, cluster: None, engine: Any
) -> None:
    down = Reply({"error": "down"}, 500)
    with serve(lambda asked: down) as url, pytest.raises(ModelError, match="500"):
        compare(
            config(policies=("random", "icl"), llm=f"openai:tiny@{url}/v1"),
            tmp_path / "run",
            jobs=2,
            engine=engine,
            progress_bar=False,
            access=GuardOptions(retry={"attempts": 1}),
        )
    assert not list((tmp_path / "run" / "units").glob("*"))
