"""The site: built without a warning, complete, on one host, readable on a phone and in the dark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_browser import phone_in_the_dark

pytest.importorskip("mkdocs", reason="needs the extra docs")

if TYPE_CHECKING:
    pass

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
HARMLESS = {"canonical", "next", "prev"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


class Fetched(HTMLParser):
    """Collects what a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("rel") not in HARMLESS and (url := values.get(FETCHED.get(tag, ""))):
            self.urls.append(url)


def test_every_page_is_there_and_none_loads_from_elsewhere(site: Path) -> None:
    for source in DOCS.rglob("*.md"):
        assert (site / source.relative_to(DOCS)).with_suffix(".html").is_file()
    pages = list(site.rglob("*.html"))
    for page in pages:
        found = Fetched()
        found.feed(page.read_text(encoding="utf-8"))
        for url in found.urls:
            assert not re.match(r"(?:https?:)?//", url), f"{page.name} loads {url}"
            if page.name != "404.html":
                file = (page.parent / url.split("?")[0].split("#")[0]).resolve()
                assert file.is_file(), f"{page.name} loads {url}"
    for style in site.rglob("*.css"):
        assert re.findall(r"url\(\s*['\"]?(?:https?:)?//", style.read_text("utf-8")) == []


def test_pages_of_the_repository_are_part_of_it(site: Path) -> None:
    overview = (site / "overview.html").read_text(encoding="utf-8")
    assert 'href="systems/offloading.html#parameters"' in overview
    assert 'href="licences/LICENSE.txt"' in overview
    assert (site / "licences" / "LICENSE.txt").read_text() == (ROOT / "LICENSE").read_text()
    assert "served_llms.csv" in (site / "data-sources.html").read_text(encoding="utf-8")


def test_the_reference_is_made_of_docstrings(site: Path) -> None:
    agent = (site / "reference" / "agent.html").read_text(encoding="utf-8")
    assert 'id="icl_optimizer.agent.ICLAgent.prompt"' in agent
    for page in (site / "reference").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r":(?:class|func|meth|data):", text) == [], page.name
        names = re.findall(r'<h\d id="(icl_optimizer\.[\w.]+)"', text)
        assert names or page.name == "index.html"
        assert [n for n in names if n.rsplit(".", 1)[-1].startswith("_")] == []


def test_every_licence_and_shipped_file_is_named() -> None:
    page = (DOCS / "data-licences.md").read_text(encoding="utf-8")
    data = ROOT / "environments" / "data"
    shipped = [p.name for p in data.iterdir() if p.suffix not in {".py", ".md"} and p.is_file()]
    assert [name for name in shipped if f"`{name}`" not in page] == []
    assert [p.name for p in data.glob("LICENSE-*") if p.name not in page] == []


def test_the_citation_has_the_version() -> None:
    yaml = pytest.importorskip("yaml")
    import icl_optimizer

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == icl_optimizer.__version__
    assert cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
ASKED = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
DRAWN = "return [...document.images].every((i) => i.complete && i.naturalWidth > 0)"
LIGHT = "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3)"


@pytest.mark.browser
def test_pages_on_a_phone_in_the_dark(site: Path, tmp_path: Path) -> None:
    pages = ("index.html", "overview.html", "systems/offloading.html", "reference/agent.html")
    with served(site) as host, phone_in_the_dark(tmp_path) as chrome:
        for page in pages:
            chrome.get(f"{host}/{page}")
            assert chrome.execute_script(DRAWN), page
            assert chrome.execute_script(OVERFLOW) == 0, page
            asked = chrome.execute_script(ASKED)
            assert asked
            assert [url for url in asked if not url.startswith(host)] == []
            assert max(int(value) for value in chrome.execute_script(LIGHT)) < 80, page
            if os.environ.get("SITE_SCREENSHOTS"):
                place = Path(os.environ["SITE_SCREENSHOTS"])
                chrome.save_screenshot(str(place / f"{page.replace('/', '-')}.png"))
        noise = [line for line in chrome.get_log("browser") if line["level"] != "INFO"]
        assert noise == []
