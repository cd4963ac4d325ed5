"""The benchmark runner: what it writes, and what it refuses. Nothing here is timed."""

import json
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from rich.console import Console

from icl_optimizer.agent import ICLAgent
from icl_optimizer.bench import batching, learners, queues, runner
from icl_optimizer.bench.environments import single_rate, vector_rate
from icl_optimizer.bench.language import PlainLoop, Tally, Workload
from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.offloading import OffloadingEnv, OffloadingVectorEnv
from icl_optimizer.environments.registry import make
from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv
from icl_optimizer.environments.slo_scheduling_scalar import ScalarSLOSchedulingEnv
from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.llm import FunctionLLM

KEYS = {
    "ours",
    "peer",
    "unit",
    "ratio",
    "command",
    "note",
    "lowest_ratio",
    "highest_ratio",
    "details",
}


def cheap() -> BenchmarkResult:
    ours, peer = alternate("cheap", 3, lambda i: 10.0 + i, lambda i: 2.0)
    return summarise("cheap", "steps/s", "a fake", ours, peer, details={"share": 0.123456})


def not_installed() -> BenchmarkResult:
    raise MissingDependencyError("needs the peer. Install it: pip install peer")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fake_benchmarks")
    module.__dict__.update(cheap=cheap, not_installed=not_installed)
    monkeypatch.setitem(sys.modules, "fake_benchmarks", module)
    names = {name: f"fake_benchmarks:{name}" for name in ("cheap", "not_installed")}
    monkeypatch.setattr(runner, "BENCHMARKS", names)


def shown(table: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.usefixtures("fakes")
def test_runner_merges_into_the_file(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "results.json"
    out.parent.mkdir()
    out.write_text(json.dumps({"older": {"ratio": 2.0}}))
    table = runner.run_benchmarks("cheap", out)
    data = json.loads(out.read_text())
    assert list(data) == ["cheap", "older"]
    assert set(data["cheap"]) == KEYS
    assert data["cheap"]["ours"] == 11.0
    assert data["cheap"]["ratio"] == 5.5
    assert (data["cheap"]["lowest_ratio"], data["cheap"]["highest_ratio"]) == (5.0, 6.0)
    assert data["cheap"]["command"] == "icl-optimizer bench cheap"
    assert data["cheap"]["details"] == {"share": 0.1235, "rounds": 3.0}
    assert "5.5" in shown(table)


@pytest.mark.usefixtures("fakes")
def test_a_missing_peer_is_left_out_of_all_but_named(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    text = shown(runner.run_benchmarks(None, out))
    assert list(json.loads(out.read_text())) == ["cheap"]
    assert "left out: needs the peer" in text
    with pytest.raises(MissingDependencyError, match="needs the peer"):
        runner.run_benchmarks("not_installed", out)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'env_vs_mobile_env'"):
        runner.run_benchmarks("env_vs_mobile", tmp_path / "results.json")


@pytest.mark.parametrize(("text", "message"), [("[", "not a JSON file"), ("[]", "no object")])
def test_unusable_file(tmp_path: Path, text: str, message: str) -> None:
    out = tmp_path / "results.json"
    out.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        runner.run_benchmarks(None, out)


@pytest.mark.parametrize("name", runner.BENCHMARKS)
def test_every_benchmark_exists(name: str) -> None:
    assert callable(runner.find_benchmark(name))


def test_less_is_better_turns_the_ratio() -> None:
    result = summarise("x", "s", "", (1.0, 2.0, 4.0), (6.0, 6.0, 6.0), less_is_better=True)
    assert (result.ratio, result.lowest_ratio, result.highest_ratio) == (3.0, 1.5, 6.0)


def test_sides_alternate() -> None:
    order: list[str] = []
    alternate("x", 2, lambda i: order.append(f"a{i}") or 1.0, lambda i: order.append(f"b{i}") or 1)
    assert order == ["a0", "b0", "a1", "b1"]


def test_rates_count_whole_episodes() -> None:
    small = {"users": 2, "radio": {"n_resource_blocks": 4}}
    batch = OffloadingVectorEnv(3, **small)
    assert vector_rate(batch, 1) > 0
    np.testing.assert_array_equal(batch.elapsed, 0)
    single: gym.Env = OffloadingEnv(**small, horizon=5)
    assert single_rate(single) > 0


def test_rates_of_queues_count_whole_episodes() -> None:
    batch, plain = SLOSchedulingVectorEnv(3), ScalarSLOSchedulingEnv()
    assert queues.batch_rate(batch, 2) > 0
    np.testing.assert_array_equal(batch.elapsed, 0)
    assert queues.plain_rate(plain, 2) > 0
    assert all(task.server >= 0 for task in plain.tasks)
    assert queues.core_rate(1) > 0


def test_both_sides_serve_the_same_requests() -> None:
    load = batching.draw_load(2, 20)
    np.testing.assert_array_equal(load.arrival[:, 0], batching.draw_load(1, 20).arrival[:, 0])
    assert (np.diff(load.arrival, axis=0) > 0).all()
    assert batching.bank_rate(load) > 0
    assert batching.plain_rate(load, 20, 1) > 0


@pytest.mark.slow
def test_learning_is_timed_until_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    held = Held("offloading", learners.SETTINGS, seed=0, tasks=100)
    monkeypatch.setattr(learners, "GOAL", -10.0)
    assert learners.train_seconds(held, learners.BATCHED_DQN, 8, every=16, seed=0) > 0
    monkeypatch.setattr(learners, "GOAL", 10.0)
    monkeypatch.setattr(learners, "LIMIT", 64)
    with pytest.raises(RuntimeError, match="did not reach"):
        learners.train_seconds(held, learners.BATCHED_DQN, 8, every=16, seed=0)


def test_answers_are_tallied() -> None:
    tally = Tally()
    for answer, best in ((0, 0), (1, 0), (None, 0), (1, 1)):
        tally.add(answer, best)
    assert tally.shares("peer") == {"peer_valid": 0.75, "peer_right": 0.5}


def test_plain_loop_shows_every_example_and_reads_the_label() -> None:
    env = make("offloading", 2)
    queries, _ = env.reset(seed=0)
    agent = ICLAgent(env.problem, FunctionLLM(lambda prompt: env.problem.labels[0]))
    contexts = env.problem.describe_all(queries)
    agent.learn_from([Outcome(i, c, i, 1.0) for i, c in enumerate(contexts)])
    work = Workload(agent, queries, np.array([0, 1]))
    chat = FakeListChatModel(responses=["Decision: offload", "local.", "no idea"])
    for turns in (False, True):
        loop = PlainLoop(chat, work, turns=turns)
        assert [loop.decide(queries[0]) for _ in range(3)] == [1, 0, None]
