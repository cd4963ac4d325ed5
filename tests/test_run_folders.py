"""What is said of worlds without a choice, and of folders and files that are damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from icl_optimizer.baselines import BanditPolicy
from icl_optimizer.cli import app
from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.evaluation import optimality
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.sweep import run_sweep
from icl_optimizer.comparison.tables import ResultsTable
from icl_optimizer.environments.offloading_config import OffloadingConfig
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.environments.slo_scheduling_config import SLOSchedulingConfig
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.report import write_report
from icl_optimizer.report.side_by_side import write_side_by_side

HOPELESS = {"deadline_s": 0.001, "horizon": 5}
"""No server is fast enough, whatever is decided."""


def config(**fields: Any) -> ComparisonConfig:
    usual: dict[str, Any] = {
        "environment": "offloading",
        "settings": {"users": 2, "horizon": 10, "radio.n_resource_blocks": 4},
        "policies": ("bandit", "random"),
        "seeds": 1,
        "interactions": 5,
        "eval_tasks": 5,
        "sweeps": False,
    }
    return ComparisonConfig(**usual | fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return compare(config(), tmp_path / "run", progress_bar=False)


def failed(*words: object) -> str:
    """Return what a command that fails says."""
    result = CliRunner().invoke(app, [*map(str, words)])
    assert isinstance(result.exception, ConfigurationError), result.output
    return str(result.exception)


# --- worlds


def test_where_nothing_can_be_gained_optimality_is_missing(tmp_path: Path) -> None:
    assert optimality(0.5, 1.0, 0.0) == 0.5
    assert math.isnan(optimality(0.3, 0.3, 0.1 + 0.2))
    asked = config(environment="slo-scheduling", settings=HOPELESS, policies=("random", "oracle"))
    folder = compare(asked, tmp_path / "run", progress_bar=False)
    found = ResultsTable(folder).select(split="eval")
    values = found.set_index("metric")["value"]
    assert values.loc["optimality"].isna().all()
    assert values.loc["reward"].notna().all()
    assert "slo-scheduling" in write_report(folder).read_text(encoding="utf-8")


def test_a_sweep_of_such_worlds_says_why_it_has_no_report(tmp_path: Path) -> None:
    system = {"environment": "slo-scheduling", "policies": ["random"], "settings": HOPELESS}
    plan = {"systems": [system], "seeds": 1, "interactions": 5, "eval_tasks": 5, "sweeps": False}
    run_sweep(plan, tmp_path / "sweep", progress_bar=False)
    assert "the oracle earns what random choice does" in failed("report", tmp_path / "sweep")


# --- options


def test_lists_may_be_given_with_commas() -> None:
    found = get_spec("slo-scheduling").config(
        {"models": "phi3-3.8b, gemma2-9b", "mixed_deadlines_s": "5,10"}
    )
    assert isinstance(found, SLOSchedulingConfig)
    assert found.models == ("phi3-3.8b", "gemma2-9b")
    assert found.mixed_deadlines_s == (5.0, 10.0)
    one = get_spec("slo-scheduling").config({"mixed_deadlines_s": "5"})
    assert isinstance(one, SLOSchedulingConfig)
    assert one.mixed_deadlines_s == (5.0,)
    with pytest.raises(ConfigurationError, match="models"):
        get_spec("slo-scheduling").config({"models": "phi3-3.8b"})
    labels = get_spec("offloading").config({"labels": "A, B"})
    assert isinstance(labels, OffloadingConfig)
    assert labels.labels == ("A", "B")


def test_a_setting_and_a_part_of_it_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match=r"'users\.x' is given beside 'users' = '5'"):
        get_spec("offloading").config({"users": "5", "users.x": "3"})
    mine = {"radio": {"n_resource_blocks": 4}, "radio.bandwidth_hz": 1e6}
    with pytest.raises(ConfigurationError):
        get_spec("offloading").config(mine)
    assert mine["radio"] == {"n_resource_blocks": 4}


def test_the_usual_folder_lies_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compare", "offloading", "--policies", "random", "--seeds", "1", "--no-sweeps"]
    words += ["--set", "users=2", "--set", "horizon=10", "--eval-tasks", "5", "--quiet"]
    words += ["--interactions", "5", "--set", "labels=../../x,y"]
    assert CliRunner().invoke(app, words).exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("train", "bandit", "offloading", "--interactions", "20"),
        ("record", "bandit", "offloading", "--interactions", "20"),
    ],
)
def test_a_folder_as_output_is_refused_before_any_work(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **options: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(BanditPolicy, "learn", never)
    monkeypatch.setattr(BanditPolicy, "decide", never)
    said = failed(*words, "--out", tmp_path)
    assert said == f"--out is '{tmp_path}', a folder; allowed: a file."


def test_points_that_are_none_are_refused(tmp_path: Path) -> None:
    plan = {"systems": [{"environment": "offloading", "points": []}]}
    with pytest.raises(ConfigurationError, match=r"points is \[\]; allowed: at least one"):
        run_sweep(plan, tmp_path / "sweep")


def test_an_environment_without_oracle_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = type(make("offloading"))
    monkeypatch.delattr(env, "action_values")
    with pytest.raises(ConfigurationError, match=r"'offloading', which has no oracle .*action_va"):
        compare(config(), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists()


# --- damaged folders


@pytest.mark.parametrize("text", ['{"rows": [', "{}", "[]"])
def test_a_damaged_unit_is_named(text: str, run: Path) -> None:
    unit = run / "units" / "bandit-0.json"
    unit.write_text(text)
    with pytest.raises(ConfigurationError, match=r"bandit-0\.json' is damaged; delete it"):
        compare(config(), run, resume=True, progress_bar=False)
    unit.unlink()
    compare(config(), run, resume=True, progress_bar=False)
    assert unit.exists()


@pytest.mark.parametrize("text", ['{"config":', "[]"])
def test_a_damaged_description_is_named(text: str, run: Path, tmp_path: Path) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"config\.json' is damaged"):
        compare(config(), run, resume=True, progress_bar=False)
    plan = {"systems": ["offloading"], "policies": ["random"]}
    with pytest.raises(ConfigurationError, match=r"config\.json' is damaged"):
        run_sweep(plan, run, resume=True, progress_bar=False)


def test_damaged_tables_are_named(run: Path) -> None:
    whole = (run / "results.parquet").read_bytes()
    (run / "results.parquet").write_bytes(whole[:100])
    assert "results.parquet' is damaged" in failed("report", run)
    (run / "results.parquet").unlink()
    write_report(run)
    for name in ("summary.csv", "results.csv"):
        path = run / name
        kept = path.read_bytes()
        path.write_bytes(kept[:200] + b"\xff\xfe" + kept[200:])
        assert f"{name} is not a table" in failed("report", run)
        path.write_bytes(kept)


def test_a_run_that_was_stopped_is_told_from_no_run(run: Path, tmp_path: Path) -> None:
    (run / "results.csv").unlink()
    assert "results.csv is missing: go on with --resume" in failed("report", run)
    assert "is not the folder of a comparison" in failed("report", tmp_path)


def test_what_a_kill_leaves_of_a_sweep_is_no_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "config.partial").write_text("{")
    plan = {"systems": ["offloading"], "policies": ["random"], "interactions": 5, "eval_tasks": 5}
    run_sweep(plan | {"seeds": 1, "sweeps": False}, folder, resume=True, progress_bar=False)
    assert (folder / "results.csv").is_file()


def test_side_by_side_refuses_before_it_reads(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a folder; allowed: an HTML file"):
        write_side_by_side([run, run], tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.json").write_text('{"sweep": {}}')
    with pytest.raises(ConfigurationError, match="holds a sweep; side by side takes"):
        write_side_by_side([run, tmp_path / "sweep"])


def test_a_damaged_policy_is_named(tmp_path: Path) -> None:
    problem = make("offloading").problem
    path = tmp_path / "bandit.json"
    BanditPolicy(problem).save(path)
    data = json.loads(path.read_text())
    del data["pool"]
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigurationError, match=r"bandit\.json' is damaged \(KeyError: 'pool'\)"):
        BanditPolicy(problem).load(path)
    asked = ("--context", "Service type=coding", "--context", "Output size=long")
    said = failed("decide", "offloading", *asked, "--agent", path)
    assert "is a saved policy of kind" in said
