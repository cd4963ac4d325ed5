"""A newcomer who follows the tutorial's text alone: its files, its commands, in an empty folder."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from icl_optimizer.environments.registry import environment_names, get_spec
from icl_optimizer.errors import ConfigurationError

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(?P<kind>\w+) title="(?P<title>[^"]+)"\n(?P<text>.*?)^```$', re.M | re.S)
RUN = "run"
OF_EACH_KIND = {"icl", "dqn-tuned", "least-loaded", "round-robin", "random", "oracle"}


def steps() -> list[tuple[str, str]]:
    """Return title and text of what the tutorial tells to write or to run, in order."""
    return [(m["title"], m["text"]) for m in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]


def write(folder: Path, title: str, text: str) -> Path:
    path = folder / title
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def follow(folder: Path, text: str) -> str:
    """Run the commands of a block as they are given; return what they print."""
    here = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    for line in text.splitlines():
        done = subprocess.run(
            shlex.split(line), cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return printed


def files() -> dict[str, str]:
    return {title: text for title, text in steps() if title != RUN}


def test_one_python_file_and_three_short_templates_are_all() -> None:
    environment, *templates, tried = files()
    assert environment == "links.py"
    assert sorted(templates) == [f"prompts/links/{t}.j2" for t in ("definition", "goal", "rules")]
    assert tried == "try.py"
    assert all(len(files()[title].splitlines()) == 1 for title in templates)


@pytest.mark.llm
@pytest.mark.slow
def test_following_the_text_gives_a_comparison_and_a_report(tmp_path: Path) -> None:
    printed = ""
    for title, text in steps():
        if title == RUN:
            printed += follow(tmp_path, text)
        else:
            write(tmp_path, title, text)
    with (tmp_path / "runs/links/summary.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["metric"] == "optimality"]
    found = {row["policy"]: float(row["mean"]) for row in rows}
    assert set(found) >= OF_EACH_KIND
    assert found["oracle"] == pytest.approx(1.0)
    assert found["dqn-tuned"] > found["random"] + 0.3
    report = (tmp_path / "runs/links/report.html").read_text(encoding="utf-8")
    assert all(name in report for name in OF_EACH_KIND)
    assert "Choose fibre or radio or satellite for each request" in report
    assert (tmp_path / "runs/idle/report.html").is_file()
    assert printed.splitlines()[-1] in {"fibre", "radio", "satellite"}


def test_the_numbers_shown_are_of_policies_that_run(tmp_path: Path) -> None:
    spec = get_spec(str(write(tmp_path, "links.py", files()["links.py"])))
    shown = re.findall(r"^\| `([\w-]+)` \| -?\d", PAGE.read_text(encoding="utf-8"), re.M)
    assert set(shown) == set(spec.policies)
    # from then on it has its name, and is not listed among those that are installed
    assert get_spec("links") is spec
    assert "links" not in environment_names()


SPECIFICATION = """
from icl_optimizer.environments import EnvironmentSpec
{name} = EnvironmentSpec(
    name="{called}", gym_id="mine/X-v0", module={module}, vector_class="X", single_class="Y",
    config_class="Z", policies=("random",), interactions=1, seeds=1, summary="",
)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds 0 environments; allowed: one EnvironmentSpec with module=__name__"),
        (
            SPECIFICATION.format(name="A", called="here", module='"elsewhere"'),
            "holds 0 environments",
        ),
        (
            SPECIFICATION.format(name="A", called="a", module="__name__")
            + SPECIFICATION.format(name="B", called="b", module="__name__"),
            "holds 2 environments",
        ),
        (
            SPECIFICATION.format(name="A", called="offloading", module="__name__"),
            "names its environment 'offloading'; allowed: a name that no other has",
        ),
    ],
)
def test_a_file_holds_one_environment(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        get_spec(str(write(tmp_path, "mine.py", text)))


def test_two_files_cannot_share_a_name(tmp_path: Path) -> None:
    text = SPECIFICATION.format(name="A", called="shared", module="__name__")
    first = get_spec(str(write(tmp_path, "first.py", text)))
    assert get_spec(str(tmp_path / "first.py")) is first
    with pytest.raises(ConfigurationError, match="a name that no other has"):
        get_spec(str(write(tmp_path, "second.py", text)))


def test_a_file_that_is_missing_or_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="allowed: a name or a file that exists"):
        get_spec(str(tmp_path / "none.py"))
    broken = write(tmp_path, "broken.py", "1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            get_spec(str(broken))
