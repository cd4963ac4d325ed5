"""The simulated twin of a fleet: its servers, what they take, and how it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from icl_optimizer.cli.options import pairs
from icl_optimizer.comparison.config import scenario_name
from icl_optimizer.environments.fleet.config import FleetConfig, load_fleet
from icl_optimizer.environments.fleet.twin import scheduling_config
from icl_optimizer.environments.queues import QueueBank
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.environments.slo_scheduling import SLOSchedulingVectorEnv, build_problem
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES, SLOSchedulingConfig
from icl_optimizer.environments.slo_scheduling_tasks import draw_tasks
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import make_policy

SERVERS: list[dict[str, Any]] = [
    {"name": "ash", "llm": "openai:x@http://127.0.0.1:1/v1", "tokens_per_s": 12, "overhead_s": 0.5},
    {
        "name": "birch",
        "llm": "openai:x@http://127.0.0.1:2/v1",
        "tokens_per_s": 4,
        "slots": 3,
        "queue_size": 6,
        "mean_tokens": {"math": 30.0},
        "scores": {"math": 0.25, "language": 0.75},
    },
]


def fleet(**fields: Any) -> FleetConfig:
    return load_fleet({"servers": SERVERS, "deadline_s": 6.0, **fields})


def test_the_twin_is_what_the_fleet_file_says() -> None:
    config = scheduling_config(fleet(length_spread=0.3), arrival_rate=0.5)
    assert config.names == ("ash", "birch")
    assert (config.deadline_s, config.arrival_rate, config.length_spread) == (6.0, 0.5, 0.3)
    assert config.cancel_late
    assert config.slots_each.tolist() == [1, 3]
    assert config.capacity.tolist() == [10, 6]
    math = TASK_TYPES.index("math")
    assert config.mean_service[math].tolist() == [0.5 + 500 / 12, 30 / 4]
    assert config.mean_score[math].tolist() == [1.0, 0.25]
    problem = build_problem(config)
    assert problem.name == "slo-scheduling"
    assert problem.labels == ("ash", "birch")
    assert [c.high for c in problem.columns[:2]] == [10, 6]  # type: ignore[union-attr]
    assert [dict(p) for p in problem.profiles] == [{"Model": "ash"}, {"Model": "birch"}]


def test_the_demo_fleet_has_a_twin() -> None:
    demo = load_fleet("demo")
    assert build_problem(scheduling_config(demo)).labels == demo.names


def test_service_is_overhead_and_tokens() -> None:
    """One task in an idle fleet takes exactly its service time."""
    config = scheduling_config(fleet(), horizon=1, deadline_s=3000.0, dump_action=True)
    env = SLOSchedulingVectorEnv(40, config, autoreset=False)
    env.reset(seed=3)
    actions = np.arange(40) % 2
    *_, info = env.step(actions)
    draws = draw_tasks([np.random.default_rng(3 + i) for i in range(40)], config)
    tokens = draws.tokens[np.arange(40), 0, actions]
    expected = config.overheads[actions] + tokens / config.speeds[actions]
    response = info["outcomes"].metrics["response_time_s"]
    np.testing.assert_allclose(response, expected, rtol=1e-9)
    shares = env.summarise(
        info["outcomes"].reward, info["outcomes"].feasible, info["outcomes"].metrics
    )
    assert shares["share_ash"] == shares["share_birch"] == 0.5


def test_lengths_have_the_servers_own_means() -> None:
    servers = tuple(
        {"name": name, "tokens_per_s": 9.0, "mean_tokens": dict.fromkeys(TASK_TYPES, mean)}
        for name, mean in (("short", 20.0), ("long", 80.0))
    )
    config = SLOSchedulingConfig(servers=servers, horizon=20_000)  # type: ignore[arg-type]
    tokens = draw_tasks([np.random.default_rng(0)], config).tokens[0]
    np.testing.assert_allclose(tokens.mean(axis=0), [20, 80], rtol=0.02)


def test_arrivals_and_types_do_not_depend_on_the_servers() -> None:
    plain, twin = (
        draw_tasks([np.random.default_rng(8)], config)
        for config in (SLOSchedulingConfig(), scheduling_config(fleet()))
    )
    np.testing.assert_array_equal(plain.arrival_s, twin.arrival_s)
    np.testing.assert_array_equal(plain.kind, twin.kind)


def test_the_expert_knows_the_servers() -> None:
    """In an idle fleet it expects the mean service, and its chance is what happens."""
    config = scheduling_config(fleet(), horizon=1, deadline_s=20.0)
    problem = build_problem(config)
    assert problem.expert is not None
    math = TASK_TYPES.index("math")
    forecast = problem.expert(np.array([[0.0, 0.0, math, 20.0], [10.0, 6.0, math, 20.0]]))
    np.testing.assert_allclose(forecast.seconds[0], config.mean_service[math])
    assert forecast.chance[1].tolist() == [0, 0]
    env = SLOSchedulingVectorEnv(4000, config, autoreset=False)
    seen, _ = env.reset(seed=0)
    *_, info = env.step(np.full(4000, 1))
    expected = problem.expert(seen).chance[:, 1]
    assert info["outcomes"].metrics["deadline_met"].mean() == pytest.approx(
        expected.mean(), abs=0.03
    )


def test_policies_decide_in_the_twin() -> None:
    env = make("slo-scheduling", 4, **scheduling_config(fleet()).model_dump())
    seen, _ = env.reset(seed=0)
    for name in ("shortest-expected-completion", "shortest-queue", "table", "linear-predict"):
        assert len(make_policy(name, env.problem).decide(seen)) == 4
    assert make_policy("oracle", env.problem, env=env).decide(seen)


def test_a_patient_bank_is_the_usual_one_and_an_impatient_one_loses_who_waits() -> None:
    bank = QueueBank(1, [1], [9], 9)

    def send(item: int, now: float, service: float, patience: float | None) -> None:
        arrays = (np.zeros(1, int), np.array([item]), np.array([now]), np.array([service]))
        bank.assign(*arrays, None, None if patience is None else np.array([patience]))

    send(0, 0.0, 5.0, None)
    # gives up in the queue, is cut off in service, and takes what that freed
    send(1, 1.0, 2.0, 3.0)
    send(2, 2.0, 9.0, 6.0)
    send(3, 3.0, 1.0, 20.0)
    times = [tuple(float(x[0]) for x in bank.times(np.array([k]))) for k in range(4)]
    assert times == [(0, 5), (np.inf, 4), (5, 8), (8, 9)]
    left = bank.advance(np.array([np.inf]))
    assert left.item.tolist() == [1, 0, 2, 3]
    assert bank.in_system.sum() == 0


def test_a_task_taken_away_is_not_in_time() -> None:
    fields: dict[str, Any] = {"horizon": 1, "deadline_s": 0.05}
    for cancel in (False, True):
        config = scheduling_config(fleet(), cancel_late=cancel, **fields)
        env = SLOSchedulingVectorEnv(20, config, autoreset=False)
        env.reset(seed=0)
        *_, info = env.step(np.zeros(20, int))
        metrics = info["outcomes"].metrics
        assert not metrics["deadline_met"].any()
        assert not metrics["dropped"].any()
        assert np.isclose(metrics["response_time_s"], 0.05).all() == cancel


def test_taking_late_tasks_away_helps_the_others() -> None:
    def met(cancel: bool) -> float:
        env = SLOSchedulingVectorEnv(50, arrival_rate=3.0, cancel_late=cancel, autoreset=False)
        seen, _ = env.reset(seed=0)
        policy = make_policy("shortest-queue", env.problem)
        total = 0.0
        for _ in range(env.problem.horizon):
            seen, *_, info = env.step([d.action for d in policy.decide(seen)])
            total += info["outcomes"].metrics["deadline_met"].sum()
        return total / (50 * env.problem.horizon)

    assert met(True) > met(False) + 0.02


PAIR = [{"name": "a", "tokens_per_s": 9}, {"name": "b", "tokens_per_s": 8}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"servers": PAIR[:1]}, r"servers are \('a',\); allowed: at least two"),
        ({"servers": [PAIR[0]] * 2}, r"servers are \('a', 'a'\); allowed: .* different names"),
        ({"servers": PAIR, "slots": 2}, "slots is given beside servers"),
        ({"servers": PAIR, "mean_tokens": {"math": 3}}, "mean_tokens is given beside servers"),
        (
            {"servers": [{**PAIR[0], "slots": 11}, PAIR[1]]},
            "slots is 11; allowed: at most queue_size",
        ),
        (
            {"servers": [{**PAIR[0], "scores": {"math": 2}}, PAIR[1]]},
            "'math' is 2.*; allowed: 0 to",
        ),
        ({"servers": [{**PAIR[0], "mean_tokens": {"maths": 2}}, PAIR[1]]}, "maths"),
        ({"servers": [{**PAIR[0], "tokens_per_s": 0}, PAIR[1]]}, "tokens_per_s"),
    ],
)
def test_wrong_servers_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        get_spec("slo-scheduling").config(settings)


def test_servers_cannot_change_in_mid_run() -> None:
    env = make("slo-scheduling", 1, servers=PAIR)
    changed = [{**PAIR[0], "tokens_per_s": 3}, PAIR[1]]
    with pytest.raises(ConfigurationError, match=r"servers is .* in mid-run"):
        env.change(SLOSchedulingConfig(servers=changed))  # type: ignore[arg-type]


def test_one_server_makes_no_twin() -> None:
    with pytest.raises(ConfigurationError, match=r"the twin: .*at least two"):
        scheduling_config(load_fleet({"servers": SERVERS[:1]}))


# --- settings from a file


def test_a_file_stands_for_many_settings(tmp_path: Path) -> None:
    config = scheduling_config(fleet())
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for text in (yaml.safe_dump(settings), json.dumps(settings)):
        file = tmp_path / "twin.yaml"
        file.write_text(text)
        found = pairs("--set", [f"@{file}", "arrival_rate=2", "deadline_s=3"])
        expected = config.model_copy(update={"arrival_rate": 2.0, "deadline_s": 3.0})
        assert get_spec("slo-scheduling").config(found) == expected
    assert pairs("--set", ["deadline_s=3", f"@{file}"])["deadline_s"] == 6.0


def test_a_scenario_names_servers_shortly() -> None:
    assert scenario_name({"servers": PAIR, "deadline_s": 3}) == "deadline_s=3;servers=a+b"
    assert scenario_name({"mixed_deadlines_s": [1, 2]}) == "mixed_deadlines_s=[1, 2]"
    assert scenario_name({"models": []}) == "models=[]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--set names '.*twin.yaml'; allowed: a YAML file that exists"),
        ("[1, 2]", "holds list; allowed: a mapping"),
        ("1: 2", "holds dict; allowed: a mapping from names"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "twin.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        pairs("--set", [f"@{file}"])
