"""The reproduction: its page comes from its data, README's results are in it, parts are kept."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from readme_numbers import SECTIONS, missing_numbers, results_of, sections
from typer.testing import CliRunner

from icl_optimizer.cli import app, expand_lists
from icl_optimizer.environments.registry import environment_names
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.studies import reproduction
from icl_optimizer.studies.reproduction import Told, alone, chosen_parts, reproduce, run_command
from icl_optimizer.studies.reproduction_claims import CELL, Claim, filled
from icl_optimizer.studies.reproduction_data import (
    HOME,
    Origin,
    PartData,
    ShownTable,
    read_part,
    write_part,
)
from icl_optimizer.studies.reproduction_page import page_text, read_parts
from icl_optimizer.studies.reproduction_parts import PARTS, Part
from icl_optimizer.studies.reproduction_sources import (
    StudyTable,
    UnfinishedError,
    delay_table,
    markdown_tables,
    metrics_table,
    policies_table,
    study_tables,
    whole_run,
    words_table,
)
from icl_optimizer.studies.reproduction_systems import SYSTEMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERDICTS = """\
| never seen | verdicts by | share right | balanced accuracy | AUC |
|---|---|---|---|---|
| server | language model, most alike | 0.89 [0.87,\u00a00.90] | 0.87 | 0.96 |
| server | mean at the same queue | 0.75 | 0.72 | 0.80 |
| server | regression on numbers | **0.96** | 0.95 | 0.99 |
"""
ERRORS = "| model and GPUs | time |\n|---|---|\n| all | 5.9% |\n"


def test_the_page_is_what_the_data_give() -> None:
    text = page_text(read_parts(ROOT / HOME))
    assert (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8") == text


def test_data_are_of_parts() -> None:
    names = {part.name for part in PARTS}
    files = [path.name for path in (ROOT / HOME).glob("*")]
    assert [file for file in files if file.split(".")[0] not in names] == []


def test_results_of_the_readme_are_in_the_data() -> None:
    lacking = missing_numbers(README, read_parts(ROOT / HOME))
    assert not lacking, "not in the data:\n" + "\n".join(lacking)


def test_every_section_with_results_is_checked() -> None:
    below = README.split("\n## Results\n")[1].split("\n## ")[0]
    told = [heading for heading, _ in sections(below) if heading.startswith("### ")]
    assert set(told) <= set(SECTIONS)
    assert set(SECTIONS) <= {heading for heading, _ in sections(README)}
    assert {name for names in SECTIONS.values() for name in names} <= {p.name for p in PARTS}
    assert len(list(results_of(README))) > 150


def part_data(name: str = "congested", said: str = "") -> PartData:
    origin = Origin("icl-optimizer x", "2026-01-01", 90, {"python": "3"}, {"cores": 2}, said=said)
    rows = (("`icl`", "0.856 [0.83, 0.88]", "2,000"), ("`dqn`", "0.11", "–"))
    return PartData(
        name,
        replace(origin, settings={"seeds": 5, "budgets": {"dqn": 500}}),
        (ShownTable("policies", "Every policy", ("policy", "optimality", "budget"), rows),),
    )


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("| policy | 7 |\n|---|---|\n| `icl` | 0.86 [0.83, 0.88] (2,000) |\n", []),
        ("| policy | 7 |\n|---|---|\n| `icl` | 0.85 |\n", ["0.85 (Congested, row icl)"]),
        # what another policy has does not count
        ("| policy | 7 |\n|---|---|\n| `dqn` | 0.86 |\n", ["0.86 (Congested, row dqn)"]),
        ("It has 0.86 and −0.11.", ["−0.11 (Congested)"]),
        ("With 5 seeds and 500 it takes 17.5 s, `0.3`, [docs](a7.md).", []),
        ("With 6 seeds.", ["6 (Congested)"]),
        ("```bash\nrun --seeds 99\n```\n95 % interval at λ = 4.", []),
    ],
)
def test_missing_numbers_are_listed(text: str, missing: list[str]) -> None:
    parts = {"congested": part_data(said="17.5 s of learning")}
    page = f"### Congested\n\n{text}\n\n### Real servers, and a router in front of them\n\n123\n"
    assert missing_numbers(page, parts) == [
        *missing,
        "123 (Real servers, and a router in front of them)",
    ]


def test_without_a_part_its_numbers_are_missing() -> None:
    assert missing_numbers("### Congested\n\n0.86\n", {}) == ["0.86 (Congested)"]


def test_data_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_part(tmp_path, "congested") is None
    write_part(tmp_path, part_data())
    assert read_part(tmp_path, "congested") == part_data()
    old = part_data().tables[0]
    write_part(tmp_path, replace(part_data(), tables=(replace(old, name="other"),)))
    assert [p.name for p in tmp_path.glob("*.csv")] == ["congested.other.csv"]
    (tmp_path / "congested.other.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"other\.csv' is missing"):
        read_part(tmp_path, "congested")


def test_a_page_says_what_was_not_run() -> None:
    bare = page_text({})
    assert f"Not run in this version: {', '.join(f'`{p.name}`' for p in PARTS)}." in bare
    assert "No part was run" in bare
    page = page_text({"bench": part_data("bench")})
    assert "| `bench` | speed against peers | 2026-01-01 | 2 |" in page
    assert "| `icl` | 0.856 [0.83, 0.88] | 2,000 |" in page
    assert "Not run in this version: `bench`" not in page


def test_claims_take_cells_without_intervals() -> None:
    claim = Claim("x", "0.9", "congested", "a {policies|`icl`|optimality}, {policies|`d*|budget}")
    assert filled(claim, {}) == "not run in this version"
    assert filled(claim, {"congested": part_data()}) == "a 0.856, –"
    for wrong in ("{policies|x|budget}", "{policies|`icl`|x}", "{x|`icl`|budget}"):
        with pytest.raises(ConfigurationError, match="allowed"):
            filled(replace(claim, ours=wrong), {"congested": part_data()})


def test_claims_are_of_parts_of_their_system() -> None:
    systems = {part.name: part.system for part in PARTS}
    for system in SYSTEMS:
        assert (ROOT / "docs" / system.page).exists()
        for claim in system.claims:
            assert systems[claim.part] == system.name
            assert CELL.findall(claim.ours), claim.what
    assert {s.name for s in SYSTEMS} - {"speed"} <= set(environment_names())


def test_parts_differ_and_write_below_the_folder() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert any(word.startswith("/somewhere") for word in part.words("/somewhere"))
        assert [f for f in part.figures if not (ROOT / "docs/figures" / f).exists()] == []
    assert expand_lists(["--only", "a", "b,c"]) == ["--only", "a", "--only", "b", "--only", "c"]


def write_studies(part: Part, out: Path) -> int:
    """Stand in for a command."""
    (out / "studies").mkdir(parents=True, exist_ok=True)
    (out / "studies" / "cold-start.md").write_text(VERDICTS)
    return 0


@pytest.fixture
def run_here(tmp_path: Path) -> Callable[..., tuple[Told, list[str]]]:
    """Return a function that reproduces below ``tmp_path`` and returns what was told and said."""

    def run(
        runner: Callable[[Part, Path], int] = write_studies,
        *only: str,
        collect: bool = False,
    ) -> tuple[Told, list[str]]:
        lines: list[str] = []
        told = reproduce(
            tmp_path / "runs",
            tmp_path / "page.md",
            data=tmp_path / "data",
            only=only,
            collect=collect,
            say=lines.append,
            run=runner,
        )
        return told, lines

    return run


def test_finished_parts_are_kept(
    run_here: Callable[..., tuple[Told, list[str]]], tmp_path: Path
) -> None:
    told, lines = run_here(write_studies, "cold-start")
    assert told.collected == ["cold-start"]
    assert "running" in lines[0]
    assert "finished" in lines[1]
    assert "0.89, 0.75, 0.96" in (tmp_path / "page.md").read_text()
    data = read_part(tmp_path / "data", "cold-start")
    assert data is not None
    assert data.table("verdicts").cell("server regression on numbers", "share right") == "0.96"
    assert data.origin.versions["icl-optimizer"]
    assert data.origin.machine["cores"] >= 1
    assert data.origin.seconds == 0

    def never(part: Part, out: Path) -> int:
        raise AssertionError(part.name)

    told, lines = run_here(never, "cold-start")
    assert (told.collected, len(lines)) == (["cold-start"], 1)
    assert "kept" in lines[0]


def test_a_failure_does_not_stop_the_others(
    run_here: Callable[..., tuple[Told, list[str]]], tmp_path: Path
) -> None:
    def run(part: Part, out: Path) -> int:
        return write_studies(part, out) if part.name == "cold-start" else 3

    told, lines = run_here(run, "scheduling", "cold-start", "bench")
    assert told.collected == ["cold-start"]
    assert set(told.failed) == set(told.missing) == {"scheduling", "bench"}
    assert "exit status 3" in told.failed["bench"]
    assert sum("failed after" in line for line in lines) == 2
    assert "`scheduling` | figures 2, 3a, 3b" in (tmp_path / "page.md").read_text()
    # what failed is run again, what finished is not
    ran: list[str] = []
    run_here(lambda part, out: ran.append(part.name) or 0, "scheduling", "cold-start", "bench")
    assert ran == ["scheduling", "bench"]


def test_the_time_of_an_attempt_that_failed_counts(
    run_here: Callable[..., tuple[Told, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter((0.0, 100.0, 200.0, 207.0))
    monkeypatch.setattr(reproduction.time, "monotonic", lambda: next(clock))
    run_here(lambda part, out: 3, "cold-start")
    run_here(write_studies, "cold-start")
    assert json.loads((tmp_path / "data" / "cold-start.json").read_text())["seconds"] == 107


def test_collecting_takes_results_of_commands_run_by_hand(
    run_here: Callable[..., tuple[Told, list[str]]], tmp_path: Path
) -> None:
    write_studies(PARTS[0], tmp_path / "runs")
    told, lines = run_here(write_studies, collect=True)
    assert told.collected == ["cold-start"]
    assert lines == []
    assert "holds no comparison" in told.missing["offloading"]
    about = json.loads((tmp_path / "data" / "cold-start.json").read_text())
    assert about["seconds"] is None
    assert about["command"].startswith("icl-optimizer study cold-start")
    # without results the tables of an earlier run stay
    (tmp_path / "runs" / "studies" / "cold-start.md").unlink()
    told, _ = run_here(write_studies, collect=True)
    assert told.collected == []
    assert "0.89, 0.75, 0.96" in (tmp_path / "page.md").read_text()


def test_a_folder_has_one_run_at_a_time(
    run_here: Callable[..., tuple[Told, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while the process of a part outlives the run, which was killed."""
    program, left = tmp_path / "program", tmp_path / "left"
    program.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {left}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert "bench" in run_here(run_command, "bench")[0].missing
    monkeypatch.undo()
    try:
        with pytest.raises(ConfigurationError, match="in use by another run"):
            run_here(write_studies, "cold-start")
        assert run_here(write_studies, "cold-start", collect=True)[0].collected == []
    finally:
        os.kill(int(left.read_text()), signal.SIGKILL)
    with alone(tmp_path), pytest.raises(ConfigurationError, match="in use"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'scheduling'"):
        chosen_parts(["schedulin"])
    assert [part.name for part in chosen_parts(["bench", "open"])] == ["open", "bench"]


def test_commands_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    part = replace(PARTS[0], name="tiny", argv=("study", "no-such-study", "--out", "{out}"))
    assert run_command(part, tmp_path) == 2
    assert "no-such-study" in (tmp_path / "parts" / "tiny.log").read_text()


def test_tables_of_a_study_are_taken_when_whole(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"# A page\n\n{VERDICTS}\nmore\n\n{ERRORS}")
    assert [len(table) for table in markdown_tables((tmp_path / "a.md").read_text())] == [4, 2]
    (table,) = study_tables(tmp_path, [StudyTable("errors", "Errors", "a.md", 1)])
    assert table.cell("all", "time") == "5.9%"
    for file, index in (("a.md", 2), ("b.md", 0)):
        with pytest.raises(UnfinishedError):
            study_tables(tmp_path, [StudyTable("x", "X", file, index)])
    with pytest.raises(ConfigurationError, match="3 columns"):
        study_tables(tmp_path, [StudyTable("x", "X", "a.md", 1, header=("a", "b", "c"))])


def test_tables_of_a_comparison(tmp_path: Path) -> None:
    """Small comparisons in the forms that the parts have."""
    command = "compare {} --seeds 2 --interactions 20 --eval-tasks 50 --quiet --out {}"

    def run(text: str, folder: str) -> Path:
        words = [*command.format(text, tmp_path / folder).split(), "--policies"]
        result = CliRunner().invoke(app, expand_lists([*words, "bandit", "random", "oracle"]))
        assert result.exit_code == 0, result.output
        return tmp_path / folder

    folder = run("offloading --set vocabulary=open", "open")
    measured = whole_run(folder)
    table = policies_table(measured)
    assert table.cell("oracle", "optimality after 20 decisions") == "1.00"
    assert table.cell("bandit", "own budget") == "20"
    assert table.cell("random", "own budget") == "–"
    assert words_table(measured).header == ("policy", "50 %", "85 %", "15 %")
    assert words_table(measured).cell("oracle", "85 %") == "1.00"
    late = metrics_table(measured, "x", {"delay_s": ("delay, ms", 1000.0)})
    assert float(late.cell("oracle", "delay, ms").split(" ")[0].replace(",", "")) > 10_000
    assert delay_table(measured, ["users=5"]).rows == ()
    (folder / "units" / "bandit-1.json").unlink()
    with pytest.raises(UnfinishedError, match="lacks 1 units, bandit-1 first"):
        whole_run(folder)


def test_command_line_tells_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "run_command", lambda part, out: 1)
    places = ["--out", tmp_path / "runs", "--data", tmp_path / "data", "--page", tmp_path / "p.md"]
    words = ["reproduce", *map(str, places), "--only", "bench"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "failed: bench: exit status 1" in result.output
    result = CliRunner().invoke(app, [*words, "--collect"])
    assert result.exit_code == 0
    assert "no results of bench" in result.output
    assert (tmp_path / "p.md").exists()
