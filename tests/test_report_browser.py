"""The report in a real browser: on a phone and in the dark, by click and by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_report import FIGURES
from tiny_browser import eventually, phone_in_the_dark
from tiny_run import HOSTILE, write_run

from icl_optimizer.report import write_report, write_side_by_side, write_sweep_report
from icl_optimizer.studies.synthetic_runs import write_sweep

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


def opened(chrome: Chrome, page: Path) -> None:
    """Open ``page``, and check what holds of every page once all figures are drawn."""
    chrome.get(page.as_uri())
    undrawn = "return document.querySelectorAll('.plot:not(:has(.main-svg))').length"
    eventually(lambda: chrome.execute_script(undrawn) == 0)
    measures = """
    const page = document.documentElement;
    const wide = [...document.querySelectorAll('.plot')].filter(
      (plot) => plot.querySelector('.main-svg').getBoundingClientRect().right > innerWidth);
    return [page.scrollWidth - page.clientWidth, wide.length,
      getComputedStyle(document.body).backgroundColor,
      performance.getEntriesByType('resource').filter((r) => !r.name.startsWith('data:')).length];
    """
    assert chrome.execute_script(measures) == [0, 0, "rgb(20, 23, 27)", 0]
    assert [line for line in chrome.get_log("browser") if line["level"] != "INFO"] == []


def told(chrome: Chrome) -> str:
    text = chrome.execute_script("return document.querySelector('.told').innerText")
    return str(text)


@pytest.mark.browser
def test_pages_work_on_a_phone_in_the_dark(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", icl=0.7)
    both = write_side_by_side([one, two], tmp_path / "both.html")
    sweep = write_sweep_report(write_sweep(tmp_path / "sweep", points=3, policies=10, seeds=3))
    report = write_report(one)
    with phone_in_the_dark(tmp_path) as chrome:
        opened(chrome, both)
        opened(chrome, sweep)
        opened(chrome, report)
        assert len(chrome.find_elements("css selector", ".plot")) == len(FIGURES)
        explore(chrome)


def explore(chrome: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    # words from outside stay words
    assert HOSTILE in told(chrome)
    assert "the oracle would decide “offload”" in told(chrome)
    assert "and this very task" in told(chrome)
    assert "THE EXAMPLES SHOWN (1)" in told(chrome).upper()
    situations = chrome.find_elements(By.CSS_SELECTOR, ".situations input")
    assert len(situations) == 2
    situations[1].click()
    assert "It decided “local”, as the oracle does." in told(chrome)
    situations[1].send_keys(Keys.ARROW_UP)
    assert "the oracle would decide “offload”" in told(chrome)
    chrome.find_element(By.CSS_SELECTOR, ".choice input[type=checkbox]").send_keys(Keys.SPACE)
    assert len(chrome.find_elements(By.CSS_SELECTOR, ".situations input")) == 1
    Select(chrome.find_element(By.CSS_SELECTOR, ".choice select")).select_by_visible_text(
        "icl-latest"
    )
    assert told(chrome) == "The oracle decides the same everywhere."
