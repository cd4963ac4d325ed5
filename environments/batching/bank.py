"""A bank of continuously batching experts in many sub-environments at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.environments.base import Bools, Floats, Ints
from icl_optimizer.environments.batching.checks import (
    arrays,
    check_bound,
    check_experts,
    check_times,
    refusal,
)
from icl_optimizer.environments.batching.costs import StepCosts
from icl_optimizer.environments.batching.records import EXPERT, REQUEST

WHOLE = int(np.iinfo(np.int64).max)
"""Prompt tokens in an iteration where there is no limit."""


@dataclass(frozen=True)
class Finished:
    """Requests that left the experts, in order of sub-environment and finish; each ``(n,)``.

    Attributes:
        env: Sub-environment.
        item: Number of the request in its episode.
        expert: Where it was served.
        arrival_s: Arrival, seconds.
        first_token_s: End of the iteration that completed its prefill, seconds.
        finish_s: End of the iteration that gave its last token, seconds.
        gpu_s: Its share of the busy time, seconds.
    """

    env: Ints
    item: Ints
    expert: Ints
    arrival_s: Floats
    first_token_s: Floats
    finish_s: Floats
    gpu_s: Floats

    def __len__(self) -> int:
        """Return how many finished."""
        return len(self.env)


class ExpertBank:
    """``N`` language models that batch continuously (iteration by iteration), ``E`` times over.

    An iteration starts as soon as the last one ended and there is work. At its start, waiting
    requests are admitted first come, first served, while fewer than ``max_running`` run and the KV
    memory holds prompt and answer of the next one whole; so memory is never exceeded and nothing
    is evicted. Admitted requests are prefilled in the same iteration in which the others decode:
    whole, or at most ``chunk_tokens`` of all prompts together, first come, first served. The
    iteration that completes a prefill gives the first token, every later one another, and the
    request leaves with its last. Who arrives during an iteration waits for its end.

    Iterations in which nothing but decoding happens are jumped in closed form, so the work goes
    with the requests, not with their tokens; one compiled loop does it for all sub-environments.

    Args:
        num_envs: Number of sub-environments ``E``.
        costs: What an iteration of each expert costs, ``N`` of them.
        kv_tokens: Tokens that the KV memory of each holds, ``(N,)``.
        max_running: Most requests in a batch.
        queue_size: Most requests waiting at each expert.
        items: Most requests in an episode, ``K``.
        chunk_tokens: Most prompt tokens prefilled in one iteration; None for whole prompts.

    Attributes:
        running_items: Numbers of the running requests, -1 where none, in order of admission,
            ``(E, N, max_running)``. Who was admitted to the iteration under way runs.
        waiting_items: Those of the waiting ones, in order of arrival, ``(E, N, queue_size)``.

    Raises:
        ConfigurationError: An argument is out of range; the message names it.

    References:
        Yu et al., Orca: A Distributed Serving System for Transformer-Based Generative Models,
        OSDI 2022 (scheduling by iterations); Agrawal et al., Taming Throughput-Latency Tradeoff in
        LLM Inference with Sarathi-Serve, OSDI 2024 (prefill in chunks).
    """

    def __init__(
        self,
        num_envs: int,
        costs: Sequence[StepCosts],
        kv_tokens: Sequence[int] | Ints,
        *,
        max_running: int,
        queue_size: int,
        items: int,
        chunk_tokens: int | None = None,
    ) -> None:
        """Set up idle experts."""
        sizes = {"max_running": max_running, "queue_size": queue_size, "items": items}
        check_experts(len(costs), kv_tokens, chunk_tokens, num_envs=num_envs, **sizes)
        self.costs, self.kv_tokens = tuple(costs), np.array(kv_tokens, dtype=np.int64)
        self._costs = np.array([astuple(cost) for cost in costs], dtype=np.float64)
        self._limits = np.array([max_running, WHOLE if chunk_tokens is None else chunk_tokens])
        shape = (num_envs, len(costs))
        self.running_items = np.full((*shape, max_running), -1, dtype=np.int64)
        self.waiting_items = np.full((*shape, queue_size), -1, dtype=np.int64)
        self._expert = np.zeros(shape, dtype=EXPERT)
        # one more than can be sent: who is only imagined to come
        self._request = np.zeros((num_envs, items + 1), dtype=REQUEST)
        self._clock = np.zeros(num_envs)
        flying = min(items, len(costs) * (max_running + queue_size))
        self._out = np.zeros((3, num_envs * flying), dtype=np.int64)
        self._out_s = np.zeros((4, num_envs * flying))

    def reset(self, indices: Ints) -> None:
        """Empty the experts of the sub-environments ``indices``; what was in flight is gone."""
        array: NDArray[Any]
        for array in (self._expert, self._request, self._clock):
            array[indices] = 0
        for array in (self.running_items, self.waiting_items):
            array[indices] = -1

    def assign(self, expert: Ints, item: Ints, now: Floats, prompt: Ints, answer: Ints) -> Bools:
        """Give one request per sub-environment to an expert, after :meth:`advance` to its arrival.

        Args:
            expert: Which expert, -1 for none, ``(E,)``.
            item: Number of the request in its episode, ``(E,)``.
            now: Arrival, seconds, ``(E,)``.
            prompt: Prompt tokens, ``(E,)``.
            answer: Tokens it will generate, ``(E,)``.

        Returns:
            Which were accepted, ``(E,)``. The others were sent nowhere, found the queue full, or
            need more KV memory than the expert has; they are gone.

        Raises:
            ConfigurationError: An expert or item that does not exist, an item accepted before, a
                length below 1, or a time that is not finite, runs backwards, or lies beyond an
                iteration's end that :meth:`advance` has not seen. Nothing was assigned.
        """
        from icl_optimizer.environments.batching import kernels

        expert, item, prompt, answer = arrays(
            self._clock.shape, np.int64, expert=expert, item=item, prompt=prompt, answer=answer
        )
        (now,) = arrays(self._clock.shape, np.float64, now=now)
        e = kernels.first_refused(
            expert, item, now, prompt, answer, self._expert, self._request, self._clock
        )
        if e >= 0:
            raise self._refusal(e, expert=expert, item=item, prompt=prompt, answer=answer, now=now)
        accepted = np.empty(len(now), dtype=np.bool_)
        kernels.assign(
            expert,
            item,
            now,
            prompt,
            answer,
            self._expert,
            self.waiting_items,
            self._request,
            self.kv_tokens,
            self._clock,
            accepted,
        )
        return accepted

    def advance(self, until: Floats) -> Finished:
        """Let time pass to ``until`` ``(E,)``, seconds, ``inf`` to the end; return who left.

        An iteration that would start at ``until`` itself does not start yet, since another request
        may arrive then.

        Raises:
            ConfigurationError: A time is not a number. Nothing has passed.
        """
        from icl_optimizer.environments.batching import kernels

        (until,) = arrays(self._clock.shape, np.float64, until=until)
        check_times(until)
        count = kernels.advance(
            until,
            self._expert,
            self.running_items,
            self.waiting_items,
            self._request,
            self._costs,
            self.kv_tokens,
            self._limits,
            self._clock,
            self._out,
            self._out_s,
        )
        numbers, times = self._out[:, :count], self._out_s[:, :count]
        order = np.lexsort((times[2], numbers[0]))
        return Finished(*numbers[:, order], *times[:, order])

    def value_if(
        self,
        now: Floats,
        prompt: Ints,
        answer: Ints,
        worth: Floats,
        own_worth: Floats,
        bound_s: float,
    ) -> Floats:
        """Return what a request would change at each expert if nothing else ever came, ``(E, N)``.

        The value of an expert is the sum, over its requests, of their worth if their latency per
        token, ``(finish - arrival) / answer``, stays below the bound. A copy of each expert runs
        to the end twice, with the request and without.

        Args:
            now: Arrival, seconds, after :meth:`advance` to it, ``(E,)``.
            prompt: Prompt tokens of the request, ``(E,)``.
            answer: Tokens it would generate, ``(E,)``.
            worth: Worth of every request of the episode, ``(E, K)``.
            own_worth: Worth of this one at each expert, ``(E, N)``.
            bound_s: Bound on the latency per token, seconds.

        Returns:
            The value with the request less that without; 0 where it would not be accepted.

        Raises:
            ConfigurationError: As in :meth:`assign`.
        """
        from icl_optimizer.environments.batching import kernels

        envs, experts = self._expert.shape
        prompt, answer = arrays((envs,), np.int64, prompt=prompt, answer=answer)
        (now,) = arrays((envs,), np.float64, now=now)
        (worth,) = arrays((envs, self._request.shape[1] - 1), np.float64, worth=worth)
        (own_worth,) = arrays((envs, experts), np.float64, own_worth=own_worth)
        check_bound(bound_s)
        e = kernels.first_early(now, prompt, answer, self._expert, self._clock)
        if e >= 0:
            raise self._refusal(e, prompt=prompt, answer=answer, now=now)
        value = np.empty((envs, experts))
        kernels.value_if(
            now,
            prompt,
            answer,
            worth,
            own_worth,
            float(bound_s),
            self._expert,
            self.running_items,
            self.waiting_items,
            self._request,
            self._costs,
            self.kv_tokens,
            self._limits,
            value,
        )
        return value

    @property
    def running(self) -> Ints:
        """Requests in each batch, those still being prefilled included, ``(E, N)``."""
        return np.array(self._expert["running"])

    @property
    def waiting(self) -> Ints:
        """Requests waiting for admission, ``(E, N)``."""
        return np.array(self._expert["waiting"])

    @property
    def kv_used(self) -> Ints:
        """Tokens of KV memory that are reserved, ``(E, N)``."""
        return np.array(self._expert["kv"])

    @property
    def busy_s(self) -> Floats:
        """Length of all iterations that have ended, seconds, ``(E, N)``."""
        return np.array(self._expert["busy"])

    @property
    def generated(self) -> Ints:
        """Tokens that each accepted request has so far, 0 for others, ``(E, K)``; not a copy."""
        return np.asarray(self._request["generated"][:, :-1])

    def _refusal(self, e: int, **request: NDArray[Any]) -> Exception:
        values = {name: value[e] for name, value in request.items()}
        return refusal(e, values, self._expert[e], self._request[e], self._clock[e])
