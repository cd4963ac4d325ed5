"""Sweep files: what they mean, what is refused, and that a sweep is its comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from icl_optimizer.cli import app
from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.engines import Finished
from icl_optimizer.comparison.runner import compare
from icl_optimizer.comparison.sweep import run_sweep
from icl_optimizer.comparison.sweep_file import points_of, read_sweep
from icl_optimizer.comparison.tables import COLUMNS, ResultsTable
from icl_optimizer.comparison.unit import Row, UnitResult
from icl_optimizer.comparison.work import Work
from icl_optimizer.errors import ConfigurationError

SMALL = {"interactions": 10, "eval_tasks": 10, "seeds": 2, "sweeps": False}
FILE = """
name: users
policies: [bandit, random]
settings: {horizon: 5}
interactions: 10
eval_tasks: 10
seeds: 2
sweeps: false
systems:
  - environment: offloading
    grid: {users: [2, 3], radio.n_resource_blocks: [4]}
  - environment: slo-scheduling
    policies: [round-robin]
    seeds: 1
"""


def names(**fields: Any) -> list[str]:
    return [point.name for point in points_of(read_sweep({**SMALL, **fields}))]


def test_a_grid_has_every_combination_and_a_list_its_points() -> None:
    def settings(**system: Any) -> list[dict[str, Any]]:
        system = {"environment": "offloading", **system}
        sweep = read_sweep({"systems": [system], "settings": {"horizon": 5, "users": 9}})
        return [point.config.settings for point in points_of(sweep)]

    five = {"horizon": 5}
    assert settings() == [five | {"users": 9}]
    grid = {"users": [2, 3], "vocabulary": ["closed", "open"]}
    assert settings(grid=grid) == [
        five | {"users": users, "vocabulary": words}
        for users in (2, 3)
        for words in ("closed", "open")
    ]
    points = [{"users": 2}, {"users": 3, "horizon": 7}]
    assert settings(points=points) == [five | {"users": 2}, {"horizon": 7, "users": 3}]
    both = settings(points=points, grid={"vocabulary": ["open"]}, settings={"horizon": 6})
    assert both == [
        {"horizon": 6, "users": 2, "vocabulary": "open"},
        {"horizon": 7, "users": 3, "vocabulary": "open"},
    ]


def test_a_system_has_its_own_fields_before_the_shared_and_the_defaults() -> None:
    shared = {"seeds": 2, "interactions": 7, "policies": ["random"], "icl": {"orders": 2}}
    own = {"environment": "slo-scheduling", "seeds": 4, "policies": ["round-robin"]}
    first, second = (
        point.config for point in points_of(read_sweep({**shared, "systems": ["offloading", own]}))
    )
    assert (first.environment, first.seeds, first.interactions) == ("offloading", 2, 7)
    assert (second.seeds, second.interactions, second.policies) == (4, 7, ("round-robin",))
    assert second.icl == {"orders": 2}
    (plain,) = points_of(read_sweep({"systems": ["offloading"]}))
    assert "icl" in plain.config.policies
    assert plain.config.llm == "llamacpp"


def test_the_example_of_the_documentation_is_one() -> None:
    page = Path(__file__).parents[1] / "docs" / "howto" / "cluster.md"
    text = page.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    points = points_of(read_sweep(yaml.safe_load(text)))
    # two models where six points of three by two, and two of another system, ask them
    assert len(points) == 2 * (6 + 2)
    assert points[0].name == "offloading-horizon-20-users-5-llamacpp"
    assert points[-1].name == "load-arrival_rate-2-ollama-llama3.1-8b"


def test_points_are_named_by_what_varies() -> None:
    system = {"environment": "offloading", "settings": {"horizon": 5}, "grid": {"users": [2, 3]}}
    assert names(systems=["slo-scheduling", system]) == [
        "slo-scheduling",
        "offloading-users-2",
        "offloading-users-3",
    ]
    two = {**system, "grid": {}, "llms": ["llamacpp", "ollama:llama3.1:8b?seed=1"], "name": "small"}
    assert names(systems=[{**two, "policies": ["icl", "random"]}]) == [
        "small-llamacpp",
        "small-ollama-llama3.1-8b-seed-1",
    ]
    # nobody asks either of them
    assert names(systems=[{**two, "policies": ["random"]}]) == ["small"]
    (long,) = names(systems=[{**system, "name": "x" * 200}], policies=["random"])[:1]
    assert len(long) == 80
    assert len(set(names(systems=[{**system, "name": "x" * 200}]))) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "systems"),
        ({"systems": []}, "systems is []"),
        ({"systems": ["ofloading"]}, "Did you mean 'offloading'?"),
        ({"systems": [{"environment": "offloading", "gird": {}}]}, "systems.0.gird is {}"),
        ({"systems": [{"environment": "offloading", "grid": {"users": 3}}]}, "grid.users is 3"),
        ({"systems": [{"environment": "offloading", "grid": {"users": []}}]}, "grid.users is []"),
        ({"systems": ["offloading"], "seeds": 0}, "seeds is 0"),
        ({"systems": [{"environment": "offloading", "name": "\u8d1f\u8f7d"}]}, "name of a system"),
        ({"systems": [{"environment": "offloading", "name": "figures"}]}, "none of figures"),
        ({"systems": ["offloading"], "policy": ["random"]}, "policy is ['random']"),
        ({"systems": ["offloading"], "policies": ["rnadom"]}, "Did you mean 'random'?"),
        ({"systems": ["offloading", "offloading"]}, "'offloading' comes twice"),
        ({"systems": ["live"], "policies": ["random"]}, "'live' is live"),
        (
            {"systems": [{"environment": "offloading", "grid": {"users": [2, 0]}}]},
            "offloading-users-0: offloading: users is 0",
        ),
        ({"systems": ["offloading"], "llms": ["lamacpp"], "policies": ["icl"]}, "'llamacpp'"),
        ({"systems": ["offloading"], "llms": ["openai:x?api_key=abc"]}, "key"),
    ],
)
def test_everything_is_checked_before_anything_starts(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as error:
        run_sweep({"policies": ["random"], **SMALL, **fields}, tmp_path / "out", progress_bar=False)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no\.yaml'; allowed: a YAML file that exists"):
        read_sweep(tmp_path / "no.yaml")
    (tmp_path / "bad.yaml").write_text("seeds: 0\nsystems: [offloading]")
    with pytest.raises(ConfigurationError, match=r"bad\.yaml: seeds is 0: .*greater than or equal"):
        read_sweep(tmp_path / "bad.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    (place / "sweep.yaml").write_text(FILE)
    arguments = ["sweep", str(place / "sweep.yaml"), "--out", str(place / "out"), "--quiet"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return place / "out"


@pytest.mark.slow
def test_a_sweep_is_its_comparisons_and_their_tables(folder: Path, tmp_path: Path) -> None:
    plan = points_of(read_sweep(folder / "sweep.yaml"))
    assert [point.name for point in plan] == [
        "offloading-radio.n_resource_blocks-4-users-2",
        "offloading-radio.n_resource_blocks-4-users-3",
        "slo-scheduling",
    ]
    lines = []
    for point in plan:
        alone = compare(point.config, tmp_path / point.name, progress_bar=False)
        mine = (folder / point.name / "results.csv").read_bytes()
        assert mine == (alone / "results.csv").read_bytes()
        lines += [f"{point.name},{line}" for line in mine.decode().splitlines()[1:]]
    assert (folder / "results.csv").read_text().splitlines() == [
        ",".join(("point", *COLUMNS)),
        *lines,
    ]
    table = ResultsTable(folder)
    assert len(table.select()) == len(lines)
    assert set(table.select(point="slo-scheduling").policy) == {"round-robin"}
    summary = pd.read_csv(folder / "summary.csv")
    parts = [pd.read_csv(folder / point.name / "summary.csv") for point in plan]
    assert len(summary) == sum(map(len, parts))
    assert list(summary.columns) == ["point", *parts[0].columns]
    described = json.loads((folder / "config.json").read_text())
    assert [point["point"] for point in described["points"]] == [point.name for point in plan]


@pytest.mark.slow
def test_a_sweep_is_resumed_only_as_it_was(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/units/*")}
    wanted = (folder / "results.csv").read_bytes()
    gone = sorted(before)[0]
    gone.unlink()
    (folder / "results.csv").unlink()
    run_sweep(folder / "sweep.yaml", folder, resume=True, jobs=2, progress_bar=False)
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*/units/*")}
    assert {path for path in after if after[path] != before[path]} == {gone}
    assert (folder / "results.csv").read_bytes() == wanted
    with pytest.raises(ConfigurationError, match="holds this sweep already; add --resume"):
        run_sweep(folder / "sweep.yaml", folder, progress_bar=False)
    for place in (folder, folder / "slo-scheduling"):
        with pytest.raises(ConfigurationError, match="holds something else; allowed: the same"):
            run_sweep({"systems": ["offloading"]}, place, resume=True, progress_bar=False)


def test_what_asks_no_model_runs_once_for_all_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str, int]] = []

    class Recording:
        def run(self, works: Sequence[Work]) -> Iterator[Finished]:
            for index, work in enumerate(works):
                llm = work.config.llm if work.needs_llm else ""
                ran.append((work.policy, llm, work.seed))
                row = Row("offloading", "default", work.policy, llm, work.seed, "eval", 1, "m", 1.0)
                yield Finished(index, UnitResult([row]))

    monkeypatch.setattr("icl_optimizer.comparison.sweep.make_engine", lambda *_: Recording())
    models = [f"openai:{name}@http://127.0.0.1:9/v1" for name in ("b", "a")]
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    plan = {**SMALL, "systems": ["offloading"], "policies": ["icl", "random"], "llms": models}
    folder = run_sweep(plan, tmp_path / "out", progress_bar=False)
    # the units of one model follow each other
    asking = [(policy, llm, seed) for policy, llm, seed in ran if policy == "icl"]
    assert asking == [("icl", llm, seed) for llm in sorted(models) for seed in (0, 1)]
    assert [one for one in ran if one[0] == "random"] == [("random", "", 0), ("random", "", 1)]
    rows = ResultsTable(folder).select()
    assert rows.groupby(["point", "policy"]).size().tolist() == [2, 2, 2, 2]
    # a unit that one comparison has is not run for the other
    ran.clear()
    gone = sorted(folder.glob("*/units/random-0.json"))[0]
    gone.unlink()
    run_sweep(plan, folder, resume=True, progress_bar=False)
    assert gone.exists()
    assert not ran


def test_the_config_of_a_point_is_that_of_a_comparison() -> None:
    (point,) = points_of(read_sweep({**SMALL, "systems": ["offloading"], "policies": ["random"]}))
    assert point.config == ComparisonConfig(
        environment="offloading",
        policies=("random",),
        interactions=10,
        eval_tasks=10,
        seeds=2,
        sweeps=False,
    )
