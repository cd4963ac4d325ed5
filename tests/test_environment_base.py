"""What every environment keeps to: seeding, episodes, outcomes, and Gymnasium's contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from tiny_env import RIGHT, WRONG, TinyEnv

from icl_optimizer.decision import Decision, Outcome, Situations
from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Floats, Ints, Outcomes, StepResult
from icl_optimizer.environments.registry import environment_names, get_spec, make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import ExperiencePool
from icl_optimizer.policy import Policy
from icl_optimizer.problem import Category, Problem
from icl_optimizer.rollout import Rollout

FURTHER: dict[str, tuple[dict[str, Any], ...]] = {
    "offloading": (
        {"congested": True},
        {"vocabulary": "open", "words": "unseen"},
        {"inverted": True},
    ),
    "slo-scheduling": (
        {"bursts": {"factor": 8.0}},
        {"dump_action": True, "arrival_rate": 3.0},
        {"mixed_deadlines_s": (4.0, 12.0), "score_noise": 0.05},
        {"slots": 3, "queue_size": 4, "horizon": 50},
    ),
    "load-balancing": (
        {"start_rule": "last-finish", "when_full": "drop", "horizon": 40},
        {"trace": "azure-conversation", "scenario": "nominal", "every": 7, "horizon": 40},
    ),
    "qos-routing": (
        {"experts": 5, "arrivals": "trace", "arrival_rate": 20.0, "horizon": 40},
        {"reward": "difference", "impact_penalty": False, "chunk_tokens": 256, "horizon": 40},
    ),
    "layer-splitting": (
        {"moves": "four", "reward": "equation", "case": "H"},
        {"link": "correlated", "difference": True, "horizon": 9},
        {"link": "independent", "reward": "code-initial"},
    ),
}
SHORT = {"load-balancing": {"horizon": 50}, "qos-routing": {"horizon": 50}}
INTERFERING = ("qos-routing",)
"""Here later decisions change what a decision earns; the oracle is told what each adds."""
LOOKING_AHEAD = ("layer-splitting",)
"""Here the oracle is told the best sum of rewards to the end of the episode."""
VARIANTS: list[Any] = [
    pytest.param(name, settings, id=f"{name}-{'-'.join(map(str, settings)) or 'default'}")
    for name in environment_names()
    if not get_spec(name).live
    for settings in (SHORT.get(name, {}), *FURTHER.get(name, ()))
]
over_all = pytest.mark.parametrize(("name", "settings"), VARIANTS)
Step = tuple[NDArray[Any], NDArray[Any]]


def random_actions(env: BatchedEnv, steps: int, seed: int = 0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return rng.integers(len(env.problem.labels), size=(steps, env.num_envs))


def trajectory(env: BatchedEnv, seed: Any, actions: NDArray[np.int64]) -> tuple[Any, Any]:
    """Return observations ``(steps + 1, E, columns)`` and rewards ``(steps, E)``."""
    observations, rewards = [env.reset(seed=seed)[0]], []
    for row in actions:
        observation, reward, *_ = env.step(row)
        observations.append(observation)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


@over_all
def test_gymnasium_checks_it_without_warnings(name: str, settings: dict[str, Any]) -> None:
    env = gym.make(get_spec(name).gym_id, **settings)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.get_wrapper_attr("problem").name == name


@over_all
def test_gymnasium_makes_the_batch_itself(name: str, settings: dict[str, Any]) -> None:
    made = gym.make_vec(
        get_spec(name).gym_id, num_envs=3, vectorization_mode="vector_entry_point", **settings
    )
    ours = make(name, 3, **settings)
    assert type(made.unwrapped) is type(ours)
    actions = random_actions(ours, 4)
    seen, paid = trajectory(ours, 7, actions)
    observation, _ = made.reset(seed=7)
    np.testing.assert_array_equal(observation, seen[0])
    for step, row in enumerate(actions):
        observation, reward, *_ = made.step(row)
        np.testing.assert_array_equal(observation, seen[step + 1])
        np.testing.assert_array_equal(reward, paid[step])
        assert made.observation_space.contains(observation)


@over_all
def test_the_seed_decides_the_trajectory(name: str, settings: dict[str, Any]) -> None:
    env = make(name, 2, **settings)
    actions = random_actions(env, env.problem.horizon + 5)
    seen, paid = trajectory(env, 3, actions)
    # the same object again, in the middle of an episode, and a new one
    for again in (env, make(name, 2, **settings)):
        repeated, repaid = trajectory(again, 3, actions)
        np.testing.assert_array_equal(repeated, seen)
        np.testing.assert_array_equal(repaid, paid)
    other, _ = trajectory(env, 5, actions)
    assert (other != seen).any()


@over_all
def test_each_sub_environment_equals_a_single_one(name: str, settings: dict[str, Any]) -> None:
    count = 4
    batch = make(name, count, **settings)
    actions = random_actions(batch, batch.problem.horizon)
    observations, rewards = trajectory(batch, 10, actions)
    for i in range(count):
        single = SingleEnv(make(name, 1, autoreset=False, **settings))
        seen, paid = [single.reset(seed=10 + i)[0]], []
        for action in actions[:, i]:
            observation, reward, *_ = single.step(action)
            seen.append(observation)
            paid.append(reward)
        np.testing.assert_array_equal(paid, rewards[:, i])
        # after its last decision the batch has begun a new episode
        np.testing.assert_array_equal(seen[:-1], observations[:-1, i])


@over_all
def test_one_seed_stands_for_consecutive_ones(name: str, settings: dict[str, Any]) -> None:
    env = make(name, 3, **settings)
    actions = random_actions(env, 3)
    one, _ = trajectory(env, 5, actions)
    listed, _ = trajectory(env, [5, 6, 7], actions)
    np.testing.assert_array_equal(one, listed)
    # None goes on with that generator, so only the other two begin alike
    mixed, _ = trajectory(env, [5, None, 7], actions)
    np.testing.assert_array_equal(mixed[:, [0, 2]], one[:, [0, 2]])
    assert (mixed[:, 1] != one[:, 1]).any()


@over_all
def test_resetting_some_leaves_the_others_alone(name: str, settings: dict[str, Any]) -> None:
    touched, control = make(name, 3, **settings), make(name, 3, **settings)
    actions = random_actions(touched, touched.problem.horizon + 2)
    trajectory(touched, 1, actions[:3])
    before, _ = trajectory(control, 1, actions[:3])
    observation, _ = touched.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(observation[[0, 2]], before[-1][[0, 2]])
    assert touched.elapsed.tolist() == [3, 0, 3]
    # past the others' end, which is not the end of the one that began anew
    for row in actions[3:]:
        seen, paid, *_ = touched.step(row)
        expected, repaid, *_ = control.step(row)
        np.testing.assert_array_equal(seen[[0, 2]], expected[[0, 2]])
        np.testing.assert_array_equal(paid[[0, 2]], repaid[[0, 2]])
    assert touched.elapsed.tolist() == [2, touched.problem.horizon - 1, 2]


def test_a_masked_seed_leaves_the_other_generators_alone() -> None:
    touched, control = TinyEnv(2, horizon=3), TinyEnv(2, horizon=3)
    actions = random_actions(control, 7)
    trajectory(touched, 1, actions[:2])
    trajectory(control, 1, actions[:2])
    observation, info = touched.reset(seed=8, options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(observation[0], TinyEnv(1, horizon=3).reset(seed=8)[0][0])
    # two steps of two decisions were made; ids 0 to 3 must not come again
    assert info["decision_id"].tolist() == [4, 5]
    for row in actions[2:]:
        np.testing.assert_array_equal(touched.step(row)[0][1], control.step(row)[0][1])


@pytest.mark.parametrize("mask", [[True, False], [0, 2, 1], [[True, False, True]]])
def test_a_mask_of_another_shape_or_type_is_refused(mask: list[Any]) -> None:
    env = TinyEnv(3)
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=r"reset_mask .* allowed: 3 truth values"):
        env.reset(options={"reset_mask": np.array(mask)})


@over_all
def test_a_finished_episode_begins_anew_in_the_same_step(
    name: str, settings: dict[str, Any]
) -> None:
    ends = make(name, 2, autoreset=False, **settings)
    goes_on = make(name, 2, **settings)
    horizon = goes_on.problem.horizon
    actions = random_actions(goes_on, horizon)
    first = ends.reset(seed=4)[0]
    np.testing.assert_array_equal(goes_on.reset(seed=4)[0], first)
    for step, row in enumerate(actions, start=1):
        last, _, over, cut, quiet = ends.step(row)
        observation, _, ended, truncated, info = goes_on.step(row)
        assert (ended | truncated).tolist() == (over | cut).tolist() == [step == horizon] * 2
        assert not (ended & truncated).any()
        assert ("final_obs" in info) == (step == horizon)
        assert "final_obs" not in quiet
    np.testing.assert_array_equal(info["final_obs"], last)
    assert info["_final_obs"].tolist() == [True, True]
    assert goes_on.elapsed.tolist() == [0, 0]
    np.testing.assert_array_equal(observation, ends.reset()[0])


@over_all
def test_every_decision_has_one_outcome(name: str, settings: dict[str, Any]) -> None:
    env = make(name, 3, **settings)
    _, info = env.reset(seed=0)
    asked: list[int] = []
    answered: list[int] = []
    for row in random_actions(env, 2 * env.problem.horizon):
        asked += info["decision_id"].tolist()
        *_, info = env.step(row)
        answered += info["outcomes"].decision_id.tolist()
    assert len(set(asked)) == len(asked) == 6 * env.problem.horizon
    assert sorted(answered) == sorted(asked)


def check_oracle(env: BatchedEnv) -> None:
    """Assert that a decision's outcome, whenever it comes, has the reward the oracle was told."""
    _, info = env.reset(seed=2)
    rows, told, settled = np.arange(env.num_envs), {}, 0
    for actions in random_actions(env, env.problem.horizon + 2):
        values = env.action_values()
        assert values.shape == (env.num_envs, len(env.problem.labels))
        np.testing.assert_array_equal(env.action_values(), values)
        told |= dict(zip(info["decision_id"].tolist(), values[rows, actions], strict=True))
        *_, info = env.step(actions)
        outcomes = info["outcomes"]
        expected = np.array([told.pop(i) for i in outcomes.decision_id.tolist()])
        whole = ~outcomes.censored
        # an oracle may prefer one failure to another by less than counts
        np.testing.assert_allclose(outcomes.reward[whole], expected[whole], rtol=1e-12, atol=2e-9)
        settled += int(whole.sum())
    assert settled >= env.num_envs


