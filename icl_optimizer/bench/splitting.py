"""Records of a split model's perplexity per minute: saved layers against full forward passes.

Then records of equal standard error per minute: what pairing with the clean run on the same texts
saves, and common random numbers where two splits are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from icl_optimizer.bench.result import BenchmarkResult, alternate, summarise
from icl_optimizer.environments.splitting.channel import Channel
from icl_optimizer.environments.splitting.cost import Architecture
from icl_optimizer.environments.splitting.excerpt import excerpt_paragraphs, windows
from icl_optimizer.environments.splitting.model import SplitModel, load_split_model
from icl_optimizer.environments.splitting.perplexity import TEXTS, TOKENS, PerplexityMeter
from icl_optimizer.environments.splitting.records import shipped_records

CHANNEL = Channel(sigma=0.5, loss=0.06)
EARLY = 10
"""Deepest split of the paper's public code."""
EVERY = 3
"""Of the splits, every third is measured."""
ROUNDS = 5
COMPARED = (5, 6)
DRAWS = 16

Measure = Callable[[int, Channel, int, int], float]


def vs_full_forward() -> BenchmarkResult:
    """Compare records that resume from saved layers with full passes, over all splits."""
    model = load_split_model()
    groups = windows(excerpt_paragraphs(), model.tokenizer, tokens=TOKENS, texts=TEXTS)
    meter = PerplexityMeter(model, groups)
    early = list(range(1, EARLY + 1, EVERY))
    every = list(range(1, model.layers, EVERY))
    # A B A B, the early splits as sides of their own
    ours, peer, ours_early, peer_early = alternate(
        "split_perplexity_vs_full_forward",
        ROUNDS,
        lambda number: per_minute(meter.extra_nats, every, number),
        lambda number: per_minute(meter.full_pass, every, number),
        lambda number: per_minute(meter.extra_nats, early, number),
        lambda number: per_minute(meter.full_pass, early, number),
    )
    possible, possible_early = (saved_ratio(model, splits) for splits in (every, early))
    ratio, ratio_early = (
        float(np.median(a) / np.median(b)) for a, b in ((ours, peer), (ours_early, peer_early))
    )
    paired = pairing_gain(shipped_records(), meter.clean_nats)
    common = common_numbers_gain(meter)
    details = {
        "share_of_possible": ratio / possible,
        "possible_ratio": possible,
        f"ratio_up_to_layer_{EARLY}": ratio_early,
        f"share_of_possible_up_to_layer_{EARLY}": ratio_early / possible_early,
        "largest_difference_nats": largest_difference(meter, every),
        "pairing_gain": paired,
        "common_random_numbers_gain": common,
        "equal_error_records_ratio": ratio_early * paired,
        "equal_error_comparisons_ratio": ratio_early * paired * common,
    }
    return summarise(
        "split_perplexity_vs_full_forward",
        "records/min",
        f"a record is the perplexity of {TEXTS} texts of {TOKENS} tokens behind {CHANNEL}, split "
        f"after every third layer of {model.layers}; ours resumes from the saved clean states of "
        "the split, the peer runs all layers anew; same records on both sides. possible_ratio: by "
        "operations counted, head included. pairing_gain: variance of a noisy perplexity over that "
        "of its ratio to the clean one on the same texts, within cells of the shipped records. "
        f"common_random_numbers_gain: variance of the difference between splits {COMPARED} with "
        "own noise each over that with the same noise. equal_error_...: records of equal standard "
        f"error per minute, up to layer {EARLY}",
        ours,
        peer,
        details=details,
    )


def per_minute(record: Measure, splits: Sequence[int], number: int) -> float:
    """Return records per minute over one record of each split."""
    started = time.perf_counter()
    for split in splits:
        record(split, CHANNEL, number, split)
    return 60 * len(splits) / (time.perf_counter() - started)


def saved_ratio(model: SplitModel, splits: Sequence[int]) -> float:
    """Return how many times fewer operations the edge's part takes than all, head included."""
    length = 1 + TOKENS
    layer = Architecture.of(model.module.config).layer_flops(length)
    head = 2 * length * model.hidden * int(model.module.config.vocab_size)
    whole = len(splits) * (model.layers * layer + head)
    return whole / sum((model.layers - split) * layer + head for split in splits)


def largest_difference(meter: PerplexityMeter, splits: Sequence[int]) -> float:
    """Return the largest difference of a record between the two ways, nats per token."""
    asked = [(split, CHANNEL, 0, split) for split in splits]
    return max(abs(meter.extra_nats(*q) - meter.full_pass(*q)) for q in asked)


def pairing_gain(records: pd.DataFrame, clean_nats: Sequence[float]) -> float:
    """Return how much less a record varies when the same texts' clean perplexity is taken away.

    Args:
        records: Columns split, sigma, loss, text, extra_nats; several records per cell.
        clean_nats: Nats per token of each group of texts without a channel.
    """
    noisy = records.assign(nats=records["extra_nats"] + np.asarray(clean_nats)[records["text"]])
    cells = noisy[noisy["sigma"] + noisy["loss"] > 0].groupby(["split", "sigma", "loss"])
    variances = cells[["nats", "extra_nats"]].var()
    return float(np.median(variances["nats"] / variances["extra_nats"]))


def common_numbers_gain(meter: PerplexityMeter, draws: int = DRAWS) -> float:
    """Return how much less a difference between two splits varies under the same noise."""
    first, second = COMPARED
    rows = []
    for draw in range(draws):
        group = draw % len(meter.groups)
        here = meter.extra_nats(first, CHANNEL, group, draw)
        same = meter.extra_nats(second, CHANNEL, group, draw)
        own = meter.extra_nats(second, CHANNEL, group, draws + draw)
        rows.append((here - own, here - same))
    own_noise, same_noise = np.var(rows, axis=0, ddof=1)
    return float(own_noise / same_noise)
