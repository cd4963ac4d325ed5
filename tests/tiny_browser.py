"""A headless Chromium for tests of pages; skips the test where there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
DARK = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
_PATIENCE_S = 30


@contextmanager
def chromium(folder: Path, width: int = 1100) -> Iterator[Chrome]:
    """Run a browser that keeps what its console says and what it asks for."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--window-size={width},1400", f"--user-data-dir={folder / 'profile'}"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


@contextmanager
def phone_in_the_dark(folder: Path) -> Iterator[Chrome]:
    """Run a browser that shows pages as a phone does at night."""
    with chromium(folder) as chrome:
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", DARK)
        yield chrome


def eventually(holds: Callable[[], object]) -> None:
    """Wait until something holds, and fail if it never does."""
    end = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