@over_all
def test_the_oracle_is_told_what_a_decision_earns(name: str, settings: dict[str, Any]) -> None:
    if name in INTERFERING:
        check_sum(make(name, 5, **settings, **{} if "reward" in settings else UNPENALISED))
    elif name in LOOKING_AHEAD:
        check_plan(make(name, 5, **settings))
    else:
        check_oracle(make(name, 5, **settings))


UNPENALISED = {"impact_penalty": False}


def check_sum(env: BatchedEnv) -> None:
    """Assert that what the oracle was told of all decisions adds up to what they earned."""
    env.reset(seed=2)
    rows, told, paid = np.arange(env.num_envs), np.zeros(env.num_envs), np.zeros(env.num_envs)
    for actions in random_actions(env, env.problem.horizon):
        told += env.action_values()[rows, actions]
        paid += env.step(actions)[1]
    np.testing.assert_allclose(told, paid, rtol=1e-9)
    assert (paid > 0).all()


def check_plan(env: BatchedEnv) -> None:
    """Assert that a decision earns what it is worth less what the best that follows is worth."""
    env.reset(seed=2)
    rows, last = np.arange(env.num_envs), env.problem.horizon - 1
    for number, actions in enumerate(random_actions(env, env.problem.horizon)):
        worth = env.action_values()[rows, actions]
        rewards = env.step(actions)[1]
        ahead = env.action_values().max(axis=1) if number < last else 0.0
        np.testing.assert_allclose(rewards, worth - ahead, atol=2e-8)


