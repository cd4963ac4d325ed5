"""Where to cut a language model between a device and the edge (Chen et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Floats, Ints, Outcomes, StepResult
from icl_optimizer.environments.layer_splitting_config import CASES, LayerSplittingConfig
from icl_optimizer.environments.layer_splitting_expert import SplittingExpert
from icl_optimizer.environments.layer_splitting_link import Links, draw_links, link_times
from icl_optimizer.environments.layer_splitting_problem import build_problem, move_layers
from icl_optimizer.environments.layer_splitting_reward import (
    RewardSource,
    covering_table,
    make_source,
    reward_of,
    ue_load,
)
from icl_optimizer.environments.registry import SweepPoint

if TYPE_CHECKING:
    from icl_optimizer.environments.splitting.records import MeasuredTable

SIGMAS, LOSSES = (0.0, 0.5, 1.0, 1.5, 2.0), (0.05, 0.15, 0.25)
"""Links at which policies are evaluated one by one."""


class LayerSplittingVectorEnv(BatchedEnv):
    """Move the layer after which a language model is cut between a device and the edge.

    ## Description
    Layers 1 to p run on the device, the others at the edge; the hidden state crosses a radio link
    with noise (3) and lost elements (4), which raises the perplexity (6). A deep cut costs the
    device more (2). How much a link harms depends on the layer.

    ## Action Space
    ``Discrete(3)``: one layer shallower, stay, one deeper; ``Discrete(9)`` with ``moves="four"``:
    4 shallower to 4 deeper. Moves end at layer 1 and at the deepest.

    ## Observation Space
    ``Box``: standard deviation of the noise, loss probability, layer of the cut, load of the device
    as a share of that at the deepest cut.

    ## Starting State
    A layer at random, a link at random, over the ranges of the case.

    ## Rewards
    Eq. (8) pays the state that a decision leads to: the new cut under the next link. See
    :func:`~.layer_splitting_reward.reward_of` for the three forms. With ``link="block"`` the link
    stays what it is.

    ## Episode End
    Terminated after ``horizon`` decisions, as in the public code: nothing is expected of what would
    come after them.

    ## Information
    ``outcomes``: reward; feasible: the new cut is at least as good as the old one under the same
    link; ``perplexity_ratio`` (PPL / PPL of the clean model), ``split_layer`` and ``ue_load`` after
    the move. Known at once.

    ## Arguments
    Every field of :class:`LayerSplittingConfig`, by keyword or as ``config``; and ``table``, your
    own measurements, in place of what ``rewards_from`` names.

    ## References
    Chen, Li, Yu, Zhao, Zhang, "Adaptive Layer Splitting for Wireless LLM Inference in Edge
    Computing: A Model-Based Reinforcement Learning Approach", 2024.

    ## Version History
    v0: initial version.
    """

    config_class = LayerSplittingConfig

    def __init__(
        self,
        num_envs: int = 1,
        config: LayerSplittingConfig | None = None,
        *,
        autoreset: bool = True,
        table: MeasuredTable | None = None,
        **fields: Any,
    ) -> None:
        """Set up the link, and what knows the perplexities."""
        self.config = config or LayerSplittingConfig(**fields)
        given = covering_table(self.config, table) if table is not None else None
        self.source = given or make_source(self.config)
        expert = SplittingExpert(self.config, given)
        super().__init__(num_envs, build_problem(self.config, expert), autoreset=autoreset)
        self._moves = np.array(move_layers(self.config))
        self._layers = np.arange(1, self.config.deepest + 1)
        self._reached = np.clip(self._layers[:, None] + self._moves, 1, self.config.deepest) - 1
        self._rows = np.arange(num_envs)
        self._links = Links.empty(num_envs, self.config)
        self._split = np.ones(num_envs, dtype=np.int64)
        shape = (num_envs, link_times(self.config), self.config.deepest)
        # nats per token by episode, time and layer; NaN where nobody has asked yet
        self._nats = np.full(shape, np.nan)
        self.measured = np.zeros((num_envs, 4))
        """Split, noise, loss and nats of the states that the last step led to."""

    def _begin(self, indices: Ints) -> None:
        links = draw_links([self.rngs[i] for i in indices], self.config)
        self._links.fill(indices, links)
        self._split[indices] = links.start
        self._nats[indices] = np.nan
        if self.config.rewards_from != "live":
            self._ask(np.isin(self._rows, indices)[:, None, None] & np.isnan(self._nats))

    def _time(self, ahead: int = 0) -> Ints:
        """Return the place of the present link, or of that ``ahead`` steps later, ``(E,)``."""
        return np.minimum(self.elapsed + ahead, self._nats.shape[1] - 1)

    def _observe(self) -> NDArray[Any]:
        sigma, loss = (v[self._rows, self._time()] for v in (self._links.sigma, self._links.loss))
        return np.stack([sigma, loss, self._split, ue_load(self._split, self.config)], axis=1)

    def _ask(self, wanted: NDArray[np.bool_]) -> None:
        """Find out the nats of the entries ``wanted``, shaped as all of them."""
        episode, time, layer = np.nonzero(wanted)
        if len(episode):
            sigma, loss = self._links.sigma[episode, time], self._links.loss[episode, time]
            self._nats[wanted] = self.source.extra_nats(self._layers[layer], sigma, loss)

    def _nats_of(self, split: Ints, time: Ints) -> Floats:
        """Return the nats of one split per episode, ``(E,)``; the model is asked only once."""
        place = (self._rows, time, split - 1)
        missing = np.isnan(self._nats[place])
        if missing.any():
            wanted = np.zeros(self._nats.shape, dtype=np.bool_)
            wanted[place] = missing
            self._ask(wanted)
        return np.asarray(self._nats[place])

    def _first_nats(self) -> Floats:
        """Return the nats of the first state of each episode, ``(E,)``; for ``code-initial``."""
        if self.config.reward != "code-initial":
            return np.zeros(self.num_envs)
        return self._nats_of(self._links.start, np.zeros(self.num_envs, dtype=np.int64))

    def use_rewards(self, source: RewardSource) -> None:
        """Take perplexities from ``source`` from now on, in episodes under way, too.

        What Algorithm 1 of the paper does once its surrogate is fitted.
        """
        self.source = source
        self._nats[:] = np.nan
        if self.config.rewards_from != "live":
            self._ask(np.isnan(self._nats))

    def action_values(self) -> Floats:
        """Return the best sum of rewards to the end of the episode by action, ``(E, actions)``.

        By backward induction over the link to come: exact, and with ``link="block"``, where the
        link to come is the present one, what a policy can reach that knows the perplexities. Of
        equally good moves the shortest is ahead, by less than any reward.
        """
        self._ask(np.isnan(self._nats))
        first = self._first_nats()[:, None, None]
        rewards = reward_of(self.config, self._layers, self._nats, first)
        horizon, times = self.config.horizon, rewards.shape[1]
        values = np.zeros((horizon, *rewards[:, 0].shape, len(self._moves)))
        later = np.zeros(rewards[:, 0].shape)
        for step in reversed(range(horizon)):
            state = rewards[:, min(step + 1, times - 1)]
            stay = state[:, :, None] if self.config.difference else 0.0
            if self.config.from_start:
                stay = state[self._rows, self._links.start - 1][:, None, None]
            values[step] = (state + later)[:, self._reached] - stay
            later = values[step].max(axis=2)
        present = np.minimum(self.elapsed, horizon - 1)
        best = values[present, self._rows, self._split - 1]
        return np.asarray(best - 1e-9 * np.abs(self._moves))

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        time, old = self._time(1), self._split
        new = np.clip(old + self._moves[actions], 1, self.config.deepest)
        first = self._first_nats()
        nats = self._nats_of(new, time)
        link = self._links.sigma[self._rows, time], self._links.loss[self._rows, time]
        self.measured = np.stack([new, *link, nats], axis=1)
        reward = reward_of(self.config, new, nats, first)
        stay = reward_of(self.config, old, self._nats_of(old, time), first)
        self._split = new
        metrics = {
            "perplexity_ratio": np.exp(nats),
            "split_layer": new.astype(np.float64),
            "ue_load": ue_load(new, self.config),
        }
        paid = reward
        if self.config.difference:
            paid = reward - stay
        elif self.config.from_start:
            start = self._links.start
            paid = reward - reward_of(self.config, start, self._nats_of(start, time), first)
        nothing = np.zeros(self.num_envs, dtype=np.bool_)
        outcomes = Outcomes(decision_ids, paid, reward >= stay, nothing, metrics)
        return StepResult(paid, outcomes, self.elapsed + 1 >= self.config.horizon)


class LayerSplittingEnv(SingleEnv):
    """One split model as a :class:`gymnasium.Env`; see :class:`LayerSplittingVectorEnv`."""

    def __init__(self, config: LayerSplittingConfig | None = None, **fields: Any) -> None:
        """Build a batch of one; ``fields`` are those of :class:`LayerSplittingConfig`."""
        super().__init__(LayerSplittingVectorEnv(1, config, autoreset=False, **fields))


def sweep_points(config: LayerSplittingConfig) -> list[SweepPoint]:
    """Return the other cases, and single links: each noise with each loss probability."""
    cases = [SweepPoint(f"case={case}", {"case": case}) for case in CASES if case != config.case]
    links = [
        SweepPoint(
            f"loss={loss:g};sigma={sigma:g}",
            {"sigma_low": sigma, "sigma_high": sigma, "loss_low": loss, "loss_high": loss},
        )
        for sigma in SIGMAS
        for loss in LOSSES
    ]
    return cases + links
