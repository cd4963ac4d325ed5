"""The study of load balancing: its records, tables and pictures, on a trace of few requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from icl_optimizer.comparison.evaluation import Held
from icl_optimizer.environments.load_balancing import LoadBalancingVectorEnv
from icl_optimizer.environments.load_balancing_reward import COMPONENTS
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import make_policy
from icl_optimizer.studies import balancing
from icl_optimizer.studies.balancing import VALUES, run_balancing
from icl_optimizer.studies.balancing_pictures import BINS, late_over_time, tokens_in_flight
from icl_optimizer.studies.balancing_plan import NAME, BalancingPlan
from icl_optimizer.studies.balancing_records import record
from icl_optimizer.studies.balancing_tables import balancing_page
from icl_optimizer.studies.pieces import finish_pieces
from icl_optimizer.studies.published import BALANCING

REQUESTS, HELD_OUT = 60, 18
SERVERS = [{"tokens_per_s": 1000, "slots": 1}, {"tokens_per_s": 2000, "slots": 2}]
POLICIES = ("a2c-paper", "least-loaded", "round-robin")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sixty requests, under which two unequal servers are sometimes late."""
    rng = np.random.default_rng(3)
    arrivals, tokens = np.cumsum(rng.exponential(0.5, REQUESTS)), rng.integers(200, 5000, REQUESTS)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for time, count in zip(arrivals, tokens, strict=True):
        lines.append(f"2023-11-16 18:00:{time:010.7f},{count - 100},100")
    path = tmp_path_factory.mktemp("trace") / "sixty.csv"
    path.write_text("\n".join(lines) + "\n")
    return {"trace": str(path), "servers": SERVERS, "load_factor": 1.0, "span_s": 20.0}


def small(settings: dict[str, Any], **fields: Any) -> BalancingPlan:
    """Return a plan of seconds."""
    fixed: dict[str, Any] = {
        "scenarios": ("calibrated",),
        "policies": POLICIES,
        "learner": "a2c-paper",
        "interactions": 20,
        "drl_interactions": 80,
        "generalise": False,
        "ablation_seeds": 1,
        "ablation_interactions": 40,
        "settings": settings,
    }
    return BalancingPlan(**fixed | fields)


def recorded(name: str, settings: dict[str, Any]) -> pd.DataFrame:
    env = make(NAME, 1, **settings)
    return record(make_policy(name, env.problem, env=env), settings, seed=0)


@pytest.mark.parametrize("queue_size", [1000, 1])
def test_a_record_has_every_request_once_and_agrees_with_an_evaluation(
    settings: dict[str, Any], queue_size: int
) -> None:
    given = settings | {"scenario": "high-load", "queue_size": queue_size}
    rows = recorded("round-robin", given)
    assert rows["request"].tolist() == list(range(HELD_OUT))
    assert rows["server"].tolist() == [k % 2 for k in range(HELD_OUT)]
    assert rows["arrival_s"].is_monotonic_increasing
    assert (rows["dropped"].sum() > 0) == (queue_size == 1)
    assert rows["response_s"].isna().equals(rows["dropped"] > 0)
    expected = Held(NAME, given, 0, 1).evaluate(
        make_policy("round-robin", make(NAME, 1, **given).problem), bounds=False
    )
    assert rows["reward"].sum() == pytest.approx(expected["episode_reward"])
    assert rows["response_s"].mean() == pytest.approx(expected["response_time_s"])
    assert 0 < rows["late"].mean() == pytest.approx(expected["slo_violation_rate"])
    assert rows["queue_length"].mean() == pytest.approx(expected["queue_length"])
    assert rows["dropped"].mean() == pytest.approx(expected["drop_rate"])


def test_tokens_in_flight_are_those_that_decisions_met(settings: dict[str, Any]) -> None:
    rows = recorded("least-loaded", settings | {"scenario": "high-load"})
    for j, server in enumerate(SERVERS):
        times, tokens = tokens_in_flight(rows, j)
        before = np.searchsorted(times, rows["arrival_s"], side="left") - 1
        met = np.where(before < 0, 0.0, tokens[before]) / (server["tokens_per_s"] * server["slots"])
        np.testing.assert_allclose(met, rows[f"load_{j}_s"], atol=1e-9)
        assert tokens[-1] == pytest.approx(0.0, abs=1e-9)


def test_the_heat_map_counts_every_late_request_where_it_was(settings: dict[str, Any]) -> None:
    rows = recorded("round-robin", settings | {"scenario": "high-load"})
    counts, edges = late_over_time(rows, len(SERVERS))
    assert counts.shape == (2, BINS)
    assert edges[-1] == rows["arrival_s"].max()
    assert counts.sum(axis=1).tolist() == [
        rows["late"][rows["server"] == j].sum() for j in range(2)
    ]


def test_the_oracle_is_recorded_on_the_requests_it_decides_about(settings: dict[str, Any]) -> None:
    given = settings | {"scenario": "high-load"}
    held = Held(NAME, given, 0, 1)
    expected = held.evaluate(make_policy("oracle", held.env.problem), bounds=False)
    assert expected["accuracy"] == 1.0
    assert recorded("oracle", given)["reward"].sum() == pytest.approx(expected["episode_reward"])