def test_a_wrong_oracle_is_found_out() -> None:
    check_oracle(DelayedOracleEnv(2, 0.0))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_oracle(DelayedOracleEnv(2, 1e-6))


def test_an_oracle_that_knows_no_deadline_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make("slo-scheduling", 5)
    check_oracle(env)
    values = env.action_values
    monkeypatch.setattr(env, "action_values", lambda: np.maximum(values(), 0.1))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_oracle(env)


@over_all
def test_steps_pay_what_decisions_earn(name: str, settings: dict[str, Any]) -> None:
    env = make(name, 3, **settings)
    _, info = env.reset(seed=6)
    place = {decision: i for i, decision in enumerate(info["decision_id"].tolist())}
    paid, earned = np.zeros(3), np.zeros(3)
    for row in random_actions(env, env.problem.horizon):
        _, rewards, _, _, info = env.step(row)
        paid += rewards
        outcomes = info["outcomes"]
        owners = [place[i] for i in outcomes.decision_id.tolist()]
        np.add.at(earned, owners, outcomes.reward)
        place |= {decision: i for i, decision in enumerate(info["decision_id"].tolist())}
    np.testing.assert_allclose(paid, earned, rtol=1e-9)
    assert (earned != 0).all()


def test_an_environment_may_have_no_oracle() -> None:
    env = DelayedEnv(1)
    env.reset(seed=0)
    with pytest.raises(ConfigurationError, match="DelayedEnv has no exhaustive oracle"):
        env.action_values()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1, 2], r"actions hold 2; allowed: 0 to 1 \(left, right\)"),
        ([0, -1, 0], r"actions hold -1; allowed: 0 to 1"),
        ([0, 1], r"actions have shape \(2,\).*allowed: 3 integers"),
        ([[0, 1, 0]], r"actions have shape \(1, 3\)"),
        ([0.0, 1.0, 0.0], r"type float64; allowed: 3 integers"),
        ([True, False, True], r"type bool; allowed: 3 integers"),
    ],
)
def test_bad_actions_change_nothing(actions: Any, message: str) -> None:
    env = TinyEnv(3)
    before, _ = env.reset(seed=0)
    with pytest.raises(ConfigurationError, match=message):
        env.step(np.array(actions))
    np.testing.assert_array_equal(env._observations(), before)
    assert env.elapsed.tolist() == [0, 0, 0]


