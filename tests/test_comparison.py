"""A comparison: its files, that it repeats itself, resumes, and refuses what is wrong."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from tiny_prompts import CopyNearest

from icl_optimizer.cli import app, expand_lists
from icl_optimizer.comparison.config import ComparisonConfig, default_config
from icl_optimizer.comparison.description import command
from icl_optimizer.comparison.evaluation import Held, agreement
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.statistics import estimate, interactions_to, interquartile_mean
from icl_optimizer.comparison.summary import summarise
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policies import make_policy, options_of

SMALL: dict[str, Any] = {"users": 2, "horizon": 20, "radio.n_resource_blocks": 4}
POLICIES = ("icl", "bandit", "random", "oracle")
KEYS = ["environment", "scenario", "policy", "llm"]
RESULT_COLUMNS = [*KEYS, "seed", "split", "step", "metric", "value"]
SUMMARY_COLUMNS = [*KEYS, "metric", "mean", "ci_low", "ci_high", "n"]
TABLES = ("results.csv", "timings.csv", "summary.csv")


class Model(CopyNearest):
    """Copies the nearest example; ``before`` is called with every prompt."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(("local", "offload"))
        self.before = before

    def _ask(self, prompt: str) -> Any:
        self.before()
        return super()._ask(prompt)


def config(**fields: Any) -> ComparisonConfig:
    usual: dict[str, Any] = {
        "environment": "offloading",
        "settings": SMALL,
        "policies": POLICIES,
        "llm": "function",
        "seeds": 2,
        "interactions": 40,
        "eval_tasks": 200,
        "sweeps": False,
    }
    return ComparisonConfig(**usual | fields)


