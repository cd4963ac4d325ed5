"""The study of the levers: what each option of the in-context agent does to its decisions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.agent import ICLAgent, ICLConfig
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError, unknown_name
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.llamacpp import LlamaCpp
from icl_optimizer.llm.wrapper import ModelWrapper, unwrapped
from icl_optimizer.problem import Context
from icl_optimizer.rollout import progress
from icl_optimizer.studies.frozen import Queries, held_out, random_log
from icl_optimizer.studies.lever_settings import (
    SCENARIOS,
    SETTINGS,
    SPLITS,
    Scenario,
    Setting,
    Split,
)
from icl_optimizer.studies.lever_table import lever_tables

COLUMNS = ["environment", "mix", "lever", "setting", "seed", "split", "metric", "value"]
TIMED = 5
"""Decisions whose time is taken."""
MOST_TO_CHOOSE = 2
"""Seeds of the split that defaults are chosen by."""
FIRST_SEED: dict[Split, int] = {"choose": 100, "report": 0}


@dataclass(frozen=True)
class Trial:
    """One setting in one scenario with one seed."""

    scenario: Scenario
    setting: Setting
    split: Split
    seed: int

    @property
    def file(self) -> str:
        """Name of the file that keeps its results."""
        parts = (self.split, self.scenario.name, self.setting.lever, self.setting.name, self.seed)
        return "_".join(str(p).replace(" ", "-").replace("%", "") for p in parts) + ".json"


def run_levers(
    out: str | Path,
    seeds: int = 5,
    environments: Sequence[str] | None = None,
    model: LanguageModel | None = None,
    *,
    progress_bar: bool = True,
) -> Path:
    """Measure every lever and write ``levers.csv`` and ``levers.md``.

    A pool is filled by random decisions, the same for every setting, and frozen; then the agent
    decides greedily in held-out situations, each distinct one once. The split ``choose`` has
    other seeds and, for new words, the development words; defaults are chosen by it alone.
    ``report`` has the words that nothing was chosen by. Finished trials are kept in ``out/trials``
    and not run again.

    Args:
        out: Folder for the results.
        seeds: Repetitions of each split.
        environments: Names of scenarios; None for all.
        model: The language model; None for the embedded one on one thread.
        progress_bar: Whether to show progress.

    Returns:
        The path of ``levers.md``.

    Raises:
        ConfigurationError: A scenario that does not exist, or a folder with the trials of another
            model.
    """
    folder = Path(out)
    trials = list(_trials(_chosen(environments), seeds))
    language_model = model or LlamaCpp(threads=1)
    _claim(folder / "trials", language_model)
    with progress("levers", len(trials), shown=progress_bar) as advance:
        for trial in trials:
            _finish(trial, language_model, folder / "trials" / trial.file)
            advance(1)
    rows = pd.concat([_read(folder / "trials" / t.file) for t in trials], ignore_index=True)
    rows.to_csv(folder / "levers.csv", index=False)
    table = folder / "levers.md"
    table.write_text(lever_tables(rows), encoding="utf-8")
    return table


def _claim(folder: Path, model: LanguageModel) -> None:
    """Note whose trials the folder holds, or raise when they are another model's."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "model.txt"
    if note.exists() and (found := note.read_text(encoding="utf-8")) != model.name:
        raise ConfigurationError(
            f"'{folder}' holds trials of the model '{found}', asked for '{model.name}'; "
            "allowed: a new folder."
        )
    note.write_text(model.name, encoding="utf-8")


def _chosen(names: Sequence[str] | None) -> list[Scenario]:
    known = {scenario.name: scenario for scenario in SCENARIOS}
    for name in names or ():
        if name not in known:
            raise unknown_name("environment of the study", name, known)
    return [known[name] for name in names] if names else list(SCENARIOS)


def _trials(scenarios: Sequence[Scenario], seeds: int) -> Iterator[Trial]:
    counts: dict[Split, int] = {"choose": min(seeds, MOST_TO_CHOOSE), "report": seeds}
    for split in SPLITS:
        for k in range(counts[split]):
            for scenario in scenarios:
                for setting in SETTINGS:
                    if setting.suits(scenario, split):
                        yield Trial(scenario, setting, split, FIRST_SEED[split] + k)


