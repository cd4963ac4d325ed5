"""The same experts as a plain loop in Python, one sub-environment, iteration by iteration.

It shares nothing with the compiled loops but the costs: the tests hold the bank against it, and
the benchmark measures how much faster the bank is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from icl_optimizer.environments.batching.costs import StepCosts


@dataclass(slots=True, eq=False)
class PlainRequest:
    """One request and what became of it; times in seconds, lengths in tokens.

    Attributes:
        expert: Where it is sent.
        arrival_s: When.
        prompt: Prompt tokens.
        answer: Tokens it generates.
        prefilled: Prompt tokens prefilled so far.
        generated: Tokens generated so far.
        first_token_s: End of the iteration that completed its prefill; None before.
        finish_s: End of its last iteration; None before.
        gpu_s: Its share of the iterations it took part in.
        accepted: Whether its expert took it.
    """

    expert: int
    arrival_s: float
    prompt: int
    answer: int
    prefilled: int = 0
    generated: int = 0
    first_token_s: float | None = None
    finish_s: float | None = None
    gpu_s: float = 0.0
    accepted: bool = False


@dataclass(slots=True, eq=False)
class Iteration:
    """One iteration: who decodes, and who is prefilled by how many tokens."""

    start_s: float
    end_s: float
    decoding: list[PlainRequest]
    prefilling: list[tuple[PlainRequest, int]]


@dataclass(slots=True, eq=False)
class PlainExpert:
    """One expert; see :class:`.ExpertBank` for what it does and for the arguments.

    Attributes:
        running: The batch, in order of admission.
        waiting: The queue.
        iteration: The one under way, None when idle.
        busy_s: Length of all iterations that have ended.
    """

    costs: StepCosts
    kv_tokens: int
    max_running: int
    queue_size: int
    chunk_tokens: int | None = None
    watch: Callable[[PlainExpert, Iteration], None] | None = None
    running: list[PlainRequest] = field(default_factory=list)
    waiting: deque[PlainRequest] = field(default_factory=deque)
    iteration: Iteration | None = None
    kv_used: int = 0
    busy_s: float = 0.0
    time_s: float = 0.0

    def submit(self, request: PlainRequest) -> None:
        """Queue ``request`` if there is room, after :meth:`advance` to its arrival."""
        fits = request.prompt + request.answer <= self.kv_tokens
        request.accepted = fits and len(self.waiting) < self.queue_size
        if request.accepted:
            self.time_s = max(self.time_s, request.arrival_s)
            self.waiting.append(request)

    def advance(self, until_s: float) -> None:
        """End every iteration that ends by ``until_s`` and start those that start before it."""
        while True:
            if self.iteration is not None:
                if self.iteration.end_s > until_s:
                    return
                self._end(self.iteration)
            if not (self.waiting or self.running) or self.time_s >= until_s:
                return
            self._start()

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            need = self.waiting[0].prompt + self.waiting[0].answer
            if self.kv_used + need > self.kv_tokens:
                break
            self.kv_used += need
            self.running.append(self.waiting.popleft())
        decoding, prefilling, prompt = [], [], 0
        for request in self.running:
            left = request.prompt - request.prefilled
            if left == 0:
                decoding.append(request)
                continue
            tokens = left if self.chunk_tokens is None else min(left, self.chunk_tokens - prompt)
            if tokens > 0:
                prefilling.append((request, tokens))
                prompt += tokens
        cached = sum(request.prompt + request.generated for request in decoding)
        end_s = self.time_s + self.costs.seconds(len(decoding), cached, prompt)
        self.iteration = Iteration(self.time_s, end_s, decoding, prefilling)

    def _end(self, iteration: Iteration) -> None:
        span = iteration.end_s - iteration.start_s
        share = span / (len(iteration.decoding) + len(iteration.prefilling))
        self.time_s, self.iteration = iteration.end_s, None
        self.busy_s += span
        if self.watch is not None:
            self.watch(self, iteration)
        for request, tokens in iteration.prefilling:
            request.gpu_s += share
            request.prefilled += tokens
            if request.prefilled == request.prompt:
                request.generated, request.first_token_s = 1, self.time_s
        for request in iteration.decoding:
            request.gpu_s += share
            request.generated += 1
        for request in [r for r in self.running if r.generated == r.answer]:
            request.finish_s = self.time_s
            self.running.remove(request)
            self.kv_used -= request.prompt + request.answer


def run_plain(experts: list[PlainExpert], requests: Iterable[PlainRequest]) -> None:
    """Send every request, in order of arrival, to its expert, and let all finish.

    Args:
        experts: The experts, idle.
        requests: The requests; what became of them is written into them.
    """
    for request in requests:
        for expert in experts:
            expert.advance(request.arrival_s)
        experts[request.expert].submit(request)
    for expert in experts:
        expert.advance(float("inf"))
