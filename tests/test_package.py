"""The package as it is installed: what importing does, and what the wheel holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import icl_optimizer

ROOT = Path(__file__).parent.parent
BESIDE = ("environments", "baselines", "prompts")
"""Folders that are installed inside of the package."""

IMPORT = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)
import icl_optimizer
# the hook itself works
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except SystemExit:
    pass
else:
    raise SystemExit("the hook sees no connections")
heavy = {"torch", "xllamacpp", "langchain", "langchain_core", "matplotlib", "stable_baselines3"}
print(sorted(heavy & set(sys.modules)))
import gymnasium
gymnasium.make("icl_optimizer/Offloading-v0").reset(seed=0)
for name in icl_optimizer.__all__:
    getattr(icl_optimizer, name)
print(sorted({"torch", "xllamacpp", "langchain", "matplotlib"} & set(sys.modules)))
"""

USE = """
import icl_optimizer
from icl_optimizer.environments.offloading_config import service_types
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.baselines.heuristics import RandomPolicy

env = icl_optimizer.make_environment("offloading", 2)
observation, _ = env.reset(seed=0)
env.step([d.action for d in RandomPolicy(env.problem, env=env).decide(observation)])
context = env.problem.describe(observation[0])
for layout in ("completion", "blocks"):
    assert context.words[0] in PromptBuilder(env.problem, layout).render([], context)
assert service_types()
print(icl_optimizer.__file__)
"""


def python(code: str, folder: Path, **environment: str) -> str:
    """Return what ``code`` prints when a new process runs it in ``folder``."""
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=clean | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light_and_quiet(tmp_path: Path) -> None:
    assert python(IMPORT, tmp_path).splitlines() == ["[]", "[]"]


def hostile(folder: Path) -> Path:
    """Fill a user's folder with packages that are named like folders of ours."""
    for name in BESIDE:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "prompts" / "offloading").mkdir()
    (folder / "prompts" / "offloading" / "goal.j2").write_text("{{ not ours }}")
    return folder


def test_folders_of_the_user_do_not_shadow_ours(tmp_path: Path) -> None:
    assert Path(python(USE, hostile(tmp_path)).strip()) == Path(icl_optimizer.__file__)


def source_files() -> set[str]:
    """Return every file of our packages by the name that it should have in a wheel."""
    found = set()
    for folder in ("icl_optimizer", *BESIDE):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and not re.search(r"__pycache__|(^|/)\.", name):
                found.add(name if folder == "icl_optimizer" else f"icl_optimizer/{name}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that is built from a copy, so that nothing is left in the sources."""
    copy = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("icl_optimizer", *BESIDE):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        entry_points = archive.read(metadata[0]).decode()
    assert names == source_files()
    assert {"icl_optimizer/py.typed", "icl_optimizer/prompts/offloading/goal.j2"} <= names
    assert "icl-optimizer = icl_optimizer.cli:main" in entry_points


@pytest.mark.slow
def test_the_wheel_works_in_a_folder_with_the_same_names(wheel: Path, tmp_path: Path) -> None:
    site, user = tmp_path / "site", tmp_path / "user"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    user.mkdir()
    place = python(USE, hostile(user), PYTHONPATH=str(site)).strip()
    assert Path(place) == site / "icl_optimizer" / "__init__.py"


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert icl_optimizer.__version__ == project["version"]


def test_public_names_exist_and_others_are_named() -> None:
    assert all(hasattr(icl_optimizer, name) for name in icl_optimizer.__all__)
    with pytest.raises(AttributeError, match="ICLAgnet"):
        _ = icl_optimizer.ICLAgnet


def test_no_file_mentions_the_machine_it_was_written_on() -> None:
    machine = re.compile(r"(?<![\w.~])/(?:work|root|home|Users|tmp/w)/\w")
    skipped = re.compile(r"__pycache__|\.egg-info|^(build|dist|runs|site)$|^\.(?!ci)")
    texts = {".py", ".md", ".toml", ".txt", ".j2", ".json", ".csv", ".css", ".js", ".svg", ".html"}
    looked, found = 0, []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not skipped.search(name)]
        for path in (Path(folder, name) for name in names):
            if path.suffix in texts or path.name in ("Makefile", "run"):
                looked += 1
                if machine.search(path.read_text(encoding="utf-8")):
                    found.append(path.relative_to(ROOT).as_posix())
    assert found == []
    assert looked > 100
