"""Users in a closed loop: each sends its next request when the last one is answered."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icl_optimizer.environments.base import Bools, Floats, Ints
from icl_optimizer.environments.batching.bank import ExpertBank, Finished
from icl_optimizer.environments.batching.costs import StepCosts
from icl_optimizer.errors import ConfigurationError

_TIMES = ("arrival_s", "first_token_s", "finish_s")


@dataclass(frozen=True)
class Load:
    """So many users, the requests that they send, and the expert that serves them.

    Attributes:
        users: How many.
        prompts: Prompt tokens of the requests in order of sending, ``(n,)``.
        answers: Answer tokens, ``(n,)``.
        costs: What an iteration of the expert costs.
        kv_tokens: Tokens that its KV memory holds.
        pause_s: From the last token to the arrival of the user's next request, seconds above 0.
    """

    users: int
    prompts: Ints
    answers: Ints
    costs: StepCosts
    kv_tokens: int
    pause_s: float


@dataclass(frozen=True)
class Served:
    """What a closed loop measures.

    Attributes:
        itl_s: Time between tokens, mean over all pairs of them, seconds.
        ttft_s: From the arrival at the expert to the first token, mean, seconds.
        tokens_per_s: Tokens of answers over the time from the first arrival to the last token.
        requests: How many were answered.
    """

    itl_s: float
    ttft_s: float
    tokens_per_s: float
    requests: int


def closed_loop(loads: Sequence[Load], seconds: float) -> list[Served]:
    """Serve every load alone, in a sub-environment of an :class:`.ExpertBank`, exactly.

    All users of a load send at time 0. A user whose answer is complete sends again after the
    pause, as long as ``seconds`` are not over; what was sent is answered.

    Args:
        loads: Served side by side; a batch holds all users of a load.
        seconds: How long users send.

    Returns:
        One result for each load.

    Raises:
        ConfigurationError: A pause is not above 0, or a load has too few requests.
    """
    pauses = np.array([load.pause_s for load in loads])
    if not (pauses > 0).all():
        raise ConfigurationError(f"pause_s is {pauses.min()}; allowed: seconds above 0.")
    experts = list(dict.fromkeys((load.costs, load.kv_tokens) for load in loads))
    serving = np.array([experts.index((load.costs, load.kv_tokens)) for load in loads])
    most = max(load.users for load in loads)
    bank = ExpertBank(
        len(loads),
        [costs for costs, _ in experts],
        [tokens for _, tokens in experts],
        max_running=most,
        queue_size=most,
        items=max(len(load.prompts) for load in loads),
    )
    arrivals = _Arrivals(loads, seconds)
    now = np.zeros(len(loads))
    finished = []
    while arrivals.left():
        # no further than the pause: who finishes by then will send only after it
        now = np.minimum(arrivals.next_s, now + pauses)
        finished.append(bank.advance(now))
        arrivals.add(finished[-1])
        sent, item, prompt, answer = arrivals.take(now)
        bank.assign(np.where(sent, serving, -1), item, now, prompt, answer)
    env, item = (np.concatenate([getattr(part, n) for part in finished]) for n in ("env", "item"))
    times = [np.concatenate([getattr(part, name) for part in finished]) for name in _TIMES]
    theirs = (env == e for e in range(len(loads)))
    return [
        _served(load.answers[item[mine]], *(time[mine] for time in times))
        for load, mine in zip(loads, theirs, strict=True)
    ]


class _Arrivals:
    """Requests that will arrive, by sub-environment.

    Attributes:
        next_s: When the next one of each arrives, inf where none is known, ``(E,)``.
    """

    def __init__(self, loads: Sequence[Load], seconds: float) -> None:
        self._loads, self._seconds = loads, seconds
        self._times = [[0.0] * load.users for load in loads]
        self._sent = [0] * len(loads)
        self._flying = 0
        self.next_s = np.zeros(len(loads))

    def left(self) -> bool:
        """Whether anyone is being answered or will send."""
        return self._flying > 0 or bool(np.isfinite(self.next_s).any())

    def add(self, finished: Finished) -> None:
        """Let those who were answered send again."""
        self._flying -= len(finished)
        for env, end in zip(finished.env.tolist(), finished.finish_s.tolist(), strict=True):
            arrival = end + self._loads[env].pause_s
            if arrival <= self._seconds:
                heapq.heappush(self._times[env], arrival)
                self.next_s[env] = self._times[env][0]

    def take(self, now: Floats) -> tuple[Bools, Ints, Ints, Ints]:
        """Return who sends now, and the number, prompt and answer of the request, ``(E,)``."""
        sent = self.next_s <= now
        request = np.ones((3, len(now)), dtype=np.int64)
        for e in np.flatnonzero(sent).tolist():
            load, item = self._loads[e], self._sent[e]
            if item == len(load.prompts):
                raise ConfigurationError(
                    f"the load of {load.users} users has {item} requests; allowed: enough for "
                    f"{self._seconds:g} s."
                )
            request[:, e] = item, load.prompts[item], load.answers[item]
            self._sent[e] += 1
            self._flying += 1
            heapq.heappop(self._times[e])
            self.next_s[e] = self._times[e][0] if self._times[e] else np.inf
        return sent, request[0], request[1], request[2]


def _served(answers: Ints, arrival: Floats, first: Floats, finish: Floats) -> Served:
    """Return the means of one load."""
    return Served(
        itl_s=float((finish - first).sum() / (answers - 1).sum()),
        ttft_s=float((first - arrival).mean()),
        tokens_per_s=float(answers.sum() / finish.max()),
        requests=len(answers),
    )
