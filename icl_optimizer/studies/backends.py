"""The same run on several kinds of model server, and how far their decisions agree."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.agent import ICLAgent
from icl_optimizer.comparison.config import default_config
from icl_optimizer.comparison.model_use import model_use
from icl_optimizer.comparison.statistics import estimate
from icl_optimizer.comparison.unit import Unit
from icl_optimizer.environments.registry import make
from icl_optimizer.llm import LlamaCpp, load_llm
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.problem import Context
from icl_optimizer.report.formatting import with_interval
from icl_optimizer.rollout import progress
from icl_optimizer.studies.ollama_server import serve_ollama
from icl_optimizer.studies.tables import write_study

INTERACTIONS = 60
OPEN: dict[str, Any] = {"vocabulary": "open", "words": "unseen"}
"""Where backends are compared decision by decision: many contexts, many of them hard."""


@dataclass(frozen=True)
class Backend:
    """A model and what it is called in the table."""

    name: str
    model: LanguageModel


@contextmanager
def backends() -> Iterator[list[Backend]]:
    """Yield the embedded weights behind four interfaces; servers live while the block runs."""
    with LlamaCpp() as embedded, embedded.serve() as url, serve_ollama(embedded) as ollama:
        yield [
            Backend("embedded", embedded),
            Backend("llama.cpp server over HTTP", load_llm(f"openai:smollm2@{url}")),
            Backend("Ollama's wire format", load_llm(f"ollama:smollm2?base_url={ollama}")),
            Backend("text alone", load_llm("llamacpp?logprobs=false")),
        ]


def run_backends(out: Path, seeds: int = 3, *, progress_bar: bool = True) -> Path:
    """Measure each backend and write ``backends.csv`` and ``backends.md`` into ``out``.

    Args:
        out: Folder for the tables.
        seeds: Runs of 60 interactions with each backend.
        progress_bar: Whether to draw one.
    """
    rows = []
    with (
        backends() as found,
        progress("backends", len(found) * seeds, shown=progress_bar) as advance,
    ):
        for backend in found:
            for seed in range(seeds):
                rows.append(_measure(backend, seed))
                advance(1)
    # on fresh servers: prefixes of other prompts shift numbers by up to about 0.1
    with backends() as found:
        rows += _agreement(found[0], found[1:3])
    frame = pd.DataFrame(rows)
    return write_study(out, "backends", frame, _table(frame))


def _measure(backend: Backend, seed: int) -> dict[str, object]:
    config = default_config("offloading", interactions=INTERACTIONS, sweeps=False)
    unit = Unit(config, "icl", seed, backend.model)
    result = unit.run(lambda steps: None)
    values = {r.metric: r.value for r in result.rows if r.step == INTERACTIONS}
    agent = unit.policy
    assert isinstance(agent, ICLAgent), "icl is an in-context agent"
    use = model_use(agent)
    assert use is not None, "it asks a model"
    return {
        "backend": backend.name,
        "seed": seed,
        "optimality": values["optimality"],
        "decisions_per_s": _rate(agent),
        "invalid_rate": values["invalid_rate"],
        "fallback_rate": values["fallback_rate"],
        "decider": ", ".join(use.decider.values()),
    }


def _rate(agent: ICLAgent) -> float:
    """Return decisions per second of the model, one query at a time, nothing from the cache."""
    contexts = list(agent.pool.tallies)
    fresh = agent.twin(cache=False)
    fresh.decide(contexts[:1])
    started = time.perf_counter()
    for context in contexts:
        fresh.decide([context])
    return len(contexts) / (time.perf_counter() - started)


def _agreement(reference: Backend, others: list[Backend]) -> list[dict[str, object]]:
    """Return how often each backend decides as ``reference`` on one frozen pool."""
    config = default_config("offloading", settings={"vocabulary": "open"}, interactions=150)
    learned = Unit(config, "icl", 0, reference.model)
    learned.policy.learn(150)
    agent = learned.policy
    assert isinstance(agent, ICLAgent), "icl is an in-context agent"
    contexts = _contexts()
    wanted = _probabilities(agent, contexts)
    rows = []
    for other in others:
        got = _probabilities(agent.twin(other.model), contexts)
        same = wanted.argmax(axis=1) == got.argmax(axis=1)
        tie = np.abs(np.log(wanted[:, 0]) - np.log(wanted[:, 1]))
        rows.append(
            {
                "backend": other.name,
                "agreement": float(same.mean()),
                "contexts": len(contexts),
                "log_odds_where_not": float(tie[~same].max()) if not same.all() else 0.0,
                "log_odds_median": float(np.median(tie)),
            }
        )
    return rows


def _contexts() -> list[Context]:
    """Return every context of the open vocabulary: all words, all sizes."""
    problem = make("offloading", 1, **OPEN).problem
    kind, size = problem.columns[:2]
    return [problem.context((a, b)) for a in kind.words for b in size.words]


def _probabilities(agent: ICLAgent, contexts: list[Context]) -> NDArray[np.float64]:
    agent.model.reset()
    return np.array([d.probabilities for d in agent.decide(contexts)])


def _table(frame: pd.DataFrame) -> list[list[str]]:
    header = ["backend", "asked for", "optimality", "decisions/s", "invalid", "fallback", "agrees"]
    runs = frame[frame["seed"].notna()]
    table = [header]
    for name, rows in runs.groupby("backend", sort=False):
        shown = {
            metric: with_interval("optimality", estimate(rows[metric].to_numpy(dtype=float)))
            for metric in ("optimality", "invalid_rate", "fallback_rate")
        }
        same = frame[(frame["backend"] == name) & frame["agreement"].notna()]
        agrees = f"{same['agreement'].iloc[0]:.4f}" if len(same) else "–"
        table.append(
            [
                str(name),
                str(rows["decider"].iloc[0]),
                shown["optimality"],
                f"{rows['decisions_per_s'].median():.1f}",
                shown["invalid_rate"],
                shown["fallback_rate"],
                agrees,
            ]
        )
    return table
