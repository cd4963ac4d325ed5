"""Offloading worked by hand: delays, rewards, the edge queue, words, and its configuration."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from icl_optimizer.environments import offloading
from icl_optimizer.environments.offloading import LOCAL, OFFLOAD, PAIRS, OffloadingVectorEnv
from icl_optimizer.environments.offloading_config import (
    PAPER_TYPES,
    OffloadingConfig,
    service_types,
)
from icl_optimizer.environments.offloading_tasks import TaskDraws
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.errors import ConfigurationError

SMALL: dict[str, Any] = {"users": 2, "radio": {"n_resource_blocks": 4}}
CHATTING, CODING = list(PAPER_TYPES).index("chatting"), list(PAPER_TYPES).index("coding")


class FixedRadio:
    """Gives every user 64 kbit/s, so that 1,000 tokens of 4 bytes, 32 kbit, take 0.5 s."""

    def __init__(self, env: OffloadingVectorEnv) -> None:
        self._capacity = np.full((env.num_envs, env.config.users), 64e3)

    def draw_episode(self, rng: np.random.Generator, n_steps: int) -> None:
        return None

    def reset(self, indices: Any, draws: Any) -> None:
        pass

    def step(self, interval: Any, indices: Any = None) -> NDArray[np.float64]:
        return self._capacity


def fixed_env(
    patch: pytest.MonkeyPatch, tasks: dict[str, Any], **fields: Any
) -> OffloadingVectorEnv:
    """Return one cell with a fixed radio whose episodes consist of ``tasks``, in order.

    A task is regular, has 1,000 tokens, and a backhaul delay of 0.1 s, unless told otherwise.
    """
    count = max(np.size(values) for values in tasks.values())
    usual = {"word": CHATTING, "quality_task": False, "estimate": 1000.0, "tokens": 1000.0}
    usual |= {"user": 0, "arrival_s": 0.0, "backhaul_s": 0.1}
    columns = {k: np.broadcast_to(v, (1, count)) for k, v in (usual | tasks).items()}
    patch.setattr(offloading, "draw_tasks", lambda rngs, config: TaskDraws(**columns))
    env = OffloadingVectorEnv(1, horizon=count, autoreset=False, **fields)
    env.radio = FixedRadio(env)  # type: ignore[assignment]
    return env


def step(env: OffloadingVectorEnv, action: int) -> tuple[float, bool, dict[str, float]]:
    """Return reward, feasibility and metrics of one decision."""
    _, rewards, _, _, info = env.step([action])
    done = info["outcomes"]
    assert rewards.tolist() == done.reward.tolist()
    return (
        float(rewards[0]),
        bool(done.feasible[0]),
        {k: float(v[0]) for k, v in done.metrics.items()},
    )


@pytest.mark.parametrize(
    ("action", "quality", "delay", "reward", "feasible"),
    [
        # radio 1000 * 4 * 8 / 64000 = 0.5 s; edge 0.23 + 1000 / 75 = 13.5633 s;
        # cloud 0.42 + 1000 / 32 = 31.67 s and 0.1 s backhaul; target 30 s
        (LOCAL, False, 14.0633, 15.9367, True),
        (OFFLOAD, False, 32.27, -2.27, True),
        # an edge model of MMLU 68.4 is below (68.4 + 82) / 2: the penalty of 40 s
        (LOCAL, True, 14.0633, -24.0633, False),
        (OFFLOAD, True, 32.27, -2.27, True),
    ],
)
def test_reward_by_hand(
    action: int,
    quality: bool,
    delay: float,
    reward: float,
    feasible: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = fixed_env(monkeypatch, {"quality_task": quality, "word": CODING if quality else CHATTING})
    env.reset(seed=0)
    paid, kept, metrics = step(env, action)
    assert paid == pytest.approx(reward, abs=1e-4)
    assert kept is feasible
    assert metrics["delay_s"] == pytest.approx(delay, abs=1e-4)
    assert (metrics["quality_task"], metrics["executed"]) == (float(quality), float(action))


def test_bytes_travel_as_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = []
    for size in (4.0, 12.0):
        env = fixed_env(monkeypatch, {"tokens": 1000.0}, bytes_per_token=size)
        env.reset(seed=0)
        delays.append(step(env, LOCAL)[2]["delay_s"])
    # 8 bytes more for each of 1,000 tokens are 64,000 bits, a second at 64 kbit/s
    assert delays[1] - delays[0] == pytest.approx(1.0)


def test_the_true_size_counts_and_the_estimate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    env = fixed_env(monkeypatch, {"estimate": 600.0, "tokens": 750.0})
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [[CHATTING, 600.0]]
    # 750 tokens: 0.375 s over the air, 0.23 + 10 s at the edge
    assert step(env, LOCAL)[2]["delay_s"] == pytest.approx(10.605)


def test_target_and_penalty_are_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    env = fixed_env(monkeypatch, {"quality_task": True}, target_s=100, penalty=7)
    env.reset(seed=0)
    # 100 - 14.0633 - 7
    assert step(env, LOCAL)[0] == pytest.approx(78.9367, abs=1e-4)


@pytest.mark.parametrize(
    ("pair", "requirement"),
    # (68.4 + 82) / 2, (64.3 + 81.9) / 2, (45.3 + 68.9) / 2
    list(zip(PAIRS, [75.2, 73.1, 57.1], strict=True)),
)
def test_the_requirement_binds_for_every_pair(
    pair: tuple[str, str], requirement: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = dict(zip(("edge_llm", "cloud_llm"), pair, strict=True))
    assert OffloadingConfig(**models).requirement == pytest.approx(requirement)
    env = fixed_env(monkeypatch, {"quality_task": [True, True, False]}, **models)
    env.reset(seed=0)
    assert [step(env, action)[1] for action in (LOCAL, OFFLOAD, LOCAL)] == [False, True, True]


@pytest.mark.parametrize(("requirement", "kept"), [(60, [True, True]), (90, [False, False])])
def test_a_given_requirement_replaces_the_halfway_one(
    requirement: float, kept: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"quality_task": [True, True]}
    env = fixed_env(monkeypatch, tasks, quality_requirement=requirement)
    env.reset(seed=0)
    assert [step(env, action)[1] for action in (LOCAL, OFFLOAD)] == kept


@pytest.mark.parametrize("congested", [False, True])
def test_inversion_exchanges_what_the_decisions_earn(congested: bool) -> None:
    plain = make("offloading", 3, congested=congested, **SMALL)
    mirror = make("offloading", 3, congested=congested, inverted=True, **SMALL)
    np.testing.assert_array_equal(plain.reset(seed=1)[0], mirror.reset(seed=1)[0])
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(2, size=3)
        seen, paid, _, _, info = plain.step(actions)
        other, same, _, _, mirrored = mirror.step(1 - actions)
        np.testing.assert_array_equal(other, seen)
        np.testing.assert_array_equal(same, paid)
        ours, theirs = info["outcomes"], mirrored["outcomes"]
        np.testing.assert_array_equal(theirs.feasible, ours.feasible)
        for name, values in ours.metrics.items():
            np.testing.assert_array_equal(theirs.metrics[name], values)
    assert plain.problem == mirror.problem


def test_the_best_decision_is_the_papers() -> None:
    # regular tasks belong to the edge, quality tasks to the cloud, whatever the radio does
    for fields in (
        {},
        {"users": 1},
        {"users": 60, "radio": {"n_resource_blocks": 6}},
        {"radio": {"scenario": "umi", "tx_power_dbm": 20}},
        {"edge_llm": "gemma-7b", "cloud_llm": "gemini-1.5-pro"},
        {"vocabulary": "open", "words": "unseen"},
    ):
        env = make("offloading", 4, **fields)
        names = PAPER_TYPES if "vocabulary" not in fields else service_types()
        observations, _ = env.reset(seed=0)
        for _ in range(20):
            values = env.action_values()
            kinds = [names[env.problem.columns[0].word(row[0])] for row in observations]
            assert values.argmax(axis=1).tolist() == [int(kind == "quality") for kind in kinds]
            observations, *_ = env.step(values.argmax(axis=1))


def test_the_radio_delays_both_decisions_alike() -> None:
    strong, weak = (
        make("offloading", 4, radio={"tx_power_dbm": power}, users=5) for power in (46, 0)
    )
    strong.reset(seed=3)
    weak.reset(seed=3)
    for _ in range(10):
        loss = strong.action_values() - weak.action_values()
        np.testing.assert_allclose(loss[:, LOCAL], loss[:, OFFLOAD])
        assert (loss > 0).all()
        strong.step([0] * 4)
        weak.step([0] * 4)


def test_two_slots_serve_first_in_first_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"arrival_s": [0.0, 1.0, 2.0, 3.0]}
    env = fixed_env(monkeypatch, tasks, congested=True, edge_slots=2)
    observation, _ = env.reset(seed=0)
    waits, delays = [], []
    for _ in range(4):
        waits.append(float(observation[0, 2]))
        observation, reward, _, _, info = env.step([LOCAL])
        delays.append(float(info["outcomes"].metrics["delay_s"][0]))
    # each is served 13.5633 s. The first two find a slot each, busy until 13.5633 and 14.5633; the
    # third waits 13.5633 - 2, is served until 27.1267; the fourth waits for 14.5633 - 3
    assert waits == pytest.approx([0.0, 0.0, 11.5633, 11.5633], abs=1e-4)
    assert delays == pytest.approx([14.0633, 14.0633, 25.6267, 25.6267], abs=1e-4)
    # 30 - 25.6267
    assert reward[0] == pytest.approx(4.3733, abs=1e-4)


def test_offloaded_tasks_take_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"arrival_s": [0.0, 1.0, 2.0, 3.0], "backhaul_s": [0.1, 0.1, 7.0, 0.1]}
    env = fixed_env(monkeypatch, tasks, congested=True, edge_slots=2)
    env.reset(seed=0)
    step(env, LOCAL)
    step(env, LOCAL)
    # the cloud is reached over a backhaul of 7 s and never waits: 0.5 + 7 + 31.67
    assert step(env, OFFLOAD)[2]["delay_s"] == pytest.approx(39.17)
    # so the slot of the first task is still the next one: 13.5633 - 3 + 0.5 + 13.5633
    assert step(env, LOCAL)[2]["delay_s"] == pytest.approx(24.6267, abs=1e-4)


def test_an_idle_edge_makes_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    env = fixed_env(monkeypatch, {"arrival_s": [0.0, 50.0, 100.0]}, congested=True, edge_slots=1)
    env.reset(seed=0)
    assert [step(env, LOCAL)[2]["delay_s"] for _ in range(3)] == pytest.approx(
        [14.0633] * 3, abs=1e-4
    )


def test_a_new_episode_begins_with_an_empty_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    env = fixed_env(monkeypatch, {"arrival_s": [0.0, 0.0]}, congested=True, edge_slots=1)
    env.reset(seed=0)
    step(env, LOCAL)
    assert env.reset()[0][0, 2] == 0.0


@st.composite
def arrivals(draw: Any) -> tuple[int, list[float], list[float], list[int]]:
    """Return slots, arrival times, tokens and decisions of an episode."""
    count = draw(st.integers(1, 25))
    gaps = draw(st.lists(st.floats(0, 20), min_size=count, max_size=count))
    tokens = draw(st.lists(st.floats(10, 1500), min_size=count, max_size=count))
    actions = draw(
        st.lists(st.sampled_from([LOCAL, LOCAL, OFFLOAD]), min_size=count, max_size=count)
    )
    return draw(st.integers(1, 3)), np.cumsum(gaps).tolist(), tokens, actions


@settings(deadline=None, max_examples=60)
@given(arrivals())
def test_the_edge_serves_so_many_at_once_and_loses_none(
    episode: tuple[int, list[float], list[float], list[int]],
) -> None:
    slots, arrival, tokens, actions = episode
    served = []
    with pytest.MonkeyPatch.context() as patch:
        env = fixed_env(
            patch, {"arrival_s": arrival, "tokens": tokens}, congested=True, edge_slots=slots
        )
        observation, info = env.reset(seed=0)
        for came, size, action in zip(arrival, tokens, actions, strict=True):
            seen = float(observation[0, 2])
            observation, _, _, _, info = env.step([action])
            assert len(info["outcomes"]) == 1
            if action == LOCAL:
                delay = float(info["outcomes"].metrics["delay_s"][0])
                service = 0.23 + size * 0.0133333333
                paid = delay - service - size * 32 / 64e3
                # what was shown is what is paid; the display ends at 120 s
                assert seen == pytest.approx(min(paid, 120.0), abs=1e-4)
                served.append((came + paid, came + paid + service, came))
    starts = [start for start, _, _ in served]
    ends = [end for _, end, _ in served]
    for i, (start, _, came) in enumerate(served):
        present = sum(s <= start + 1e-6 and end > start + 1e-6 for s, end, _ in served)
        assert present <= slots
        # first in, first out, and a slot is never left empty while somebody waits
        assert all(start >= earlier - 1e-6 for earlier in starts[:i])
        assert start == pytest.approx(came, abs=1e-6) or min(
            abs(start - end) for end in ends[:i]
        ) == pytest.approx(0.0, abs=1e-6)


def test_when_congested_the_service_type_does_not_decide_alone() -> None:
    env = make("offloading", 8, congested=True, **SMALL)
    best: dict[str, Counter[int]] = defaultdict(Counter)
    observations, _ = env.reset(seed=0)
    for _ in range(50):
        right = env.action_values().argmax(axis=1)
        for row, action in zip(observations, right, strict=True):
            best[env.problem.columns[0].word(row[0])][int(action)] += 1
        observations, *_ = env.step(right)
    for name, kind in PAPER_TYPES.items():
        if kind == "regular":
            assert set(best[name]) == {LOCAL, OFFLOAD}
    # the best rule that looks at the type alone is wrong about every tenth task or more
    hits = sum(max(counts.values()) for counts in best.values())
    assert hits / 400 < 0.9


def test_the_backhaul_alternates_between_two_levels() -> None:
    env = make("offloading", 10, congested=True, horizon=200, **SMALL)
    observations, _ = env.reset(seed=0)
    seen = []
    for _ in range(199):
        seen.append(observations[:, 3])
        observations, *_ = env.step([OFFLOAD] * 10)
    delays = np.array(seen)
    slow = delays > 1.0
    # 0.1 s and 12 s, each +-50 %
    assert delays[~slow].min() >= 0.05
    assert delays[~slow].max() <= 0.15
    assert delays[slow].min() >= 6.0
    assert delays[slow].max() <= 18.0
    assert 0.4 < slow.mean() < 0.6
    # a chance of 0.1 in each of 1,980 steps: 198 changes, and 4 standard deviations are 53
    assert 145 < (slow[1:] != slow[:-1]).sum() < 251


def words_seen(**fields: Any) -> tuple[set[str], set[int], NDArray[np.float32]]:
    """Return the words and indices that occur, and the one-hot codes of the words."""
    env = make("offloading", 8, vocabulary="open", **SMALL, **fields)
    observations, _ = env.reset(seed=0)
    rows = [observations]
    for _ in range(99):
        rows.append(env.step([LOCAL] * 8)[0])
    indices = np.concatenate(rows)[:, 0]
    column = env.problem.columns[0]
    return {column.word(i) for i in indices}, set(indices.astype(int)), column.encode(indices)


@pytest.mark.parametrize("split", ["learned", "development", "unseen"])
def test_words_come_from_the_configured_part_of_the_list(split: str) -> None:
    words, indices, codes = words_seen(words=split)
    learned = len(service_types("learned"))
    # 800 tasks over at most 44 words: all of them occur
    assert words == set(service_types(split))
    assert codes.shape[1] == learned + 1
    if split == "learned":
        assert max(indices) < learned
        assert not codes[:, -1].any()
    else:
        assert min(indices) >= learned
        assert codes[:, -1].all()
        assert not codes[:, :-1].any()


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {"regular"}), (1.0, {"quality"})])
def test_the_share_of_quality_tasks(share: float, kinds: set[str]) -> None:
    words, _, _ = words_seen(words="unseen", quality_share=share)
    assert {service_types()[word] for word in words} == kinds


def test_the_list_of_service_types_is_balanced_and_disjoint() -> None:
    text = files("icl_optimizer.environments.data").joinpath("service_types.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len({row["name"].casefold() for row in rows}) == len(rows)
    counts = Counter((row["split"], row["kind"]) for row in rows)
    assert set(counts) == {
        (split, kind)
        for split in ("learned", "development", "unseen")
        for kind in ("regular", "quality")
    }
    for split in ("learned", "development", "unseen"):
        assert counts[split, "regular"] == counts[split, "quality"]
    assert counts["unseen", "regular"] >= 20
    # indices below the number of learned words stand for learned words
    assert list(service_types())[: len(service_types("learned"))] == list(service_types("learned"))
    assert set(PAPER_TYPES.items()) <= set(service_types("learned").items())


BAD: dict[str, tuple[Any, ...]] = {
    "users": (0, 501, "many"),
    "mean_tokens": (0, -1, float("inf"), float("nan")),
    "token_spread": (-0.1, 1.0),
    "estimate_error": (-0.1, 0.31),
    "bytes_per_token": (0,),
    "quality_share": (-0.1, 1.1),
    "edge_llm": ("llama3-8",),
    "cloud_llm": ("lama3-70b",),
    "quality_requirement": (-1, 101, float("nan")),
    "backhaul_s": (-0.1, float("inf")),
    "target_s": (float("nan"), float("inf"), "soon"),
    "penalty": (-1, float("inf")),
    "horizon": (0, 1.5),
    "inverted": ("maybe",),
    "labels": ("alone", ("same", "same"), ("a", "b", "c")),
    "vocabulary": ("closed",),
    "words": ("all",),
    "congested": ("rather",),
    "edge_slots": (0,),
    "mean_gap_s": (0, float("inf")),
    "slow_backhaul_s": (0, float("inf")),
    "backhaul_switch": (0, 1.1),
    "radio": ("strong", {"n_sites": 0}),
}


BAD_VALUES = [
    pytest.param(field, value, id=f"{field}={value}")
    for field, values in BAD.items()
    for value in values
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_bad_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        get_spec("offloading").config({field: value})
    message = str(caught.value)
    assert field in message
    shown = value["n_sites"] if isinstance(value, dict) else value
    assert str(shown) in message or repr(shown) in message


def test_every_field_has_a_bad_value() -> None:
    assert set(BAD) == set(OffloadingConfig.model_fields)


def test_unknown_settings_name_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"'user'\. Did you mean 'users'"):
        make("offloading", user=3)
    with pytest.raises(ConfigurationError, match=r"radio\.n_site is 3"):
        make("offloading", **{"radio.n_site": 3})
    with pytest.raises(ConfigurationError, match=r"'llama3-8'\. Did you mean 'llama3-8b'"):
        make("offloading", edge_llm="llama3-8")


def test_settings_arrive_as_text_from_the_command_line() -> None:
    env = make("offloading", 1, **{"users": "3", "radio.scenario": "umi", "labels": "here, there"})
    assert isinstance(env, OffloadingVectorEnv)
    assert (env.config.users, env.config.radio.scenario) == (3, "umi")
    assert env.problem.labels == ("here", "there")


def test_sweeps_hold_every_pair_at_every_point() -> None:
    spec = get_spec("offloading")
    points = spec.sweep_points({})
    # users, output size and share of quality tasks at five values each, three pairs
    assert len(points) == len({p.name for p in points}) == 45
    named = {p.name: p.settings for p in points}
    assert named["users=10;pair=llama3-8b+llama3-70b"] == {
        "users": 10,
        "edge_llm": "llama3-8b",
        "cloud_llm": "llama3-70b",
    }
    unseen = spec.sweep_points({"vocabulary": "open"})
    assert {p.settings["words"] for p in unseen} == {"unseen"}
    for point in (*points, *unseen):
        spec.config(point.settings)


def test_summary_splits_rewards_by_kind() -> None:
    env = OffloadingVectorEnv(1)
    summary = env.summarise(
        np.array([1.0, 2.0, 6.0]),
        np.array([True, False, True]),
        {
            "quality_task": np.array([0.0, 1.0, 1.0]),
            "delay_s": np.array([10.0, 20.0, 60.0]),
            "executed": np.array([0.0, 0.0, 1.0]),
        },
    )
    assert summary == pytest.approx(
        {
            "reward": 3.0,
            "delay_s": 30.0,
            "offload_rate": 1 / 3,
            "reward_regular": 1.0,
            "reward_quality": 4.0,
            # one of the two quality tasks was served well enough
            "success_rate": 0.5,
        }
    )
