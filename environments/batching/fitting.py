"""Costs of an iteration, fitted to what LLM-Pilot measured of LLaMA models.

``python -m icl_optimizer.environments.batching.fitting`` writes ``data/serving_costs.csv`` anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import as_file, files

import numpy as np
import pandas as pd

from icl_optimizer.environments.base import Floats
from icl_optimizer.environments.batching.closed_loop import Load, Served, closed_loop
from icl_optimizer.environments.batching.costs import StepCosts
from icl_optimizer.environments.batching.pilot import (
    MEASURED_S,
    Lengths,
    Row,
    Setup,
    draw_requests,
    setups,
)
from icl_optimizer.environments.batching.serving import kv_capacity_tokens, serving_costs

__all__ = ["fit_costs", "kv_capacity_tokens", "serve", "serving_costs"]

FITTED = ("base_s", "per_prompt_token_s", "per_sequence_s", "prefill_s")
"""The costs that are fitted. What a cached token costs is set: the bytes of its keys and values
over the bandwidth of the memory, since with short prompts and answers of the same kind at every
load, cached tokens and sequences rise together and no fit could tell them apart."""
ROUNDS = 7
DAMPING = 0.01
NUDGE = 0.03
"""Change of a cost's logarithm to see what it does."""
LARGEST_STEP = 0.7
SMALLEST_S = 1e-7
_MOST_REQUESTS = 20_000


def serve(
    tasks: Sequence[tuple[Setup, Row, StepCosts]],
    lengths: Lengths = "measured",
    *,
    seconds: float = MEASURED_S,
    seed: int = 0,
) -> list[Served]:
    """Return what the simulator gives for measurements, each by the costs beside it.

    The requests are drawn anew for every measurement, the same for all costs. Between an answer
    and the arrival of the user's next request a stream is opened, for as long as for a lone user.

    Args:
        tasks: Setups, measurements and costs.
        lengths: How answers are distributed, see :func:`.draw_requests`.
        seconds: How long users send.
        seed: Of the requests; costs are fitted with 0.
    """
    loads = []
    for setup, row, costs in tasks:
        rng = np.random.default_rng([seed, row.users])
        drawn = draw_requests(row, _MOST_REQUESTS, rng, lengths)
        loads.append(Load(row.users, *drawn, costs, setup.kv_tokens, setup.opening_s))
    return closed_loop(loads, seconds)


def fit_costs(
    setup: Setup,
    lengths: Lengths = "measured",
    *,
    seconds: float = MEASURED_S,
    rounds: int = ROUNDS,
) -> StepCosts:
    """Fit the costs of a setup to every other of its measurements.

    Least squares over the logarithms of simulated over measured values, all weighted alike: time
    between tokens and throughput at each load that is for fitting, and the lone user's time to
    first token after the stream is open. Gauss and Newton's method, damped, in the logarithms of
    the costs, so that these stay above 0; the best of all rounds is kept.

    Args:
        setup: The setup.
        lengths: How answers are distributed.
        seconds: How long users send in the simulation.
        rounds: Of the method.
    """
    # the lone user's tokens show the base time; the others are guesses
    logs = np.log([setup.rows[0].itl_s, 1e-4, 3e-4, 1e-2])
    best, least = logs, np.inf
    for _ in range(rounds):
        errors, slopes = _linearised(setup, logs, lengths, seconds)
        if errors @ errors < least:
            best, least = logs, float(errors @ errors)
        normal = slopes.T @ slopes + DAMPING * np.eye(len(FITTED))
        step = np.linalg.solve(normal, slopes.T @ errors)
        logs = np.maximum(logs - np.clip(step, -LARGEST_STEP, LARGEST_STEP), np.log(SMALLEST_S))
    return _costs(setup, best)


def _costs(setup: Setup, logs: Floats) -> StepCosts:
    fitted = dict(zip(FITTED, np.exp(logs).tolist(), strict=True))
    return StepCosts(per_cached_token_s=setup.per_cached_token_s, **fitted)


def _linearised(
    setup: Setup, logs: Floats, lengths: Lengths, seconds: float
) -> tuple[Floats, Floats]:
    """Return the errors, and how they change with the logarithms of the costs."""
    nudges = (np.zeros(len(FITTED)), *(NUDGE * np.eye(len(FITTED))))
    tasks = [(setup, row, _costs(setup, logs + n)) for n in nudges for row in setup.fitting]
    served = serve(tasks, lengths, seconds=seconds)
    size = len(setup.fitting)
    errors, *nudged = (_errors(setup, served[i : i + size]) for i in range(0, len(served), size))
    return errors, (np.array(nudged) - errors).T / NUDGE


def _errors(setup: Setup, served: Sequence[Served]) -> Floats:
    """Return logarithms of simulated over measured values."""
    lone = setup.rows[0]
    ratios = [served[0].ttft_s / (lone.ttft_s - lone.opening_s)]
    for row, result in zip(setup.fitting, served, strict=True):
        ratios += [result.itl_s / row.itl_s, result.tokens_per_s / row.tokens_per_s]
    return np.log(ratios)


def main() -> None:
    """Fit all setups and write the table."""
    table = [
        {"billions": f"{setup.billions:g}", "gpu": setup.gpu, "n_gpus": setup.n_gpus}
        | {name: f"{value:.4g}" for name, value in asdict(fit_costs(setup)).items()}
        for setup in setups()
    ]
    with as_file(files("icl_optimizer.environments.data") / "serving_costs.csv") as path:
        pd.DataFrame(table).to_csv(path, index=False)
        print(path.read_text(), end="")


if __name__ == "__main__":
    main()
