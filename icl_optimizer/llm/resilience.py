"""Models that fail now and then: retries, and a circuit breaker for those that stay away."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from icl_optimizer.errors import ModelError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.conversation import as_prompt
from icl_optimizer.llm.errors import PartialError
from icl_optimizer.llm.wrapper import ModelWrapper

T = TypeVar("T")


class RetryPolicy(BaseModel):
    """When to ask again, and how long to wait before.

    The wait is drawn evenly from zero to a bound that doubles with every failure ("full jitter",
    Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015), so that clients that
    failed together do not come back together. A server's ``Retry-After`` is a lower bound of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: int = Field(4, ge=1, le=20, description="Times that a request is sent at most.")
    base: float = Field(0.5, ge=0, le=60, description="Bound of the first wait, in seconds.")
    cap: float = Field(20.0, ge=0, le=600, description="Largest bound of a wait, in seconds.")
    max_wait: float = Field(
        60.0, ge=0, le=3600, description="Longest Retry-After to wait for; above it: give up."
    )

    def wait(self, failed: int, error: ModelError, rng: random.Random) -> float | None:
        """Return the seconds to wait before the next attempt, None to give up.

        Args:
            failed: Attempts that failed so far, at least 1.
            error: What the last one met.
            rng: Source of the jitter.
        """
        if not error.retryable or failed >= self.attempts:
            return None
        backoff = rng.uniform(0.0, min(self.cap, self.base * 2 ** (failed - 1)))
        if error.retry_after is None:
            return backoff
        return max(error.retry_after, backoff) if error.retry_after <= self.max_wait else None


class BreakerPolicy(BaseModel):
    """When to stop asking a model that keeps failing, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    failures: int = Field(
        5, ge=1, le=1000, description="Requests in a row that fail, retries and all, to open."
    )
    cool_down: float = Field(
        30.0, ge=0, le=3600, description="Seconds without requests before one is tried."
    )


class CircuitBreaker:
    """Lets requests through (closed), refuses them (open), or tries one (half-open).

    Only failures that show an unreachable or overloaded server count. Safe from several threads.

    Args:
        policy: When it opens, and for how long.
        clock: Seconds that only grow.
    """

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin closed."""
        self.policy = policy
        self._clock = clock
        self._failed = 0
        self._opened: float | None = None
        self._trying = False
        self._lock = threading.Lock()

    @contextmanager
    def request(self, name: str, *, proof: bool = True) -> Iterator[bool]:
        """Guard one request; yields whether it is the trial after a cool-down.

        Args:
            name: The model, for the message.
            proof: Whether success shows that the server answers.

        Raises:
            ModelError: Of kind ``open``, before the block runs.
        """
        trial = self._admit(name)
        try:
            yield trial
        except ModelError as error:
            self._settle(failed=error.retryable)
            raise
        else:
            if proof:
                self._settle(failed=False)
        finally:
            if trial:
                self._trying = False

    def _admit(self, name: str) -> bool:
        with self._lock:
            if self._opened is None:
                return False
            left = self._opened + self.policy.cool_down - self._clock()
            if left <= 0 and not self._trying:
                self._trying = True
                return True
        wait = f"in {left:.0f} s" if left > 0 else "under way"
        raise ModelError(
            f"'{name}' was not asked: its last {self.policy.failures} requests failed or more; "
            f"the next try is {wait}.",
            kind="open",
        )

    def _settle(self, *, failed: bool) -> None:
        with self._lock:
            self._failed = self._failed + 1 if failed else 0
            is_open = self._failed >= self.policy.failures
            self._opened = self._clock() if is_open else None


