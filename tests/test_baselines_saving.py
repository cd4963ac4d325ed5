"""Saved baselines decide as before, and files that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_env import TinyEnv
from tiny_policies import DRL, ON_EXPERIENCE, SITUATIONS, new

from icl_optimizer.baselines.saving import FORMAT_VERSION
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import make_policy


@pytest.mark.parametrize("name", [*ON_EXPERIENCE, *DRL])
def test_saved_policies_decide_alike(name: str, tmp_path: Path) -> None:
    policy = new(name, TinyEnv(2), seed=1).learn(64)
    policy.save(tmp_path / "policy")
    loaded = new(name, seed=7).load(tmp_path / "policy")
    for a, b in zip(policy.decide(SITUATIONS), loaded.decide(SITUATIONS), strict=True):
        assert (a.action, a.probabilities) == (b.action, b.probabilities)
    assert loaded.num_timesteps == 64
    assert loaded.seed == 1


def test_learning_goes_on_after_loading(tmp_path: Path) -> None:
    new("dqn-tuned", TinyEnv(1)).learn(32).save(tmp_path / "policy")
    policy = new("dqn-tuned", TinyEnv(1)).load(tmp_path / "policy").learn(32)
    assert policy.num_timesteps == 64


@pytest.mark.parametrize("name", ["bandit", "knn", "dqn", "ppo"])
def test_other_format_versions_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy"
    monkeypatch.setattr("icl_optimizer.baselines.saving.FORMAT_VERSION", FORMAT_VERSION + 1)
    new(name).save(path)
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match=f"format version {FORMAT_VERSION + 1}"):
        new(name).load(path)


@pytest.mark.parametrize("name", ["bandit", "dqn"])
def test_files_of_others_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "policy"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        new(name).load(path)
    path.write_text(json.dumps({"format": "icl-optimizer agent"}))
    with pytest.raises(ConfigurationError):
        new(name).load(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    new("knn").save(tmp_path / "policy")
    with pytest.raises(ConfigurationError, match="kind knn; allowed: bandit"):
        new("bandit").load(tmp_path / "policy")


def test_a_file_for_another_problem_is_refused(tmp_path: Path) -> None:
    from icl_optimizer.environments.registry import make

    new("dqn").save(tmp_path / "policy")
    other = make("offloading").problem
    with pytest.raises(ConfigurationError, match="has problem tiny; allowed: offloading"):
        make_policy("dqn", other).load(tmp_path / "policy")
