"""A pool that ages: it forgets when the world has changed, and only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_env import BEST, RIGHT, WORDS, WRONG, tiny_problem
from tiny_prompts import CopyNearest, write_templates

from icl_optimizer.ageing import AGEINGS, ChangeDetector, log_bet
from icl_optimizer.agent import ICLAgent
from icl_optimizer.baselines.bandit import BanditPolicy
from icl_optimizer.baselines.knn import KnnPolicy
from icl_optimizer.decision import Outcome
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.experience import ExperiencePool, Replay, Tally
from icl_optimizer.icl_config import ICLConfig

PROBLEM = tiny_problem()
CONTEXTS = [PROBLEM.context([word, weight]) for word in WORDS for weight in ("light", "heavy")]
Noise = Callable[[np.random.Generator], float]
NOISES: dict[str, Noise] = {
    "none": lambda rng: 0.0,
    "normal": lambda rng: float(rng.normal(0, 2)),
    "heavy tails": lambda rng: float(rng.standard_t(3)),
    "rare failures": lambda rng: -50.0 * (rng.random() < 0.02),
}


def outcomes(count: int, noise: Noise, seed: int, *, flipped: bool = False) -> list[Outcome]:
    """Return outcomes of random decisions in the tiny world, or in the one turned round."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        context, action = CONTEXTS[rng.integers(len(CONTEXTS))], int(rng.integers(2))
        right = action == BEST[WORDS.index(context["Thing"])]
        reward = (RIGHT if right != flipped else WRONG) + noise(rng)
        found.append(Outcome(0, context, action, reward))
    return found


def ageing_pool(replay: Replay = "means") -> ExperiencePool:
    return ExperiencePool(PROBLEM, replay, ageing="surprise")


