"""The study of routing: what its tables take from results, and weights elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import make_policy
from icl_optimizer.studies import routing


class ShortlyHeld(Held):
    """Held-out requests, fewer of them."""

    def __init__(self, environment: str, settings: dict[str, Any], seed: int, tasks: int) -> None:
        super().__init__(environment, settings, seed, tasks)
        evaluation = get_spec(environment).evaluation | {"horizon": 200}
        self.env = make(environment, 2, **settings, **evaluation)


def results() -> pd.DataFrame:
    """Return the rows of a comparison of two policies, two seeds, at two points."""
    rows = [
        {
            "policy": policy,
            "seed": seed,
            "scenario": scenario,
            "split": split,
            "metric": metric,
            "value": value + 0.1 * seed,
        }
        for policy, value in (("random", 0.2), ("oracle", 0.6))
        for seed in (0, 1)
        for scenario in ("arrival_rate=3", "arrivals=trace", "default")
        for split in ("eval", "train")
        for metric in ("qos", "drop_rate", "reward")
    ]
    return pd.DataFrame(rows)


def test_tables_hold_the_final_evaluations_alone() -> None:
    measured = routing.at_points(results())
    assert set(measured["metric"]) == {"qos", "drop_rate"}
    assert len(measured) == 2 * 2 * 2 * 2
    header, random, oracle = routing.load_table(measured, ["random", "oracle"])
    assert header[0] == "policy"
    assert header[3] == "λ = 3"
    assert random[3].startswith("0.250 [0.200,")
    assert (random[1], oracle[6][:5]) == ("", "0.650")
    details = routing.detail_table(measured, ["oracle"])
    assert details[1][details[0].index("dropped")].startswith("0.650")


def test_elsewhere_is_a_row_per_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "ELSEWHERE", ({"experts": 5},))
    monkeypatch.setattr(routing, "UNCHANGED", ("shortest-queue",))
    monkeypatch.setattr(routing, "Held", ShortlyHeld)
    found = routing.run_elsewhere(tmp_path, 1, learners=("han-ppo",), progress_bar=False)
    table = routing.elsewhere_table(found)
    assert [row[0] for row in table[1:]] == ["han-ppo", "shortest-queue"]
    graph, queue = (float(row[1]) for row in table[1:])
    assert graph > queue + 0.05


def test_weights_fit_other_numbers_of_experts_and_missing_ones_are_named() -> None:
    path = routing._weights("han-ppo", 0)
    for experts in (3, 6):
        env = make(routing.NAME, 4, experts=experts)
        policy = make_policy("han-ppo", env.problem, env=env).load(path)
        obs, _ = env.reset(seed=0)
        actions, _ = policy.predict(obs, deterministic=True)
        assert np.isin(actions, range(experts + 1)).all()
    with pytest.raises(ConfigurationError, match="seed 99"):
        routing._weights("han-ppo", 99)
