"""QoS-aware routing to edge language models that batch continuously (Yang et al.)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.adapters import SingleEnv
from icl_optimizer.environments.base import BatchedEnv, Floats, Ints, Outcomes, StepResult
from icl_optimizer.environments.batching.bank import ExpertBank, Finished
from icl_optimizer.environments.batching.fitting import serving_costs
from icl_optimizer.environments.qos_routing_config import QoSRoutingConfig
from icl_optimizer.environments.qos_routing_impact import Costs, impact
from icl_optimizer.environments.qos_routing_observation import observe, running_requests
from icl_optimizer.environments.qos_routing_problem import build_problem
from icl_optimizer.environments.qos_routing_requests import RequestDraws, load_source
from icl_optimizer.environments.registry import SweepPoint

RATES = (1.0, 2.0, 3.0, 4.0, 6.0)
"""Arrival rates of the sweep, per second."""


class QoSRoutingVectorEnv(BatchedEnv):
    """Send each request to one of several language models that batch continuously, or drop it.

    ## Description
    Experts answer requests with different quality and at different speed. Each runs its requests
    in one batch, iteration by iteration, so that one more request slows all others there down. A
    request counts with its quality if its latency per token, ``(finish - arrival) / output
    tokens``, is below a bound (0.03 s), else not at all.

    ## Action Space
    ``Discrete(experts + 1)``: which expert, or the last: drop the request.

    ## Observation Space
    ``Box``: prompt tokens and predicted answer tokens of the request; of each expert the predicted
    quality of its answer, requests there, running, waiting, KV memory in use, predicted tokens
    still to come, the smallest margin of a running request to the bound, and the verdict of the
    action impact estimator; then of up to ten running and ten waiting requests of each expert
    prompt tokens, predicted quality, predicted answer tokens, share of the KV memory, tokens
    generated and latency per token so far, zeros where there is none. 386 numbers for three
    experts. What is predicted is predicted: true qualities and lengths are known to the reward.

    ## Starting State
    Idle experts.

    ## Rewards
    The qualities of the requests that finished in time since the last decision, minus the true
    qualities of those that the decision puts at risk, as the action impact estimator has it. With
    ``reward="difference"`` the quality of service is paid at once: what the decision adds to it if
    nothing else arrived. What later decisions take away is their own negative difference, so the
    sum over an episode is the same, and who is to blame is known (difference rewards, Wolpert and
    Tumer 2002; a potential-based shaping).

    ## Episode End
    Truncated after ``horizon`` requests; then the experts finish what they have.

    ## Information
    ``outcomes``: of each request that finished or was dropped, its own quality of service minus
    the penalty of its decision as ``reward``, whether it was served in time as ``feasible``, and
    ``qos``, ``latency_per_token_s``, ``ttft_s``, ``score`` (true quality of the answer, however
    late), ``tokens``, ``gpu_s`` (its share of the busy time), ``kv_use`` (mean over the experts
    when it arrived), ``penalty``, ``dropped``, ``expert``.

    ## Arguments
    Every field of :class:`QoSRoutingConfig`, by keyword or as ``config``.

    ## References
    Yang et al., "Quality-of-Service Aware LLM Routing for Edge Computing with Multiple Experts",
    2025. Scores: LLMRouter (UIUC); lengths and arrivals: Azure, Patel et al. 2024.

    ## Version History
    v0: initial version.
    """

    config_class = QoSRoutingConfig

    def __init__(
        self,
        num_envs: int = 1,
        config: QoSRoutingConfig | None = None,
        *,
        autoreset: bool = True,
        **fields: Any,
    ) -> None:
        """Set up the experts."""
        self.config = config or QoSRoutingConfig(**fields)
        served = self.config.served
        steps = [serving_costs(e.billions, self.config.gpu, self.config.n_gpus) for e in served]
        self.costs = Costs.of(steps)
        super().__init__(num_envs, build_problem(self.config, self.costs), autoreset=autoreset)
        self.source = load_source(self.config)
        self.bank = ExpertBank(
            num_envs,
            steps,
            [self.config.kv_tokens] * len(served),
            max_running=self.config.max_running,
            queue_size=self.config.queue_size,
            items=self.config.horizon,
            chunk_tokens=self.config.chunk_tokens,
        )
        self._draws = RequestDraws.empty(num_envs, self.config)
        shape = num_envs, self.config.horizon
        self._ids_of = np.zeros(shape, dtype=np.int64)
        self._penalty, self._kv_use, self._worth = np.zeros((3, *shape))
        self._rows = np.arange(num_envs)
        self._high = np.array([c.high for c in self.problem.columns])

    def _begin(self, indices: Ints) -> None:
        self._draws.fill(indices, self.rngs, self.source, self.config)
        self.bank.reset(indices)

    def _item(self) -> Ints:
        """Return the number of the present request in each episode, ``(E,)``."""
        return np.minimum(self.elapsed, self.config.horizon - 1)

    def _now(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[self._rows, self._item()]

    def _observe(self) -> NDArray[Any]:
        shown = observe(self.config, self.costs, self.bank, self._draws, self._item())
        return np.clip(shown, 0.0, self._high)

    def instance(self, index: int) -> tuple[Floats, Floats, Floats, Floats, Floats, float]:
        """Return what is known in hindsight of the present episode of one sub-environment.

        Returns:
            Arrivals and answer tokens ``(n,)``; true scores, least busy seconds (in a full batch
            all along) and seconds to completion alone, ``(n, experts)``; the latency bound.
        """
        prompt, tokens = (
            values[index].astype(np.float64)[:, None]
            for values in (self._draws.prompt, self._draws.answer)
        )
        # the first token comes with the prefill; what decodes reads all that is cached before it
        cached = (tokens - 1) * prompt + tokens * (tokens - 1) / 2
        decode = self.costs.per_sequence_s * (tokens - 1) + self.costs.per_cached_token_s * cached
        own = self.costs.per_prompt_token_s * prompt + decode
        shared = self.costs.base_s * tokens + self.costs.prefill_s
        return (
            self._draws.arrival_s[index],
            tokens[:, 0],
            self._draws.score[index],
            own + shared / self.config.max_running,
            own + shared,
            self.config.latency_bound_s,
        )

    def action_values(self) -> Floats:
        """Return what each decision adds to the quality of service, ``(E, experts + 1)``.

        Exact if nothing else arrived: the present request's own, and what it does to those that
        run and wait beside it, with true lengths and qualities.
        """
        draws = self._draws
        added = self.bank.value_if(
            self._now(draws.arrival_s),
            self._now(draws.prompt),
            self._now(draws.answer),
            self._worth,
            self._now(draws.score),
            self.config.latency_bound_s,
        )
        return np.hstack([added, np.zeros((self.num_envs, 1))])

    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        item, draws = self._item(), self._draws
        expert = np.where(actions == self.config.experts, -1, actions)
        at_once = self.config.reward == "difference"
        added = self.action_values()[self._rows, actions] if at_once else np.zeros(self.num_envs)
        now = self._now(draws.arrival_s)
        self._ids_of[self._rows, item] = decision_ids
        self._penalty[self._rows, item] = self._harm(expert)
        self._kv_use[self._rows, item] = (self.bank.kv_used / self.config.kv_tokens).mean(axis=1)
        accepted = self.bank.assign(
            expert, item, now, self._now(draws.prompt), self._now(draws.answer)
        )
        self._worth[self._rows, item] = draws.score[self._rows, item, np.maximum(expert, 0)]
        # who found no room harms nobody
        self._penalty[self._rows, item] *= accepted
        last = item == self.config.horizon - 1
        following = draws.arrival_s[self._rows, np.minimum(item + 1, self.config.horizon - 1)]
        finished = self.bank.advance(np.where(last, np.inf, following))
        outcomes = self._outcomes(finished, np.flatnonzero(~accepted), item, actions)
        if not at_once:
            served = outcomes.metrics["qos"][: len(finished)]
            np.add.at(added, finished.env, served)
        nothing = np.zeros(self.num_envs, dtype=np.bool_)
        return StepResult(added - self._penalty[self._rows, item], outcomes, nothing)

    def _harm(self, expert: Ints) -> Floats:
        """Return the true qualities that sending the present requests puts at risk, ``(E,)``."""
        if not self.config.impact_penalty:
            return np.zeros(self.num_envs)
        draws = self._draws
        running = running_requests(self.bank, draws, self._item(), self._worth)
        risk = impact(
            self.costs,
            running,
            self._now(draws.prompt).astype(np.float64),
            self._now(draws.answer).astype(np.float64),
            self.config.latency_bound_s,
            printed=self.config.impact_rule == "printed",
        )
        return np.where(expert >= 0, risk[self._rows, np.maximum(expert, 0)], 0.0)

    def _outcomes(self, finished: Finished, dropped: Ints, item: Ints, actions: Ints) -> Outcomes:
        """Return the outcomes of requests that finished, then of those dropped just now."""
        env = np.concatenate([finished.env, dropped])
        k = np.concatenate([finished.item, item[dropped]])
        gone = np.arange(len(env)) >= len(finished)
        none = np.zeros(len(dropped))
        tokens = self._draws.answer[env, k] * ~gone
        latency = np.concatenate([(finished.finish_s - finished.arrival_s), none])
        latency = latency / np.maximum(tokens, 1)
        in_time = ~gone & (latency < self.config.latency_bound_s)
        score = self._worth[env, k] * ~gone
        penalty = self._penalty[env, k]
        metrics = {
            "qos": score * in_time,
            "latency_per_token_s": latency,
            "ttft_s": np.concatenate([finished.first_token_s - finished.arrival_s, none]),
            "score": score,
            "tokens": tokens.astype(np.float64),
            "gpu_s": np.concatenate([finished.gpu_s, none]),
            "kv_use": self._kv_use[env, k],
            "penalty": penalty,
            "dropped": gone.astype(np.float64),
            "expert": np.concatenate([finished.expert, actions[dropped]]).astype(np.float64),
        }
        nothing = np.zeros(len(env), dtype=np.bool_)
        reward = metrics["qos"] - penalty
        return Outcomes(self._ids_of[env, k], reward, in_time, nothing, metrics)

    def summarise(
        self, rewards: Floats, feasible: np.ndarray[Any, Any], metrics: dict[str, Floats]
    ) -> dict[str, float]:
        """Return quality of service, latency, drops, KV memory, efficiency, and each expert's."""
        served = metrics["dropped"] == 0
        busy = float(metrics["gpu_s"].sum())
        summary = {
            "reward": float(rewards.mean()),
            "success_rate": float(feasible.mean()),
            "qos": float(metrics["qos"].mean()),
            "drop_rate": float(1 - served.mean()),
            "kv_use": float(metrics["kv_use"].mean()),
            "qos_per_gpu_s": float(metrics["qos"].sum()) / busy if busy else 0.0,
        }
        for name in ("score", "latency_per_token_s", "ttft_s"):
            summary[name] = float(metrics[name][served].mean()) if served.any() else 0.0
        for j, expert in enumerate(self.config.served):
            own = served & (metrics["expert"] == j)
            seconds = float(metrics["gpu_s"][own].sum())
            tokens = float(metrics["tokens"][own].sum())
            summary[f"share_{expert.label}"] = float(own.mean())
            summary[f"tokens_per_gpu_s_{expert.label}"] = tokens / seconds if seconds else 0.0
        return summary


class QoSRoutingEnv(SingleEnv):
    """One router as a :class:`gymnasium.Env`; see :class:`QoSRoutingVectorEnv`."""

    def __init__(self, config: QoSRoutingConfig | None = None, **fields: Any) -> None:
        """Build a batch of one; ``fields`` are those of :class:`QoSRoutingConfig`."""
        super().__init__(QoSRoutingVectorEnv(1, config, autoreset=False, **fields))


def sweep_points(config: QoSRoutingConfig) -> list[SweepPoint]:
    """Return the arrival rates, and at the configured one the arrivals of the trace."""
    rates = [SweepPoint(f"arrival_rate={rate:g}", {"arrival_rate": rate}) for rate in RATES]
    if config.arrivals == "trace":
        return rates
    return [*rates, SweepPoint("arrivals=trace", {"arrivals": "trace"})]
