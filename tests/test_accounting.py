"""Latencies, prices, budgets, and how they are put around a model."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Asked, Reply, chat_reply, llama_reply, serve
from pydantic import ValidationError
from tiny_models import LABELS, Flaky, Untouchable, probabilities, server_error

from icl_optimizer.errors import BudgetError, ConfigurationError, ModelError
from icl_optimizer.llm import FunctionLLM, Usage
from icl_optimizer.llm.budget import Budget, BudgetedModel
from icl_optimizer.llm.chain import ModelChain
from icl_optimizer.llm.guard import GuardOptions, guard
from icl_optimizer.llm.opening import open_llm
from icl_optimizer.llm.prices import Price, Prices
from icl_optimizer.llm.resilience import BreakerPolicy, ResilientModel, RetryPolicy
from icl_optimizer.llm.response_cache import CachedModel
from icl_optimizer.llm.wrapper import unwrapped

DURATIONS = st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=200)


@given(DURATIONS, st.sampled_from([1, 50, 95, 100]))
def test_percentiles_of_latencies_are_right_to_one_percent(
    durations: list[float], percent: int
) -> None:
    usage = Usage()
    for seconds in durations:
        usage.time(seconds, 1)
    exact = np.percentile(durations, percent, method="inverted_cdf") * 1000
    assert usage.latency_ms(percent) == pytest.approx(exact, rel=0.01)
    assert usage.seconds == pytest.approx(sum(durations))


@given(DURATIONS, DURATIONS)
def test_latencies_of_snapshots_subtract_and_add(first: list[float], second: list[float]) -> None:
    usage, alone = Usage(), Usage()
    for seconds in first:
        usage.time(seconds, 1)
    before = usage.snapshot()
    for seconds in second:
        usage.time(seconds, 1)
        alone.time(seconds, 1)
    rest = usage - before
    whole = before + rest
    for percent in (10, 50, 95):
        assert rest.latency_ms(percent) == alone.latency_ms(percent)
        assert whole.latency_ms(percent) == usage.latency_ms(percent)
    assert before.latency_ms(100) == pytest.approx(1000 * max(first), rel=0.01)


def test_latencies_need_bounded_memory_and_may_be_missing() -> None:
    usage = Usage()
    assert usage.latency_ms(50) is None
    usage.time(3.0, 0)
    assert (usage.latency_ms(50), usage.seconds) == (None, 3.0)
    for seconds in np.random.default_rng(0).lognormal(-1, 2, size=5000):
        usage.time(float(seconds), 1)
    usage.time(0.0, 1)
    assert len(usage._durations) < 1200


def test_the_time_of_a_batch_is_shared_by_its_answers() -> None:
    model = FunctionLLM(probabilities)
    model.generate(["a", "b", "c", "d"])
    model.score(["a", "b"], LABELS)
    assert sum(model.usage._durations.values()) == 6
    failing = Flaky([server_error()])
    with pytest.raises(ModelError):
        failing.generate(["a"])
    assert failing.usage.seconds > 0
    assert failing.usage.latency_ms(50) is None


def test_watching_sees_the_own_thread_alone() -> None:
    usage, barrier = Usage(), threading.Barrier(4)

    def work(number: int) -> int:
        with usage.watch() as outer, usage.watch() as inner:
            barrier.wait()
            for _ in range(200):
                usage.add(calls=1, prompt_tokens=number)
                Usage().add(calls=1)
        usage.add(calls=1)
        assert outer == inner
        assert outer.calls == 200
        return outer.prompt_tokens

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 200, 400, 600]
    assert (usage.calls, usage.prompt_tokens) == (804, 1200)

    async def in_a_thread() -> int:
        with usage.watch() as used:
            await asyncio.to_thread(usage.add, calls=3)
        return used.calls

    assert asyncio.run(in_a_thread()) == 3


def test_shipped_prices_are_dated_and_sourced() -> None:
    prices = Prices.load()
    for row in prices._rows.values():
        assert len(row.date.split("-")) == 3
        assert row.source
        local = row.model.partition(":")[0] in ("llamacpp", "ollama", "scripted", "function")
        assert (row.input == row.output == 0) is local
        assert row.input <= row.output


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("openai:gpt-4o", 2.5 + 1.0),
        ("openai:gpt-4o?temperature=0.5", 2.5 + 1.0),
        ("openai:gpt-4o-mini", 0.15 + 0.06),
        ("openai:gpt-4.1-nano-2025-04-14", 0.1 + 0.04),
        ("anthropic:claude-3-5-haiku-20241022", 0.8 + 0.4),
        ("ollama:llama3.1:8b", 0.0),
        ("llamacpp", 0.0),
        ("llamacpp:/models/any.gguf", 0.0),
        ("openai:gpt-4o@http://127.0.0.1:8000/v1", None),
        ("openai:gpt-4o-audio-preview", None),
        ("mistralai:mistral-small-latest", None),
        ("ChatOpenAI:gpt-4o", None),
    ],
)
def test_costs_follow_the_table_and_unknown_is_not_zero(name: str, cost: float | None) -> None:
    usage = Usage(calls=10, prompt_tokens=1_000_000, completion_tokens=100_000)
    found = Prices.load().cost(name, usage)
    assert found is None if cost is None else found == pytest.approx(cost)


def test_the_users_table_goes_over_the_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(
        "\ufeffmodel, output, input, date\n"
        "openai:*@http://127.0.0.1*, 0, 0, 2026-01-01\n"
        "openai:*, 9, 8,\n"
        "\n"
        "openai:gpt-4o, 2, 1, today\n",
        encoding="utf-8",
    )
    prices = Prices.load(path)
    assert prices.find("openai:gpt-4o") == Price("openai:gpt-4o", 1, 2, "today")
    assert prices.find("openai:unheard-of") == Price("openai:*", 8, 9)
    assert prices.cost("openai:gpt-4o-mini", Usage(prompt_tokens=10**6)) == 0.15
    assert prices.cost("openai:any@http://127.0.0.1:1/v1", Usage(prompt_tokens=10**6)) == 0
    assert prices.cost("groq:unheard-of", Usage()) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: the columns are \[\]; allowed: model, input, output, and date"),
        ("model,input\nx,1", "line 1: the columns are"),
        ("model,input,output,price\nx,1,1,1", "line 1: the columns are .*'price'"),
        ("model,input,output\na,1,1\nb,1\n", "line 3: there are 2 values"),
        ("model,input,output\n,1,1\n", "line 2: model is empty"),
        ("model,input,output\na,cheap,1\n", "line 2: input is 'cheap'; allowed: USD per million"),
        ("model,input,output\na,1,-1\n", "line 2: output is '-1'"),
        ("model,input,output\na,1,nan\n", "line 2: output is 'nan'"),
        ("model,input,output\na,1,1\n\na,2,2\n", "line 4: model 'a' is there twice"),
    ],
)
def test_wrong_price_tables_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        Prices.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_price_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'.*nowhere\.csv' cannot be read"):
        Prices.load(tmp_path / "nowhere.csv")


def test_a_batch_that_does_not_fit_is_not_sent() -> None:
    inner, budget = Flaky(), Budget(max_calls=5)
    model = BudgetedModel(inner, budget)
    assert len(model.generate(["a", "b", "c"])) == 3
    with pytest.raises(BudgetError, match=r"is 5 requests: 3 were sent, and 3 more.*--resume"):
        model.score(["a", "b", "c"], LABELS)
    assert model.generate(["a", "b"])
    with pytest.raises(BudgetError, match="a budget of its own"):
        model.chat([{"role": "user", "content": "a"}])
    assert (len(inner.sent), budget.calls, budget.cost) == (2, 5, 0.0)


def test_every_method_is_budgeted() -> None:
    model, budget = BudgetedModel(Flaky().forget(), Budget()), Budget(0)
    refused = BudgetedModel(Flaky().forget(), budget)
    asks: list[Any] = [
        lambda m: m.score(["a"], LABELS),
        lambda m: m.likelihood(["a"], [" local"]),
        lambda m: m.generate(["a"]),
        lambda m: m.chat([{"role": "user", "content": "a"}]),
        lambda m: m.embed(["a"]),
    ]
    for ask in asks:
        ask(model)
        with pytest.raises(BudgetError):
            ask(refused)
    assert model.budget.calls == 5
    assert refused.count_tokens("a") == 1


PRICES = Prices([Price("function", 1000.0, 2000.0)])


def test_money_is_reserved_before_and_settled_after() -> None:
    # two words in, one out: 0.004 USD; before, two tokens in and at most four out: 0.010 USD
    inner, budget = Flaky(), Budget(max_cost=0.0221, prices=PRICES)
    model = BudgetedModel(inner, budget)
    for _ in range(4):
        model.generate(["aaa bbbb"], max_tokens=4)
    assert budget.cost == pytest.approx(0.016)
    with pytest.raises(
        BudgetError,
        match=r"0\.0221 USD: 0\.0160 USD are used by 4 requests, and 1 more, about 0\.01",
    ):
        model.generate(["aaa bbbb"], max_tokens=4)
    model.generate(["aaa bbbb"], max_tokens=2)
    assert budget.cost == pytest.approx(0.02)
    assert len(inner.sent) == 5


def test_a_model_that_reports_no_tokens_is_charged_the_estimate() -> None:
    class Silent(FunctionLLM):
        def _ask(self, prompt: str) -> Any:
            return self._answer(prompt)

    budget = Budget(prices=PRICES)
    model = BudgetedModel(Silent(probabilities), budget)
    model.score(["12345"], LABELS)
    assert budget.cost == pytest.approx((2 * 1000 + 1 * 2000) / 1e6)


def test_failed_requests_count_and_cost_what_was_estimated() -> None:
    budget = Budget(max_calls=3, prices=PRICES)
    model = ResilientModel(
        BudgetedModel(Flaky([server_error()] * 5), budget),
        RetryPolicy(base=0),
        sleep=lambda s: None,
    )
    with pytest.raises(BudgetError):
        model.generate(["talk"])
    assert (budget.calls, budget.cost) == (3, pytest.approx(3 * 0.017))
    assert model.usage.retries == 3


def test_choices_reserve_the_json_around_them() -> None:
    model = BudgetedModel(Flaky(), Budget(max_cost=0.1, prices=PRICES))
    # one token in and 48 + 7 out are 0.111 USD
    with pytest.raises(BudgetError, match=r"about 0\.11"):
        model.generate(["talk"], choices=["local", "offload"])
    assert model.generate(["talk"])


def counted(answer: Callable[[Asked], Reply], query: str, limit: int) -> tuple[int, Budget, Any]:
    """Ask a server at 1 USD per token; return its requests, the budget, the last failure."""
    sent: list[str] = []

    def count(asked: Asked) -> Reply:
        sent.append(asked.path)
        return answer(asked)

    budget, failure = Budget(limit, prices=Prices([Price("openai:*", 1e6, 1e6)])), None
    with serve(count) as url:
        quick = RetryPolicy(attempts=2, base=0)
        options = GuardOptions(budget=budget, retry=quick, breaker=BreakerPolicy(failures=100))
        with open_llm(f"openai:m@{url}/v1{query}", options) as model:
            asks: list[Callable[[], object]] = [
                lambda: model.capabilities,
                lambda: model.score(["abcdefgh"] * 3, ["local", "offload"]),
                lambda: model.generate(["abcdefgh"], max_tokens=2),
            ]
            for ask in asks:
                try:
                    ask()
                except (BudgetError, ModelError, ConfigurationError) as error:
                    failure = error
    return len(sent), budget, failure


def rare(asked: Asked) -> Reply:
    """Answer as a llama.cpp server that lists one of the labels' tokens at a second request."""
    if asked.path != "/v1/completions" or "grammar" in asked.body:
        return llama_reply(asked)
    lifted = "logit_bias" in asked.body
    value = "prob" if lifted else "logprob"
    tokens = [ord("l"), ord("o")] if lifted else [ord("l")]
    top = [{"id": token, value: 0.5} for token in tokens]
    content = [{"id": ord("l"), "token": "l", f"top_{value}s": top}]
    choice = {"text": "l", "logprobs": {"content": content}}
    return Reply({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})