def test_the_study_is_written_and_goes_on_where_it_was(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small(settings)
    page = run_balancing(tmp_path, 1, plan=plan, progress_bar=False)
    pictures = {p.name for p in tmp_path.glob("*.png")}
    figures = ("learning", "fig4", "fig5", "fig6-7", "fig8", "fig9", "fig10", "ablation")
    assert pictures == {f"balancing-{name}.png" for name in figures}
    values = pd.read_csv(tmp_path / "balancing.csv", keep_default_na=False)
    assert list(values.columns) == VALUES
    late = values[(values["metric"] == "slo_violation_rate") & (values["without"] == "")]
    assert set(late["policy"]) == set(POLICIES)
    assert len(late) == len(POLICIES)
    ablated = values[values["without"] != ""]
    assert set(ablated["without"]) == {"nothing", *COMPONENTS}
    assert set(ablated["policy"]) == {"a2c-paper"}
    rows = pd.read_csv(tmp_path / NAME / "records" / "calibrated" / "round-robin.csv")
    assert len(rows) == HELD_OUT
    lines = page.read_text(encoding="utf-8").splitlines()
    assert "18 held-out requests of sixty.csv." in lines
    assert "All in `balancing-learning.png`." in lines
    (least,) = (line for line in lines if line.startswith("| least-loaded |"))
    mine = 100 * late.set_index("policy")["value"]["least-loaded"]
    # it is its own measure
    assert least.endswith(f"| {mine:.1f} | 1 |")
    written = {p: p.read_bytes() for p in tmp_path.glob("balancing.*")}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was run again")

    monkeypatch.setattr(LoadBalancingVectorEnv, "step", refuse)
    for drawing in ("draw_values", "draw_records"):
        monkeypatch.setattr(balancing, drawing, lambda *_: None)
    run_balancing(tmp_path, 1, plan=plan, progress_bar=False)
    assert {p: p.read_bytes() for p in tmp_path.glob("balancing.*")} == written
    # one piece that is lost is run, and only that one
    (tmp_path / NAME / "records" / "calibrated" / "round-robin.csv").unlink()
    with pytest.raises(AssertionError, match="run again"):
        run_balancing(tmp_path, 1, plan=plan, progress_bar=False)
    # and another plan does not take over what this one measured
    with pytest.raises(ConfigurationError, match="different comparison"):
        run_balancing(tmp_path, 1, plan=small(settings, interactions=30), progress_bar=False)


def test_published_numbers_are_those_of_the_tables() -> None:
    ppo, turns = BALANCING["nominal"]["ppo-paper"], BALANCING["high-load"]["round-robin"]
    assert ppo == (8450, 0.85, 2.1, 0.032)
    assert turns == (6200, 2.10, 7.5, 0.618)
    for rows in BALANCING.values():
        assert min(rows, key=lambda name: rows[name].late) == "ppo-paper"
        assert max(rows, key=lambda name: rows[name].late) == "round-robin"


def page_of(late: dict[str, dict[str, float]], scenario: str) -> str:
    """Return the page for shares of late requests by trace and policy, the same in two seeds."""
    plan = small({}, scenarios=(scenario,), generalise=True, ablation_seeds=0)
    rows = [
        (scenario, trace, policy, "", seed, "slo_violation_rate", value)
        for trace, shares in late.items()
        for policy, value in shares.items()
        for seed in range(2)
    ]
    curves = pd.DataFrame(columns=["scenario", "policy", "seed", "step", "metric", "value"])
    records = {scenario: {"a2c-paper": pd.DataFrame({"request": range(7)})}}
    return balancing_page(pd.DataFrame(rows, columns=VALUES), curves, records, plan)


def test_published_numbers_are_beside_the_measured() -> None:
    late = {"azure-code": {"a2c-paper": 0.3, "least-loaded": 0.25, "round-robin": 0.9}}
    text = page_of(late, "high-load")
    assert "| least-loaded | – | – | – | – | 25 | 7,000 | 1.70 | 5.8 | 42.2 |" in text
    assert "| a2c-paper | – | – | – | – | 30 | 7,750 | 1.30 | 4.0 | 18.7 |" in text
    assert "5,500 is the most" in text


def test_the_page_tells_of_other_traces_and_missing_curves() -> None:
    late = {
        "azure-code": {"a2c-paper": 0.3, "least-loaded": 0.6, "round-robin": 0.0},
        "azure-conversation": {"a2c-paper": 0.2, "least-loaded": 0.0, "round-robin": 0.0},
    }
    here, elsewhere = page_of(late, "calibrated").split(
        "## Learned on azure-code, run on azure-conversation"
    )
    assert "| a2c-paper | – | – | – | – | 30 | 0.500 |" in here
    # nothing is a multiple of no violations
    assert "| a2c-paper | – | 20 | – |" in elsewhere
    assert "- calibrated: a2c-paper not drawn" in elsewhere
    assert "train=True" in elsewhere


def test_a_plan_needs_what_its_figures_show() -> None:
    with pytest.raises(ConfigurationError, match="least-loaded and round-robin"):
        BalancingPlan(policies=("ppo-paper",))


def test_pieces_are_made_once(tmp_path: Path) -> None:
    made = []

    def make_piece() -> str:
        made.append(1)
        return "text"

    pieces = {tmp_path / "deep" / f"{k}.txt": make_piece for k in range(2)}
    finish_pieces("pieces", pieces, progress_bar=False)
    (tmp_path / "deep" / "0.txt").unlink()
    finish_pieces("pieces", pieces, progress_bar=False)
    assert len(made) == 3
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"0.txt", "1.txt"}
