"""The reward surrogate, on records made up for these tests, and PPO that learns on from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from tiny_env import TinyEnv
from tiny_splitting import tiny_splitting

from icl_optimizer.baselines.drl_config import A2cConfig, DqnConfig, PpoConfig, preset
from icl_optimizer.baselines.surrogate import cross_validate, fit_surrogate
from icl_optimizer.baselines.surrogate_ppo import SurrogatePpoPolicy
from icl_optimizer.environments.layer_splitting import LayerSplittingVectorEnv
from icl_optimizer.environments.layer_splitting_reward import reward_of
from icl_optimizer.environments.splitting.records import shipped_records, shipped_table
from icl_optimizer.environments.splitting.surrogate import Bounds, Surrogate, shipped_surrogate
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.rollout import Rollout
from icl_optimizer.studies.training_cost import measure_training, peak_memory

SCATTER = 0.1
WHERE = Bounds((1.0, 0.0, 0.0), (10.0, 2.0, 0.3))


def truth(split: Any, sigma: Any, loss: Any) -> Any:
    """Return what a made-up model suffers: noise early, lost elements around the third layer."""
    return np.exp(-split / 3) * sigma**2 + (4 + 2 * np.exp(-((split - 3) ** 2) / 8)) * loss


@cache
def made_up(draws: int = 4, scatter: float = SCATTER) -> pd.DataFrame:
    """Return records of every split, noise and loss, which scatter by a share of their value."""
    axes = np.arange(1, 11), np.arange(5) / 2, np.arange(0, 11, 2) * 0.03, np.arange(draws)
    split, sigma, loss, draw = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))
    noise = 1 + scatter * np.random.default_rng(0).standard_normal(len(split))
    nats = truth(split, sigma, loss) * noise
    columns = {"split": split, "sigma": sigma, "loss": loss, "draw": draw, "extra_nats": nats}
    return pd.DataFrame(columns)


@cache
def fitted() -> Surrogate:
    return fit_surrogate(made_up(scatter=0.0), bounds=WHERE, steps=600)


def test_a_surrogate_learns_a_function() -> None:
    rng = np.random.default_rng(1)
    split, sigma, loss = rng.integers(1, 11, 200), rng.uniform(0, 2, 200), rng.uniform(0, 0.3, 200)
    error = fitted().extra_nats(split, sigma, loss) - truth(split, sigma, loss)
    assert np.abs(error).mean() < 0.05
    assert fitted().about["records"] == len(made_up())
    assert [w.shape for w in fitted().weights] == [(3, 128), (128, 128), (128, 1)]


def test_arguments_broadcast() -> None:
    layers, sigmas = np.arange(1, 11)[:, None], np.array([0.0, 1.0, 2.0])
    grid = fitted().extra_nats(layers, sigmas, 0.1)
    assert grid.shape == (10, 3)
    assert grid[4, 2] == pytest.approx(fitted().extra_nats(5, 2.0, 0.1), abs=1e-12)
    assert fitted().extra_nats(5, 2.0, 0.1).shape == ()


def test_scaling_and_units_do_not_matter() -> None:
    """Scaling the target only scales what is foretold."""
    wide = made_up(scatter=0.0).assign(extra_nats=lambda r: 100 * r.extra_nats + 7)
    found = fit_surrogate(wide, bounds=WHERE, steps=200).extra_nats(4, 1.0, 0.1)
    usual = fit_surrogate(made_up(scatter=0.0), bounds=WHERE, steps=200).extra_nats(4, 1.0, 0.1)
    assert found == pytest.approx(100 * usual + 7, rel=1e-3)


def test_means_teach_what_records_teach() -> None:
    """A record given three times weighs as much as three records."""
    records = made_up().iloc[::7]
    means = records.groupby(["split", "sigma", "loss"], as_index=False)["extra_nats"].mean()
    twice = pd.concat([means] * 2, ignore_index=True)
    a, b = (fit_surrogate(r, bounds=WHERE, steps=100) for r in (means, twice))
    assert a.extra_nats(3, 1.0, 0.12) == b.extra_nats(3, 1.0, 0.12)


def test_the_same_seed_gives_the_same_surrogate() -> None:
    a, b, other = (fit_surrogate(made_up(), steps=50, seed=seed) for seed in (1, 1, 2))
    for mine, theirs in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(a.weights[0], other.weights[0])


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    fitted().save(tmp_path / "s.safetensors")
    loaded = Surrogate.load(tmp_path / "s.safetensors")
    assert (loaded.bounds, loaded.about) == (fitted().bounds, fitted().about)
    layers = np.arange(1, 11)
    np.testing.assert_allclose(
        loaded.extra_nats(layers, 1.0, 0.2), fitted().extra_nats(layers, 1.0, 0.2), atol=1e-5
    )


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2)}, str(tmp_path / "other"))
    with pytest.raises(ConfigurationError, match=r"format \(None, None\); allowed"):
        Surrogate.load(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Surrogate.load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("asked", "message"),
    [((11, 1.0, 0.1), "split is 11"), ((5, 2.5, 0.1), "sigma is 2.5"), ((5, 1, -0.1), "loss is -")],
)
def test_nothing_is_foretold_where_nothing_was_measured(asked: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fitted().extra_nats(*asked)
    # an observation in 32 bits may lie a little outside
    fitted().extra_nats(10, np.float32(2.0), np.float32(0.3))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (made_up().drop(columns="loss"), "no column 'loss'"),
        (made_up().assign(extra_nats=np.nan), "not finite"),
        (made_up().iloc[:3], "1 distinct points"),
    ],
)
def test_records_that_teach_nothing_are_refused(records: pd.DataFrame, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit_surrogate(records)


def test_loading_a_surrogate_does_not_import_torch(tmp_path: Path) -> None:
    fitted().save(tmp_path / "s")
    code = (
        "import sys; from icl_optimizer.environments.splitting.surrogate import Surrogate;"
        "Surrogate.load(sys.argv[1]).extra_nats(3, 1.0, 0.1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)


def test_cross_validation_tells_scatter_from_error() -> None:
    scores = cross_validate(made_up(), 3, steps=250)
    assert (scores.records, scores.folds, scores.by) == (len(made_up()), 3, "record")
    # 10 % of the value, and of the mean of three others
    expected = SCATTER * np.sqrt((truth_of_records() ** 2).mean() * 4 / 3)
    assert np.sqrt(scores.floor.extra_nats.mse) == pytest.approx(expected, rel=0.1)
    assert scores.held_out.extra_nats.r2 > 0.95
    assert scores.of_means.extra_nats.mse < 0.6 * scores.held_out.extra_nats.mse
    quality = scores.held_out.quality
    assert quality.share == pytest.approx(
        quality.mae / np.exp(-made_up().extra_nats).std(), rel=0.01
    )
    assert 1 - quality.r2 == pytest.approx(
        quality.mse / np.exp(-made_up().extra_nats).var(), rel=0.01
    )


def truth_of_records() -> Any:
    return truth(made_up().split, made_up().sigma, made_up().loss)


def test_whole_cells_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what only a cell has in it, no surrogate can foretell a cell it has not seen."""
    seen: list[set[tuple[int, float]]] = []

    def cells(records: pd.DataFrame) -> set[tuple[int, float]]:
        return set(zip(records["split"], records["loss"], strict=True))

    def fake(records: pd.DataFrame, **_: Any) -> Surrogate:
        seen.append(cells(records))
        return fitted()

    monkeypatch.setattr("icl_optimizer.baselines.surrogate.fit_surrogate", fake)
    every = cells(made_up())
    cross_validate(made_up(), by="cell")
    left = [every - kept for kept in seen]
    assert [len(cell) for cell in left] == [12] * 5
    assert set.union(*left) == every
    seen.clear()
    cross_validate(made_up(), by="record")
    assert all(kept == every for kept in seen)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folds": 1}, "folds is 1; allowed: 2 to 1200, one record each"),
        ({"folds": 61, "by": "cell"}, "folds is 61; allowed: 2 to 60, one cell each"),
        ({"by": "text"}, "by is 'text'; allowed"),
    ],
)
def test_wrong_cross_validations_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        cross_validate(made_up(), **fields)