class ResilientModel(ModelWrapper):
    """Asks again what failed for a reason that may pass, and leaves a dead server alone.

    A batch that fails is asked prompt by prompt, so that one bad answer does not cost the others
    theirs; results stay in order. Refused keys, bad requests and unusable answers are never asked
    again. Safe from several threads.

    Args:
        inner: The model that answers.
        retry: When to ask again.
        breaker: When to stop asking.
        clock: Seconds that only grow.
        sleep: Waits for some seconds.
        rng: Source of the jitter.
    """

    def __init__(
        self,
        inner: LanguageModel,
        retry: RetryPolicy | None = None,
        breaker: BreakerPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """Wrap ``inner``; nothing is sent."""
        super().__init__(inner)
        self.retry = retry or RetryPolicy()
        self._breaker = CircuitBreaker(breaker or BreakerPolicy(), clock)
        self._sleep = sleep
        self._rng = rng or random.Random()

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads for ``text``."""
        return self._tokens(lambda: self.inner.count_tokens(text))

    def apply_template(self, messages: Sequence[Message]) -> str:
        """Return the messages as a prompt that the model's next reply continues."""
        return self._tokens(lambda: as_prompt(self.inner, messages))

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return self._tokens(lambda: self.inner._first_tokens(prompt, labels))

    def _probe(self) -> Capabilities:
        return self._each(1, lambda part: [self.inner.capabilities])[0]

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        def ask(part: slice) -> list[NDArray[np.float64]]:
            return list(self.inner.score(prompts[part], labels))

        return np.array(self._each(len(prompts), ask))

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        def ask(part: slice) -> list[float]:
            return [float(value) for value in self.inner.likelihood(prompts[part], texts[part])]

        return self._each(len(prompts), ask)

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        return self._each(
            len(prompts),
            lambda part: self.inner.generate(prompts[part], max_tokens, choices, stop),
        )

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        return self._each(1, lambda part: [self.inner.chat(messages, max_tokens)])[0]

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        def ask(part: slice) -> list[NDArray[np.float64]]:
            return list(self.inner.embed(texts[part]))

        return np.array(self._each(len(texts), ask))

    def _each(self, size: int, ask: Callable[[slice], Sequence[T]]) -> list[T]:
        """Return the answers to ``size`` prompts, asking for parts of them."""
        answers: list[T] = []
        if not size:
            return answers
        try:
            with self._breaker.request(self.name) as trial:
                if trial:
                    with _keeping(answers, size):
                        answers.extend(ask(slice(0, 1)))
                self._rest(answers, size, ask)
        except ModelError:
            self.usage.add(failures=size - len(answers))
            raise
        return answers

    def _rest(
        self,
        answers: list[T],
        size: int,
        ask: Callable[[slice], Sequence[T]],
    ) -> None:
        """Append the answers that are missing: all at once, else one by one."""
        first = len(answers)
        error: ModelError | None = None
        if size - first > 1:
            try:
                answers.extend(ask(slice(first, size)))
                return
            except ModelError as failure:
                if not failure.retryable:
                    raise
                error = failure
        for index in range(first, size):
            one = partial(ask, slice(index, index + 1))
            if error is not None and index > first:
                self.usage.add(retries=1)
            with _keeping(answers, size):
                answers.extend(self._again(one, error if index == first else None))

    def _again(self, ask: Callable[[], T], error: ModelError | None = None) -> T:
        """Ask until there is an answer or no hope; ``error`` ended the first attempt."""
        failed = 0
        while True:
            if error is not None:
                failed += 1
                wait = self.retry.wait(failed, error, self._rng)
                if wait is None:
                    raise error
                self._sleep(wait)
                self.usage.add(retries=1)
            try:
                return ask()
            except ModelError as failure:
                error = failure

    def _tokens(self, ask: Callable[[], T]) -> T:
        """Ask for tokens; many models find them without their server, so success proves nothing."""
        try:
            with self._breaker.request(self.name, proof=False) as trial:
                return ask() if trial else self._again(ask)
        except ModelError:
            self.usage.add(failures=1)
            raise


@contextmanager
def _keeping(answers: Sequence[object], size: int) -> Iterator[None]:
    """Let the failure of one of ``size`` prompts tell what those before it were answered."""
    try:
        yield
    except ModelError as failure:
        if size == 1:
            raise
        told = PartialError(str(failure), failure.kind, failure.retry_after, answers)
    else:
        return
    raise told


__all__ = ["BreakerPolicy", "CircuitBreaker", "ResilientModel", "RetryPolicy"]
