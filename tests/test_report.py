"""The report of a small made-up run: complete, honest, offline, and safe to open."""

from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from tiny_run import write_run

from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.report import print_summary, summary_table, write_report
from icl_optimizer.report.figures import build_figures
from icl_optimizer.report.loading import load_run
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.spec import ticks
from icl_optimizer.report.verdict import verdict

FIGURES = {
    "learning-curve",
    "profiles",
    "improvement",
    "reward-while-learning",
    "reward-by-kind",
    "success-rate",
    "ablation",
    "delay-users",
    "delay-tokens",
    "delay-quality-share",
    "open-vocabulary",
    "interactions-to-95",
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return write_report(run_folder).read_text(encoding="utf-8")


def without_plotly(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_holds_every_part_and_loads_nothing(page: str) -> None:
    own = without_plotly(page)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", own)
    assert "default-src 'none'" in own
    for part in (
        "After 100 interactions icl is best",
        "61 LLM calls",
        "12,345",
        "seeds 3",
        "numpy",
    ):
        assert part in own
    assert {i for i in FIGURES if f'id="{i}"' in own} == FIGURES
    assert own.count("Data of this figure") == len(FIGURES)
    assert page.count("plotly.js v") >= 1


def test_hostile_words_stay_text(page: str) -> None:
    assert "<img src=x" not in page
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page


def test_every_figure_has_a_picture_with_something_on_it(page: str, run_folder: Path) -> None:
    pictures = {p.stem: p for p in (run_folder / "figures").glob("*.png")}
    assert set(pictures) == FIGURES
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.info["dpi"][0] == pytest.approx(160, abs=1)
            assert np.asarray(picture.convert("L")).std() > 5


def test_every_figure_gives_its_data_in_full(page: str, run_folder: Path) -> None:
    folder = run_folder
    links = re.findall(r'download="([\w-]+)\.csv" href="data:text/csv;base64,([^"]+)"', page)
    figures = {f.id: f for f in build_figures(load_run(folder))}
    assert [name for name, _ in links] == list(figures)
    for name, data in links:
        text = base64.b64decode(data).decode()
        assert (folder / "figures" / f"{name}.csv").read_text(encoding="utf-8") == text
        header, *rows = csv.reader(io.StringIO(text))
        expected = figures[name].data()
        assert header == expected[0]
        assert rows == [[str(cell) for cell in row] for row in expected[1]]
    curve = pd.read_csv(folder / "figures" / "learning-curve.csv")
    icl = load_run(folder).rows("optimality").query("policy == 'icl' and step == 10")["value"]
    first = curve[(curve["line"] == "icl")].iloc[0]
    # more digits than the page shows
    assert first["optimality [1 = oracle, 0 = random]"] == icl.mean()


def test_figures_name_their_units_and_keep_to_the_training_scenario(run_folder: Path) -> None:
    figures = {f.id: f for f in build_figures(load_run(run_folder))}
    for figure in figures.values():
        assert figure.alt.endswith(".")
        for panel in figure.panels:
            axes = [panel.x] if panel.y is None else [panel.x, panel.y]
            assert all(re.fullmatch(r".+ \[.+\]", axis.label) for axis in axes)
    curve = figures["learning-curve"].panels[0]
    assert curve.x.log
    assert all(v.mean > -2 for s in curve.series for v in s.values)
    assert [s.name for s in curve.series if s.level] == ["random", "oracle"]
    dqn = next(s for s in curve.series if s.name == "dqn")
    assert dqn.x == (10, 50, 100, 500, 2000)


def test_bars_say_who_never_got_there(run_folder: Path) -> None:
    figure = next(f for f in build_figures(load_run(run_folder)) if f.id == "interactions-to-95")
    notes = {bar.name: bar.note for bar in figure.panels[0].bars}
    assert notes == {
        "icl": "50 (2/3 seeds)",
        "icl-latest": "not reached",
        "dqn": "500 (2/3 seeds)",
        "bandit": "not reached",
    }


def test_a_report_repeats_byte_for_byte(page: str, run_folder: Path) -> None:
    picture = run_folder / "figures" / "ablation.png"
    before = picture.read_bytes()
    assert write_report(run_folder).read_text(encoding="utf-8") == page
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("ends", "seeds", "expected"),
    [
        ({}, 3, r"icl is best, .* ahead of bandit"),
        ({"icl": 0.6, "bandit": 0.9}, 3, r"bandit, a baseline, is best, .* ahead of icl-latest"),
        ({"bandit": 0.985}, 3, r"icl is highest, .* overlaps with that of bandit"),
        (
            {"bandit": 0.995, "icl": 0.985},
            3,
            r"bandit, a baseline, is highest, .* overlaps .* in-context learner, icl, has 0.9",
        ),
        ({}, 1, r"icl is highest, .* one seed gives no interval, so the order is not certain"),
        ({"icl": 0.5, "icl-latest": 0.4}, 3, r"With its own budget of 2,000 interactions, dqn"),
    ],
)
def test_the_verdict_follows_the_numbers(
    tmp_path: Path, ends: dict[str, float], seeds: int, expected: str
) -> None:
    assert re.search(expected, verdict(load_run(write_run(tmp_path, seeds, **ends))))


def test_the_terminal_shows_the_key_columns(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(width=80, record=True, file=sys.stderr)
    console.print(summary_table(run_folder))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert re.search(r"dqn.*500", text)
    print_summary(run_folder)
    assert "icl is best" in capsys.readouterr().out


def test_a_run_without_prompts_or_oracle_still_reports(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "explain.json").unlink()
    lines = (folder / "results.csv").read_text().splitlines()
    kept = [line for line in lines if "optimality" not in line and ";" not in line]
    (folder / "results.csv").write_text("\n".join(kept))
    own = without_plotly(write_report(folder).read_text(encoding="utf-8"))
    assert "Prompts and decisions" not in own
    assert "with reward -" in own
    assert 'id="interactions-to-95"' not in own


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text().replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (drop("results.csv"), "results.csv is missing"),
        (drop("config.json"), "config.json is missing"),
        (replace("summary.csv", "ci_low", "low"), "summary.csv has no column 'ci_low'"),
        (replace("results.csv", ",10,reward,", ",ten,reward,"), "column 'step' has 'ten'"),
        (replace("results.csv", ",eval,", ",test,"), "split 'test'"),
        (replace("config.json", '"command"', '"cmd"'), "field 'command'"),
        (replace("config.json", "{", ""), "not valid JSON"),
        (replace("explain.json", '"reward"', '"gain"'), r"field 'policies.icl.pool.0.reward'"),
    ],
)
def test_a_folder_that_is_not_ours_is_named_before_anything_is_written(
    tmp_path: Path, spoil: Callable[[Path], None], named: str
) -> None:
    folder = write_run(tmp_path)
    spoil(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        write_report(folder)
    assert sorted(folder.iterdir()) == before


def test_missing_libraries_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'icl-optimizer\[report\]'"):
        write_report(write_run(tmp_path))
    assert not (tmp_path / "figures").exists()


def test_importing_the_report_imports_no_plotting_library() -> None:
    code = "import sys, icl_optimizer.report; print({'matplotlib', 'plotly'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_policies_keep_their_colour_and_their_models_differ() -> None:
    alone, together = (
        Palette([Entry("dqn")]),
        Palette([Entry("icl", "a"), Entry("icl", "b"), Entry("dqn")]),
    )
    assert alone.style(Entry("dqn")) == together.style(Entry("dqn"))
    first, second = (together.style(Entry("icl", m)) for m in "ab")
    assert first.color == second.color
    assert first != second
    assert together.label(Entry("icl", "a")) == "icl (a)"
    strangers = Palette([Entry(f"mine-{i}") for i in range(8)])
    assert len({strangers.style(e).color for e in strangers.entries}) == 8


def test_logarithmic_ticks_are_round_and_inside() -> None:
    assert ticks(10, 100) == [10, 20, 50, 100]
    assert ticks(10, 5000) == [10, 30, 100, 300, 1000, 3000]