def broken(asked: Asked) -> Reply:
    return Reply({"error": {"message": "no"}}, 500)


def talks(asked: Asked) -> Reply:
    return chat_reply("local", {"local": -0.5, "off": -1.0})


@pytest.mark.parametrize(
    ("answer", "query"),
    [(rare, "?concurrency=1"), (talks, "?endpoint=chat"), (broken, "?endpoint=chat")],
)
def test_every_http_request_is_counted_before_it_is_sent(
    answer: Callable[[Asked], Reply], query: str
) -> None:
    needed, budget, failure = counted(answer, query, 1000)
    assert needed == budget.calls
    assert (failure is None) == (answer is not broken)
    # capabilities are asked for at each of the three, twice
    assert answer is not broken or needed == 6
    for limit in range(needed):
        sent, budget, failure = counted(answer, query, limit)
        assert sent == budget.calls <= limit
        assert isinstance(failure, BudgetError)


def test_failed_http_requests_keep_their_estimates() -> None:
    def fails_later(asked: Asked) -> Reply:
        return broken(asked) if asked.body and asked.body.get("max_tokens") == 2 else talks(asked)

    sums = []
    for answer in (talks, fails_later):
        budget = Budget(prices=Prices([Price("openai:*", 1e6, 1e6)]))
        with serve(answer) as url:
            model = BudgetedModel(open_llm(f"openai:m@{url}/v1?endpoint=chat"), budget)
            assert model.inner.announces
            assert model.capabilities.logprobs
            before = budget.cost
            assert before is not None
            assert before > 0
            with contextlib.suppress(ModelError):
                unwrapped(model).generate(["not counted"], max_tokens=1)
            assert budget.cost == before
            model.inner.retry = RetryPolicy(attempts=2, base=0)  # type: ignore[attr-defined]
            with contextlib.suppress(ModelError):
                model.generate(["abcdefgh"], max_tokens=2)
            assert budget.cost is not None
            sums.append(budget.cost - before)
            model.close()
    # ten tokens in and one out are reported; two in and two out are estimated, twice
    assert sums == [pytest.approx(11), pytest.approx(8)]


