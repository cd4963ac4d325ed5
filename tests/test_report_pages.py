"""What the report shows beyond curves, several runs on a page, and sweeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_run import KEYS, RESULTS, SUMMARY, Rows, write_run, write_table
from typer.testing import CliRunner

from icl_optimizer.cli import app
from icl_optimizer.comparison.statistics import Estimate, improvement
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.report import write_report, write_side_by_side, write_sweep_report
from icl_optimizer.report.figures import build_figures
from icl_optimizer.report.heat import cell_text, color, ink
from icl_optimizer.report.loading import load_run
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.reliability import _scores, ranked, shared_scores
from icl_optimizer.report.side_by_side import check_comparable
from icl_optimizer.report.spec import Axis, Figure, Heat, Panel
from icl_optimizer.report.summary import UNSEEN, key_table
from icl_optimizer.report.sweep import sweep_verdict
from icl_optimizer.report.sweep_loading import load_sweep
from icl_optimizer.report.verdict import how_sure, verdict
from icl_optimizer.studies.synthetic_runs import write_comparison, write_sweep


def without_scripts(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def figures_of(folder: Path) -> dict[str, Figure]:
    return {f.id: f for f in build_figures(load_run(folder))}


def write_servers(folder: Path, **settings: object) -> Path:
    """Write a run in an environment of servers, in which two policies were measured."""
    folder.mkdir(parents=True)
    env, rows = settings.pop("environment", "load-balancing"), Rows()
    for policy in ("table", "ppo"):
        for seed in range(3):
            for scenario, late in (("default", 0.1), ("arrival_rate=4", 0.5)):
                own = (env, scenario, policy, "", seed, "eval", 20)
                rows += [(*own, "slo_violation_rate", late), (*own, "reward", -late)]
                rows += [(*own, "response_time_s", 400 * late**3)]
                rows += [(*own, "share_big", 0.75), (*own, "share_small", 0.25)]
            for step in range(1, 21):
                own = (env, "default", policy, "", seed, "train", step)
                rows.append((*own, "reward", float(step)))
    write_table(folder / "results.csv", RESULTS, rows)
    write_table(folder / "summary.csv", SUMMARY, [])
    config = {
        **{"environment": env, "settings": settings, "policies": ["table", "ppo"]},
        **{"seeds": 3, "interactions": 20, "budgets": {}, "command": "none", "versions": {}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- one run


def test_the_matrix_holds_the_odds_of_every_pair(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    figures = {f.id: f for f in build_figures(run)}
    shared, own = figures["improvement"].panels
    heat, scores = shared.heat, shared_scores(run)
    assert heat is not None
    assert heat.rows == ("icl", "bandit", "icl-latest", "dqn", "oracle", "random")
    by_name = {Palette.of(run).label(e): s for e, s in scores.items()}
    for a, row in zip(heat.rows, heat.values, strict=True):
        for b, value in zip(heat.columns, row, strict=True):
            assert (value is None) == (a == b)
            assert value is None or value == improvement(by_name[a], by_name[b])
    # dqn ends near the oracle, with its own budget of 2,000
    assert own.heat is not None
    assert own.heat.rows.index("dqn") < own.heat.rows.index("bandit")
    assert "icl beats bandit with probability 1.00" in figures["improvement"].alt


def test_profiles_fall_and_leave_the_oracle_out(tmp_path: Path) -> None:
    profiles = figures_of(write_run(tmp_path))["profiles"]
    for panel in profiles.panels:
        assert "oracle" not in [s.name for s in panel.series]
        for series in panel.series:
            shares = [v.mean for v in series.values]
            assert shares == sorted(shares, reverse=True)
            assert shares[-1] == 0


def test_one_seed_is_no_distribution(tmp_path: Path) -> None:
    assert not {"profiles", "improvement"} & set(figures_of(write_run(tmp_path, seeds=1)))


@pytest.mark.parametrize(
    ("ends", "seeds", "expected"),
    [
        ({}, 3, r"Every run of icl beat every run of bandit, .* once in 20 with 3 seeds each, so "),
        ({}, 9, r"luck alone does once in 48,620 with 9 seeds each\."),
        ({"bandit": 0.96}, 9, r"Still, a run of icl beats .* 0\.8\d .* icl is the safer choice"),
        ({"bandit": 0.94}, 9, r"Trust icl over bandit: a run .* 0\.9\d \(95 % interval 0\.\d\d to"),
        ({"bandit": 0.989}, 3, r"Do not trust their order yet: .* probability 0\.[56]"),
        ({"bandit": 0.99, "icl": 0.99, "dqn": -1.0}, 1, r"its own budget|one seed"),
    ],
)
def test_the_verdict_says_how_sure_it_is(
    tmp_path: Path, ends: dict[str, float], seeds: int, expected: str
) -> None:
    assert re.search(expected, verdict(load_run(write_run(tmp_path, seeds, **ends))))


def test_unseen_words_have_a_column(tmp_path: Path) -> None:
    table = key_table(load_run(write_run(tmp_path)))
    place = table.header.index(UNSEEN)
    assert {row[0]: row[place] for row in table.rows}["icl"] == "0.70"
    assert {row[0]: row[place] for row in table.rows}["bandit"] == "–"


def test_servers_and_objectives_are_maps(tmp_path: Path) -> None:
    figures = figures_of(write_servers(tmp_path / "run"))
    load, late = figures["server-load"].panels[0].heat, figures["objectives"].panels[0].heat
    assert load is not None
    assert late is not None
    assert load.columns == ("big", "small")
    assert [[v.mean for v in row if v] for row in load.values] == [[0.75, 0.25]] * 2
    assert late.columns == ("as learned", "arrival_rate=4")
    for row in late.values:
        assert [v.mean for v in row if v] == pytest.approx([0.1, 0.5])
    assert "less is better" in figures["objectives"].caption
    here, loaded = (p.x for p in figures["responses"].panels)
    assert here.limits is not None
    assert loaded.limits is not None
    assert here.limits[0] == 0.1
    assert loaded.limits[0] == 10
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert '"ticktext": ["0.1", "0.2"]' in page


@pytest.mark.parametrize(
    ("environment", "settings", "titles"),
    [
        (
            "layer-splitting",
            {},
            ["Whole episodes: the reward", "Single decisions: what each changes"],
        ),
        ("layer-splitting", {"difference": False}, [""]),
        ("load-balancing", {}, [""]),
        ("of-a-plugin", {}, [""]),
    ],
)
def test_differences_and_plain_rewards_are_kept_apart(
    tmp_path: Path, environment: str, settings: dict[str, object], titles: list[str]
) -> None:
    folder = write_servers(tmp_path / "run", environment=environment, **settings)
    figure = figures_of(folder)["reward-while-learning"]
    assert [p.title for p in figure.panels] == titles
    named = [[s.name for s in p.series] for p in figure.panels]
    assert named == ([["ppo"], ["table"]] if len(titles) > 1 else [["table", "ppo"]])
    assert ("do not compare" in figure.caption) == (len(titles) > 1)


def test_cells_are_read_on_any_colour() -> None:
    heat = Heat("a", "b", ("r",), ("c",), ((None,),), (0.0, 1.0), even=True)
    assert ink(color(heat, 0.5)) == "#000000"
    assert ink(color(heat, 0.0)) == ink(color(heat, 1.0)) == "#ffffff"
    assert color(heat, -3) == color(heat, 0)
    assert cell_text(Estimate(0.256, 0, 1, 3)) == "0.26"
    assert cell_text(None) == ""
    figure = Figure("id", "t", "c", "a.", (Panel("", Axis("x", "y"), heat=heat),))
    assert figure.data() == (["a", "b", "x [y]", "CI low", "CI high"], [])


def test_the_page_of_many_seeds_is_no_larger_than_that_of_few(tmp_path: Path) -> None:
    few, many = (write_comparison(tmp_path / str(n), 3, n) for n in (3, 30))
    sizes = [write_report(folder).stat().st_size for folder in (few, many)]
    assert sizes[1] < sizes[0] + 100_000


# --- several runs


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("pair")
    return write_run(place / "one"), write_run(place / "two", icl=0.7)


def test_runs_stand_side_by_side(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    result = CliRunner().invoke(app, ["report", *map(str, pair), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "page.html" in result.output
    page = without_scripts(out.read_text(encoding="utf-8"))
    assert "two against one, after 100 interactions: optimality differs for icl (-0." in page
    # what both have, and what each says of itself
    rows = re.findall(r'<tr><th scope="row">([\w-]+)</th>((?:<td>[^<]*</td>)+)</tr>', page)
    cells = {name: re.findall("<td>([^<]*)", line) for name, line in reversed(rows)}
    assert cells["bandit"][0] == cells["bandit"][1]
    assert cells["bandit"][2].startswith("0.00 [-0.0")
    assert cells["bandit"][3].startswith("0.50 [")
    assert cells["icl"][3] == "0.00"
    assert page.count("After 100 interactions") == 2
    assert {p.name for p in (tmp_path / "new" / "page-figures").glob("*.csv")} == {
        "learning-curves.csv",
        "differences.csv",
    }


def test_a_run_of_its_own_has_its_report_in_its_folder(pair: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(app, ["report", str(pair[0]), "--out", "x.html"])
    assert isinstance(result.exception, ConfigurationError)
    assert "two or more folders" in str(result.exception)


def with_environment(folder: Path) -> None:
    for name in ("results.csv", "summary.csv", "config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("offloading", "other"))


def with_other_policies(folder: Path) -> None:
    for name in ("results.csv", "config.json"):
        path = folder / name
        text = re.sub(r"\b(icl|dqn|bandit|random|oracle)\b(?=[-,\"])", r"my-\1", path.read_text())
        path.write_text(text)


def without_oracle(folder: Path) -> None:
    path = folder / "results.csv"
    kept = [line for line in path.read_text().splitlines() if "optimality" not in line]
    path.write_text("\n".join(kept))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (with_environment, "environment is 'offloading' and 'other'"),
        (with_other_policies, "they share no policy"),
        (without_oracle, "one has optimality, the other reward"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], None], named: str
) -> None:
    other = write_run(tmp_path / "other")
    spoil(other)
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        write_side_by_side([pair[0], other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_rewards_of_different_scenarios_are_not_compared(tmp_path: Path) -> None:
    folders = [write_servers(tmp_path / name) for name in ("one", "two")]
    path = folders[1] / "results.csv"
    path.write_text(path.read_text().replace(",default,", ",users=9,"))
    with pytest.raises(ConfigurationError, match="at scenario 'default' and 'users=9'"):
        check_comparable([load_run(folder) for folder in folders])


def test_a_run_is_not_held_against_itself(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigurationError, match="each once"):
        write_side_by_side([pair[0], pair[0]])


# --- sweeps


def test_a_sweep_reports_over_its_points(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", points=3, policies=4, seeds=4)
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    page = without_scripts((folder / "report.html").read_text(encoding="utf-8"))
    assert "Over 3 points and 12 runs icl is highest" in page
    assert {p.stem for p in (folder / "figures").glob("*.png")} == {
        "points",
        "profiles",
        "improvement",
    }
    run = load_sweep(folder)
    assert run.strata == ["users=5", "users=6", "users=7"]
    assert all(len(strata) == 3 for strata in run.scores.values())
    data = pd.read_csv(folder / "results.csv").query(
        "metric == 'optimality' and step == 100 and policy == 'icl' and scenario == 'users=6'"
    )
    icl = next(scores for entry, scores in run.scores.items() if entry.policy == "icl")
    np.testing.assert_allclose(icl[1], data["value"])


def test_points_that_differ_by_the_model_are_one_stratum(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    rows = Rows()
    for model in ("a", "b"):
        for seed in range(2):
            level = 0.9 if model == "a" else 0.5
            own = (f"offloading-{model}", "offloading", "default")
            rows.append((*own, "icl", model, seed, "eval", 10, "optimality", level))
            rows.append((*own, "knn", "", seed, "eval", 10, "optimality", 0.7 + 0.01 * seed))
    write_table(folder / "results.csv", ("point", *RESULTS), rows)
    write_table(folder / "summary.csv", ("point", *KEYS, "metric", "mean"), [])
    points = [
        {
            **{"point": f"offloading-{m}", "environment": "offloading", "scenario": "default"},
            **{"llm": m, "policies": ["icl", "knn"], "seeds": 2, "interactions": 10},
        }
        for m in ("a", "b", "c")
    ]
    config = {"title": "t", "sweep": {}, "points": points, "command": "c", "versions": {}}
    (folder / "config.json").write_text(json.dumps(config))
    run = load_sweep(folder)
    assert run.strata == ["default"]
    # runs that are in the points of both models count once
    assert {(e.policy, e.llm): s[0].tolist() for e, s in run.scores.items()} == {
        ("icl", "a"): [0.9, 0.9],
        ("icl", "b"): [0.5, 0.5],
        ("knn", ""): [0.7, 0.71],
    }
    assert run.unfinished == ["offloading-c"]
    assert "icl (a) is highest" in sweep_verdict(run)
    page = write_sweep_report(folder).read_text(encoding="utf-8")
    assert "No results yet at 1 of 3 comparisons: offloading-c." in page


def test_a_sweep_without_results_is_named(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", points=2, policies=3, seeds=1)
    write_table(folder / "results.csv", ("point", *RESULTS), [])
    with pytest.raises(ConfigurationError, match="no optimality yet"):
        write_sweep_report(folder)


def test_who_is_higher_on_the_whole_may_lose_more_often() -> None:
    best, rival = Entry("bandit", ""), Entry("knn", "")
    scores = {best: [np.array([0.8] * 20 + [9.0])], rival: [np.array([0.85] * 21)]}
    told = how_sure(("bandit", best), ("knn", rival), scores)
    assert "is higher on the whole, knn more often" in told
    # ranked by the centre that is shown, which one far run does not move
    assert ranked(scores) == [rival, best]


def test_a_seed_that_was_stopped_has_no_last_value() -> None:
    rows = [(0, 10, 0.1), (0, 100, 0.9), (1, 10, 0.2), (1, 100, 0.8), (2, 10, -0.9)]
    frame = pd.DataFrame(rows, columns=["seed", "step", "value"]).assign(policy="bandit", llm="")
    (values,) = _scores(frame)[Entry("bandit", "")]
    assert values.tolist() == [0.9, 0.8]
