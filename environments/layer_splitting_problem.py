"""Decisions and observation columns of layer splitting."""

from __future__ import annotations

from icl_optimizer.environments.layer_splitting_config import LayerSplittingConfig
from icl_optimizer.forecast import Expert
from icl_optimizer.problem import Column, Problem, Quantity

LEVELS = ("low", "high")
NOISE, LOSS = 2.0, 0.3
"""Ranges of the columns at least, whatever the case, so that what was learned in one can be asked
in another."""
PLACES, LOADS = ("early", "late"), ("light", "heavy")
NOISE_EDGE, LOSS_EDGE = 1.0, 0.1
REACH = {"one": 1, "four": 4}
"""Layers that a decision may move the split by."""


def move_layers(config: LayerSplittingConfig) -> tuple[int, ...]:
    """Return how far each decision moves the split, in layers, in the order of the labels."""
    reach = REACH[config.moves]
    return tuple(range(-reach, reach + 1))


def move_labels(config: LayerSplittingConfig) -> tuple[str, ...]:
    """Return the names of the decisions."""
    if config.moves == "one":
        return ("shallower", "stay", "deeper")
    words = {-1: "shallower", 1: "deeper"}
    return tuple(f"{abs(m)} {words[m // abs(m)]}" if m else "stay" for m in move_layers(config))


def build_problem(config: LayerSplittingConfig, expert: Expert | None = None) -> Problem:
    """Return labels and observation columns for ``config``.

    Every column has two words: noise and loss below and above what parts the layers that are best,
    split and load by halves. These two part the same layers, so that the second keyword adds no
    situations to the first. The eight situations are enough to decide well: who knows the mean
    change by each move in each of them reaches an optimality of 0.95 in case A. With more words
    for the layer it is less: a hill between good layers then stops who looks one move ahead.
    """
    last = config.deepest
    columns: tuple[Column, ...] = (
        Quantity("Noise", "", 0.0, max(NOISE, config.sigma_high), (NOISE_EDGE,), LEVELS),
        Quantity("Loss", "", 0.0, max(LOSS, config.losses[1]), (LOSS_EDGE,), LEVELS),
        Quantity("Split", "layers", 1.0, float(last), ((1 + last) / 2,), PLACES),
        Quantity("UE load", "", 0.0, 1.0, (0.5,), LOADS),
    )
    return Problem("layer-splitting", move_labels(config), columns, config.horizon, expert=expert)
