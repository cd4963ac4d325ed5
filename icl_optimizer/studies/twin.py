"""The study of the twin: does a simulated fleet tell how policies fare on the real one?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from icl_optimizer.comparison.evaluation import HELD_OUT
from icl_optimizer.comparison.live import LiveHeld, play_episodes
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.fleet.config import load_fleet
from icl_optimizer.environments.fleet.fitting import FleetFit, fit_fleet, sample_fleet
from icl_optimizer.environments.live_fleet import FleetThread, shared_fleet
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.rollout import progress
from icl_optimizer.studies.tables import write_study

POLICIES = ("round-robin", "shortest-queue", "dqn-paper", "icl-predict")
RATE = 1.0
"""Arrivals per second: rules differ, and the demo fleet on two cores still keeps its pace."""
TASKS = 120
MEASURED = 60
"""Tasks that every server is asked before, for the fit."""
SHOWN = {"deadline_met": "deadlines met", "response_time_s": "mean response (s)"}


def run_twin(
    out: str | Path,
    seeds: int = 2,
    *,
    fleet: str | dict[str, Any] = "demo",
    policies: Sequence[str] = POLICIES,
    tasks: int = TASKS,
    measured: int = MEASURED,
    settings: dict[str, Any] | None = None,
    interactions: int | None = None,
    model: LanguageModel | None = None,
    progress_bar: bool = True,
) -> Path:
    """Measure a fleet, let policies learn in its twin, and run them live and in the twin.

    Both sides meet the same arrivals, task types and deadlines. The fit (``twin.yaml``) and
    finished runs (``twin-parts``) are kept in ``out`` and not repeated.

    Args:
        out: Folder for the tables.
        seeds: Repetitions, of learning and of the held-out episodes.
        fleet: A fleet file, ``demo``, or a fleet's fields.
        policies: Names.
        tasks: Tasks that every policy meets with each seed; whole episodes.
        measured: Tasks that every server is asked for the fit.
        settings: Fields of the live environment that differ from ``arrival_rate`` 1.
        interactions: Decisions to learn from; None: 500, and each deep-RL policy's own number.
        model: The language model of policies that ask one; None for the embedded one.
        progress_bar: Whether to draw one.

    Returns:
        The path of ``twin.md``.
    """
    folder = Path(out)
    (folder / "twin-parts").mkdir(parents=True, exist_ok=True)
    given = {"fleet": fleet, "arrival_rate": RATE, **(settings or {})}
    with shared_fleet(fleet) as thread, ExitStack() as held:
        given["twin"] = str(_fitted(folder, thread, fleet, measured, progress_bar))
        if model is None and any(get_policy_spec(name).needs_llm for name in policies):
            from icl_optimizer.llm.llamacpp import LlamaCpp

            model = held.enter_context(LlamaCpp())
        total = tasks * seeds * len(policies)
        parts = []
        with progress("live tasks", total, shown=progress_bar) as advance:
            for seed in range(seeds):
                for name in policies:
                    path = folder / "twin-parts" / f"{name}-{seed}.csv"
                    if not path.exists():
                        policy = _learned(name, given, seed, model, interactions)
                        _both(policy, given, seed, tasks, advance).to_csv(path, index=False)
                    parts.append(pd.read_csv(path))
    values = pd.concat(parts, ignore_index=True)
    return write_study(folder, "twin", values, twin_table(values))


def _fitted(folder: Path, thread: FleetThread, fleet: Any, tasks: int, shown: bool) -> Path:
    """Return the file of the twin's settings, measured now where it is not there."""
    path = folder / "twin.yaml"
    if path.exists():
        return path
    config = load_fleet(fleet)
    with progress("measuring", tasks * len(config.servers), shown=shown) as advance:
        samples = thread.call(sample_fleet(thread.fleet, tasks, 0, advance))
    fit = fit_fleet(config.names, samples)
    write_study(folder, "twin-fit", pd.DataFrame([vars(s) for s in samples]), _fit_table(fit))
    path.write_text(yaml.safe_dump(fit.settings(config), sort_keys=False))
    return path


def _learned(
    name: str,
    settings: dict[str, Any],
    seed: int,
    model: LanguageModel | None,
    interactions: int | None,
) -> Policy:
    """Return a policy that has learned in the twin, where it learns at all."""
    spec, live = get_policy_spec(name), get_spec("live")
    env = spec.training_env("live", settings)
    needed = model if spec.needs_llm else None
    policy = make_policy(name, env.problem, env=env, model=needed, seed=seed)
    if spec.learns:
        where, learned = live.learned_in(settings)
        own = spec.budget_in(where.name, learned) if spec.is_drl else live.interactions
        policy.learn(interactions or own)
    return policy