def test_a_floor_needs_repetitions() -> None:
    with pytest.raises(ConfigurationError, match="once; allowed: at least twice"):
        cross_validate(made_up(1))


def test_the_shipped_surrogate_knows_the_shipped_table() -> None:
    records, table = shipped_records(), shipped_table()
    assert shipped_surrogate().about["records"] == len(records)
    points = records[["split", "sigma", "loss"]].drop_duplicates()
    columns = [points[name].to_numpy() for name in points]
    mean, found = table.extra_nats(*columns), shipped_surrogate().extra_nats(*columns)
    assert 1 - ((mean - found) ** 2).mean() / mean.var() > 0.98
    asked = (records[name].to_numpy() for name in points)
    error = records["extra_nats"].to_numpy() - shipped_surrogate().extra_nats(*asked)
    assert 1 - (error**2).mean() / records["extra_nats"].var() > 0.95


@pytest.mark.slow
def test_shipped_records_are_foretold_in_cells_not_seen() -> None:
    scores = cross_validate(shipped_records(), 3, "cell", steps=800)
    # what single records leave to be foretold is hardly above 0.95
    assert scores.held_out.extra_nats.r2 > max(0.94, scores.floor.extra_nats.r2 - 0.01)
    assert scores.held_out.quality.mae < 0.05
    assert scores.of_means.extra_nats.r2 > 0.98