def test_lists_of_integers_are_actions() -> None:
    env = TinyEnv(2)
    observation, _ = env.reset(seed=0)
    paid = env.step([0, 0])[1]
    # only the stone, the second thing, goes right
    np.testing.assert_array_equal(paid, np.where(observation[:, 0] == 1, WRONG, RIGHT))


def test_the_wrong_number_of_seeds_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="seed has 2 entries; allowed: one, or 3"):
        TinyEnv(3).reset(seed=[1, 2])


def test_the_wrong_number_of_environments_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="num_envs is 0; allowed: at least 1"):
        TinyEnv(0)


def test_a_single_environment_wraps_one_that_ends() -> None:
    for batch in (TinyEnv(2, autoreset=False), TinyEnv(1)):
        with pytest.raises(ValueError, match="a batch of one without autoreset"):
            SingleEnv(batch)


def test_unknown_environments_name_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'offloading'"):
        make("ofloading")


class DelayedEnv(BatchedEnv):
    """A decision's outcome comes two steps later; the episode of five steps cuts off the last."""

    def __init__(self, num_envs: int) -> None:
        problem = Problem("delayed", ("a", "b"), (Category("Step", tuple("vwxyz"), 5),), 5)
        super().__init__(num_envs, problem)
        self._open: list[list[tuple[int, int]]] = [[] for _ in range(num_envs)]

    def _begin(self, indices: Ints) -> None:
        for i in indices:
            self._open[i] = []

    def _observe(self) -> NDArray[Any]:
        return np.minimum(self.elapsed, 4)[:, None]

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        rewards, rows = np.zeros(self.num_envs), []
        for i, queue in enumerate(self._open):
            queue.append((int(decision_ids[i]), int(actions[i])))
            if len(queue) > 2:
                decision, action = queue.pop(0)
                rewards[i] = 10.0 + action
                rows.append((decision, rewards[i], False))
            if self.elapsed[i] == 4:
                rows += [(decision, 0.0, True) for decision, _ in queue]
        ids, paid, censored = zip(*rows, strict=True) if rows else ((), (), ())
        outcomes = Outcomes(
            np.array(ids, dtype=np.int64),
            np.array(paid, dtype=np.float64),
            np.ones(len(ids), dtype=np.bool_),
            np.array(censored, dtype=np.bool_),
            {"queue": np.array([len(self._open[0])] * len(ids), dtype=np.float64)},
        )
        return StepResult(rewards, outcomes, np.zeros(self.num_envs, dtype=np.bool_))


