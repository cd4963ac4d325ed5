"""Who is in a run, and the one colour, dash and marker each keeps in every figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from icl_optimizer.report.loading import Run

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
OLIVE, BROWN, SLATE, SILVER = "#8C8200", "#7A4A1E", "#4A5560", "#A3A9AF"
"""Okabe and Ito's colours; their yellow, too pale for a line on white, is darkened to olive."""

REFERENCES = ("oracle", "random")
DRL = ("dqn", "ppo", "a2c", "han-sac", "mlp-sac", "ppo-surrogate")


@dataclass(frozen=True)
class Style:
    """How a series looks: colour, dash and marker by name (see the two renderers)."""

    color: str
    dash: str = "solid"
    marker: str = "circle"


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a policy with its language model (empty for most)."""

    policy: str
    llm: str = ""

    @property
    def is_icl(self) -> bool:
        """Whether a language model decides, in context."""
        return bool(self.llm) or self.policy.startswith("icl")


KNOWN = {
    "icl": Style(BLUE, "solid", "circle"),
    "icl-latest": Style(SKY, "dash", "square"),
    "icl-greedy": Style(GREEN, "dot", "triangle"),
    "icl-paper": Style(PURPLE, "dashdot", "diamond"),
    "dqn": Style(VERMILLION, "longdash", "down"),
    "ppo": Style(ORANGE, "dashdot", "plus"),
    "bandit": Style(OLIVE, "solid", "pentagon"),
    "knn": Style(BROWN, "longdash", "hexagon"),
    "always-local": Style(SLATE, "longdash", "left"),
    "always-offload": Style(SILVER, "dashdot", "right"),
    "icl-predict": Style(BLUE, "solid", "circle"),
    "table": Style(OLIVE, "solid", "pentagon"),
    "knn-predict": Style(BROWN, "longdash", "hexagon"),
    "linear-predict": Style(PURPLE, "solid", "diamond"),
    "dqn-paper": Style(VERMILLION, "longdash", "down"),
    "ppo-paper": Style(ORANGE, "dashdot", "plus"),
    "ppo-tuned": Style(ORANGE, "solid", "triangle"),
    "a2c-paper": Style(VERMILLION, "dot", "square"),
    "score-in-time": Style(GREEN, "solid", "square"),
    "sacrifice": Style(GREEN, "dash", "triangle"),
    "shortest-expected-completion": Style(GREEN, "dot", "down"),
    "shortest-queue": Style(SKY, "solid", "left"),
    "least-loaded": Style(SKY, "dash", "square"),
    "least-connections": Style(SKY, "dot", "right"),
    "round-robin": Style(SLATE, "solid", "right"),
    "score-greedy": Style(SLATE, "dot", "diamond"),
    "oracle": Style(BLACK, "dash", "star"),
    "random": Style(GREY, "dot", "cross"),
}
SPARE = (
    Style(ORANGE, "solid", "right"),
    Style(OLIVE, "dash", "left"),
    Style(BROWN, "dot", "right"),
    Style(PURPLE, "longdash", "hexagon"),
    Style(SKY, "dashdot", "left"),
    Style(GREEN, "dash", "pentagon"),
    Style(VERMILLION, "dot", "left"),
    Style(BLUE, "dashdot", "right"),
)
OTHER_MODELS = (("dot", "square"), ("dashdot", "triangle"), ("longdash", "diamond"))
"""A policy's further language models keep its colour and change dash and marker."""


class Palette:
    """Labels and styles of the entries of a run.

    Args:
        entries: In the order of the configuration.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Give every policy a style, known ones always the same."""
        self.entries = tuple(entries)
        policies = list(dict.fromkeys(e.policy for e in self.entries))
        known = [KNOWN[p] for p in policies if p in KNOWN]
        taken = {s.color for s in known}, {(s.color, s.dash) for s in known}
        # colours not in use come first, then lines not in use
        spare = sorted(SPARE, key=lambda s: (s.color in taken[0], (s.color, s.dash) in taken[1]))
        unknown = [p for p in policies if p not in KNOWN]
        self._styles = {p: KNOWN[p] for p in policies if p in KNOWN}
        self._styles |= {p: spare[i % len(spare)] for i, p in enumerate(unknown)}

    @classmethod
    def of(cls, run: Run) -> Palette:
        """Return the palette of a run, policies in the order of its configuration."""
        columns = run.results[["policy", "llm"]].drop_duplicates()
        found = [Entry(str(p), str(m)) for p, m in columns.itertuples(index=False)]
        order = {name: i for i, name in enumerate(run.config.policies)}
        return cls(sorted(found, key=lambda e: (order.get(e.policy, len(order)), e.llm)))

    def label(self, entry: Entry) -> str:
        """Return the policy's name, with its model where the run has several for it."""
        several = len(self._models(entry)) > 1
        return f"{entry.policy} ({entry.llm})" if several and entry.llm else entry.policy

    def style(self, entry: Entry) -> Style:
        """Return how the entry looks in every figure."""
        base = self._styles[entry.policy]
        rank = self._models(entry).index(entry.llm)
        if rank == 0:
            return base
        dash, marker = OTHER_MODELS[(rank - 1) % len(OTHER_MODELS)]
        return replace(base, dash=dash, marker=marker)

    def _models(self, entry: Entry) -> list[str]:
        return [e.llm for e in self.entries if e.policy == entry.policy]