def run(folder: Path, **fields: Any) -> Path:
    return compare(config(**fields), folder, progress_bar=False, model=Model())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def results(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv", keep_default_na=False, na_values=[""])


def test_files_and_columns(folder: Path, results: pd.DataFrame) -> None:
    assert {p.name for p in folder.iterdir()} == {
        *TABLES,
        "results.parquet",
        "config.json",
        "explain.json",
        "units",
    }
    assert list(results.columns) == RESULT_COLUMNS
    assert list(pd.read_csv(folder / "timings.csv").columns) == RESULT_COLUMNS
    assert list(pd.read_csv(folder / "summary.csv").columns) == SUMMARY_COLUMNS


def test_every_policy_is_evaluated_with_every_seed_at_every_checkpoint(
    results: pd.DataFrame,
) -> None:
    assert set(results.environment) == {"offloading"}
    assert set(results.scenario) == {"horizon=20;radio.n_resource_blocks=4;users=2"}
    curve = results[(results.split == "eval") & (results.metric == "optimality")]
    # tenths 1, 2, 3, 4, 6, 8, 10 of 40 interactions
    steps = [4, 8, 12, 16, 24, 32, 40]
    for policy in POLICIES:
        for seed in (0, 1):
            rows = curve[(curve.policy == policy) & (curve.seed == seed)]
            assert rows.step.tolist() == steps
    assert set(results[results.policy == "icl"].llm) == {"function"}
    assert results[results.policy != "icl"].llm.isna().all()


def test_learning_curves_hold_every_interaction(results: pd.DataFrame) -> None:
    rewards = results[(results.split == "train") & (results.metric == "reward")]
    for policy, steps in (("icl", 40), ("bandit", 40), ("random", 0), ("oracle", 0)):
        for seed in (0, 1):
            rows = rewards[(rewards.policy == policy) & (rewards.seed == seed)]
            assert rows.step.tolist() == list(range(1, steps + 1))


def test_the_shared_metrics_are_there(folder: Path, results: pd.DataFrame) -> None:
    names = set(results[results.policy == "icl"].metric)
    assert names >= {"reward", "optimality", "success_rate", "delay_s", "interactions"}
    assert names >= {"llm_calls", "llm_cached", "prompt_tokens", "invalid_rate", "fallback_rate"}
    clocks = {"train_s", "decision_ms_p50", "decision_ms_p95"}
    requests = {
        f"llm_{name}" for name in ("ms_p50", "ms_p95", "disk_cached", "retries", "failures")
    }
    assert set(pd.read_csv(folder / "timings.csv").metric) == clocks | requests
    # nothing in the results depends on the clock
    assert not set(results.metric) & clocks
    costs = results[(results.metric == "interactions") & (results.seed == 0)]
    assert dict(zip(costs.policy, costs.value, strict=True)) == {
        "icl": 40.0,
        "bandit": 40.0,
        "random": 0.0,
        "oracle": 0.0,
    }


def test_the_oracle_is_one_and_random_about_zero(results: pd.DataFrame) -> None:
    last = results[(results.metric == "optimality") & (results.step == 40)]
    means = last.groupby("policy").value.mean()
    assert last[last.policy == "oracle"].value.tolist() == [1.0, 1.0]
    # 200 tasks, each 20 s better or worse by chance where the oracle is 10 s better: a standard
    # deviation of 10 / sqrt(200) / 10 for one seed, of 0.055 for the mean of two
    assert abs(means["random"]) < 0.25
    assert means["icl"] > 0.9
    assert last[last.policy != "oracle"].value.max() <= 1.0


def test_costs_are_those_of_learning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluating, calls = False, 0
    evaluate = Held.evaluate

    def watched(self: Held, *arguments: Any, **options: Any) -> dict[str, float]:
        nonlocal evaluating
        evaluating = True
        metrics = evaluate(self, *arguments, **options)
        evaluating = False
        return metrics

    def count() -> None:
        nonlocal calls
        calls += not evaluating

    monkeypatch.setattr(Held, "evaluate", watched)
    monkeypatch.setattr("icl_optimizer.comparison.unit.explain", lambda policy, held: None)
    model, fields = Model(count), {"policies": ("icl",), "seeds": 1, "interactions": 20}
    compare(config(**fields), tmp_path / "run", progress_bar=False, model=model)
    table = pd.read_csv(tmp_path / "run" / "results.csv")
    said = table[table.metric == "llm_calls"].value.tolist()
    # the checkpoints asked, too, and are not counted
    assert said == [float(calls)]
    assert 0 < calls < model.usage.calls


def test_the_summary_is_the_last_step_over_seeds(folder: Path, results: pd.DataFrame) -> None:
    summary = pd.read_csv(folder / "summary.csv")
    row = summary[(summary.policy == "icl") & (summary.metric == "reward")].iloc[0]
    last = results[
        (results.policy == "icl")
        & (results.metric == "reward")
        & (results.split == "eval")
        & (results.step == 40)
    ]
    assert row["mean"] == pytest.approx((last.value.iloc[0] + last.value.iloc[1]) / 2)
    assert row["n"] == 2
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((last.value.min(), last.value.max()))
    # seconds are summarised, too
    assert "decision_ms_p50" in set(summary.metric)


def test_the_configuration_repeats_the_run(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    assert ComparisonConfig(**data["config"]) == config()
    assert data["budgets"] == dict.fromkeys(POLICIES, 40)
    assert {"python", "numpy", "icl-optimizer", "xllamacpp"} <= set(data["versions"])
    assert data["command"].startswith("icl-optimizer compare offloading --policies icl bandit")


def test_the_explanation_holds_prompt_pool_and_decisions(folder: Path) -> None:
    explained = json.loads((folder / "explain.json").read_text())["policies"]
    assert set(explained) == {"icl"}
    icl = explained["icl"]
    assert icl["prompt"].endswith(" ->")
    assert icl["pool"]
    for decision in icl["decisions"]:
        assert set(decision["context"]) == {"Service type", "Output size"}
        assert sum(decision["probabilities"].values()) == pytest.approx(1.0)
        assert decision["oracle_decision"] in ("local", "offload")
        # what this very decision was asked with
        assert decision["prompt"].endswith(" ->")
        for example in decision["examples"]:
            assert all(word in decision["prompt"] for word in example["words"].values())
    prompts = {tuple(d["context"].values()): d["prompt"] for d in icl["decisions"]}
    assert len(set(prompts.values())) > 1
    assert any(d["examples"] for d in icl["decisions"])


def test_the_same_run_gives_the_same_results(folder: Path, tmp_path: Path) -> None:
    again = run(tmp_path / "again")
    assert (again / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()
    assert (again / "explain.json").read_bytes() == (folder / "explain.json").read_bytes()
    # the result does not depend on which policies are beside
    alone = (run(tmp_path / "alone", policies=("bandit",)) / "results.csv").read_text()
    lines = (folder / "results.csv").read_text().splitlines()
    assert alone.splitlines()[1:] == [line for line in lines if ",bandit," in line]


class Killed(BaseException):
    """What ends a process."""


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    def go(name: str, model: Model, resume: bool = False, **fields: Any) -> Path:
        fields |= {"eval_tasks": 20, "interactions": 10, "settings": SMALL | {"horizon": 5}}
        place = tmp_path / name
        return compare(config(**fields), place, resume=resume, progress_bar=False, model=model)

    whole, first_seed = Model(), Model()
    wanted = (go("whole", whole) / "results.csv").read_bytes()
    go("first", first_seed, seeds=1)
    left = first_seed.usage.calls + 3

    def die() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    with pytest.raises(Killed):
        go("killed", Model(die))
    # it died in the second seed of the first policy; what was finished is in the tables already
    results, units = tmp_path / "killed" / "results.csv", tmp_path / "killed" / "units"
    written = {path: path.stat().st_mtime_ns for path in units.iterdir()}
    assert {path.name for path in written} == {f"{policy}-0.json" for policy in POLICIES}
    assert set(pd.read_csv(results).seed) == {0}
    resumed = Model()
    go("killed", resumed, resume=True)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    # the second seed alone was asked about
    assert resumed.usage.calls == whole.usage.calls - first_seed.usage.calls > 0
    assert results.read_bytes() == wanted
    # and now nothing at all
    again = Model()
    go("killed", again, resume=True)
    assert again.usage.calls == 0
    assert results.read_bytes() == wanted


def nothing_ran(place: Path, **fields: Any) -> None:
    """Check that a comparison is refused before a prompt is sent and a folder is made."""
    model = Model()
    with pytest.raises(ConfigurationError):
        compare(config(**fields), place, progress_bar=False, model=model)
    assert model.usage.calls == 0
    assert not place.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"environment": "ofloading"},
        {"policies": ("icl", "rnadom")},
        {"policies": ("icl", "icl")},
        {"settings": {"user": 3}},
        {"settings": {"users": 0}},
        {"icl": {"replya": "means"}},
        {"icl": {"orders": 99}},
        {"prompts": "no-such-folder"},
    ],
)
def test_a_bad_configuration_ends_before_any_work(fields: dict[str, Any], tmp_path: Path) -> None:
    nothing_ran(tmp_path / "run", **fields)


