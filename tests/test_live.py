"""The live environment on scripted servers: the twin's tasks, real requests, one fleet for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from live_stub import TEXT, StubServers

from icl_optimizer.comparison.config import default_config
from icl_optimizer.comparison.live import LiveHeld, live_tasks
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.unit import unit_budget
from icl_optimizer.environments import live_fleet
from icl_optimizer.environments.live import LiveEnv, LiveVectorEnv, twin_of
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.environments.slo_scheduling_tasks import draw_tasks
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.report import summary_table, write_report
from icl_optimizer.report.loading import load_run
from icl_optimizer.report.summary import key_table
from icl_optimizer.studies.twin import (
    agreeing_pairs,
    relative_difference,
    run_twin,
    twin_table,
)

HASTE: dict[str, Any] = {"arrival_rate": 100.0, "horizon": 8}


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServers]:
    with StubServers() as servers:
        yield servers


def played(env: LiveVectorEnv, actions: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Play an episode and return what came of each decision, by the decision's number."""
    _, info = env.reset(seed=seed)
    ids, rows = [], []
    for action in actions:
        ids.append(int(info["decision_id"][0]))
        _, reward, _, _, info = env.step(np.array([action]))
        outcomes = info["outcomes"]
        assert reward[0] == outcomes.reward.sum()
        names = outcomes.metrics
        rows += [
            (int(outcomes.decision_id[i]), {name: names[name][i] for name in names})
            for i in range(len(outcomes))
        ]
    env.close()
    found = dict(rows)
    assert sorted(found) == sorted(ids)
    assert len(rows) == len(ids)
    return {name: np.array([found[i][name] for i in ids]) for name in found[ids[0]]}


def build(
    stub: StubServers, *names: str, server: dict[str, Any] | None = None, **fields: Any
) -> Any:
    fleet = stub.fleet(*names, **(server or {}))
    return LiveVectorEnv(fleet=fleet, autoreset=False, **HASTE | fields)


def test_it_meets_the_tasks_of_its_twin(stub: StubServers) -> None:
    env = build(stub, "ash", "birch", mixed_deadlines_s=(5.0, 9.0))
    twin = make("slo-scheduling", 1, **twin_of(env.config))
    assert env.problem.labels == twin.problem.labels == ("ash", "birch")
    assert env.problem.columns == twin.problem.columns
    assert env.single_observation_space == twin.single_observation_space
    seen, _ = env.reset(seed=5)
    expected, _ = twin.reset(seed=5)
    np.testing.assert_array_equal(seen, expected)
    draws = draw_tasks([np.random.default_rng(5)], env.twin)
    np.testing.assert_array_equal(env._arrival_s, draws.arrival_s[0])
    for k in range(HASTE["horizon"] - 1):
        seen, *_ = env.step(np.array([0]))
        assert tuple(seen[0, 2:]) == (draws.kind[0, k + 1], draws.deadline_s[0, k + 1])
    env.close()


def test_every_decision_has_the_outcome_of_its_answer(stub: StubServers) -> None:
    env = build(stub, "ash", "birch", server={"slots": 4})
    before = len(stub.seen)
    found = played(env, [0, 1] * 4)
    scores = [task.check(TEXT) for task in env._tasks]
    assert found["score"].tolist() == scores
    assert found["server"].tolist() == [0, 1] * 4
    assert found["deadline_met"].all()
    assert not found["failed"].any()
    assert not found["dropped"].any()
    assert (found["tokens"] == 3).all()
    assert (found["ttft_s"] > 0).all()
    assert (found["response_time_s"] >= found["ttft_s"]).all()
    asked = [body["messages"][-1]["content"] for _, body in stub.seen[before:]]
    assert sorted(asked) == sorted(task.messages[-1]["content"] for task in env._tasks)


def test_the_same_seed_asks_the_same(stub: StubServers) -> None:
    first, second = build(stub, "ash", "birch"), build(stub, "ash", "birch")
    for env, seed in ((first, 3), (second, 4), (second, 3)):
        env.reset(seed=seed)
        env.close()
    assert first._tasks == second._tasks


def test_a_request_is_cancelled_at_its_deadline(stub: StubServers) -> None:
    env = build(stub, "held", "ash", deadline_s=0.1)
    found = played(env, [0] * 8)
    assert not found["deadline_met"].any()
    assert not found["score"].any()
    assert not found["failed"].any()
    assert not found["dropped"].any()
    assert (found["response_time_s"] >= 0.1).all()