QUICK = {"true_rollouts": 2, "surrogate_steps": 300, "learning_rate": 1e-3}


def learner(seed: int = 0, **settings: Any) -> SurrogatePpoPolicy:
    env = tiny_splitting(80, difference=True)
    policy = make_policy("ppo-surrogate", env.problem, env=env, seed=seed, **QUICK | settings)
    assert isinstance(policy, SurrogatePpoPolicy)
    return policy


def optimality(policy: Policy) -> float:
    """Return where it is between random decisions and the oracle's, in episodes not learned in."""

    def earned(decider: Policy) -> float:
        rollout = Rollout(decider, tiny_splitting(500), explore=False)
        rollout.reset(seed=10_000)
        return float(sum(rollout.step()[2].mean() for _ in range(rollout.env.problem.horizon)))

    env = tiny_splitting(500)
    env.reset(seed=10_000)
    best = float(env.action_values().max(axis=1).mean())
    chance = earned(make_policy("random", env.problem))
    return (earned(policy) - chance) / (best - chance)


@pytest.mark.slow
def test_ppo_learns_from_its_own_surrogate() -> None:
    policy = learner().learn(8_000)
    assert len(policy.records) == 800
    assert optimality(policy) > 0.8


def test_it_measures_and_then_foretells() -> None:
    policy = learner()
    env = policy.env
    assert isinstance(env, LayerSplittingVectorEnv)
    own, sources, paid = env.source, [], []

    def after_step(scope: dict[str, Any], _: Any) -> None:
        sources.append(env.source)
        split, sigma, loss, nats = env.measured.T
        if env.source is policy.surrogate:
            found = policy.surrogate.extra_nats(split, sigma, loss)
            np.testing.assert_allclose(nats, found, atol=1e-12)
        paid.append(scope["rewards"].mean())

    policy.learn(1_200, callback=after_step)
    assert [source is own for source in sources] == [True] * 10 + [False] * 5
    assert env.source is own
    records = policy.records
    assert len(records) == 800
    layers = records["split"].to_numpy(np.int64)
    true = own.extra_nats(layers, records["sigma"].to_numpy(), records["loss"].to_numpy())
    np.testing.assert_allclose(records["extra_nats"], true)
    # it goes on with the same surrogate, and measures no more
    kept = policy.surrogate
    policy.learn(400, callback=after_step)
    assert all(source is kept for source in sources[15:])
    assert (len(policy.records), env.source) == (800, own)


def test_measuring_goes_on_in_a_second_call() -> None:
    policy = learner().learn(400)
    assert policy.surrogate is None
    policy.learn(400)
    assert policy.surrogate is not None
    assert len(policy.records) == 800


def test_rewards_are_restored_whatever_happens() -> None:
    policy = learner(true_rollouts=1, surrogate_steps=10)
    env: Any = policy.env
    own = env.source

    def fails(*_: Any) -> None:
        if env.source is not own:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        policy.learn(1_200, callback=fails)
    assert env.source is own