def _finish(trial: Trial, model: LanguageModel, path: Path) -> None:
    """Run a trial that has no results yet."""
    if path.exists():
        return
    rows = run_trial(trial, model)
    # written under another name first, so that an interrupted study finds whole files alone
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows))
    part.replace(path)


def _read(path: Path) -> pd.DataFrame:
    return pd.DataFrame(json.loads(path.read_text()), columns=COLUMNS)


def run_trial(trial: Trial, model: LanguageModel) -> list[list[Any]]:
    """Return the rows of one trial."""
    scenario, seed = trial.scenario, trial.seed
    log = random_log(scenario.learning, scenario.decisions, seed)
    mixes = {m: held_out(scenario.queries(m, trial.split), seed) for m in scenario.mixes}
    contexts = list(dict.fromkeys(c for queries in mixes.values() for c in queries.distinct))
    stream = trial.setting.options.get("calibration") == "batch"
    if not stream:
        decided, rate = _decide_each(_agent(trial, model, log), contexts)
    rows = []
    for mix, queries in mixes.items():
        if stream:
            # what is subtracted depends on what was asked before
            decisions, rate = _decide_stream(_agent(trial, Memory(model), log), queries)
        else:
            decisions = [decided[c] for c in queries.contexts]
        metrics = queries.metrics(np.array(decisions)) | {"decisions_per_s": rate}
        place = [scenario.name, mix, trial.setting.lever, trial.setting.name, seed, trial.split]
        rows += [[*place, metric, value] for metric, value in metrics.items()]
    return rows


def _agent(trial: Trial, model: LanguageModel, log: list[Outcome]) -> ICLAgent:
    env = make(
        "offloading", 1, **trial.scenario.queries(next(iter(trial.scenario.mixes)), trial.split)
    )
    config = ICLConfig(cache=False, ageing="none", **trial.setting.options)
    return ICLAgent(env.problem, model, config, seed=trial.seed).learn_from(log)


def _decide_each(agent: ICLAgent, contexts: Sequence[Context]) -> tuple[dict[Context, int], float]:
    """Return each context's action, and decisions per second once the pool is calibrated.

    The speed is that of single decisions with different prompts; the actions come from one batch
    afterwards, which uses prefixes best.
    """
    timed = list({agent.prompt(c): c for c in contexts}.values())[: TIMED + 1]
    agent.decide(timed[:1])
    clock = _clock(agent.model)
    started = clock()
    for context in timed[1:]:
        agent.decide([context])
    rate = len(timed[1:]) / (clock() - started)
    return {d.context: d.action for d in agent.decide(contexts)}, rate


def _decide_stream(agent: ICLAgent, queries: Queries) -> tuple[list[int], float]:
    """Return the action for each query in order, and decisions per second on those not known."""
    clock = _clock(agent.model)
    started, calls = clock(), agent.model.usage.calls
    actions = [agent.decide([context])[0].action for context in queries.contexts]
    return actions, (agent.model.usage.calls - calls) / (clock() - started)


def _clock(model: LanguageModel) -> Callable[[], float]:
    """Return processor time for a model in this process, else wall time."""
    return time.perf_counter if unwrapped(model).remote else time.process_time


class Memory(ModelWrapper):
    """Remembers scores and likelihoods, so that a stream of equal queries costs one call each."""

    def __init__(self, inner: LanguageModel) -> None:
        """Start with nothing."""
        super().__init__(inner)
        self._scores: dict[tuple[str, ...], NDArray[np.float64]] = {}
        self._likelihoods: dict[tuple[str, str], float] = {}

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        for prompt in prompts:
            if (key := (prompt, *labels)) not in self._scores:
                self._scores[key] = super()._score([prompt], labels)[0]
        return np.array([self._scores[prompt, *labels] for prompt in prompts])

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        for pair in zip(prompts, texts, strict=True):
            if pair not in self._likelihoods:
                self._likelihoods[pair] = super()._likelihood([pair[0]], [pair[1]])[0]
        return [self._likelihoods[pair] for pair in zip(prompts, texts, strict=True)]