def test_a_late_answer_is_waited_for_where_asked(stub: StubServers) -> None:
    env = build(stub, "late", "ash", deadline_s=0.01, cancel=False, horizon=2)
    assert not env.twin.cancel_late
    env.reset(seed=0)
    env.step(np.array([0]))
    stub.let_go()
    *_, info = env.step(np.array([1]))
    env.close()
    outcomes = info["outcomes"]
    late = outcomes.metrics["server"] == 0
    assert outcomes.metrics["tokens"][late].tolist() == [3]
    assert (outcomes.metrics["response_time_s"][late] > 0.01).all()
    assert not outcomes.metrics["deadline_met"][late].any()


def test_a_full_queue_drops(stub: StubServers) -> None:
    env = build(stub, "held", "ash", server={"queue_size": 1}, deadline_s=0.5, horizon=3)
    found = played(env, [0] * 3)
    assert found["dropped"].tolist() == [0, 1, 1]
    assert found["response_time_s"][1:].tolist() == [0, 0]


def test_a_server_out_of_order_fails(stub: StubServers) -> None:
    env = build(stub, "broken", "ash")
    found = played(env, [0] * 6 + [1] * 2)
    assert found["failed"].tolist() == [1] * 6 + [0] * 2
    assert found["deadline_met"].tolist() == [0] * 6 + [1] * 2


def test_queues_are_seen_and_an_episode_can_be_left(stub: StubServers) -> None:
    env = build(stub, "held", "ash", deadline_s=60.0)
    env.reset(seed=0)
    for k in range(3):
        seen, *_ = env.step(np.array([0]))
        assert seen[0, 0] == k + 1
    seen, _ = env.reset(seed=0)
    assert seen[0, 0] == 0
    env.close()


def test_one_real_fleet_is_one_environment(stub: StubServers) -> None:
    with pytest.raises(ConfigurationError, match="num_envs is 2; allowed live: 1"):
        make("live", 2, fleet=stub.fleet("ash", "birch"))
    single = LiveEnv(fleet=stub.fleet("ash", "birch"), **HASTE)
    observation, _ = single.reset(seed=0)
    assert single.observation_space.contains(observation)
    single.close()


def test_arrivals_come_from_a_trace(stub: StubServers, tmp_path: Path) -> None:
    times = [f"2024-05-10 00:00:{k * 0.5:09.6f},5,5" for k in range(40)]
    file = tmp_path / "trace.csv"
    file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *times]))
    env = build(stub, "ash", "birch", trace=str(file), time_scale=0.05)
    env.reset(seed=0)
    np.testing.assert_allclose(np.diff(env._arrival_s), 0.025)
    assert env.twin.arrival_rate == pytest.approx(40.0)
    env.close()
    with pytest.raises(ConfigurationError, match="has 40 requests; allowed: more than horizon"):
        build(stub, "ash", "birch", trace=str(file), horizon=40)
    with pytest.raises(ConfigurationError, match="time_scale"):
        get_spec("live").config({"time_scale": 2.0})


def test_measured_settings_make_the_twin(stub: StubServers, tmp_path: Path) -> None:
    fleet = stub.fleet("ash", "birch")
    file = tmp_path / "twin.yaml"
    file.write_text(
        "length_spread: 0.7\nservers:\n- {name: ash, tokens_per_s: 7}\n"
        "- {name: birch, tokens_per_s: 8}\n"
    )
    env = LiveVectorEnv(fleet=fleet, twin=str(file))
    assert env.twin.speeds.tolist() == [7, 8]
    assert env.twin.length_spread == 0.7
    file.write_text("servers:\n- {name: a, tokens_per_s: 7}\n- {name: b, tokens_per_s: 8}\n")
    with pytest.raises(ConfigurationError, match=r"servers are a, b; allowed: .* ash, birch"):
        LiveVectorEnv(fleet=fleet, twin=str(file))
    with pytest.raises(ConfigurationError, match="twin names 'nowhere'; allowed: a YAML file"):
        LiveVectorEnv(fleet=fleet, twin="nowhere")


# --- comparing policies


def settings(stub: StubServers, **fields: Any) -> dict[str, Any]:
    return {"fleet": stub.fleet("ash", "birch", slots=4), **HASTE, **fields}


def test_policies_learn_in_the_twin(stub: StubServers) -> None:
    given = settings(stub)
    spec = get_policy_spec("dqn-paper")
    env = spec.training_env("live", given)
    assert type(env).__name__ == "SLOSchedulingVectorEnv"
    assert env.problem.labels == ("ash", "birch")
    assert env.config.cancel_late  # type: ignore[attr-defined]
    config = default_config("live", settings=given)
    assert (config.eval_tasks, config.seeds) == (60, 1)
    assert unit_budget(config, "dqn-paper") == spec.budget_in("slo-scheduling", {})
    assert live_tasks("live", given, 9) == 16
    assert live_tasks("slo-scheduling", {}, 9) == 0


