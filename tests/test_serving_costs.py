"""Costs fitted to measurements: closed loop, lengths, fit, errors on loads not fitted to."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from icl_optimizer.environments.batching.closed_loop import Load, closed_loop
from icl_optimizer.environments.batching.costs import StepCosts
from icl_optimizer.environments.batching.fitting import FITTED, fit_costs, serve
from icl_optimizer.environments.batching.pilot import Lengths, Row, Setup, draw_requests, setups
from icl_optimizer.environments.batching.serving import (
    kv_bytes_per_token,
    kv_capacity_tokens,
    serving_costs,
)
from icl_optimizer.environments.batching.splitwise import compare_splitwise
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.studies.inference import mape, run_inference

HAND = StepCosts(base_s=1.0, per_prompt_token_s=0.1, per_cached_token_s=0.0, prefill_s=0.5)


def load(users: int, prompts: list[int], answers: list[int], pause_s: float = 0.25) -> Load:
    return Load(users, np.array(prompts), np.array(answers), HAND, 10_000, pause_s)


def test_one_user_by_hand() -> None:
    # first token after 1 + 0.1·10 + 0.5 = 2.5 s, two more after 1 s each: 4.5 s, again at 4.75 s
    once, twice = (closed_loop([load(1, [10] * 3, [3] * 3)], seconds)[0] for seconds in (4.7, 4.75))
    assert (once.requests, twice.requests) == (1, 2)
    assert (once.ttft_s, once.itl_s) == pytest.approx((2.5, 1.0))
    assert once.tokens_per_s == pytest.approx(3 / 4.5)
    assert twice.tokens_per_s == pytest.approx(6 / 9.25)


def test_two_users_share_iterations_by_hand() -> None:
    # both are prefilled by 1 + 0.1·20 + 0.5 = 3.5; the first is done and sends at 3.75, waits for
    # 4.5, when the second has 2 tokens, and is prefilled by 4.5 + 1 + 1 + 0.5 = 7.0, when both end
    served = closed_loop([load(2, [10] * 3, [1, 3, 1])], 4.0)[0]
    assert served.requests == 3
    assert served.ttft_s == pytest.approx((3.5 + 3.5 + 3.25) / 3)
    assert served.itl_s == pytest.approx((7.0 - 3.5) / 2)
    assert served.tokens_per_s == pytest.approx(5 / 7.0)


def test_loads_side_by_side_are_as_alone() -> None:
    loads = [load(1, [10] * 9, [3] * 9), load(3, [5, 20, 40] * 9, [4, 1, 9] * 9, 0.1)]
    assert closed_loop(loads, 20.0) == [closed_loop([one], 20.0)[0] for one in loads]


def test_the_loop_refuses_what_it_cannot_serve() -> None:
    with pytest.raises(ConfigurationError, match=r"pause_s is 0\.0; allowed: seconds above 0"):
        closed_loop([load(1, [1], [1], 0.0)], 1.0)
    with pytest.raises(ConfigurationError, match="load of 1 users has 1 requests; allowed: enough"):
        closed_loop([load(1, [1], [1])], 100.0)


@pytest.mark.parametrize("lengths", ["measured", "geometric", "fixed"])
def test_draws_have_the_mean_of_the_row(lengths: Lengths) -> None:
    for mean in (16.4, 18.85, 21.2):
        row = replace(setups()[0].rows[0], mean_answer=mean)
        prompts, answers = draw_requests(row, 200_000, np.random.default_rng(0), lengths)
        assert answers.mean() == pytest.approx(mean, abs=0.4)
        assert answers.min() >= 1
        assert prompts.mean() == pytest.approx(123, abs=12)


def test_measured_answers_have_one_or_twenty_tokens_or_many() -> None:
    row = replace(setups()[0].rows[0], mean_answer=18.85)
    _, answers = draw_requests(row, 100_000, np.random.default_rng(0))
    shares = [(answers == tokens).mean() for tokens in (1, 20, 381)]
    assert shares == pytest.approx([0.305, 0.325, 0.013], abs=0.006)


def test_setups_hold_loads_without_failures_in_turn() -> None:
    measured = setups()
    assert len(measured) == 12
    assert sum(len(s.rows) for s in measured) == 79
    first = measured[3]
    assert first.name == "llama-7b, 1 x H100"
    assert [row.users for row in first.fitting] == [1, 4, 16, 64]
    assert [row.users for row in first.held_out] == [2, 8, 32]


def test_memory_by_hand() -> None:
    assert kv_bytes_per_token(7) == 2 * 32 * 4096 * 2
    assert kv_bytes_per_token(13) == 2 * 40 * 5120 * 2
    # 0.9·40 GB less 14 GB of weights, 0.5 MiB a token; 0.9·80 GB less 26 GB, 0.8 MB a token
    assert kv_capacity_tokens(7, "a100") == int(22e9 / 524288) == 41961
    assert kv_capacity_tokens(13, "h100") == int(46e9 / 819200) == 56152
    assert kv_capacity_tokens(13, "a100", 2) == int(46e9 / 819200)


def test_costs_lie_on_the_line_through_both_sizes() -> None:
    small, middle, large = (np.array(astuple(serving_costs(b, "h100"))) for b in (7, 10, 13))
    assert middle == pytest.approx((small + large) / 2)
    for billions in (5, 15):
        for gpu in ("a100", "h100"):
            for n_gpus in (1, 2, 4):
                costs = np.array(astuple(serving_costs(billions, gpu, n_gpus)))
                assert costs[0] > 0.004
                assert (costs >= 0).all()
    assert serving_costs(13, "a100").base_s > serving_costs(7, "a100").base_s
    assert serving_costs(7, "a100").base_s > serving_costs(7, "h100").base_s


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4.9, "a100", 1), "billions is 4.9; allowed: 5 to 15"),
        ((15.1, "a100", 1), "billions is 15.1; allowed: 5 to 15"),
        ((7, "a10", 1), "unknown gpu 'a10'.*a100"),
        ((7, "a100", 3), "n_gpus is 3; allowed: 1, 2, 4"),
    ],
)
def test_what_was_not_measured_is_refused(arguments: tuple[float, str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        serving_costs(*arguments)


def test_memory_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigurationError, match="billions is 70; allowed: 5 to 15"):
        kv_capacity_tokens(70, "h100")
    with pytest.raises(ConfigurationError, match="n_gpus is 0; allowed: enough a100"):
        kv_capacity_tokens(15, "a100", 0)


def test_a_cached_token_costs_the_reading_of_its_bytes() -> None:
    for setup in setups():
        shipped = serving_costs(setup.billions, setup.gpu, setup.n_gpus)
        assert shipped.per_cached_token_s == pytest.approx(setup.per_cached_token_s, rel=1e-3)


def test_simulated_tokens_come_as_measured_at_loads_not_fitted_to() -> None:
    lines = []
    for setup in setups():
        costs = serving_costs(setup.billions, setup.gpu, setup.n_gpus)
        tasks = [(setup, row, costs) for row in setup.held_out]
        for row, served in zip(setup.held_out, serve(tasks, seconds=30.0, seed=1), strict=True):
            line = {"itl": served.itl_s, "itl_measured": row.itl_s}
            line |= {"tokens_per_s": served.tokens_per_s}
            lines.append(line | {"tokens_per_s_measured": row.tokens_per_s})
    values = pd.DataFrame(lines)
    assert len(values) == 36
    assert mape(values, "itl") < 0.12
    assert mape(values, "tokens_per_s") < 0.15


def made_up(costs: StepCosts) -> Setup:
    """Return a setup measured by the simulator itself."""
    blank = [Row(users, 18.85, 0.02, 0.0, 0.0, 0.0) for users in (1, 4, 16)]
    setup = Setup(13.0, "h100", 1, tuple(blank))
    served = serve([(setup, row, costs) for row in blank], seconds=20.0)
    rows = [
        replace(row, itl_s=s.itl_s, ttft_s=s.ttft_s + 0.02, tokens_per_s=s.tokens_per_s)
        for row, s in zip(blank, served, strict=True)
    ]
    return replace(setup, rows=tuple(rows))


def test_the_fit_finds_the_costs_that_made_the_measurements() -> None:
    physical = kv_bytes_per_token(13) / 3350e9
    truth = StepCosts(0.015, 1.5e-4, physical, per_sequence_s=6e-4, prefill_s=8e-3)
    found = fit_costs(made_up(truth), seconds=20.0, rounds=8)
    assert found.per_cached_token_s == physical
    assert found.base_s == pytest.approx(truth.base_s, rel=0.03)
    for name in FITTED[1:]:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.35), name


def test_costs_of_batches_hold_for_prompts_and_batches_between() -> None:
    comparisons = compare_splitwise()
    assert [c.rows for c in comparisons] == [12] * 8
    assert max(c.token_error for c in comparisons) < 0.1
    assert max(c.prefill_error for c in comparisons) < 0.25
    # what the page says: reading a cached token takes longer than its bytes alone
    assert min(c.costs.per_cached_token_s / c.physical_s for c in comparisons) > 2


def test_the_study_writes_tables_and_pictures(tmp_path: Path) -> None:
    measured = [s for s in setups() if s.billions == 13 and s.gpu == "a100" and s.n_gpus == 1]
    path = run_inference(tmp_path, 1, measured=measured, seconds=3.0, progress_bar=False)
    values = pd.read_csv(tmp_path / "inference.csv")
    assert list(values["users"]) == [1, 2, 4, 8]
    assert list(values["held_out"]) == [False, True, False, True]
    assert f"{mape(values[values['held_out']], 'itl'):.1%}" in path.read_text().splitlines()[2]
    lengths = tmp_path.joinpath("inference-lengths.md").read_text()
    assert [line.split()[1] for line in lengths.splitlines()[2:]] == [
        "measured",
        "geometric",
        "fixed",
    ]
    assert len(tmp_path.joinpath("inference-splitwise.md").read_text().splitlines()) == 2 + 8
    for name in ("itl", "throughput"):
        assert tmp_path.joinpath(f"inference-{name}.png").stat().st_size > 10_000
