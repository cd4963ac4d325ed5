"""What the site needs beside the pages: files from elsewhere in the repository, tidy references."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DATA = "environments/data"
PAGES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    f"{DATA}/SOURCES.md": "data-sources.md",
}
"""Markdown of the repository by its place in the site."""
PLAIN = {
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "licences/LICENSE.txt",
    **{
        path.relative_to(ROOT).as_posix(): f"licences/{path.stem}.txt"
        for path in sorted((ROOT / DATA).glob("LICENSE-*.md"))
    },
}
"""Other files that pages link to."""
PLACES = PAGES | PLAIN
SOURCES = {place: source for source, place in PLACES.items()}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?\.*([^<]+)</code>")
NESTED = ("environments", "baselines", "prompts")

_tree: TemporaryDirectory[str] | None = None


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay the packages out as they are imported, where the reference looks for docstrings."""
    global _tree
    _tree = TemporaryDirectory(prefix="icl-optimizer-docs-")
    package = Path(_tree.name) / "icl_optimizer"
    shutil.copytree(ROOT / "icl_optimizer", package, ignore=_only_python)
    for name in NESTED:
        shutil.copytree(ROOT / name, package / name, ignore=_only_python)
    plugin: Any = config.plugins["mkdocstrings"]
    plugin.config.handlers.setdefault("python", {})["paths"] = [_tree.name]
    return config


def _only_python(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if not n.endswith(".py") and not (Path(folder) / n).is_dir()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that lie elsewhere in the repository."""
    for source, place in PLACES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where their targets are in the site."""
    place = page.file.src_uri
    here = ROOT / SOURCES.get(place, f"docs/{place}")
    up = "../" * place.count("/")

    def moved(link: re.Match[str]) -> str:
        target = (here.parent / link[1]).resolve().relative_to(ROOT).as_posix()
        if target in PLACES:
            return up + PLACES[target]
        return up + target.removeprefix("docs/") if target.startswith("docs/") else link[1]

    return LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show Sphinx's roles in docstrings as the bare names."""
    return ROLE.sub(lambda role: f"<code>{role[1].split('.')[-1]}</code>", html)


def on_post_build(config: MkDocsConfig) -> None:
    """Remove the laid-out packages."""
    if _tree is not None:
        _tree.cleanup()
