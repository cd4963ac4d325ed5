"""What a split earns under a link: where perplexities come from, and the three rewards."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from icl_optimizer.environments.base import Floats, Ints
from icl_optimizer.environments.layer_splitting_config import LayerSplittingConfig
from icl_optimizer.environments.splitting.cost import paper_flops
from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    from icl_optimizer.environments.splitting.records import MeasuredTable


class RewardSource(Protocol):
    """Whatever knows how much a link costs a split model.

    Where its answers are random (the live model), an episode asks for each layer and link once.
    """

    def extra_nats(self, split: Ints, sigma: Floats, loss: Floats) -> Floats:
        """Return ln(PPL / PPL of the clean model), nats per token, ``(n,)``.

        Args:
            split: Layers on the device, ``(n,)``.
            sigma: Standard deviation of the noise, ``(n,)``.
            loss: Loss probability, ``(n,)``.
        """


def make_source(config: LayerSplittingConfig) -> RewardSource:
    """Return the measured table, the network fitted to it, or the model itself.

    Raises:
        ConfigurationError: The table does not cover the configuration.
        MissingDependencyError: The model needs an extra that is not installed.
    """
    if config.rewards_from == "surrogate":
        from icl_optimizer.environments.splitting.surrogate import shipped_surrogate

        return shipped_surrogate()
    if config.rewards_from == "live":
        from icl_optimizer.environments.splitting.perplexity import LivePerplexity

        return LivePerplexity(config.model)
    return covering_table(config)


def covering_table(
    config: LayerSplittingConfig, given: MeasuredTable | None = None
) -> MeasuredTable:
    """Return the table that is ``given``, or the shipped one, if it covers the configuration."""
    from icl_optimizer.environments.splitting.records import shipped_table

    table = shipped_table() if given is None else given
    for name, value, measured in (
        ("sigma_high", config.sigma_high, table.sigmas[-1]),
        ("loss_high", config.losses[1], table.losses[-1]),
        ("deepest", config.deepest, table.splits[-1]),
    ):
        if value > measured:
            raise ConfigurationError(
                f"layer-splitting: {name} is {value:g}; allowed: up to {measured:g}, as far as the "
                "table was measured."
            )
    return table


def ue_load(split: Ints, config: LayerSplittingConfig) -> Floats:
    """Return the device's load by eq. (2), as a share of that of the deepest split."""
    shares = _shares(config.deepest, config.input_tokens, config.hidden)
    return np.asarray(shares[np.asarray(split) - 1])


@lru_cache
def _shares(deepest: int, tokens: int, hidden: int) -> Floats:
    loads = np.array([float(paper_flops(p, tokens, hidden)) for p in range(1, deepest + 1)])
    return np.asarray(loads / loads[-1])


def reward_of(
    config: LayerSplittingConfig, split: Ints, nats: Floats, first_nats: Floats
) -> Floats:
    """Return the reward of a split; all arrays broadcast.

    With f = PPL_clean / PPL = exp(-nats) and p the split, of ``deepest`` = 10:

    - ``code``: 10 f + (10 - p) / 10, the public code's reward with a surrogate, whose f(loss, p) is
      taken as the relative quality;
    - ``equation``: -(1 / f + lambda C_UE(p) / C_UE(10)), eq. (8) with both terms relative, since
      perplexities depend on the text and loads on the unit;
    - ``code-initial``: 10.5 (PPL_init - PPL) / PPL_init + (10 - p) / 10, the public code's reward
      with a real model.

    Args:
        config: Form of the reward and its weights.
        split: Layers on the device.
        nats: Extra nats per token, ln(PPL / PPL_clean).
        first_nats: Those of the episode's first state (``code-initial``).
    """
    if config.reward == "equation":
        return np.asarray(-(np.exp(nats) + config.load_weight * ue_load(split, config)))
    light = config.load_weight * (config.deepest - np.asarray(split)) / config.deepest
    if config.reward == "code":
        return np.asarray(config.quality * np.exp(-nats) + light)
    return np.asarray(-config.quality * np.expm1(nats - first_nats) + light)
