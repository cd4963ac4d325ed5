"""What the router sees of the experts and the requests at them, as numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.batching.bank import ExpertBank
from icl_optimizer.environments.qos_routing_config import SHOWN, QoSRoutingConfig
from icl_optimizer.environments.qos_routing_impact import Costs, Running, impact
from icl_optimizer.environments.qos_routing_problem import FEATURES, KINDS, ROLES
from icl_optimizer.environments.qos_routing_requests import RequestDraws


def running_requests(
    bank: ExpertBank, draws: RequestDraws, item: Ints, score: Floats | None = None
) -> Running:
    """Return who runs at each expert when request ``item`` ``(E,)`` arrives.

    Args:
        bank: The experts.
        draws: Requests of the episode.
        item: Number of the present request.
        score: True score of every request where it was sent, ``(E, K)``: then lengths are the true
            ones too. Without it both are the predicted ones.
    """
    items = bank.running_items
    row = np.arange(len(items))[:, None, None]
    present, k = items >= 0, np.maximum(items, 0)
    if score is None:
        expert = np.arange(items.shape[1])[None, :, None]
        worth, answer = draws.predicted[row, k, expert], draws.expected[row, k]
    else:
        worth, answer = score[row, k], draws.answer[row, k].astype(np.float64)
    now = draws.arrival_s[row[:, 0, 0], item]
    there = present.astype(np.float64)
    return Running(
        present,
        np.asarray(draws.prompt[row, k] * there),
        np.where(present, answer, 1.0),
        np.asarray(bank.generated[row, k] * there),
        (now[:, None, None] - draws.arrival_s[row, k]) * there,
        worth * there,
    )


def observe(
    config: QoSRoutingConfig, costs: Costs, bank: ExpertBank, draws: RequestDraws, item: Ints
) -> Floats:
    """Return the observations ``(E, columns)`` when request ``item`` ``(E,)`` arrives."""
    count, experts, rows = len(item), config.experts, np.arange(len(item))
    prompt, expected = draws.prompt[rows, item].astype(np.float64), draws.expected[rows, item]
    running = running_requests(bank, draws, item)
    waiting = _shown(config, bank.waiting_items, bank, draws, item)
    own = np.empty((count, experts, len(ROLES)))
    by_role: dict[str, Floats | Ints] = {
        "Quality": draws.predicted[rows, item],
        "Queue": bank.running + bank.waiting,
        "Running": bank.running,
        "Waiting": bank.waiting,
        "KV": running.cached / config.kv_tokens,
        "Backlog": running.left.sum(axis=2)
        + waiting[:, :, :, FEATURES.index("expected")].sum(axis=2),
        "Slack": _slack(config, costs, running),
        "Impact": impact(
            costs,
            running,
            prompt,
            expected,
            config.latency_bound_s,
            printed=config.impact_rule == "printed",
        ),
    }
    for place, role in enumerate(ROLES):
        own[:, :, place] = by_role[role]
    shown = np.zeros((count, experts, len(KINDS), SHOWN, len(FEATURES)))
    shown[:, :, 0, : config.max_running] = _shown(config, bank.running_items, bank, draws, item)
    shown[:, :, 1, : config.queue_size] = waiting
    request = np.column_stack([prompt, expected])
    return np.hstack([request, own.reshape(count, -1), shown.reshape(count, -1)])


def _slack(config: QoSRoutingConfig, costs: Costs, running: Running) -> Floats:
    """Return the smallest margin to the bound of those that would be in time, ``(E, N)``."""
    margin = config.latency_bound_s - running.projected(costs)
    counts = running.present & (margin >= 0)
    return np.asarray(np.where(counts, margin, config.latency_bound_s).min(axis=2))


def _shown(
    config: QoSRoutingConfig,
    items: NDArray[np.int64],
    bank: ExpertBank,
    draws: RequestDraws,
    item: Ints,
) -> Floats:
    """Return the features of these requests, zeros where there is none, ``(E, N, R, features)``."""
    row = np.arange(len(items))[:, None, None]
    present, k = items >= 0, np.maximum(items, 0)
    expert = np.arange(items.shape[1])[None, :, None]
    generated = bank.generated[row, k].astype(np.float64)
    prompt = draws.prompt[row, k].astype(np.float64)
    elapsed = draws.arrival_s[row[:, 0, 0], item][:, None, None] - draws.arrival_s[row, k]
    features = np.empty((*items.shape, len(FEATURES)))
    by_name = {
        "prompt": prompt,
        "quality": draws.predicted[row, k, expert],
        "expected": draws.expected[row, k],
        "kv": np.where(generated > 0, prompt + generated, 0.0) / config.kv_tokens,
        "generated": generated,
        "latency": elapsed / np.maximum(generated, 1.0),
    }
    for place, name in enumerate(FEATURES):
        features[..., place] = by_name[name]
    return features * present[..., None]