def _both(
    policy: Policy,
    settings: dict[str, Any],
    seed: int,
    tasks: int,
    advance: Callable[[int], None],
) -> pd.DataFrame:
    """Return one row per place, episode and metric for a policy that has learned."""
    held = LiveHeld("live", settings, seed, tasks)
    held.on_task = advance
    where, learned = get_spec("live").learned_in(settings)
    twin = make(where.name, 1, autoreset=False, **learned)
    # the twin first: what a policy remembers of situations, it knows when it meets them live
    sides = {
        "twin": play_episodes(twin, policy, HELD_OUT + 1000 * seed, held.episodes),
        "live": held.outcomes(policy),
    }
    rows = [
        {"policy": policy.name, "seed": seed, "place": place, "episode": number, **_means(episode)}
        for place, episodes in sides.items()
        for number, episode in enumerate(episodes)
    ]
    return pd.DataFrame(rows)


def _means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the share of deadlines met, and the mean response of what was not dropped."""
    taken = [o.metrics for o in outcomes if not o.metrics["dropped"]]
    answered = [m["response_time_s"] for m in taken if not m.get("failed")]
    return {
        "deadline_met": float(np.mean([o.metrics["deadline_met"] for o in outcomes])),
        "response_time_s": float(np.mean(answered)) if answered else float("nan"),
        "score": float(np.mean([o.metrics["score"] for o in outcomes])),
        "failed": float(np.mean([o.metrics.get("failed", 0.0) for o in outcomes])),
        "decided_s": float(np.mean([o.metrics.get("decided_s", 0.0) for o in outcomes])),
    }


def twin_table(values: pd.DataFrame) -> list[list[str]]:
    """Return means with standard errors over episodes, differences, and how rankings agree.

    Args:
        values: Rows of policy, seed, place, episode and metrics.
    """
    header = ["policy"]
    for title in SHOWN.values():
        header += [f"{title}, live", "twin"]
    rows = [[*header, "difference of responses", "decision live (s)"]]
    names = list(dict.fromkeys(values["policy"]))
    for name in names:
        mine = values[values["policy"] == name]
        cells = [_cell(mine, place, metric) for metric in SHOWN for place in ("live", "twin")]
        decided = mine.loc[mine["place"] == "live", "decided_s"].mean()
        rows.append([name, *cells, f"{relative_difference(mine):+.1%}", f"{decided:.3f}"])
    pairs = len(names) * (len(names) - 1) // 2
    if pairs:
        found = [f"{agreeing_pairs(values, metric)} of {pairs}" for metric in SHOWN]
        rows.append(["pairs in the same order", found[0], "", found[1], "", "", ""])
    return rows


def relative_difference(values: pd.DataFrame) -> float:
    """Return by how much the twin's mean response is off the live one, relative to that."""
    means = values.groupby("place")["response_time_s"].mean()
    return float(means["twin"] / means["live"] - 1)


def agreeing_pairs(values: pd.DataFrame, metric: str) -> int:
    """Return how many pairs of policies are in the same order live and in the twin."""
    means = values.groupby(["place", "policy"])[metric].mean()
    names = list(dict.fromkeys(values["policy"]))
    return sum(
        int(
            np.sign(means["live", a] - means["live", b])
            == np.sign(means["twin", a] - means["twin", b])
        )
        for a, b in combinations(names, 2)
    )


def _cell(values: pd.DataFrame, place: str, metric: str) -> str:
    each = values.loc[values["place"] == place, metric].dropna()
    digits = 3 if metric == "deadline_met" else 2
    error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan")
    return f"{each.mean():.{digits}f} ± {error:.{digits}f}"


def _fit_table(fit: FleetFit) -> list[list[str]]:
    header = ["server", "answers", "tokens/s", "overhead (s)", "R2", "median residual (s)"]
    rows = [
        [
            s.name,
            str(s.answers),
            f"{s.tokens_per_s:.2f}",
            f"{s.overhead_s:.3f}",
            f"{s.r2:.4f}",
            f"{s.residual_s:.3f}",
        ]
        for s in fit.servers
    ]
    return [header, *rows]
