"""The batched offloading dynamics against the same system in plain Python."""

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from icl_optimizer.environments.offloading import OffloadingEnv, OffloadingVectorEnv
from icl_optimizer.environments.offloading_scalar import ScalarOffloadingEnv

SEEDS = (3, 4, 5)
EPISODES = 2
SMALL: dict[str, Any] = {"users": 6, "horizon": 30, "radio": {"n_resource_blocks": 25}}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "congested": {**SMALL, "congested": True},
    "one-slot": {**SMALL, "congested": True, "edge_slots": 1, "mean_gap_s": 2.0},
    "open": {**SMALL, "vocabulary": "open", "words": "unseen"},
    "inverted": {**SMALL, "inverted": True},
    "inverted-congested": {**SMALL, "inverted": True, "congested": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_plain_python(variant: str) -> None:
    fields = VARIANTS[variant]
    batch = OffloadingVectorEnv(len(SEEDS), **fields)
    cells = [ScalarOffloadingEnv(**fields) for _ in SEEDS]
    observations, _ = batch.reset(seed=list(SEEDS))
    plain = [cell.reset(seed=seed)[0] for cell, seed in zip(cells, SEEDS, strict=True)]
    np.testing.assert_allclose(observations, plain, rtol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(EPISODES * batch.config.horizon):
        actions = rng.integers(2, size=len(SEEDS))
        observations, rewards, terminated, truncated, info = batch.step(actions)
        steps = [cell.step(action) for cell, action in zip(cells, actions, strict=True)]
        following, wins, ends, cuts, infos = (list(part) for part in zip(*steps, strict=True))
        outcomes = info["outcomes"]
        np.testing.assert_allclose(rewards, wins, rtol=1e-5)
        np.testing.assert_array_equal(terminated, ends)
        np.testing.assert_array_equal(truncated, cuts)
        np.testing.assert_array_equal(outcomes.feasible, [i["feasible"] for i in infos])
        for name in ("delay_s", "quality_task", "executed"):
            plain_values = [float(i[name]) for i in infos]
            np.testing.assert_allclose(outcomes.metrics[name], plain_values, rtol=1e-5)
        if truncated.any():
            np.testing.assert_allclose(info["final_obs"], following, rtol=1e-5)
            following = [cell.reset()[0] for cell in cells]
        np.testing.assert_allclose(observations, following, rtol=1e-5)


def test_variants_exercise_what_they_are_for() -> None:
    cell = ScalarOffloadingEnv(**VARIANTS["one-slot"])
    cell.reset(seed=0)
    waits = [cell.step(np.int64(0))[0][2] for _ in range(cell.config.horizon)]
    assert max(waits) > 10


def test_it_is_a_gymnasium_environment() -> None:
    check_env(ScalarOffloadingEnv(**SMALL), skip_render_check=True)


def test_single_environment_equals_plain_python() -> None:
    single, cell = (
        OffloadingEnv(**VARIANTS["congested"]),
        ScalarOffloadingEnv(**VARIANTS["congested"]),
    )
    np.testing.assert_allclose(single.reset(seed=9)[0], cell.reset(seed=9)[0], rtol=1e-5)
    for action in np.random.default_rng(1).integers(2, size=cell.config.horizon):
        theirs, ours = single.step(action), cell.step(action)
        np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-5)
        assert theirs[1] == pytest.approx(ours[1], rel=1e-5)
        assert theirs[2:4] == ours[2:4]