def test_a_bad_model_ends_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown LLM provider 'functoin'"):
        compare(config(llm="functoin"), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()
    # policies that need none do not ask for one
    compare(config(llm="functoin", policies=("random",)), tmp_path / "run", progress_bar=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"policies": ()},
        {"seeds": 0},
        {"interactions": 0},
        {"eval_tasks": 0},
        {"drl_interactions": 0},
        {"seed": 3},
    ],
)
def test_bad_numbers_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        config(**fields)


def test_several_processes_need_a_spec(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="jobs is 2; allowed: 1 with a model object"):
        compare(config(), tmp_path / "run", jobs=2, progress_bar=False, model=Model())


def test_folders_of_others_are_left_alone(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("done")
    with pytest.raises(ConfigurationError, match="is not empty and holds no comparison"):
        run(mine)
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    (mine / "config.json").write_text('{"other": "program"}')
    with pytest.raises(ConfigurationError, match="holds a different comparison"):
        run(mine)
    with pytest.raises(ConfigurationError, match="is a file; allowed: a folder"):
        run(mine / "thesis.tex")
    for resume in (False, True):
        with pytest.raises(ConfigurationError, match="holds a different comparison"):
            compare(config(seeds=3), folder, resume=resume, progress_bar=False, model=Model())
    with pytest.raises(ConfigurationError, match="holds this comparison already; add --resume"):
        run(folder)
    # an empty folder is as good as a new one
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", policies=("random",)).is_dir()


def test_sweeps_are_further_scenarios(tmp_path: Path) -> None:
    place = run(
        tmp_path / "sweep",
        settings={**SMALL, "vocabulary": "open"},
        policies=("bandit",),
        seeds=1,
        eval_tasks=40,
        sweeps=True,
    )
    table = pd.read_csv(place / "results.csv")
    further = table[table.scenario.str.startswith("words=unseen")]
    assert set(further.scenario) == {f"words=unseen;quality_share={s}" for s in (0.5, 0.85, 0.15)}
    assert set(further.split) == {"eval"}
    assert set(further.step) == {40}


def test_everyone_meets_the_same_tasks() -> None:
    held = Held("offloading", SMALL, seed=0, tasks=30)
    # whole episodes: 2 of 20 tasks
    assert held.env.num_envs == 2
    problem = held.env.problem
    local, offload = (
        held.evaluate(make_policy(f"always-{label}", problem)) for label in problem.labels
    )
    assert (local["offload_rate"], offload["offload_rate"]) == (0.0, 1.0)
    # the same quality tasks, none of which the edge satisfies and all of which the cloud does
    assert (local["success_rate"], offload["success_rate"]) == (0.0, 1.0)
    # each task belongs to one of the two
    assert local["accuracy"] + offload["accuracy"] == pytest.approx(1.0)
    assert local == held.evaluate(make_policy("always-local", problem))
    other = Held("offloading", SMALL, seed=1, tasks=30).evaluate(
        make_policy("always-local", problem)
    )
    assert other["reward"] != local["reward"]


def test_held_out_tasks_are_not_those_of_learning() -> None:
    held, env = Held("offloading", SMALL, seed=0, tasks=1), make("offloading", 1, **SMALL)
    learned = env.reset(seed=0)[0]
    assert (held.env.reset(seed=held.seed)[0] != learned).any()


def test_agreement_by_hand() -> None:
    # right: 3 of 4 where 0 is best, 0 of 1 where 1 is best
    got = agreement(np.array([0, 0, 0, 1, 0]), np.array([0, 0, 0, 0, 1]))
    assert got == {"accuracy": pytest.approx(0.6), "balanced_accuracy": pytest.approx(0.375)}


def test_interquartile_mean_by_hand() -> None:
    # the middle half of eight values: (3 + 4 + 5 + 6) / 4, whatever the ends are
    assert interquartile_mean(np.array([8.0, 1, 7, 2, 6, 3, 5, 4])) == 4.5
    assert interquartile_mean(np.array([1e9, -1e9, 7, 2, 6, 3, 5, 4])) == 4.5
    # twelve values: six of them, (4 + 5 + 6 + 7 + 8 + 18) / 6
    assert interquartile_mean(np.array([0.0, 0, 0, 4, 5, 6, 7, 8, 18, 30, 30, 30])) == 8.0
    np.testing.assert_array_equal(
        interquartile_mean(np.array([[1.0, 2, 3, 4], [4, 0, 0, 4]])), [2.5, 2]
    )


def test_estimates_by_hand() -> None:
    few = estimate([1.0, 2.0, 6.0])
    # fewer than eight values: the plain mean
    assert (few.mean, few.n) == (3.0, 3)
    assert 1.0 <= few.low < few.mean < few.high <= 6.0
    many = estimate([1.0, 2, 3, 4, 5, 6, 7, 1000])
    assert (many.mean, many.n) == (4.5, 8)
    assert many.low < 4.5 < many.high
    assert estimate([2.0] * 5) == estimate([2.0, np.nan, 2, 2, 2, 2])
    same = estimate([2.0] * 5)
    assert (same.low, same.mean, same.high) == (2.0, 2.0, 2.0)
    assert estimate([1.0, 2.0, 6.0]) == few
    assert estimate([np.nan]).n == 0
    assert np.isnan(estimate([]).mean)


def test_an_interval_covers_the_mean_so_often() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(5.0, 1.0, size=(200, 20))
    hits = sum(e.low <= 5.0 <= e.high for e in map(estimate, samples))
    # 95 % nominal; percentile intervals of 20 values are a little narrow: 87 to 99 % of 200
    assert 174 <= hits <= 198


def test_interactions_to_a_share() -> None:
    steps = [10, 20, 30, 40]
    # 0.96 at 10 does not last; from 30 on it stays
    assert interactions_to(steps, [0.96, 0.5, 0.97, 0.99], 0.95) == 30
    assert interactions_to(steps, [0.95, 0.96, 0.97, 0.99], 0.95) == 10
    assert interactions_to(steps, [0.1, 0.2, 0.3, 0.95], 0.95) == 40
    assert np.isnan(interactions_to(steps, [0.96, 0.97, 0.98, 0.9], 0.95))
    assert np.isnan(interactions_to([], [], 0.95))


def test_checkpoints_by_hand() -> None:
    made = config(interactions=100)
    shared = [10, 20, 30, 40, 60, 80, 100]
    assert made.checkpoints(100) == shared
    # beyond: three points per factor of ten, 215, 464 and 1,000, not quite up to the budget
    assert made.checkpoints(2000) == [*shared, 215, 464, 1000, 2000]
    # rounded tenths of 3 interactions: 0, 1, 1, 1, 2, 2, 3
    assert config(interactions=3).checkpoints(3) == [1, 2, 3]


def test_defaults_come_from_the_environment() -> None:
    made = default_config("offloading", seeds=None, interactions=7)
    assert (made.interactions, made.scenario) == (7, "default")
    assert {"icl", "dqn", "ppo", "random", "oracle"} <= set(made.policies)
    assert made.seeds >= 3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"settings": {"labels": "stay here,go away", "users": 3}},
        {"settings": {"labels": ("stay here", "go"), "radio": {"scenario": "umi"}}},
        {"icl": {"exploration.start": 0.5, "layout": "blocks"}, "prompts": "my prompts"},
        {"icl": {"exploration": {"start": 0.5}}, "drl_interactions": 50, "sweeps": True},
    ],
)
def test_the_command_repeats_the_configuration(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(**fields)
    asked: list[ComparisonConfig] = []
    monkeypatch.setattr(
        "icl_optimizer.comparison.runner.compare", lambda got, *_, **__: asked.append(got)
    )
    monkeypatch.setattr("icl_optimizer.cli.compare._finish", lambda folder: None)
    program, *arguments = shlex.split(command(wanted))
    app(expand_lists(arguments), standalone_mode=False)
    assert program == "icl-optimizer"
    (got,) = asked
    # settings arrive as text; what they mean must be the same
    spec_of = make("offloading", 1, **wanted.settings).config  # type: ignore[attr-defined]
    assert make("offloading", 1, **got.settings).config == spec_of  # type: ignore[attr-defined]
    assert got.model_copy(update={"settings": {}, "icl": {}}) == wanted.model_copy(
        update={"settings": {}, "icl": {}}
    )
    assert options_of("icl", got.icl) == options_of("icl", wanted.icl)


def test_summaries_skip_what_is_missing() -> None:
    rows = [("e", "s", "p", "", seed, "eval", 1, "m", v) for seed, v in enumerate([1.0, np.nan])]
    table = summarise(pd.DataFrame(rows, columns=RESULT_COLUMNS))
    assert table[["mean", "n"]].to_numpy().tolist() == [[1.0, 1]]


@pytest.mark.slow
def test_several_processes_give_the_same_results(folder: Path, tmp_path: Path) -> None:
    fields = {"policies": ("bandit", "random"), "seeds": 1}
    one = compare(config(**fields), tmp_path / "one", progress_bar=False)
    two = compare(config(**fields), tmp_path / "two", jobs=2, progress_bar=False)
    assert (one / "results.csv").read_bytes() == (two / "results.csv").read_bytes()
