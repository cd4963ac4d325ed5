"""The documentation is run: examples, commands, links."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from icl_optimizer.agent import ICLConfig
from icl_optimizer.bench.runner import BENCHMARKS
from icl_optimizer.cli import app, expand_lists
from icl_optimizer.environments.layer_splitting_config import LayerSplittingConfig
from icl_optimizer.environments.live_config import LiveConfig
from icl_optimizer.environments.load_balancing_config import LoadBalancingConfig
from icl_optimizer.environments.offloading_config import OffloadingConfig
from icl_optimizer.environments.qos_routing_config import QoSRoutingConfig
from icl_optimizer.environments.registry import get_spec
from icl_optimizer.environments.slo_scheduling_config import SLOSchedulingConfig
from icl_optimizer.forecast_config import ForecastConfig
from icl_optimizer.policies import get_policy_spec, options_of, policy_names
from icl_optimizer.studies.catalogue import STUDIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<mark><!-- (?:needs: llm|not run: .+?) -->\n+)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
TITLED = re.compile(r"^```\w+ title=\"[^\"]+\"\n.*?^```$", re.M | re.S)
"""A file or a command of the tutorial, which has a test of its own."""
FENCE = re.compile(r"^ *(?:```|~~~)", re.M)
INLINE = re.compile(r"`(icl-optimizer [a-z-]+ [^`\n]+)`")
SHOWN_ALONE = {"", "json", "text", "toml", "yaml"}
"""Kinds of blocks that are not run, beside ``python`` and ``bash``."""
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
PRINTED = "# >"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    code: str
    line: int
    needs_llm: bool


def blocks(page: Path, kind: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    if page.name == "tutorial.md":
        text = TITLED.sub(lambda block: "\n" * block[0].count("\n"), text)
    found = BLOCK.finditer(text)
    return [
        Block(m["kind"], m["code"], text.count("\n", 0, m.start("code")) + 1, bool(m["mark"]))
        for m in found
        if m["kind"] == kind and not (m["mark"] or "").startswith("<!-- not run")
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_python(*, llm: bool) -> list[Path]:
    return [p for p in PAGES if any(b.needs_llm or not llm for b in blocks(p, "python"))]


def run(page: Path, *, llm: bool) -> None:
    """Run the blocks of a page in order, in one namespace; check what they say they print."""
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in blocks(page, "python"):
        if block.needs_llm and not llm:
            continue
        printed = io.StringIO()
        # so that a traceback names the line of the page
        source = "\n" * (block.line - 1) + block.code
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(page), "exec"), namespace)
        lines = block.code.splitlines()
        expected = [line[len(PRINTED) + 1 :] for line in lines if line.startswith(PRINTED)]
        if expected:
            assert printed.getvalue().splitlines() == expected, f"{name(page)}:{block.line}"


@pytest.mark.parametrize("page", with_python(llm=False), ids=name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, llm=False)


@pytest.mark.llm
@pytest.mark.parametrize("page", with_python(llm=True), ids=name)
def test_examples_run_with_the_embedded_model(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, llm=True)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_escapes(page: Path) -> None:
    """Every fence belongs to a block of a kind that is run, or that is known to be shown alone."""
    text = page.read_text(encoding="utf-8")
    if page.name == "tutorial.md":
        text = TITLED.sub("", text)
    assert {m["kind"] for m in BLOCK.finditer(text)} <= {"python", "bash", *SHOWN_ALONE}
    indented = len(re.findall(r"^ +```text$", text, re.M))
    assert len(FENCE.findall(text)) == 2 * (len(BLOCK.findall(text)) + indented)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lists_are_lists_everywhere(page: Path) -> None:
    """GitHub nests lists by two spaces and ends a paragraph at one; the site does neither."""
    text = TITLED.sub("", BLOCK.sub("", page.read_text(encoding="utf-8")))
    assert re.findall(r"^ {1,3}(?:[-*]|\d+\.) .*$", text, re.M) == []
    assert re.findall(r"^(?![-*\s]|\d+\.).+\n(?:[-*]|\d+\.) .*$", text, re.M) == []


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command line in the page's ``bash`` blocks."""
    for block in blocks(page, "bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


ALL_COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def ours() -> list[Any]:
    found = [(page, w[1:]) for page, w in ALL_COMMANDS if w[0] == "icl-optimizer"]
    for page in PAGES:
        text = TITLED.sub("", BLOCK.sub("", page.read_text(encoding="utf-8")))
        found += [(page, shlex.split(line)[1:]) for line in INLINE.findall(text)]
    return [pytest.param(p, w, id=f"{name(p)}: {shlex.join(w)}"[:120]) for p, w in found]


@pytest.mark.parametrize(("page", "words"), ours())
def test_commands_parse_and_name_what_exists(
    page: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if any("=" in word and word.endswith(".csv") for word in words):
        run(page, llm=False)  # the page's examples write the file
    group: Any = typer.main.get_command(app)
    subcommand, *rest = expand_lists(words)
    assert subcommand in group.commands
    command = group.commands[subcommand]
    if hasattr(command, "commands"):
        subcommand, *rest = rest
        assert subcommand in command.commands
        command = command.commands[subcommand]
    given = command.make_context(subcommand, rest).params
    if environment := given.get("environment"):
        get_spec(environment).config(pairs(given.get("settings")))
    for policy in [*(given.get("policies") or []), *filter(None, [given.get("policy")])]:
        get_policy_spec(policy)
    options_of("icl", pairs(given.get("icl")))
    if subcommand == "bench":
        assert given["name"] in {None, *BENCHMARKS}
    if subcommand == "study":
        assert given["name"] in STUDIES


def pairs(items: list[str] | None) -> dict[str, str]:
    return dict(item.split("=", 1) for item in items or [] if not item.startswith("@"))


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = {words[1] for _, words in ALL_COMMANDS if words[0] == "make"}
    assert named
    assert named <= set(targets)


def options(config: BaseModel) -> Iterator[tuple[str, Any]]:
    """Yield name and default of every option; those of the exploration with its prefix."""
    for key, value in config:
        if key == "exploration":
            yield from ((f"exploration.{k}", v) for k, v in options(value))
        elif isinstance(value, BaseModel):
            yield from options(value)
        else:
            yield key, ",".join(map(str, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("page", "config"),
    [
        ("docs/icl.md", ICLConfig()),
        ("docs/icl.md", ForecastConfig()),
        ("docs/systems/offloading.md", OffloadingConfig()),
        ("docs/systems/slo-scheduling.md", SLOSchedulingConfig()),
        ("docs/live-fleet.md", LiveConfig()),
        ("docs/systems/load-balancing.md", LoadBalancingConfig()),
        ("docs/systems/qos-routing.md", QoSRoutingConfig()),
        ("docs/systems/layer-splitting.md", LayerSplittingConfig()),
    ],
)
def test_every_option_is_listed_with_its_default(page: str, config: BaseModel) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [f"{k} {v}" for k, v in options(config) if f"| `{k}` | `{v}` |" not in text]
    assert missing == []


def test_every_policy_is_described() -> None:
    text = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    assert [n for n in policy_names() if f"`{n}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    # what code blocks hold is no link
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in (a or b for a, b in LINK.findall(text)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        assert file.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(file), f"{name(page)} links to {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"@@\w+@@", page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES[2:], ids=name)
def test_every_page_is_reached_from_the_index(page: Path) -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / (a or b)).resolve() for a, b in LINK.findall(index.read_text())}
    assert page == index or page in linked
