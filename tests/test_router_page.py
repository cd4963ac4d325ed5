"""The live page in a real browser, while requests run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_browser import chromium, eventually
from tiny_router import ScriptedRouter, endpoint

from icl_optimizer.router.keys import Keys

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

KEY = "caller-key-0123456789"
EVIL = '<img src=x onerror="window.evil = 1"><script>window.evil = 1</script>'
NAMES = ("ash", "birch", "cedar-with-a-rather-long-name", "elm")


class PicturedRouter(ScriptedRouter):
    """Shows a fleet whose numbers follow the requests that came; all of it is made up."""

    def status(self) -> dict[str, Any]:
        """Return the form that ``Router.status`` has."""
        asked = len(self.asked)
        states = ("up", "full", "cooling", "probing")
        servers = [
            {
                **{"name": name, "state": states[i], "waiting": (asked + i) % 4, "slots": 2},
                **{"in_service": min(2, i), "queue_size": 10, "served": asked, "failed": i},
                **{"cooling_s": 4.2 * (i == 2), "tokens_per_s": 20.0 * (i + 1)},
            }
            for i, name in enumerate(NAMES)
        ]
        totals = {
            **{"requests": asked, "answered": asked, "failed": 0, "refused": 1, "retried": 2},
            **{"cancelled": 0, "deadlines_met": asked // 2, "learned": asked, "tokens": 9 * asked},
            **{"dollars": 0.0012, "pool_pending": 0, "log_dropped": 0},
        }
        decisions = [_decision(number) for number in reversed(range(asked))]
        return {
            **{"policy": "icl-predict", "uptime_s": 12.0, "deadline_s": 10.0},
            **{"servers": servers, "totals": totals, "decisions": decisions},
        }


def _decision(number: int) -> dict[str, Any]:
    chances = dict(zip(NAMES, (0.1, 0.2, 0.65, 0.05), strict=True))
    met = number % 2 == 0
    return {
        **{"id": f"req-{number}", "attempt": 1 + number % 2, "task": "data analysis"},
        **{"deadline_s": 10.0, "server": NAMES[2], "probabilities": chances, "made_by": "llm"},
        **{"reasons": ["llm: cedar, probability 0.65", EVIL], "met": met},
        **{"response_s": 4.2 if met else 12.0, "became": "answered"},
    }


def text(chrome: Chrome, selector: str) -> str:
    found = chrome.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText).join('|')",
        selector,
    )
    return str(found)


def overflow(chrome: Chrome) -> int:
    return int(
        chrome.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    )


@pytest.mark.browser
def test_the_page_follows_what_happens(tmp_path: Path) -> None:
    with chromium(tmp_path) as chrome:
        with endpoint(PicturedRouter()) as here:
            chrome.get(here.url)
            eventually(lambda: text(chrome, "#servers h3") == "|".join(NAMES))
            assert "No request yet" in text(chrome, "#none")
            for _ in range(3):
                assert here.chat().status == 200
            eventually(lambda: text(chrome, "#decisions li h3") == "|".join([NAMES[2]] * 3))
            assert text(chrome, "#totals dd").startswith("3|3|33 %")
            # an image of a width, on which names and markup from outside remain text
            assert EVIL in text(chrome, "#decisions .reasons")
            assert chrome.execute_script("return window.evil") is None
            assert text(chrome, "#servers .state").split("|")[2] == "✕ cooling down 4 s"
            chrome.save_screenshot(str(tmp_path / "page.png"))
            assert overflow(chrome) == 0
            assert [line for line in chrome.get_log("browser") if line["level"] != "INFO"] == []
        eventually(lambda: "connection lost" in text(chrome, "#link"))


@pytest.mark.browser
def test_the_page_asks_for_a_key_and_fits_a_telephone(tmp_path: Path) -> None:
    with (
        endpoint(PicturedRouter(), Keys.of([KEY])) as here,
        chromium(tmp_path) as chrome,
    ):
        size = {"width": 390, "height": 1600, "deviceScaleFactor": 1, "mobile": True}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
        here.send(
            "POST",
            "/v1/completions",
            {"prompt": "Once"},
            {"Authorization": f"Bearer {KEY}"},
        )
        chrome.get(here.url)
        eventually(lambda: text(chrome, "#link") == "a key is needed")
        for key, holds in (
            ("wrong-key", lambda: "not known" in text(chrome, "#link")),
            (KEY, lambda: text(chrome, "#decisions li h3") == NAMES[2]),
        ):
            chrome.find_element("id", "key").send_keys(key)
            chrome.find_element("css selector", "#entry button").click()
            eventually(holds)
        assert not chrome.find_element("id", "entry").is_displayed()
        assert overflow(chrome) == 0
        assert chrome.execute_script("return Object.keys(localStorage).length") == 0
        chrome.save_screenshot(str(tmp_path / "telephone.png"))
