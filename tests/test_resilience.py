"""Retries and the circuit breaker: what is asked again, when, and when nobody is asked."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_models import LABELS, Clock, Flaky, Plan, probabilities, server_error

from icl_optimizer.errors import RETRYABLE, BudgetError, ModelError
from icl_optimizer.llm import Capabilities, FunctionLLM, PromptTooLongError
from icl_optimizer.llm.chain import ModelChain
from icl_optimizer.llm.conversation import as_prompt
from icl_optimizer.llm.resilience import BreakerPolicy, CircuitBreaker, ResilientModel, RetryPolicy

ONE_ATTEMPT = RetryPolicy(attempts=1)


def resilient(
    plan: Plan = (), retry: RetryPolicy | None = None, breaker: BreakerPolicy | None = None
) -> tuple[ResilientModel, Flaky, Clock]:
    inner, clock = Flaky(plan), Clock()
    model = ResilientModel(
        inner, retry, breaker, clock=clock, sleep=clock.sleep, rng=random.Random(0)
    )
    return model, inner, clock


@pytest.mark.parametrize("kind", RETRYABLE)
def test_what_may_pass_is_asked_again(kind: Any) -> None:
    model, inner, clock = resilient([ModelError("no", kind), ModelError("no", kind)])
    scores = model.score(["small talk"], LABELS)
    np.testing.assert_allclose(np.exp(scores), [[0.75, 0.25]])
    assert len(inner.sent) == 3
    assert 0 <= clock.waits[0] <= 0.5
    assert 0 <= clock.waits[1] <= 1.0
    assert (model.usage.calls, model.usage.retries, model.usage.failures) == (1, 2, 0)


@pytest.mark.parametrize("kind", ["key", "request", "answer"])
def test_what_will_not_pass_is_not_asked_again(kind: Any) -> None:
    model, inner, clock = resilient([ModelError("no", kind)])
    with pytest.raises(ModelError, match=r"^no$") as caught:
        model.generate(["first", "second"])
    assert caught.value.kind == kind
    assert (len(inner.sent), clock.waits) == (1, [])
    assert (model.usage.retries, model.usage.failures) == (0, 2)


@pytest.mark.parametrize("error", [PromptTooLongError(300, 256), BudgetError("used up")])
def test_other_errors_pass_untouched(error: Exception) -> None:
    model, inner, _ = resilient(repeat(error), breaker=BreakerPolicy(failures=1))
    for _ in range(3):
        with pytest.raises(type(error)):
            model.generate(["first"])
    assert len(inner.sent) == 3
    assert model.usage.failures == 0


def test_it_gives_up_after_the_last_attempt() -> None:
    model, inner, clock = resilient(repeat(server_error()), RetryPolicy(attempts=3))
    with pytest.raises(ModelError, match="the server said 500"):
        model.chat([{"role": "user", "content": "hello"}])
    assert (len(inner.sent), len(clock.waits)) == (3, 2)
    assert (model.usage.calls, model.usage.retries, model.usage.failures) == (0, 2, 1)


def test_a_server_is_given_the_time_it_asks_for() -> None:
    model, _, clock = resilient([server_error(retry_after=7.0)])
    model.generate(["first"])
    assert clock.waits == [7.0]
    model, inner, clock = resilient([server_error(retry_after=61.0)])
    with pytest.raises(ModelError):
        model.generate(["first"])
    assert (len(inner.sent), clock.waits) == (1, [])


@given(
    failed=st.integers(1, 30),
    retry_after=st.none() | st.floats(allow_nan=True, allow_infinity=True),
    base=st.floats(0, 60),
    cap=st.floats(0, 600),
    max_wait=st.floats(0, 3600),
    seed=st.integers(0, 100),
)
def test_waits_keep_to_their_bounds(
    failed: int,
    retry_after: float | None,
    base: float,
    cap: float,
    max_wait: float,
    seed: int,
) -> None:
    policy = RetryPolicy(attempts=20, base=base, cap=cap, max_wait=max_wait)
    wait = policy.wait(failed, server_error(retry_after), random.Random(seed))
    if failed >= 20:
        assert wait is None
    elif retry_after is None:
        assert wait is not None
        assert 0 <= wait <= min(cap, base * 2 ** (failed - 1))
    elif retry_after <= max_wait:
        assert wait is not None
        assert max(0.0, retry_after) <= wait <= max(retry_after, cap)
    else:
        assert wait is None


def test_the_bound_of_waits_doubles_up_to_the_cap() -> None:
    policy = RetryPolicy(attempts=10, base=1.0, cap=4.0)
    rng = random.Random(0)
    longest = [
        max(policy.wait(failed, server_error(), rng) or 0.0 for _ in range(500))
        for failed in range(1, 6)
    ]
    np.testing.assert_allclose(longest, [1, 2, 4, 4, 4], rtol=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RetryPolicy(attempts=0),
        lambda: RetryPolicy(base=-1),
        lambda: RetryPolicy(tries=3),
        lambda: BreakerPolicy(failures=0),
    ],
)
def test_policies_are_checked(make: Callable[[], Any]) -> None:
    with pytest.raises(ValidationError):
        make()


def test_a_batch_that_fails_is_asked_prompt_by_prompt() -> None:
    plan = [server_error(), None, server_error(), server_error(), None, None]
    model, inner, clock = resilient(plan)
    prompts = ["small talk", "coding", "talk show"]
    np.testing.assert_array_equal(
        model.score(prompts, LABELS), FunctionLLM(probabilities).score(prompts, LABELS)
    )
    assert inner.sent == [prompts, prompts[:1], *[prompts[1:2]] * 3, prompts[2:]]
    assert len(clock.waits) == 3
    assert (model.usage.calls, model.usage.retries, model.usage.failures) == (3, 5, 0)


def test_a_prompt_that_fails_for_good_ends_its_batch() -> None:
    plan = [server_error(), None, *repeat(server_error(), 4)]
    model, inner, _ = resilient(plan)
    with pytest.raises(ModelError):
        model.generate(["a", "b", "c"])
    assert inner.sent == [["a", "b", "c"], ["a"], *[["b"]] * 4]
    assert model.usage.failures == 2


def ask_everything(model: Any) -> dict[str, Any]:
    return {
        "score": model.score(["small talk", "coding"], LABELS).tolist(),
        "likelihood": model.likelihood(["a", "b"], [" local", " offload"]).tolist(),
        "generate": model.generate(["small talk", "coding"], choices=["local", "offload"]),
        "nothing": model.generate([]),
        "chat": model.chat([{"role": "user", "content": "talk"}]),
        "embed": model.embed(["a", "bcd"]).round(12).tolist(),
        "tokens": model.count_tokens("one two"),
        "first": model._first_tokens("", LABELS),
        "template": as_prompt(model, [{"role": "user", "content": "talk"}]),
    }


def test_every_method_recovers() -> None:
    expected = ask_everything(Flaky().forget())
    once_each = [failure for _ in range(20) for failure in (server_error(), None)]
    model, inner, _ = resilient(once_each)
    inner.forget()
    assert ask_everything(model) == expected
    assert inner.probed == 2
    assert model.usage.failures == 0


def test_a_failing_probe_is_counted_and_asked_again_later() -> None:
    model, inner, _ = resilient(repeat(server_error(), 4))
    inner.forget()
    with pytest.raises(ModelError):
        model.score(["coding"], LABELS)
    assert (inner.probed, model.usage.failures) == (4, 1)
    assert model.capabilities.logprobs


def broken(cool_down: float = 30.0) -> tuple[ResilientModel, Flaky, Clock]:
    """Return a model whose breaker has just opened."""
    model, inner, clock = resilient(
        repeat(server_error(), 3), ONE_ATTEMPT, BreakerPolicy(failures=3, cool_down=cool_down)
    )
    for _ in range(3):
        with pytest.raises(ModelError, match="500"):
            model.generate(["first"])
    return model, inner, clock


def test_the_breaker_opens_tries_once_and_closes() -> None:
    model, inner, clock = broken()
    for _ in range(2):
        with pytest.raises(ModelError, match=r"'function' was not asked.*next try is in 30 s") as e:
            model.generate(["first", "second"])
        assert e.value.kind == "open"
    assert len(inner.sent) == 3
    assert model.usage.failures == 3 + 4
    clock.now += 30
    assert model.generate(["talk", "coding", "more"]) == ["local", "offload", "offload"]
    assert inner.sent[3:] == [["talk"], ["coding", "more"]]  # one prompt is the trial
    assert model.generate(["talk", "coding"]) == ["local", "offload"]


def test_a_failed_trial_opens_the_breaker_again() -> None:
    model, inner, clock = broken()
    inner.plan = iter([server_error()])
    clock.now += 31
    with pytest.raises(ModelError, match="500"):
        model.generate(["first", "second"])
    assert inner.sent[3:] == [["first"]]  # a single attempt
    clock.now += 29
    with pytest.raises(ModelError, match="in 1 s"):
        model.generate(["first"])
    clock.now += 1
    assert model.generate(["talk"]) == ["local"]


def test_only_failures_in_a_row_and_of_the_server_count() -> None:
    bad = ModelError("off label", "answer")
    plan = [server_error(), server_error(), bad, server_error(), server_error(), None] * 3
    model, inner, _ = resilient(plan, ONE_ATTEMPT, BreakerPolicy(failures=3))
    for failure in plan:
        if failure is None:
            model.generate(["first"])
        else:
            with pytest.raises(ModelError, match=str(failure)):
                model.generate(["first"])
    assert len(inner.sent) == len(plan)


def test_a_trial_that_shows_nothing_leaves_room_for_the_next() -> None:
    breaker = CircuitBreaker(BreakerPolicy(failures=1, cool_down=0))
    with pytest.raises(ModelError), breaker.request("m"):
        raise server_error()
    with pytest.raises(KeyboardInterrupt), breaker.request("m"):
        raise KeyboardInterrupt
    with breaker.request("m") as trial:
        assert trial
        with pytest.raises(ModelError, match="under way"), breaker.request("m"):
            pass
    with breaker.request("m") as trial:
        assert not trial


def test_tokens_obey_the_breaker_and_do_not_close_it() -> None:
    model, inner, clock = broken()
    with pytest.raises(ModelError, match="was not asked"):
        model.count_tokens("one two")
    clock.now += 30
    assert model.count_tokens("one two") == 2
    inner.plan = iter([server_error()])
    with pytest.raises(ModelError, match="500"):
        model.generate(["first"])
    with pytest.raises(ModelError, match="was not asked"):
        model.count_tokens("one two")


def test_threads_share_the_counts() -> None:
    model, inner, _ = resilient(function_failures(40), RetryPolicy(base=0))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: model.generate([f"talk {i}"]), range(80)))
    assert answers == [["local"]] * 80
    assert (model.usage.calls, model.usage.retries) == (80, 40)
    assert len(inner.sent) == 120


def function_failures(number: int) -> Iterator[Exception | None]:
    """Fail every other request, safe from several threads."""
    return _Locked(failure for _ in range(number) for failure in (server_error(), None))


class _Locked(Iterator[Exception | None]):
    def __init__(self, values: Iterator[Exception | None]) -> None:
        self.values, self.lock = values, threading.Lock()

    def __next__(self) -> Exception | None:
        with self.lock:
            return next(self.values)


class Embeds(Flaky):
    """Vectors of a length of its own."""

    def __init__(self, length: int, plan: Plan = ()) -> None:
        super().__init__(plan)
        self._capabilities = Capabilities(True, True)
        self.length = length

    def _embed(self, texts: list[str]) -> Any:
        self.meet(texts)
        return np.ones((len(texts), self.length))


def test_a_chain_does_not_mix_vectors_of_two_models() -> None:
    gone = ModelError("gone", "connection")
    chain = ModelChain([Embeds(4, [None, gone]), Embeds(8)])
    assert chain.embed(["a"]).shape == (1, 4)
    with pytest.raises(ModelError, match="gone"):
        chain.embed(["b"])
    assert chain.embed(["c"]).shape == (1, 4)
    # the second one stands in from the start, and stays when the first is back
    chain = ModelChain([Embeds(4, [gone]), Embeds(8)])
    assert [chain.embed([text]).shape[1] for text in "abc"] == [8, 8, 8]
    chain.begin_recording("another unit")
    assert chain.embed(["a"]).shape == (1, 4)
