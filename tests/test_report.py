"""The report of a small made-up run: complete, honest, offline, and safe to open."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.report import print_summary, summary_table, write_report
from icl_optimizer.report.figures import build_figures
from icl_optimizer.report.loading import load_run
from icl_optimizer.report.palette import Entry, Palette
from icl_optimizer.report.spec import ticks
from icl_optimizer.report.verdict import verdict

HOSTILE = "</script><img src=x onerror=alert(1)>$_{&"
SEEDS = 3
# start and end of the optimality, own budget, whether it learns
POLICIES = {
    "icl": (0.5, 0.99, 100, True),
    "icl-latest": (0.3, 0.7, 100, True),
    "dqn": (-0.8, 0.97, 2000, True),
    "bandit": (0.2, 0.8, 100, True),
    "random": (0.0, 0.0, 100, False),
    "oracle": (1.0, 1.0, 100, False),
}
KEYS = ("environment", "scenario", "policy", "llm")
RESULTS = (*KEYS, "seed", "split", "step", "metric", "value")
SUMMARY = (*KEYS, "metric", "mean", "ci_low", "ci_high", "n")
Rows = list[tuple[object, ...]]
FIGURES = {
    "learning-curve",
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


def learning_rows(policy: str, seed: int, end: float) -> Rows:
    start, _, budget, learns = POLICIES[policy]
    rows: Rows = []
    for step in [s for s in (10, 50, 100, 500, 2000) if s <= budget]:
        level = end - (end - start) * math.exp(-4 * step / budget) + 0.01 * seed * learns
        metrics = {
            "optimality": level,
            "reward": -10 + 8 * level,
            "reward_regular": -5 + 3 * level,
            "reward_quality": -20 + 15 * level,
            "success_rate": 0.5 + 0.4 * level,
            "delay_s": 20 - 5 * level,
        }
        rows += [("default", policy, seed, "eval", step, m, v) for m, v in metrics.items()]
    for step in range(1, 101 if learns else 0):
        rows.append(("default", policy, seed, "train", step, "reward", -10 + (step + seed) % 7))
    return rows


def further_rows(policy: str, seed: int) -> Rows:
    rows: Rows = []
    for key, points in (
        ("users", (5, 20)),
        ("mean_tokens", (500, 2000)),
        ("quality_share", (0.2, 0.8)),
    ):
        for pair in ("small+large", f"{HOSTILE}+big"):
            for x in points:
                name = f"{key}={x};pair={pair}"
                rows.append((name, policy, seed, "eval", 100, "delay_s", 10 + x / 100 + seed))
    rows.append(
        ("words=unseen;quality_share=0.85", policy, seed, "eval", 100, "balanced_accuracy", 0.7)
    )
    # an optimality elsewhere must stay out of the learning curves
    rows.append(("words=unseen;quality_share=0.85", policy, seed, "eval", 100, "optimality", -9.0))
    return rows


def write_table(path: Path, header: tuple[str, ...], rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def explanation() -> dict[str, object]:
    words = {"service type": HOSTILE, "size": "long"}
    pool = {"words": words, "decision": "local", "reward": -3.2, "evaluation": "good", "count": 4}
    decision = {
        "context": words,
        "probabilities": {"local": 0.7, "offload": 0.3},
        "decision": "local",
        "made_by": "llm",
        "oracle_decision": "offload",
    }
    told = {"prompt": f"Task goal: {HOSTILE}", "pool": [pool], "decisions": [decision]}
    return {"policies": {"icl": told}}


def write_run(folder: Path, seeds: int = SEEDS, **ends: float) -> Path:
    """Write a run in which ``ends`` replaces the final optimality of policies."""
    folder.mkdir(parents=True, exist_ok=True)
    results: Rows = []
    summary: Rows = []
    for policy, (_, end, budget, _learns) in POLICIES.items():
        llm = "scripted" if policy.startswith("icl") else ""
        for seed in range(seeds):
            rows = learning_rows(policy, seed, ends.get(policy, end))
            rows += further_rows(policy, seed) if policy in ("icl", "random", "oracle") else []
            results += [("offloading", s, p, llm, *rest) for s, p, *rest in rows]
        costs = {
            "decision_ms_p50": 2.0,
            "decision_ms_p95": 3.5,
            "train_s": 1.5,
            "interactions": budget,
        }
        costs["interactions_to_95"] = {"icl": 50.0, "dqn": 500.0}.get(policy, math.nan)
        if llm:
            costs |= {"llm_calls": 61, "llm_cached": 39, "prompt_tokens": 12345}
        for metric, value in costs.items():
            n = 2 if metric == "interactions_to_95" else seeds
            row = ("offloading", "default", policy, llm, metric, value, value * 0.9, value * 1.1, n)
            summary.append(row)
    write_table(folder / "results.csv", RESULTS, results)
    write_table(folder / "summary.csv", SUMMARY, summary)
    config = {
        "environment": "offloading",
        "settings": {"users": 20},
        "policies": list(POLICIES),
        "llm": "scripted",
        "seeds": seeds,
        "interactions": 100,
        "budgets": {p: b for p, (_, _, b, _) in POLICIES.items()},
        "checkpoints": [10, 50, 100],
        "command": "icl-optimizer compare offloading --seeds 3",
        "versions": {"numpy": "2.0"},
        "title": f"Run {HOSTILE}",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "explain.json").write_text(json.dumps(explanation()))
    return folder


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


@pytest.mark.browser
def test_a_browser_draws_every_figure(page: str, run_folder: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    target = ["--virtual-time-budget=8000", "--dump-dom", (run_folder / "report.html").as_uri()]
    done = subprocess.run([browser, *options, *target], capture_output=True, text=True, timeout=60)
    drawn = done.stdout.count('class="plot js-plotly-plot"')
    assert drawn == len(FIGURES)
    assert done.stdout.count('class="main-svg"') >= len(FIGURES)