def test_the_rehearsal_meets_the_same_arrivals(stub: StubServers) -> None:
    held = LiveHeld("live", settings(stub, horizon=3), 1, 6)
    policy = make_policy("round-robin", held.env.problem)
    episodes = held.outcomes(policy)
    assert [len(part) for part in episodes] == [3, 3]
    again = held.rehearsal
    again.env.reset(seed=again.seed)
    live = [
        o.observation[2] for part in episodes for o in sorted(part, key=lambda o: o.decision_id)
    ]
    kinds = again.env._tasks.kind[:2].ravel()  # type: ignore[attr-defined]
    assert live == kinds.tolist()


def test_one_fleet_serves_a_comparison(
    stub: StubServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    original = live_fleet.FleetThread.__init__

    def count(self: Any, source: Any) -> None:
        opened.append(source)
        original(self, source)

    monkeypatch.setattr(live_fleet.FleetThread, "__init__", count)
    config = default_config(
        "live",
        settings=settings(stub),
        policies=("round-robin", "table"),
        interactions=20,
        eval_tasks=8,
    )
    folder = compare(config, tmp_path / "run", progress_bar=False)
    assert len(opened) == 1
    run = load_run(folder)
    assert run.rows("optimality").empty
    assert set(run.rows("deadline_met")["value"]) == {1.0}
    assert run.rows("deadline_met")["step"].tolist() == [20, 20]
    assert not run.rows("ttft_s").empty
    assert write_report(folder).is_file()
    assert summary_table(folder).row_count == 2
    assert "first token, s" in key_table(run).header


@pytest.mark.parametrize(
    ("fields", "jobs", "message"),
    [
        ({"policies": ("oracle",)}, 1, "'oracle' knows what is to come; allowed live"),
        ({}, 2, "jobs is 2; allowed: 1 with a live environment"),
        ({"drift": {"arrival_rate": 2.0}, "drift_at": 5}, 1, "drift_at is 5; allowed live: none"),
    ],
)
def test_what_cannot_be_compared_live(
    stub: StubServers, tmp_path: Path, fields: dict[str, Any], jobs: int, message: str
) -> None:
    given = {"policies": ("random",), "settings": settings(stub)} | fields
    with pytest.raises(ConfigurationError, match=message):
        compare(default_config("live", **given), tmp_path / "run", jobs=jobs, progress_bar=False)


# --- the study of the twin


def test_the_study_holds_the_twin_against_the_fleet(stub: StubServers, tmp_path: Path) -> None:
    fleet = stub.fleet("longer", "longer-too", slots=4)
    given: dict[str, Any] = {
        "fleet": fleet,
        "policies": ("round-robin", "table"),
        "tasks": 8,
        "measured": 15,
        "settings": HASTE,
        "interactions": 10,
        "progress_bar": False,
    }
    fleet["servers"][1]["llm"] = fleet["servers"][0]["llm"]
    table = run_twin(tmp_path, 1, **given)
    text = table.read_text()
    assert "pairs in the same order" in text
    assert len(text.splitlines()) == 5
    values = pd.read_csv(tmp_path / "twin.csv")
    assert len(values) == 4
    assert (values["failed"] == 0).all()
    assert "R2" in (tmp_path / "twin-fit.md").read_text()
    # what is there is not run again
    asked = len(stub.seen)
    assert run_twin(tmp_path, 1, **given).read_text() == text
    assert len(stub.seen) == asked


def test_the_table_of_the_study() -> None:
    rows = [
        {
            "policy": name,
            "place": place,
            "deadline_met": met,
            "response_time_s": seconds + episode,
            "decided_s": 0.25,
        }
        for name, place, met, seconds in (
            ("a", "live", 0.5, 4.0),
            ("a", "twin", 0.5, 5.0),
            ("b", "live", 0.75, 3.0),
            ("b", "twin", 0.25, 3.0),
        )
        for episode in (0.0, 1.0)
    ]
    values = pd.DataFrame(rows)
    assert agreeing_pairs(values, "response_time_s") == 1
    assert agreeing_pairs(values, "deadline_met") == 0
    assert relative_difference(values[values["policy"] == "a"]) == pytest.approx(1 / 4.5)
    table = twin_table(values)
    assert table[1] == [
        "a",
        "0.500 ± 0.000",
        "0.500 ± 0.000",
        "4.50 ± 0.50",
        "5.50 ± 0.50",
        "+22.2%",
        "0.250",
    ]
    assert table[3][1:] == ["0 of 1", "", "1 of 1", "", "", ""]
