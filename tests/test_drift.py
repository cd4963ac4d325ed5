"""Drift: the environment changes in mid-run, for learning and for the held-out tasks alike."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from tiny_env import TinyEnv

from icl_optimizer.cli import app, expand_lists
from icl_optimizer.comparison.config import ComparisonConfig, default_config
from icl_optimizer.comparison.description import command
from icl_optimizer.comparison.runner import compare, validate
from icl_optimizer.comparison.unit import Unit, unit_budget
from icl_optimizer.environments.offloading import OffloadingVectorEnv
from icl_optimizer.environments.offloading_config import OffloadingConfig
from icl_optimizer.errors import ConfigurationError

SMALL: dict[str, Any] = {"users": 2, "horizon": 20, "radio.n_resource_blocks": 4}
UPGRADE: dict[str, Any] = {"edge_llm": "gemini-1.5-pro", "backhaul_s": 10}


def config(**fields: Any) -> ComparisonConfig:
    usual: dict[str, Any] = {
        "environment": "offloading",
        "settings": SMALL,
        "policies": ("bandit", "random", "oracle"),
        "seeds": 2,
        "interactions": 300,
        "eval_tasks": 200,
        "sweeps": False,
        "drift_at": 200,
        "drift": {"inverted": True},
    }
    return ComparisonConfig(**usual | fields)


def cell(num_envs: int = 3, **fields: Any) -> OffloadingVectorEnv:
    radio = {"n_resource_blocks": 4}
    return OffloadingVectorEnv(num_envs, users=2, horizon=20, radio=radio, **fields)


def changed(env: OffloadingVectorEnv, **fields: Any) -> OffloadingConfig:
    return OffloadingConfig(**env.config.model_dump() | fields)


def test_what_the_decisions_earn_is_exchanged_and_the_state_stays() -> None:
    env = cell(congested=True)
    env.reset(seed=1)
    for _ in range(7):
        env.step(np.zeros(3, dtype=int))
    before, waits, capacity = env.action_values(), env._wait(), env._capacity.copy()
    observation = env._observations()
    assert waits.max() > 0
    env.change(changed(env, inverted=True))
    assert np.array_equal(env.action_values(), before[:, ::-1])
    assert np.array_equal(env._wait(), waits)
    assert np.array_equal(env._capacity, capacity)
    assert np.array_equal(env._observations(), observation)


def test_the_same_tasks_arrive_whether_the_world_changes_or_not() -> None:
    steady, drifting = cell(), cell()
    for env in (steady, drifting):
        env.reset(seed=4)
    for step in range(50):
        if step == 13:
            drifting.change(changed(drifting, **UPGRADE))
        observed, rewards, *_ = zip(
            *(env.step(np.full(3, step % 2)) for env in (steady, drifting)), strict=True
        )
        assert np.array_equal(*observed)
        assert np.array_equal(*rewards) == (step < 13)


def test_an_upgraded_edge_and_a_slower_cloud_hold_at_once() -> None:
    env = cell(1, quality_share=1.0, quality_requirement=75.0, estimate_error=0.0)
    env.reset(seed=2)
    tokens = float(env._now(env._tasks.tokens)[0])
    # a quality task: the edge (MMLU 68.4) violates the requirement of 75, which costs 40 s
    edge, cloud = 30 - 0.23 - tokens / 75 - 40, 30 - 0.42 - tokens / 32 - 0.1
    assert env.action_values()[0] == pytest.approx([edge, cloud], abs=0.5)
    env.change(changed(env, **UPGRADE))
    # Gemini 1.5 Pro: MMLU 81.9, 1/58 s per token
    edge, cloud = 30 - 0.42 - tokens / 58, 30 - 0.42 - tokens / 32 - 10
    assert env.action_values()[0] == pytest.approx([edge, cloud], abs=0.5)
    # and in the episodes that follow
    for _ in range(25):
        env.step(np.array([0]))
    assert env._tasks.backhaul_s[0, 0] == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"users": 3}, "offloading: users is 3 in mid-run; allowed: 2"),
        ({"congested": True}, "offloading: congested is True in mid-run; allowed: False"),
        ({"mean_tokens": 500}, "labels or columns are different in mid-run; allowed: parameters"),
        ({"labels": ("a", "b")}, "labels or columns are different in mid-run"),
        ({"horizon": 5}, "labels or columns are different in mid-run"),
    ],
)
def test_what_shapes_state_or_observation_cannot_change(
    fields: dict[str, Any], message: str
) -> None:
    env = cell()
    with pytest.raises(ConfigurationError, match=message):
        env.change(changed(env, **fields))


def test_an_environment_that_cannot_change_says_so() -> None:
    with pytest.raises(ConfigurationError, match="cannot change while it is running"):
        TinyEnv().change(OffloadingConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"drift": {}}, "both or neither of drift_at and drift"),
        ({"drift_at": None}, "both or neither of drift_at and drift"),
        ({"drift_at": 300}, "allowed: 1 to 299, less than interactions"),
        ({"drift_at": 0}, "greater than or equal to 1"),
    ],
)
def test_when_and_what_belong_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**fields)


def test_errors_name_the_field() -> None:
    with pytest.raises(ConfigurationError, match=r"comparison: drift_at is 100: .*1 to 99"):
        default_config("offloading", drift_at=100, drift={"inverted": "true"})
    with pytest.raises(ConfigurationError, match=r"unknown setting of 'offloading' 'inverte'"):
        validate(config(drift={"inverte": True}))
    with pytest.raises(ConfigurationError, match="users is 3 in mid-run"):
        validate(config(drift={"users": 3}))


def test_checkpoints_are_dense_after_the_drift() -> None:
    made = config(drift_at=100, interactions=140)
    before = [10, 20, 30, 40, 60, 80, 100]
    # eight per factor of ten: 10 ** (k / 8), the shared number and the budget
    after = [1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 32]
    assert made.checkpoints(140) == [*before, *(100 + step for step in after), 140]
    assert made.checkpoints(190)[-5:] == [140, 142, 156, 175, 190]


def test_a_budget_of_its_own_begins_at_the_drift() -> None:
    assert unit_budget(config(), "bandit") == 300
    assert unit_budget(config(), "dqn-tuned") == 700
    assert unit_budget(config(drl_interactions=50), "dqn-tuned") == 300
    assert unit_budget(config(drl_interactions=150), "dqn-tuned") == 350


def test_the_scenario_and_the_command_tell_of_the_drift() -> None:
    made = config(settings={}, drift={"inverted": True, "penalty": 20.0})
    assert made.scenario == "drift.inverted=True;drift.penalty=20.0;drift_at=200"
    assert made.final_settings == {"inverted": True, "penalty": 20.0}
    words = shlex.split(command(made))
    at = words.index("--drift-at")
    assert words[at:] == [
        *("--drift-at", "200", "--drift", "inverted=True", "--drift", "penalty=20.0"),
        "--no-sweeps",
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("drift") / "run"
    compare(config(seeds=1, interactions=220), folder, progress_bar=False)
    return pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""])


def test_a_policy_that_knew_everything_knows_nothing(results: pd.DataFrame) -> None:
    assert results.scenario.str.contains("drift_at=200").all()
    curve = results[(results.metric == "optimality") & (results.split == "eval")]
    known = curve.pivot_table(index="step", columns="policy", values="value")
    assert known.loc[200, "bandit"] > 0.95
    # the wrong decision everywhere is as much worse than chance as the right one is better
    assert known.loc[201, "bandit"] < -0.7
    assert (known["oracle"] == 1).all()
    assert known["random"].abs().max() < 0.3


def test_recovery_is_counted_from_the_drift(results: pd.DataFrame) -> None:
    costs = results[(results.split == "train")].pivot_table(
        index="policy", columns="metric", values="value", dropna=False
    )
    assert costs.loc["bandit", "interactions_to_95"] <= 200
    assert np.isnan(costs.loc["bandit", "interactions_to_recover"])
    # one that needs no experience is right at the first point after the drift
    assert costs.loc["oracle", "interactions_to_recover"] == 1


def test_ageing_lets_a_table_recover(tmp_path: Path) -> None:
    unit = Unit(config(), "bandit", 0, None)
    unit.policy = type(unit.policy)(unit.env.problem, env=unit.env, ageing="surprise")  # type: ignore[call-arg]
    rows = unit.run(lambda steps: None).rows
    recovered = [row.value for row in rows if row.metric == "interactions_to_recover"]
    assert recovered[0] <= 100


@pytest.mark.parametrize(("policy", "when"), [("bandit", 20), ("dqn-tuned", 20), ("ppo-tuned", 24)])
def test_every_learner_meets_the_drift_after_as_many_decisions(
    policy: str, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []
    change = OffloadingVectorEnv.change

    def watched(env: OffloadingVectorEnv, new: OffloadingConfig) -> None:
        met.append(env._decisions)
        change(env, new)

    monkeypatch.setattr(OffloadingVectorEnv, "change", watched)
    made = config(drift_at=20, interactions=40, drl_interactions=20, eval_tasks=20)
    unit = Unit(made, policy, 0, None)
    unit.run(lambda steps: None)
    # PPO learns in eight environments at once: at the first step that reaches 20 decisions
    assert met == [when]
    assert unit.env.config.inverted  # type: ignore[attr-defined]
    assert unit.held.env.config.inverted  # type: ignore[attr-defined]


def test_the_command_line_hands_the_drift_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []

    def run(config: ComparisonConfig, folder: Path, **options: Any) -> None:
        met.append(config)

    monkeypatch.setattr("icl_optimizer.comparison.runner.compare", run)
    monkeypatch.setattr("icl_optimizer.cli.compare._finish", lambda folder: None)
    made = config(settings={}, policies=("bandit", "oracle"))
    arguments = shlex.split(command(made))[1:]
    app(expand_lists([*arguments, "--out", str(tmp_path / "run")]), standalone_mode=False)
    assert met[0].drift_at == 200
    assert met[0].drift == {"inverted": "True"}