class DelayedOracleEnv(DelayedEnv):
    """Tells an oracle what decisions will earn, more or less."""

    def __init__(self, num_envs: int, error: float) -> None:
        super().__init__(num_envs)
        self.error = error

    def action_values(self) -> Floats:
        return np.array([[10.0, 11.0 + self.error]] * self.num_envs)


class Alternating(Policy):
    """Takes the first action, then the second, and so on; its ids do not begin at 0."""

    name = "alternating"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        for _ in range(7):
            next(self._ids)

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        decisions: list[Decision] = []
        for context in self.contexts(situations):
            number = next(self._ids)
            action = number % 2
            decisions.append(
                Decision(number, action, self.problem.labels[action], (0.5, 0.5), "rule", context)
            )
        return decisions


def outcomes_of(rollout: Rollout, steps: int) -> list[list[Outcome]]:
    return [rollout.step()[1] for _ in range(steps)]


def test_late_outcomes_find_their_decision() -> None:
    env = DelayedEnv(1)
    rollout = Rollout(Alternating(env.problem), env, explore=False)
    rollout.reset(seed=0)
    finished = outcomes_of(rollout, 5)
    # the policy numbers its decisions 7 to 11 and takes the odd action with odd numbers; the
    # first outcome comes with the third step, the fifth step cuts off the last two
    assert [[o.decision_id for o in step] for step in finished] == [[], [], [7], [8], [9, 10, 11]]
    assert [o.reward for step in finished for o in step] == [11.0, 10.0, 11.0, 0.0, 0.0]
    assert [o.censored for o in finished[-1]] == [False, True, True]
    # each carries the situation of its own decision, not the present one
    assert [o.context["Step"] for step in finished for o in step] == list("vwxyz")
    assert [o.action for step in finished for o in step] == [1, 0, 1, 0, 1]
    assert finished[2][0].metrics == {"queue": 2.0}
    assert rollout.pending == {}


def test_late_outcomes_of_several_do_not_mix() -> None:
    env = DelayedEnv(2)
    rollout = Rollout(Alternating(env.problem), env, explore=False)
    rollout.reset(seed=0)
    finished = outcomes_of(rollout, 13)
    # 26 decisions; two episodes are over, three steps into the third one each sub-environment
    # has one outcome and two decisions under way
    given = [o for step in finished for o in step]
    assert sorted(o.decision_id for o in given) == [*range(7, 27), 27, 28]
    assert len(rollout.pending) == 4
    assert all(o.reward == (0.0 if o.censored else 10.0 + o.action) for o in given)
    rollout.reset(seed=0)
    assert rollout.pending == {}
    assert [o.context["Step"] for step in outcomes_of(rollout, 3) for o in step] == ["v", "v"]


def test_learning_ignores_what_was_cut_off() -> None:
    env = DelayedEnv(1)
    policy, pool = Alternating(env.problem), ExperiencePool(env.problem)
    policy.env = env

    def update(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            pool.add(outcome)

    policy.update = update  # type: ignore[method-assign]
    policy.learn(5)
    assert pool.received == 3
    assert [c["Step"] for c in pool.tallies] == ["v", "w", "x"]


def test_tasks_do_not_depend_on_what_was_decided() -> None:
    env = make("offloading", 2)
    seen = []
    for seed in (0, 1):
        actions = random_actions(env, env.problem.horizon, seed)
        seen.append(trajectory(env, 11, actions)[0])
    np.testing.assert_array_equal(seen[0], seen[1])