def test_an_unknown_price_is_told_before_anything_is_sent() -> None:
    inner = Flaky()
    inner.name = "openai:mine@http://127.0.0.1:1/v1"
    with pytest.raises(ConfigurationError, match=r"'openai:mine@.*not known.*model,input,output"):
        BudgetedModel(inner, Budget(max_cost=1.0))
    budget = Budget(max_calls=3)
    model = BudgetedModel(inner, budget)
    assert budget.cost == 0.0
    model.generate(["a"])
    assert (budget.calls, budget.cost) == (1, None)


@pytest.mark.parametrize("options", [{"max_calls": -1}, {"max_cost": math.nan}])
def test_budgets_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="allowed: 0 or more, or None"):
        Budget(**options)


def test_threads_never_overdraw() -> None:
    budget = Budget(max_calls=100, prices=PRICES)
    models = [BudgetedModel(Flaky(), budget) for _ in range(2)]

    def ask(number: int) -> int:
        try:
            return len(models[number % 2].generate(["talk", "coding", "maths"]))
        except BudgetError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        answered = sum(pool.map(ask, range(60)))
    assert answered == budget.calls == 99
    assert budget.cost == pytest.approx(99 * 0.003)


def layers(model: Any) -> list[str]:
    found = []
    while hasattr(model, "inner"):
        found.append(type(model).__name__)
        model = model.inner
    return found


