"""Policies as LiteLLM's routing strategy, on stub servers on loopback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.studies.stub_server import StubFault, StubServer, StubSettings

# nothing is fetched while it is imported
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
litellm = pytest.importorskip("litellm", reason="LiteLLM has an environment of its own")

from icl_optimizer.litellm_plugin import PolicyRouting, ProxyRouting, route_with  # noqa: E402
from icl_optimizer.litellm_plugin.group import fleet_of  # noqa: E402

# LiteLLM warns of its own code, and leaves its connections to the interpreter
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::icl_optimizer"),
]

QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
BROKEN = StubFault(kind="500")
COOL_DOWN = {"allowed_fails": 0, "cooldown_time": 60, "num_retries": 2, "retry_after": 0}

Stubs = dict[str, StubServer]
Body = Callable[[Stubs], Coroutine[Any, Any, None]]


@asynccontextmanager
async def stubs(**first_token_s: float) -> AsyncIterator[Stubs]:
    async with AsyncExitStack() as held:
        yield {
            name: await held.enter_async_context(
                StubServer(StubSettings(name=name, ttft_s=seconds))
            )
            for name, seconds in first_token_s.items()
        }


def deployments(servers: Stubs, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "model_name": "chat",
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": server.url,
                "api_key": "none",
                **more,
            },
            "model_info": {"id": name},
        }
        for name, server in servers.items()
    ]


async def ask(router: Any, **metadata: Any) -> Any:
    told = {"task_type": "math", **metadata}
    return await router.acompletion("chat", QUESTION, metadata=told)


async def settled(strategy: PolicyRouting) -> None:
    """Wait for callbacks, which LiteLLM runs after the answer."""
    async with asyncio.timeout(10):
        while any(sum(group.in_system) for group in strategy.groups.values()):
            await asyncio.sleep(0.01)


def received(servers: Stubs) -> dict[str, int]:
    return {name: server.counts.received for name, server in servers.items()}


def run(body: Body, **first_token_s: float) -> None:
    async def main() -> None:
        async with stubs(**first_token_s) as servers:
            await body(servers)

    asyncio.run(main())


def test_round_robin_takes_turns() -> None:
    async def body(servers: Stubs) -> None:
        router = litellm.Router(model_list=deployments(servers))
        strategy = route_with(router, "round-robin")
        answered = [(await ask(router)).model for _ in range(6)]
        await settled(strategy)
        strategy.close()
        assert answered == ["a", "b", "c"] * 2

    run(body, a=0, b=0, c=0)


def test_a_deployment_that_cools_down_is_left_alone() -> None:
    async def body(servers: Stubs) -> None:
        await servers["a"].order(BROKEN)
        router = litellm.Router(model_list=deployments(servers), **COOL_DOWN)
        strategy = route_with(router, "round-robin")
        answered = {(await ask(router)).model for _ in range(6)}
        await settled(strategy)
        strategy.close()
        assert answered == {"b"}
        assert received(servers) == {"a": 1, "b": 6}

    run(body, a=0, b=0)


def test_without_the_filter_it_would_be_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(servers: Stubs) -> None:
        await servers["a"].order(BROKEN)
        router = litellm.Router(model_list=deployments(servers), **COOL_DOWN)

        async def all_of_them(**_: Any) -> Any:
            return router.model_list

        monkeypatch.setattr(router, "async_get_healthy_deployments", all_of_them)
        strategy = route_with(router, "round-robin")
        for _ in range(6):
            await ask(router)
        strategy.close()
        assert received(servers)["a"] > 3

    run(body, a=0, b=0)


def test_nothing_left_is_litellms_own_error() -> None:
    async def body(servers: Stubs) -> None:
        for server in servers.values():
            await server.order(BROKEN)
        router = litellm.Router(model_list=deployments(servers), **COOL_DOWN | {"num_retries": 0})
        strategy = route_with(router, "shortest-queue")
        for _ in range(2):
            with pytest.raises(litellm.InternalServerError, match="ordered fault 500"):
                await ask(router)
        with pytest.raises(litellm.types.router.RouterRateLimitError, match="No deployments"):
            await ask(router)
        strategy.close()
        assert received(servers) == {"a": 1, "b": 1}

    run(body, a=0, b=0)


def test_table_learns_to_avoid_a_deployment_that_is_too_slow() -> None:
    async def body(servers: Stubs) -> None:
        router = litellm.Router(model_list=deployments(servers))
        strategy = route_with(router, "table", deadline_s=0.2)
        for _ in range(20):
            await ask(router)
            await settled(strategy)
        learned = strategy.groups["chat"]
        strategy.close()
        assert learned.policy is not None
        assert received(servers)["slow"] <= 5

    run(body, slow=0.3, fast=0)


def test_requests_on_their_way_are_seen_by_the_policy() -> None:
    async def body(servers: Stubs) -> None:
        router = litellm.Router(model_list=deployments(servers))
        strategy = route_with(router, "shortest-queue")
        await asyncio.gather(*(ask(router) for _ in range(9)))
        assert received(servers) == {"a": 3, "b": 3, "c": 3}
        await settled(strategy)
        assert strategy.groups["chat"].in_system == [0, 0, 0]
        strategy.close()

    run(body, a=0.2, b=0.2, c=0.2)


def test_a_stream_counts_until_its_end() -> None:
    async def body(servers: Stubs) -> None:
        router = litellm.Router(model_list=deployments(servers))
        strategy = route_with(router, "round-robin")
        stream = await router.acompletion(
            "chat", QUESTION, stream=True, metadata={"task_type": "math"}
        )
        assert strategy.groups["chat"].in_system == [1, 0]
        text = "".join([part.choices[0].delta.content or "" async for part in stream])
        await settled(strategy)
        strategy.close()
        assert text.split() == [f"w{i}" for i in range(16)]

    run(body, a=0, b=0)


def test_tags_are_honoured() -> None:
    async def body(servers: Stubs) -> None:
        models = deployments(servers)
        models[1]["litellm_params"]["tags"] = ["paid"]
        router = litellm.Router(model_list=models, enable_tag_filtering=True)
        strategy = route_with(router, "round-robin")
        assert [(await ask(router, tags=["paid"])).model for _ in range(3)] == ["b"] * 3
        await settled(strategy)
        strategy.close()

    run(body, a=0, b=0)


def test_a_request_for_a_specific_deployment_goes_there() -> None:
    async def body(servers: Stubs) -> None:
        router = litellm.Router(model_list=deployments(servers))
        strategy = route_with(router, "round-robin")
        for _ in range(3):
            await router.acompletion(
                "openai/b", QUESTION, specific_deployment=True, metadata={"task_type": "math"}
            )
        strategy.close()
        assert received(servers) == {"a": 0, "b": 3}

    run(body, a=0, b=0)


def test_what_a_request_says_is_checked() -> None:
    async def body(servers: Stubs) -> None:
        router = litellm.Router(model_list=deployments(servers), num_retries=0)
        strategy = route_with(router, "round-robin")
        with pytest.raises(litellm.BadRequestError, match="unknown task type 'maths'"):
            await ask(router, task_type="maths")
        with pytest.raises(litellm.BadRequestError, match="deadline_s is -1"):
            await ask(router, deadline_s=-1)
        strategy.close()
        assert received(servers) == {"a": 0, "b": 0}

    run(body, a=0, b=0)


def test_a_type_that_is_not_named_is_found() -> None:
    async def body(servers: Stubs) -> None:
        router = litellm.Router(model_list=deployments(servers))
        strategy = route_with(router, "round-robin")
        await router.acompletion("chat", QUESTION)
        await settled(strategy)
        strategy.close()
        assert received(servers) == {"a": 1, "b": 0}

    run(body, a=0, b=0)


def test_callers_without_a_loop() -> None:
    models = [
        {
            "model_name": "chat",
            "litellm_params": {"model": f"openai/{name}", "mock_response": name, "api_key": "none"},
            "model_info": {"id": name},
        }
        for name in ("a", "b")
    ]
    router = litellm.Router(model_list=models)
    strategy = route_with(router, "round-robin")
    told = {"task_type": "math"}
    answers = [router.completion("chat", QUESTION, metadata=told) for _ in range(4)]
    strategy.close()
    assert [a.choices[0].message.content for a in answers] == ["a", "b", "a", "b"]


def test_closing_gives_the_selection_back() -> None:
    router = litellm.Router(model_list=[])
    usual = router.async_get_available_deployment
    strategy = route_with(router, "round-robin")
    assert strategy.serves(router)
    assert strategy in litellm.callbacks
    strategy.close()
    assert router.async_get_available_deployment == usual
    assert strategy not in litellm.callbacks


def test_the_proxys_router_is_taken_over_once() -> None:
    proxy = ProxyRouting("round-robin")
    first, second = litellm.Router(model_list=[]), litellm.Router(model_list=[])
    proxy.attach(None)
    assert proxy.routing is None
    proxy.attach(first)
    kept = proxy.routing
    proxy.attach(first)
    assert proxy.routing is kept
    proxy.attach(second)
    assert proxy.routing is not None
    assert proxy.routing.serves(second)
    assert kept is not None
    assert not kept.serves(first)
    proxy.routing.close()


def test_deployments_become_servers() -> None:
    fleet = fleet_of(
        [
            {"litellm_params": {"model": "openai/gpt-4o"}, "model_info": {"id": "0" * 64}},
            {"litellm_params": {"model": "azure/gpt-4o"}, "model_info": {"id": "1" * 64}},
            {
                "litellm_params": {"model": "ollama/phi3", "max_parallel_requests": 4},
                "model_info": {"id": "own", "icl_optimizer": {"tokens_per_s": 30}},
            },
        ]
    )
    assert fleet.names == ("gpt-4o", "gpt-4o-2", "own")
    assert fleet.servers[2].slots == 4
    assert fleet.servers[2].queue_size == 16
    assert fleet.servers[2].tokens_per_s == 30


def test_wrong_settings_are_named() -> None:
    router = litellm.Router(model_list=[])
    with pytest.raises(ConfigurationError, match=r"unknown policy 'shortest-queu'.*shortest-queue"):
        route_with(router, "shortest-queu")
    with pytest.raises(ConfigurationError, match=r"setting of the plug-in 'sed'.*seed"):
        route_with(router, "round-robin", sed=3)
    with pytest.raises(ConfigurationError, match="speed_of_light"):
        fleet_of(
            [
                {
                    "litellm_params": {"model": "m"},
                    "model_info": {"id": "m", "icl_optimizer": {"speed_of_light": 1}},
                }
            ]
        )