def forgets_after(pool: ExperiencePool, arriving: list[Outcome]) -> int | None:
    """Return after how many outcomes ``pool`` first forgets; None if it never does."""
    for i, item in enumerate(arriving, start=1):
        expected = pool.counted + 1
        pool.add(item)
        if pool.counted < expected:
            return i
    return None


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=120),
    st.lists(st.floats(-1e6, 1e6), min_size=12, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_what_never_varies_is_never_forgotten(
    visits: list[tuple[int, int]], rewards: list[float]
) -> None:
    pool = ageing_pool()
    arriving = [Outcome(0, CONTEXTS[c], a, rewards[2 * c + a]) for c, a in visits]
    assert forgets_after(pool, arriving) is None
    assert pool.counted == pool.received == len(visits)


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_no_change(name: str) -> None:
    # odds of n to 1 against chance: over 20 runs of 300 outcomes hardly one alarm is expected
    alarms = [forgets_after(ageing_pool(), outcomes(300, NOISES[name], seed)) for seed in range(20)]
    assert sum(alarm is not None for alarm in alarms) <= 1


@pytest.mark.parametrize("name", ["none", "normal", "heavy tails"])
@pytest.mark.parametrize("replay", ["means", "prioritized", "latest"])
def test_a_flip_is_found_within_a_few_outcomes(name: str, replay: Replay) -> None:
    for seed in range(5):
        pool = ageing_pool(replay)
        assert forgets_after(pool, outcomes(300, NOISES[name], seed)) is None
        after = outcomes(40, NOISES[name], 100 + seed, flipped=True)
        found = forgets_after(pool, after)
        assert found is not None
        assert found <= 8
        # what is left is the unbroken run of surprises, which chance may have begun
        assert 1 <= pool.counted <= found + 2
        assert sum(t.count for a in pool.tallies.values() for t in a.values()) == pool.counted
        for item in after[found:]:
            pool.add(item)
        best = {c: pool.best_action(c) for c in CONTEXTS if len(pool.tallies.get(c, {})) == 2}
        assert best
        assert all(action == 1 - BEST[WORDS.index(c["Thing"])] for c, action in best.items())


def test_without_ageing_a_flip_is_not_noticed() -> None:
    pool = ExperiencePool(PROBLEM)
    assert pool.ageing == "none"
    for item in outcomes(300, NOISES["normal"], 0):
        pool.add(item)
    assert forgets_after(pool, outcomes(100, NOISES["normal"], 1, flipped=True)) is None
    assert pool.counted == 400
    assert pool.to_json()["detector"] is None


def test_a_single_outlier_is_forgiven() -> None:
    pool = ageing_pool()
    arriving = outcomes(200, NOISES["normal"], 3)
    arriving[100:100] = [Outcome(0, CONTEXTS[0], 0, -1e6)]
    assert forgets_after(pool, arriving) is None


def test_a_change_is_noticed_in_half_of_the_contexts_too() -> None:
    pool = ageing_pool()
    assert forgets_after(pool, outcomes(300, NOISES["normal"], 4)) is None
    flipped = outcomes(80, NOISES["normal"], 5, flipped=True)
    same = outcomes(80, NOISES["normal"], 5)
    half = [f if f.context in CONTEXTS[::2] else s for f, s in zip(flipped, same, strict=True)]
    found = forgets_after(pool, half)
    assert found is not None
    assert found <= 25


def test_the_same_pool_goes_on_from_json_in_the_midst_of_a_suspicion() -> None:
    pool = ageing_pool()
    for item in outcomes(300, NOISES["normal"], 6):
        pool.add(item)
    after = outcomes(40, NOISES["normal"], 7, flipped=True)
    pool.add(after[0])
    pool.add(after[1])
    text = json.dumps(pool.to_json(), allow_nan=False)
    again = ExperiencePool.from_json(PROBLEM, json.loads(text))
    assert again.to_json() == pool.to_json()
    assert len(pool.to_json()["suspects"]) == 2
    assert forgets_after(again, after[2:]) == forgets_after(pool, after[2:]) is not None
    assert again.to_json() == pool.to_json()


def test_a_pool_saved_before_there_was_ageing_is_read() -> None:
    pool = ExperiencePool(PROBLEM)
    for item in outcomes(30, NOISES["none"], 8):
        pool.add(item)
    old = pool.to_json()
    for key in ("ageing", "counted", "detector", "suspects"):
        del old[key]
    for row in old["tallies"]:
        del row["squares"]
    again = ExperiencePool.from_json(PROBLEM, old)
    assert (again.ageing, again.counted, again.received) == ("none", 30, 30)
    assert [(e.action, e.reward) for e in again.examples()] == [
        (e.action, e.reward) for e in pool.examples()
    ]


def test_an_agent_saved_before_there_was_ageing_goes_on_without(tmp_path: Path) -> None:
    prompts, file = write_templates(tmp_path), tmp_path / "agent.json"
    agent = ICLAgent(PROBLEM, CopyNearest(), prompts=prompts)
    assert agent.pool.ageing == "surprise"
    agent.learn_from(outcomes(30, NOISES["none"], 8)).save(file)
    again = ICLAgent(PROBLEM, CopyNearest(), prompts=prompts).load(file)
    assert again.pool.to_json() == agent.pool.to_json()
    data = json.loads(file.read_text())
    del data["config"]["ageing"], data["pool"]["ageing"], data["pool"]["counted"]
    file.write_text(json.dumps(data))
    old = ICLAgent(PROBLEM, CopyNearest(), prompts=prompts).load(file)
    assert (old.config.ageing, old.pool.ageing, old.pool.counted) == ("none", "none", 30)


def test_bets_earn_what_the_mixture_of_powers_does() -> None:
    powers = (np.arange(100_000) + 0.5) / 100_000
    for p in (1e-6, 0.001, 0.05, 0.3, 0.5, 0.9, 512 / 513, 1.0):
        assert log_bet(p) == pytest.approx(np.log(np.mean(powers * p ** (powers - 1))), abs=1e-6)
    # half the stake is lost at p = 1, and nobody gains on average
    assert log_bet(1.0) == pytest.approx(np.log(0.5))
    even = np.exp([log_bet(p) for p in (np.arange(4000) + 0.5) / 4000])
    assert even.mean() < 1


def test_nothing_is_judged_before_the_spread_is_known() -> None:
    detector, tally = ChangeDetector(), Tally()
    # the first outcome has nothing to deviate from, the next four tell the spread
    for reward in (0.0, 1e6, -1e6, 5.0, 1e9):
        assert not detector.add(reward, tally)
        assert detector.evidence == 0
        assert not detector.surprised


def test_knn_forgets_with_its_pool() -> None:
    policy = KnnPolicy(PROBLEM, ageing="surprise")
    for flipped in (False, True):
        for item in outcomes(300, NOISES["normal"], 10 + flipped, flipped=flipped):
            row = (float(WORDS.index(item.context["Thing"])), 0.5)
            policy.update([Outcome(0, item.context, item.action, item.reward, observation=row)])
    assert policy.pool.received == 600
    assert len(policy._seen) == policy.pool.counted <= 305
    answers = policy.decide(np.array([[i, 0.5] for i in range(len(WORDS))]))
    assert [d.action for d in answers] == [1 - b for b in BEST]


def test_after_a_flip_everything_is_tried_again(tmp_path: Path) -> None:
    prompts = write_templates(tmp_path)
    config = ICLConfig(ageing="surprise")
    learners = (
        BanditPolicy(PROBLEM, ageing="surprise"),
        ICLAgent(PROBLEM, CopyNearest(), config, prompts=prompts),
    )
    for learner in learners:
        learner.learn_from(outcomes(200, NOISES["normal"], 20))
        learner.learn_from(outcomes(5, NOISES["normal"], 21, flipped=True))
        assert learner.pool.counted <= 7
        fresh = [c for c in CONTEXTS if c not in learner.pool.tallies]
        assert fresh
        assert {d.made_by for d in learner.decide(fresh, explore=True)} == {"explore"}


def test_an_unknown_ageing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown ageing 'surprised'\. Did you mean"):
        ExperiencePool(PROBLEM, ageing="surprised")  # type: ignore[arg-type]
    assert AGEINGS == ("none", "surprise")
