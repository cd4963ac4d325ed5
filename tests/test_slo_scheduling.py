"""SLO-aware scheduling: what is seen, what is paid, and what an expert makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.environments.slo_scheduling import RATES, SLOSchedulingVectorEnv
from icl_optimizer.environments.slo_scheduling_config import (
    DEFAULT_TOKENS,
    TASK_TYPES,
    SLOSchedulingConfig,
    served_llms,
)
from icl_optimizer.environments.slo_scheduling_tasks import TaskDraws, draw_tasks
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Context

MODELS = SLOSchedulingConfig().models


def tasks(seed: int = 0, envs: int = 1, **fields: Any) -> TaskDraws:
    """Return the tasks of ``envs`` episodes, drawn one after the other."""
    return draw_tasks([np.random.default_rng(seed)] * envs, SLOSchedulingConfig(**fields))


# --- tasks


def test_types_lengths_and_scores_are_those_asked_for() -> None:
    drawn = tasks(envs=20, horizon=5000, length_spread=0.5, model_spread=0.3)
    np.testing.assert_allclose(np.bincount(drawn.kind.ravel()) / drawn.kind.size, 0.2, atol=0.01)
    means = SLOSchedulingConfig().mean_tokens
    for index, name in enumerate(TASK_TYPES):
        tokens = drawn.tokens[drawn.kind == index]
        np.testing.assert_allclose(tokens.mean(axis=0), means[name], rtol=0.03)
        logs = np.log(tokens)
        np.testing.assert_allclose(logs.std(axis=0), np.hypot(0.5, 0.3), rtol=0.03)
        # what a task's length at two models has in common is the spread of the task
        assert np.cov(logs[:, 0], logs[:, 1])[0, 1] == pytest.approx(0.25, rel=0.05)
        assert (drawn.score[drawn.kind == index] == [m.score[index] for m in get_models()]).all()


def test_measured_lengths_are_drawn_as_they_are() -> None:
    known = {"math": (1.5, 0.5, 0.5, 1.5)}
    config = SLOSchedulingConfig(relative_lengths=known)
    drawn = tasks(envs=20, horizon=2000, model_spread=0.0, relative_lengths=known)
    math = drawn.kind == TASK_TYPES.index("math")
    lengths, counts = np.unique(drawn.tokens[math] / config.mean_tokens["math"], return_counts=True)
    np.testing.assert_allclose(lengths, [0.5, 1.5])
    np.testing.assert_allclose(counts / counts.sum(), 0.5, atol=0.02)
    # other types, and what else is drawn, are as without
    usual = tasks(envs=20, horizon=2000, model_spread=0.0)
    assert (drawn.tokens[~math] == usual.tokens[~math]).all()
    assert (drawn.arrival_s == usual.arrival_s).all()


def test_the_variance_of_measured_lengths_is_their_own() -> None:
    config = SLOSchedulingConfig(
        relative_lengths={"math": (0.5, 1.5)}, length_spread=0.0, model_spread=0.0
    )
    expected = [0.25 if name == "math" else 0.0 for name in TASK_TYPES]
    np.testing.assert_allclose(config.relative_variance, expected, atol=1e-12)
    with pytest.raises(ValueError, match="Did you mean 'math'"):
        SLOSchedulingConfig(relative_lengths={"maths": (1.0,)})
    with pytest.raises(ValueError, match="above 0"):
        SLOSchedulingConfig(relative_lengths={"math": (0.0,)})


def get_models() -> tuple[Any, ...]:
    return SLOSchedulingConfig().served


def test_types_left_out_have_the_default_length() -> None:
    config = SLOSchedulingConfig(mean_tokens={"math": 50.0})
    speed = served_llms()["gemma2-9b"].tokens_per_s
    service = config.mean_service[:, MODELS.index("gemma2-9b")] * speed
    expected = [50.0 if name == "math" else DEFAULT_TOKENS for name in TASK_TYPES]
    np.testing.assert_allclose(service, expected)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_score_noise_keeps_the_mean(noise: float) -> None:
    config = SLOSchedulingConfig(score_noise=noise, horizon=5000)
    drawn = draw_tasks([np.random.default_rng(1)] * 20, config)
    assert (drawn.score >= 0).all()
    assert (drawn.score <= 1).all()
    for index in range(len(TASK_TYPES)):
        scores = drawn.score[drawn.kind == index]
        np.testing.assert_allclose(scores.mean(axis=0), config.mean_score[index], rtol=0.03)
        if noise < 0.03:
            np.testing.assert_allclose(scores.std(axis=0), noise, rtol=0.05)
    # an error of its own for every task and model
    errors = drawn.score[drawn.kind == 0]
    assert abs(np.corrcoef(errors[:, 0], errors[:, 1])[0, 1]) < 0.04


def test_deadlines_by_type() -> None:
    drawn = tasks(horizon=500, deadline_s=8.0, type_deadlines_s={"math": 30.0, "language": 2.0})
    expected = {"math": 30.0, "language": 2.0}
    np.testing.assert_array_equal(
        drawn.deadline_s[0], [expected.get(TASK_TYPES[kind], 8.0) for kind in drawn.kind[0]]
    )


def test_mixed_deadlines_come_equally_often_with_every_type() -> None:
    given = (2.0, 5.0, 5.0, 20.0)
    drawn = tasks(horizon=40_000, mixed_deadlines_s=given, type_deadlines_s={"math": 99.0})
    for index in range(len(TASK_TYPES)):
        deadlines = drawn.deadline_s[drawn.kind == index]
        values, counts = np.unique(deadlines, return_counts=True)
        assert values.tolist() == [2.0, 5.0, 20.0]
        # one named twice is drawn twice as often
        np.testing.assert_allclose(counts / len(deadlines), [0.25, 0.5, 0.25], atol=0.03)


def test_tasks_do_not_depend_on_what_was_decided_nor_on_the_rate() -> None:
    slow, fast = tasks(arrival_rate=0.5), tasks(arrival_rate=8.0)
    np.testing.assert_allclose(slow.arrival_s, 16 * fast.arrival_s)
    for name in ("kind", "deadline_s", "tokens", "score"):
        np.testing.assert_array_equal(getattr(slow, name), getattr(fast, name))
    env = SLOSchedulingVectorEnv(2)
    seen = []
    for action in (0, 3):
        observations = [env.reset(seed=5)[0]]
        observations += [env.step(np.full(2, action))[0] for _ in range(70)]
        seen.append(np.array(observations)[:, :, 4:])
    np.testing.assert_array_equal(*seen)


# --- what is seen and what is paid


def test_observation_columns() -> None:
    env = SLOSchedulingVectorEnv(2, arrival_rate=50.0, deadline_s=7.0)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (2, 6)
    assert (observation[:, :4] == 0).all()
    assert [c.name for c in env.problem.columns] == [f"{m} queue" for m in MODELS] + [
        "Task",
        "Deadline",
    ]
    # so many arrive at once that nothing leaves in the first steps
    for sent, action in enumerate([2, 2, 0], start=1):
        observation, *_ = env.step(np.array([action, 3]))
        assert observation[1, 3] == sent
    assert observation[0].tolist() == [1, 0, 2, 0, env._tasks.kind[0, 3], 7.0]
    np.testing.assert_array_equal(env.problem.role("Queue"), [0, 1, 2, 3])


def test_rewards_come_at_completion() -> None:
    env = SLOSchedulingVectorEnv(1, horizon=3, arrival_rate=0.01)
    _, info = env.reset(seed=1)
    # a hundred seconds between arrivals: each is answered before the next one comes
    for _ in range(3):
        asked = info["decision_id"].tolist()
        _, reward, _, _, info = env.step(np.array([1]))
        assert info["outcomes"].decision_id.tolist() == asked
        assert reward.tolist() == info["outcomes"].reward.tolist()
    rushed = SLOSchedulingVectorEnv(1, horizon=3, arrival_rate=99.0)
    rushed.reset(seed=1)
    steps = [rushed.step(np.array([1])) for _ in range(3)]
    paid, settled = [s[1][0] for s in steps], [len(s[4]["outcomes"]) for s in steps]
    # all at once: nothing is paid at the decisions, everything after the last
    assert (paid[:2], settled) == ([0.0, 0.0], [0, 0, 3])
    assert paid[2] == steps[2][4]["outcomes"].reward.sum() > 0


def test_rewards_are_the_scores_in_time() -> None:
    env = SLOSchedulingVectorEnv(64, arrival_rate=2.0, autoreset=False)
    env.reset(seed=0)
    rng, paid, scores, met = np.random.default_rng(0), 0.0, 0.0, 0
    for _ in range(env.problem.horizon):
        _, rewards, _, truncated, info = env.step(rng.integers(4, size=64))
        outcomes = info["outcomes"]
        measured = outcomes.metrics
        limit, served = 10.0, measured["dropped"] == 0
        # the response is a difference, so a tie may fall on either side
        clear = np.abs(measured["response_time_s"] - limit) > 1e-9
        in_time = served & (measured["response_time_s"] <= limit)
        np.testing.assert_array_equal(outcomes.feasible[clear], in_time[clear])
        np.testing.assert_array_equal(measured["deadline_met"], outcomes.feasible)
        np.testing.assert_array_equal(outcomes.reward > 0, outcomes.feasible)
        paid, scores = paid + rewards.sum(), scores + measured["score"].sum()
        met += int(in_time.sum())
    assert truncated.all()
    assert (env.queues.in_system == 0).all()
    assert paid == pytest.approx(scores)
    assert 0.1 < met / (64 * 30) < 0.9


def test_dump_sends_where_the_queue_is_longest() -> None:
    env = SLOSchedulingVectorEnv(1, dump_action=True, arrival_rate=99.0, queue_size=3)
    assert env.problem.labels == (*MODELS, "dump")
    env.reset(seed=0)
    observation: Any = None
    for action in (1, 2, 2, 4):
        observation, *_ = env.step(np.array([action]))
    assert observation[0, :4].tolist() == [0, 1, 3, 0]
    # where it is full, the task is dropped
    *_, info = env.step(np.array([4]))
    assert info["outcomes"].metrics["dropped"].tolist() == [1.0]
    assert info["outcomes"].metrics["server"].tolist() == [2.0]


def test_hopeless_tasks_go_to_the_longest_backlog() -> None:
    env = SLOSchedulingVectorEnv(1, arrival_rate=99.0, deadline_s=0.01, horizon=10)
    env.reset(seed=0)
    for action in (1, 1, 3):
        env.step(np.array([action]))
    values = env.action_values()[0]
    assert (values < 2e-9).all()
    assert values.argmax() == 1
    assert values[3] > values[0] == values[2]


def test_a_full_queue_hurts_least_of_all() -> None:
    env = SLOSchedulingVectorEnv(1, arrival_rate=99.0, deadline_s=0.01, queue_size=3)
    env.reset(seed=0)
    env._tasks.tokens[:] = 100.0
    # two tasks of the slow model take longer than three of the fast one, whose queue is full
    for action in (0, 0, 0, 1, 1):
        env.step(np.array([action]))
    backlog = env.queues.backlog(env._tasks.arrival_s[:, 5])
    assert backlog.argmax() == 1
    assert env.action_values().argmax() == 0


def test_summary_names_what_a_table_shows() -> None:
    env = SLOSchedulingVectorEnv(1)
    metrics = {
        "score": np.array([0.2, 0.0, 0.0, 0.4]),
        "deadline_met": np.array([1.0, 0.0, 0.0, 1.0]),
        "response_time_s": np.array([2.0, 16.0, 0.0, 3.0]),
        "dropped": np.array([0.0, 0.0, 1.0, 0.0]),
        "server": np.array([0.0, 0.0, 1.0, 3.0]),
    }
    summary = env.summarise(metrics["score"], metrics["deadline_met"] > 0, metrics)
    shares = dict(zip((f"share_{m}" for m in MODELS), (0.5, 0.25, 0.0, 0.25), strict=True))
    assert summary == pytest.approx(
        {
            "reward": 0.15,
            "success_rate": 0.5,
            "score": 0.15,
            "episode_score": 4.5,
            "deadline_met": 0.5,
            "response_time_s": 7.0,
            "drop_rate": 0.25,
            **shares,
        }
    )
    nothing = {name: values[2:3] for name, values in metrics.items()}
    assert env.summarise(nothing["score"], np.zeros(1, bool), nothing)["response_time_s"] == 0.0


# --- words


def test_contexts_in_words() -> None:
    problem = make("slo-scheduling").problem
    row = np.array([0, 1, 3, 7, TASK_TYPES.index("coding"), 10.0])
    assert problem.describe(row) == Context(
        {
            "phi3-3.8b queue": "empty",
            "gemma2-9b queue": "one",
            "qwen2-7b queue": "three",
            "llama3-8b queue": "long",
            "Task": "coding",
        }
    )
    words = [problem.columns[0].word(n) for n in range(11)]
    assert words == ["empty", "one", "two", "three", *["several"] * 2, *["long"] * 5]
    assert problem.profiles[1] == Context({"Model": "gemma2", "Size": "9 billion parameters"})


def test_deadlines_are_spoken_of_where_they_differ() -> None:
    problem = make("slo-scheduling", mixed_deadlines_s=(20.0, 2.5, 5.0)).problem
    assert problem.keywords[-1] == "Deadline"
    said = [problem.describe(np.array([0, 0, 0, 0, 2, d]))["Deadline"] for d in (2.5, 5.0, 20.0)]
    assert said == ["2.5 s", "5 s", "20 s"]
    by_type = make("slo-scheduling", type_deadlines_s={"math": 30.0}).problem
    assert by_type.columns[-1].words == ("10 s", "30 s")


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("phi3-3.8b", "gemma")}, "models is .*unknown served model 'gemma'. Did you"),
        ({"models": ("phi3-3.8b",)}, "models is"),
        ({"models": ("phi3-3.8b", "phi3-3.8b")}, "models is .*allowed: different models"),
        ({"arrival_rate": 0}, "arrival_rate is 0"),
        ({"arrival_rate": float("nan")}, "arrival_rate is nan"),
        ({"horizon": 0}, "horizon is 0"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"slots": 11}, "slots is 11: .*at most queue_size, which is 10"),
        ({"queue_size": 2, "slots": 3}, "slots is 3: .*at most queue_size, which is 2"),
        ({"deadline_s": -1.0}, "deadline_s is -1.0"),
        ({"type_deadlines_s": {"maths": 3.0}}, "type_deadlines_s is .*'maths'. Did you mean"),
        ({"type_deadlines_s": {"math": 0.0}}, "type_deadlines_s is .*'math' is 0.0; allowed"),
        ({"mixed_deadlines_s": (5.0, 0.0)}, "mixed_deadlines_s is .*holds 0.0; allowed"),
        ({"mean_tokens": {"poetry": 9.0}}, "mean_tokens is .*'poetry'"),
        ({"score_noise": 2.0}, "score_noise is 2.0"),
        ({"bursts": {"share": 1.5}}, "bursts.share is 1.5"),
        ({"dead_line": 3.0}, "'dead_line'. Did you mean 'deadline_s'"),
    ],
)
def test_bad_settings_name_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        get_spec("slo-scheduling").config(settings)


def test_drift_begins_with_the_next_episode() -> None:
    env, control = (SLOSchedulingVectorEnv(1, horizon=10) for _ in range(2))
    changed = env.config.model_copy(update={"mean_tokens": {"math": 2000.0}, "arrival_rate": 4.0})
    for each in (env, control):
        each.reset(seed=0)
        each.step(np.array([1]))
    before = env.queues.in_system.copy()
    env.change(changed)
    np.testing.assert_array_equal(env.queues.in_system, before)
    for _ in range(8):
        np.testing.assert_array_equal(*(each.step(np.array([1]))[0] for each in (env, control)))
    for each in (env, control):
        each.step(np.array([1]))
    np.testing.assert_allclose(4 * env._tasks.arrival_s, control._tasks.arrival_s)
    math = env._tasks.kind == TASK_TYPES.index("math")
    np.testing.assert_allclose(env._tasks.tokens[math], 2.5 * control._tasks.tokens[math])
    assert env.problem.expert is not None
    assert env.problem.expert(np.array([[0, 0, 0, 0, 2, 10.0]])).seconds[0, 0] == pytest.approx(
        2000 / served_llms()[MODELS[0]].tokens_per_s
    )


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"queue_size": 5}, "slo-scheduling: queue_size is 5 in mid-run; allowed: 10"),
        ({"slots": 2}, "slots is 2 in mid-run; allowed: 1"),
        ({"models": MODELS[::-1]}, r"models is \('llama3-8b'.* allowed: \('phi3"),
        ({"dump_action": True}, "labels, columns or horizon are different in mid-run"),
        ({"horizon": 7}, "labels, columns or horizon are different"),
        ({"deadline_s": 5.0}, "labels, columns or horizon are different"),
    ],
)
def test_what_cannot_change_in_mid_run(update: dict[str, Any], message: str) -> None:
    env = SLOSchedulingVectorEnv(1)
    with pytest.raises(ConfigurationError, match=message):
        env.change(env.config.model_copy(update=update))
    assert env.config == SLOSchedulingConfig()


def test_the_sweep_is_that_of_the_figures() -> None:
    points = get_spec("slo-scheduling").sweep_points({"arrival_rate": 3.0})
    assert [p.name for p in points] == [f"arrival_rate={r}" for r in ("0.5", "1", "2", "4", "8")]
    assert [p.settings for p in points] == [{"arrival_rate": rate} for rate in RATES]


# --- the expert

Played = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def played(**fields: Any) -> Played:
    """Return chance and seconds forecast, and what became of it, for random decisions."""
    env = SLOSchedulingVectorEnv(300, **fields)
    expert = env.problem.expert
    assert expert is not None
    observation, info = env.reset(seed=0)
    rng, rows = np.random.default_rng(0), np.arange(300)
    told: dict[int, tuple[float, float]] = {}
    pairs = []
    for _ in range(2 * env.problem.horizon):
        actions = rng.integers(len(env.problem.labels), size=300)
        forecast = expert(observation)
        said = zip(forecast.chance[rows, actions], forecast.seconds[rows, actions], strict=True)
        told |= dict(zip(info["decision_id"].tolist(), said, strict=True))
        observation, *_, info = env.step(actions)
        outcomes = info["outcomes"]
        happened = zip(outcomes.feasible, outcomes.metrics["response_time_s"], strict=True)
        ids = outcomes.decision_id.tolist()
        pairs += [(*told.pop(i), *what) for i, what in zip(ids, happened, strict=True)]
    chance, seconds, met, response = np.array(pairs).T
    return chance, seconds, met, response


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        ({}, 0.05),
        ({"arrival_rate": 3.0, "dump_action": True}, 0.05),
        ({"mixed_deadlines_s": (3.0, 6.0, 20.0)}, 0.05),
        # with several slots the wait for the first to be free is a rougher guess
        ({"arrival_rate": 3.0, "slots": 2}, 0.1),
    ],
)
def test_the_experts_chances_come_true(fields: dict[str, Any], tolerance: float) -> None:
    chance, seconds, met, response = played(**fields)
    assert chance.mean() == pytest.approx(met.mean(), abs=0.015)
    tenth = np.minimum((10 * chance).astype(int), 9)
    filled = [i for i in range(10) if (tenth == i).sum() > 200]
    assert len(filled) >= 8
    for i in filled:
        assert met[tenth == i].mean() == pytest.approx(chance[tenth == i].mean(), abs=tolerance)
    served = np.isfinite(seconds)
    assert seconds[served].mean() == pytest.approx(response[served].mean(), rel=0.03)


def test_the_expert_knows_full_queues_and_where_dump_leads() -> None:
    env = SLOSchedulingVectorEnv(1, dump_action=True)
    assert env.problem.expert is not None
    forecast = env.problem.expert(np.array([[0, 10, 3, 1, 1, 10.0], [0, 1, 4, 1, 1, 10.0]]))
    assert forecast.chance[0, [1, 4]].tolist() == [0.0, 0.0]
    assert forecast.seconds[0, [1, 4]].tolist() == [np.inf, np.inf]
    assert (np.diff(forecast.chance[0, [2, 3, 0]]) > 0).all()
    for values in (forecast.chance, forecast.reward, forecast.seconds):
        assert values[1, 4] == values[1, 2]
    scores = [model.score[1] for model in env.config.served]
    assert forecast.reward[0, :4].tolist() == scores
    assert (forecast.otherwise == 0).all()


def test_the_expert_is_certain_where_nothing_varies() -> None:
    same = dict.fromkeys(TASK_TYPES, 400.0)
    env = SLOSchedulingVectorEnv(1, mean_tokens=same, length_spread=0.0, model_spread=0.0)
    assert env.problem.expert is not None
    forecast = env.problem.expert(np.array([[0, 0, 0, 9, 0, 10.0]]))
    np.testing.assert_allclose(forecast.chance, [[1, 1, 1, 0]], atol=1e-6)
