"""The weights that did best in trials between are those that stay."""

from __future__ import annotations

import pytest

from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.drl_config import PpoConfig
from icl_optimizer.baselines.sb3_callbacks import TRIAL_ENVS, KeepBest
from icl_optimizer.environments.registry import make


def test_the_best_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[float] = []
    plain = KeepBest._try

    def noted(self: KeepBest) -> float:
        trials.append(plain(self))
        return trials[-1]

    monkeypatch.setattr(KeepBest, "_try", noted)
    config = PpoConfig(rollout=64, batch_size=32, learning_rate=0.01, keep_best=128)
    env = make("slo-scheduling", 8)
    policy = DrlPolicy(env.problem, config, name="ppo", env=env, seed=1).learn(640)
    assert len(trials) == 5
    # with so long steps the last weights are not the best
    assert trials[-1] < max(trials)
    again = KeepBest(policy, make("slo-scheduling", TRIAL_ENVS), 1)
    assert plain(again) == max(trials)


def test_without_it_the_last_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepBest, "_try", lambda self: pytest.fail("nobody asked for trials"))
    env = make("slo-scheduling", 8)
    config = PpoConfig(rollout=64, batch_size=32)
    DrlPolicy(env.problem, config, name="ppo", env=env, seed=0).learn(128)
