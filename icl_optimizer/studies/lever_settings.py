"""The levers of the study: which options are tried, in which scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["choose", "report"]
SPLITS: tuple[Split, ...] = ("choose", "report")


@dataclass(frozen=True)
class Scenario:
    """Where a pool is filled, and with which queries it is asked afterwards.

    Attributes:
        name: Name in the table.
        learning: Settings of the offloading system while the pool is filled.
        mixes: Name of each mix of queries, and its further settings.
        decisions: Random decisions that fill the pool.
        new_words: Whether the queries are words that are not in the pool: development words to
            choose by, unseen ones to report.
        variant: Whether it is the closed scenario with another mix or other names, where only the
            levers that these may matter to are measured.
    """

    name: str
    learning: Mapping[str, Any]
    mixes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"as learned": {}})
    decisions: int = 100
    new_words: bool = False
    variant: bool = False

    def queries(self, mix: str, split: Split) -> dict[str, Any]:
        """Return the settings of the environment that the held-out queries come from."""
        words = {"words": "development" if split == "choose" else "unseen"}
        return {**self.learning, **self.mixes[mix], **(words if self.new_words else {})}


SCENARIOS = (
    Scenario("closed", {}),
    Scenario("closed, 10 % quality", {"quality_share": 0.1}, variant=True),
    Scenario("closed, 90 % quality", {"quality_share": 0.9}, variant=True),
    Scenario("closed, labels A and B", {"labels": ("A", "B")}, variant=True),
    Scenario("congested", {"congested": True}, decisions=300),
    Scenario(
        "new words",
        {"vocabulary": "open"},
        {f"{share:.0%} quality": {"quality_share": share} for share in (0.5, 0.85, 0.15)},
        decisions=150,
        new_words=True,
    ),
)


VARIED = ("decider", "calibration", "permuted labels")
"""Levers that a skewed mix or the names of the labels may matter to."""


@dataclass(frozen=True)
class Setting:
    """One setting of one lever.

    Attributes:
        lever: Name of the lever.
        name: Name of the setting.
        options: Options of the in-context agent that differ from the defaults.
        only: The scenarios it is measured in; None for all. Left out is where it makes no
            difference, and where it takes minutes for each pool.
    """

    lever: str
    name: str
    options: Mapping[str, Any]
    only: tuple[str, ...] | None = None

    def suits(self, scenario: Scenario, split: Split) -> bool:
        """Return whether the setting is measured in ``scenario``; variants are only reported."""
        if scenario.variant:
            return split == "report" and self.lever in VARIED and self.only in (None, FEW)
        return self.only is None or scenario.name in self.only


NEW = ("new words",)
FEW = ("closed", "new words")


def _scores(lever: str, name: str, only: tuple[str, ...] | None = None, **options: Any) -> Setting:
    """Return a setting of the label scores, which also answer new words here."""
    return Setting(lever, name, {"decider": "score", **options}, only)


SHIPPED = Setting("decider", "auto", {})
SCORES = _scores("decider", "score", only=NEW)  # elsewhere auto is the same
SETTINGS = (
    SHIPPED,
    SCORES,
    Setting("decider", "channel", {"decider": "channel", "passes": 1}, ("closed",)),
    Setting("decider", "predict", {"decider": "predict"}),
    Setting("decider", "auto, known words by predict", {"known": "predict"}, NEW),
    Setting("decider", "predict, 3 levels", {"decider": "predict", "levels": 3}, ("closed",)),
    Setting(
        "decider",
        "generate, free text first",
        {"decider": "generate", "constrain": "retry"},
        ("closed",),
    ),
    Setting(
        "decider", "generate, held to the labels", {"decider": "generate", "constrain": "first"}
    ),
    _scores("calibration", "none", calibration="none"),
    _scores("calibration", "content-free", calibration="content-free"),
    _scores("calibration", "leave-one-out", FEW, calibration="leave-one-out"),
    _scores("calibration", "batch", calibration="batch"),
    Setting("calibration", "channel: none", {"calibration": "none"}, only=NEW),
    Setting("calibration", "channel: content-free", {"calibration": "content-free"}, only=NEW),
    Setting("calibration", "channel: batch", {"calibration": "batch"}, only=NEW),
    _scores("order", "random", FEW, order="random"),
    _scores("order", "similar", FEW, order="similar"),
    _scores("order", "nearest-again", FEW, order="nearest-again"),
    _scores("number", "4 examples", max_examples=4),
    _scores("repetition", "once", passes=1),
    _scores("averaging", "2 orders", orders=2),
    Setting("averaging", "channel: 2 orders", {"orders": 2}, only=NEW),
    _scores("style", "chat", style="chat"),
    _scores("style", "turns", FEW, style="turns"),
    Setting(
        "style",
        "generate: chat",
        {"decider": "generate", "constrain": "first", "style": "chat"},
        FEW,
    ),
    Setting(
        "style",
        "generate: turns",
        {"decider": "generate", "constrain": "first", "style": "turns"},
        ("closed",),
    ),
    _scores("layout", "blocks", FEW, layout="blocks"),
    _scores("layout", "summary", layout="summary"),
    _scores("layout", "inadvisable", layout="inadvisable"),
    _scores("layout", "guided", FEW, layout="guided"),
    _scores("permuted labels", "exchange", FEW, permute_labels="exchange"),
    _scores("permuted labels", "letters", FEW, permute_labels="letters"),
)