def test_the_guards_are_put_around_in_order(tmp_path: Path) -> None:
    options = GuardOptions(cache=tmp_path, budget=Budget(), retry=RetryPolicy(attempts=2))
    remote, local = guard(Flaky(), options), guard(Flaky(remote=False), options)
    assert layers(remote) == ["CachedModel", "ResilientModel", "BudgetedModel"]
    assert layers(local) == ["CachedModel", "BudgetedModel"]
    assert layers(guard(local, GuardOptions())) == layers(local)
    assert layers(guard(Flaky(), GuardOptions())) == ["ResilientModel"]
    assert guard(inner := Flaky(remote=False), GuardOptions()) is inner
    for model in (remote, local):
        assert model.generate(["talk"]) == ["local"]
        model.close()
    replay = guard(Untouchable(), GuardOptions(cache=tmp_path, replay=True, budget=Budget(0)))
    assert layers(replay) == ["CachedModel"]
    assert replay.generate(["talk"]) == ["local"]
    replay.close()
    with pytest.raises(ValidationError, match="a replay needs the folder"):
        GuardOptions(replay=True)


def test_a_chain_is_guarded_model_by_model(tmp_path: Path) -> None:
    budget = Budget(max_calls=3)
    first, second = Flaky([ModelError("no", "key")] * 9), Flaky(remote=False)
    first.name, second.name = "openai:gpt-4o", "llamacpp"
    chain = guard(ModelChain([first, second]), GuardOptions(cache=tmp_path, budget=budget))
    assert isinstance(chain, ModelChain)
    assert [layers(model) for model in chain.models] == [
        ["CachedModel", "ResilientModel", "BudgetedModel"],
        ["CachedModel", "BudgetedModel"],
    ]
    assert [unwrapped(model) for model in chain.models] == [first, second]
    assert chain.generate(["talk"]) == ["local"]
    assert (budget.calls, chain.usage.calls, chain.usage.failures) == (2, 1, 1)
    chain.close()


def test_cached_answers_cost_nothing(tmp_path: Path) -> None:
    budget = Budget(max_calls=1, prices=PRICES)
    model = guard(Flaky(), GuardOptions(cache=tmp_path, budget=budget))
    assert isinstance(model, CachedModel)
    for _ in range(5):
        model.generate(["talk"])
    assert (budget.calls, model.usage.calls, model.usage.cached) == (1, 5, 4)
    # at list price all of them count, so that a replay costs what the recorded run did
    assert PRICES.cost(model.name, model.usage) == pytest.approx(5 * 0.003)
    assert budget.cost == pytest.approx(0.003)
    model.close()