def test_a_loaded_policy_decides_alike_and_measures_anew(tmp_path: Path) -> None:
    policy = learner(surrogate_steps=10).learn(1_200)
    policy.save(tmp_path / "p")
    loaded = learner(seed=9).load(tmp_path / "p")
    observation, _ = tiny_splitting(50).reset(seed=1)
    np.testing.assert_array_equal(
        policy.predict(observation, deterministic=True)[0],
        loaded.predict(observation, deterministic=True)[0],
    )
    assert isinstance(loaded, SurrogatePpoPolicy)
    assert (loaded.surrogate, len(loaded.records), loaded.seed) == (None, 0, 0)


def test_the_same_seed_decides_alike() -> None:
    observation, _ = tiny_splitting(50).reset(seed=1)

    def chances(seed: int) -> list[float]:
        policy = learner(seed, surrogate_steps=20).learn(1_200)
        return [p for d in policy.decide(observation) for p in d.probabilities]

    assert chances(1) == chances(1) != chances(2)


def test_new_rewards_hold_in_episodes_under_way() -> None:
    env = tiny_splitting(4)
    env.reset(seed=0)
    env.step(np.ones(4, dtype=np.int64))
    env.use_rewards(fitted())
    _, rewards, *_ = env.step(np.ones(4, dtype=np.int64))
    split, sigma, loss, nats = env.measured.T
    np.testing.assert_allclose(nats, fitted().extra_nats(split, sigma, loss))
    layers = split.astype(np.int64)
    np.testing.assert_allclose(rewards, reward_of(env.config, layers, nats, np.zeros(4)))


def test_other_environments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'ppo-surrogate' was given TinyEnv; allowed"):
        SurrogatePpoPolicy(
            tiny_splitting().problem, preset("ppo-surrogate", "layer-splitting"), env=TinyEnv(2)
        )
    with pytest.raises(ConfigurationError, match="asked about 'tiny'; allowed: layer-splitting"):
        make_policy("ppo-surrogate", TinyEnv(2).problem)


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    held = np.ones(200_000_000, dtype=np.uint8)
    cost = measure_training(
        "layer-splitting", "ppo-surrogate-shipped", decisions=400, settings={"case": "L"}
    )
    assert cost.decisions == 400
    assert 0 < cost.train_s < cost.process_s
    assert 100 < cost.peak_mb < 1_000
    assert peak_memory() > held.nbytes
    with pytest.raises(ConfigurationError, match="case is 'B'"):
        measure_training("layer-splitting", "ppo-paper", settings={"case": "B"})


def test_settings_are_those_of_table_three() -> None:
    config = preset("ppo-paper", "layer-splitting")
    assert isinstance(config, PpoConfig)
    assert (config.learning_rate, config.gamma, config.clip_range) == (3e-4, 0.99, 0.2)
    assert (config.rollout, config.batch_size, config.gae_lambda) == (400, 100, 0.95)
    same = config.model_dump(exclude={"algorithm"})
    other = preset("ppo-surrogate", "layer-splitting").model_dump()
    assert {key: other[key] for key in same} == same
    assert preset("ppo-surrogate-shipped", "layer-splitting") == config
    a2c, dqn = (preset(f"{name}-paper", "layer-splitting") for name in ("a2c", "dqn"))
    assert isinstance(a2c, A2cConfig)
    assert isinstance(dqn, DqnConfig)
    assert (a2c.learning_rate, a2c.rollout, a2c.gae_lambda) == (7e-4, 5, 1.0)
    assert (dqn.learning_rate, dqn.target_update) == (1e-4, 10_000)
    assert dqn.epsilon(2_400) == pytest.approx(0.05)
    for name in ("ppo-paper", "ppo-surrogate", "ppo-surrogate-shipped", "a2c-paper", "dqn-paper"):
        assert get_policy_spec(name).budget_in("layer-splitting", {}) == 24_000


def test_the_shipped_surrogate_pays_while_learning() -> None:
    spec = get_policy_spec("ppo-surrogate-shipped")
    assert spec.training_settings({"case": "L"}) == {"case": "L", "rewards_from": "surrogate"}


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"loss ranges from 0\.1 to 0\.1"):
        replace(WHERE, low=(1.0, 0.0, 0.1), high=(10.0, 2.0, 0.1))
