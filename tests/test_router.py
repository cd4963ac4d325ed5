"""The router: where requests go, what happens when servers fail, and what is learned."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_upstream import Fault, ScriptedUpstream, event, whole

from icl_optimizer.decision import Decision, Outcome, Situations
from icl_optimizer.environments.fleet.config import load_fleet
from icl_optimizer.environments.fleet.upstream import DONE
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.exploration import Exploration
from icl_optimizer.policies import make_policy
from icl_optimizer.policy import Policy
from icl_optimizer.router.building import fleet_problem, router_policy
from icl_optimizer.router.pool_store import PoolStore
from icl_optimizer.router.requests import UNKNOWN_TASK, Routed, RoutedRequest, RouterError
from icl_optimizer.router.router import Router
from icl_optimizer.router.settings import RouterSettings

pytestmark = pytest.mark.anyio
FIELDS = {
    "deadline_s": 5.0,
    "servers": [
        {"name": "fast", "llm": "openai:m@http://fast/v1", "scores": {"math": 0.8}},
        {"name": "slow", "llm": "openai:m@http://slow/v1", "queue_size": 2},
        {"name": "spare", "llm": "openai:m@http://spare/v1", "queue_size": 2},
    ],
}
STREAM = {"messages": [{"role": "user", "content": "a secret prompt"}], "stream": True}
WHOLE = {"messages": [{"role": "user", "content": "a secret prompt"}]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def upstreams(**faults: list[Fault]) -> dict[str, ScriptedUpstream]:
    return {n: ScriptedUpstream(faults=faults.get(n, [])) for n in ("fast", "slow", "spare")}


def router_on(
    servers: dict[str, ScriptedUpstream],
    policy: str | Policy = "shortest-queue",
    **settings: Any,
) -> Router:
    fields = RouterSettings(**{"explore": False, **settings})
    return Router(load_fleet(FIELDS), policy, fields, upstreams=servers)


def math(body: Any = STREAM, **fields: Any) -> RoutedRequest:
    return RoutedRequest(body, task="math", **fields)


async def read(routed: Routed) -> list[bytes]:
    return [chunk async for chunk in routed.chunks]


async def ask(router: Router, body: Any = STREAM) -> list[bytes]:
    return await read(await router.route(math(body)))


# -- answers ----------------------------------------------------------------------------------


async def test_a_stream_passes_through_as_it_is() -> None:
    servers = upstreams()
    async with router_on(servers) as router:
        routed = await router.route(math(id="req-1"))
        assert await read(routed) == [event(""), event("a"), event("b"), event("c"), DONE]
        assert routed.media_type == "text/event-stream"
        assert routed.headers == {
            "x-request-id": "req-1",
            "x-server": "fast",
            "x-made-by": "rule",
            "x-attempts": "1",
            "x-task-type": "math",
        }
        assert await ask(router, WHOLE) == [whole("a b c")]
        totals = router.status()["totals"]
    assert (totals["requests"], totals["answered"], totals["deadlines_met"]) == (2, 2, 2)
    assert totals["tokens"] == 6


async def test_choose_only_names_the_server() -> None:
    servers = upstreams()
    async with router_on(servers, "round-robin") as router:
        choice = router.choose(math())
        assert choice.name in ("fast", "slow", "spare")
        assert sum(choice.probabilities) == pytest.approx(1)
        assert choice.reasons
    assert not any(s.asked for s in servers.values())


async def test_round_robin_goes_around() -> None:
    servers = upstreams()
    async with router_on(servers, "round-robin") as router:
        for _ in range(6):
            await ask(router)
    assert [len(s.asked) for s in servers.values()] == [2, 2, 2]


async def test_an_unknown_task_type_is_refused() -> None:
    async with router_on(upstreams()) as router:
        with pytest.raises(RouterError, match="Did you mean 'math'") as raised:
            await router.route(RoutedRequest(STREAM, task="maths"))
        assert raised.value.status == 400


async def test_the_type_of_a_prompt_is_found() -> None:
    async with router_on(upstreams(), "table") as router:
        content = "Write a Python function that reverses a linked list, with unit tests."
        body = {"messages": [{"role": "user", "content": content}]}
        assert (await router.route(RoutedRequest(body))).choice.task == "coding"
    async with router_on(upstreams()) as router:
        # a rule that does not look at it, and nobody who keeps it
        routed = await router.route(RoutedRequest(body))
        assert routed.choice.task == UNKNOWN_TASK
        assert "x-task-type" not in routed.headers


# -- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "body"),
    # a stream that is cut has sent tokens, see below
    [*((f, b) for f in ("refused", "500", "429") for b in (WHOLE, STREAM)), ("cut", WHOLE)],
)
async def test_another_server_answers(fault: Fault, body: Any) -> None:
    servers = upstreams(fast=[fault])
    async with router_on(servers) as router:
        routed = await router.route(math(body))
        assert (await read(routed))[-1] in (DONE, whole("a b c"))
        assert routed.choice.name != "fast"
        assert routed.headers["x-attempts"] == "2"
        assert router.fleet.queue_lengths() == [0, 0, 0]
        totals = router.status()["totals"]
    assert (totals["retried"], totals["answered"], totals["refused"]) == (1, 1, 0)


@pytest.mark.parametrize("fault", ["hang", "silent"])
async def test_a_hanging_server_is_given_up(fault: Fault) -> None:
    async with router_on(upstreams(fast=[fault]), first_token_timeout_s=0.05) as router:
        routed = await router.route(math())
        assert routed.choice.name != "fast"
        assert (await read(routed))[-1] == DONE
        assert router.fleet.queue_lengths() == [0, 0, 0]


async def test_after_the_first_token_the_client_is_told() -> None:
    async with router_on(upstreams(fast=["cut"])) as router:
        *tokens, last = await ask(router)
        assert tokens == [event(""), event("a")]
        assert "broke off" in json.loads(last.removeprefix(b"data: "))["error"]["message"]
        assert router.status()["totals"]["failed"] == 1


async def test_a_wrong_request_is_not_tried_elsewhere() -> None:
    servers = upstreams(fast=["400"])
    async with router_on(servers) as router:
        with pytest.raises(RouterError) as raised:
            await ask(router)
    assert (raised.value.status, raised.value.type) == (400, "invalid_request_error")
    assert not servers["slow"].asked


async def test_all_servers_down_and_back() -> None:
    faults: dict[str, list[Fault]] = {n: ["refused"] for n in ("fast", "slow", "spare")}
    async with router_on(upstreams(**faults)) as router:
        with pytest.raises(RouterError) as raised:
            await ask(router)
        assert raised.value.status == 502
        with pytest.raises(RouterError) as raised:
            await ask(router)
        assert raised.value.status == 503
        assert raised.value.retry_after == pytest.approx(5, abs=1)
        assert b'router_cool_downs_total{server="fast"} 1.0' in router.metrics.render()
        for server in router.fleet.servers:
            server.health.succeeded()
        assert (await ask(router))[-1] == DONE


async def test_full_queues_are_told_at_once() -> None:
    servers = upstreams()
    gate = asyncio.Event()
    for server in servers.values():
        server.gate = gate
    async with router_on(servers) as router:
        tasks = [asyncio.create_task(ask(router)) for _ in range(14)]
        await asyncio.sleep(0.05)
        assert router.fleet.queue_lengths() == [10, 2, 2]
        with pytest.raises(RouterError) as raised:
            await ask(router)
        assert raised.value.status == 429
        assert raised.value.retry_after is not None
        gate.set()
        assert [answer[-1] for answer in await asyncio.gather(*tasks)] == [DONE] * 14


async def test_a_full_server_is_not_chosen() -> None:
    servers = upstreams()
    gate = asyncio.Event()
    servers["slow"].gate = gate

    class Stubborn(Policy):
        """Scripted: always the second server."""

        def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
            return [
                self.rule_decision(self.problem.describe(row), 1, (0.1, 0.7, 0.2), row)
                for row in situations
            ]

    problem = fleet_problem(load_fleet(FIELDS))
    async with router_on(servers, Stubborn(problem)) as router:
        tasks = [asyncio.create_task(ask(router)) for _ in range(2)]
        await asyncio.sleep(0.05)
        routed = await router.route(math())
        assert routed.choice.name == "spare"
        assert routed.choice.reasons[0] == "slow is full (2 requests)"
        gate.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("fault", ["500", "404", "413", "refused"])
async def test_the_last_server_that_lives_is_found(fault: Fault) -> None:
    servers = upstreams(fast=[fault] * 9, slow=[fault] * 9)
    async with router_on(servers) as router:
        for _ in range(5):
            routed = await router.route(math())
            assert routed.choice.name == "spare"
            assert (await read(routed))[-1] == DONE
        rests = router.fleet.servers[0].health.state == "cooling"
        # one that is too small for a request is no worse for others
        assert rests == (fault != "413")


async def test_thoughts_and_tool_calls_are_tokens() -> None:
    async with router_on(upstreams(fast=["thoughts"]), first_token_timeout_s=0.05) as router:
        routed = await router.route(math())
        await asyncio.sleep(0.1)
        assert (routed.choice.name, routed.headers["x-attempts"]) == ("fast", "1")
        await routed.close()


async def test_a_stream_that_comes_whole_is_counted() -> None:
    async with router_on(upstreams(fast=["whole"])) as router:
        routed = await router.route(math())
        assert routed.media_type == "application/json"
        assert await read(routed) == [whole("a b c")]
        assert router.status()["totals"]["answered"] == 1


async def test_a_retry_is_decided_by_what_is_left_of_the_deadline() -> None:
    async with router_on(upstreams(fast=["silent"]), first_token_timeout_s=0.05) as router:
        await read(await router.route(math(deadline_s=1.0)))
        second, first = router.status()["decisions"]
    assert first["deadline_s"] == 1.0
    assert 0 < second["deadline_s"] < 0.96


class Broken(Policy):
    """Scripted: fails."""

    name = "broken"

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        raise ValueError("a bug")

    def update(self, outcomes: Sequence[Outcome]) -> None:
        raise ValueError("another bug")


async def test_a_policy_that_fails_costs_no_request() -> None:
    async with router_on(upstreams(), Broken(fleet_problem(load_fleet(FIELDS)))) as router:
        routed = await router.route(math())
        assert (await read(routed))[-1] == DONE
        assert routed.choice.made_by == "fallback"
        assert "the policy failed (ValueError)" in routed.choice.reasons[0]
        await asyncio.sleep(0.02)
        assert router.status()["totals"]["policy_failures"] == 2


# -- clients ----------------------------------------------------------------------------------


async def test_a_slow_client_does_not_hold_the_slot() -> None:
    servers = upstreams()
    async with router_on(servers) as router:
        routed = await router.route(math())
        await asyncio.sleep(0.02)
        # nothing was taken yet, and the server is free already
        assert router.fleet.queue_lengths() == [0, 0, 0]
        assert (await read(routed))[-1] == DONE


async def test_an_answer_that_nobody_reads_frees_its_slot() -> None:
    servers = upstreams()
    async with router_on(servers) as router:
        for _ in range(4):
            routed = await router.route(math())
            await routed.close()
        assert router.fleet.queue_lengths() == [0, 0, 0]
        assert sum(server.now for server in servers.values()) == 0


async def test_a_client_that_waited_until_after_its_deadline_teaches() -> None:
    servers = upstreams()
    servers["fast"].gate = asyncio.Event()
    async with router_on(servers, "table") as router:
        for deadline_s, learned in ((5.0, 0), (0.01, 1)):
            waiting = asyncio.create_task(router.route(math(deadline_s=deadline_s)))
            await asyncio.sleep(0.03)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            status = router.status()
            assert status["totals"]["learned"] == learned
            assert status["decisions"][0]["reward"] == (0.0 if learned else None)


async def test_a_long_answer_waits_for_its_client_and_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("icl_optimizer.router.delivery.HELD_BYTES", 1000)
    servers = upstreams()
    servers["fast"].words = tuple("word" * 30 for _ in range(200))
    async with router_on(servers) as router:
        routed = await router.route(math())
        await asyncio.sleep(0.02)
        # beyond what is held for the client the server waits, too
        assert router.fleet.queue_lengths() == [1, 0, 0]
        assert len(await read(routed)) == 202
        assert router.fleet.queue_lengths() == [0, 0, 0]


async def test_a_client_that_goes_away_stops_the_server() -> None:
    servers = upstreams()
    servers["fast"].gate = asyncio.Event()
    async with router_on(servers) as router:
        waiting = asyncio.create_task(router.route(math()))
        await asyncio.sleep(0.02)
        assert router.fleet.queue_lengths() == [1, 0, 0]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert router.fleet.queue_lengths() == [0, 0, 0]
        assert router.status()["totals"]["cancelled"] == 1
    assert servers["fast"].now == 0


# -- decisions that take long -----------------------------------------------------------------


class Thinker(Policy):
    """Scripted: thinks until it may answer."""

    name = "thinker"
    batches: list[int]

    def decide(self, situations: Situations, *, explore: bool = False) -> list[Decision]:
        self.batches.append(len(situations))
        time.sleep(0.05)
        return [
            self.rule_decision(self.problem.describe(row), 2, (0.0, 0.0, 1.0), row, made_by="llm")
            for row in situations
        ]


async def test_requests_that_come_meanwhile_are_decided_together() -> None:
    thinker = Thinker(fleet_problem(load_fleet(FIELDS)))
    thinker.batches = []
    async with router_on(upstreams(), thinker) as router:
        await asyncio.gather(*(ask(router) for _ in range(9)))
    assert sum(thinker.batches) == 9
    assert len(thinker.batches) <= 3


async def test_an_answer_does_not_wait_for_what_is_learned_from_it() -> None:
    class SlowLearner(Thinker):
        """Scripted: learns until it may go on."""

        may_learn = threading.Event()
        learned = 0

        def update(self, outcomes: Sequence[Outcome]) -> None:
            self.may_learn.wait(5)
            self.learned += len(outcomes)

    learner = SlowLearner(fleet_problem(load_fleet(FIELDS)))
    learner.batches = []
    async with router_on(upstreams(), learner) as router:
        assert (await ask(router))[-1] == DONE
        assert (learner.learned, router.fleet.queue_lengths()) == (0, [0, 0, 0])
        learner.may_learn.set()
    assert learner.learned == 1


async def test_a_decision_that_takes_too_long_falls_back() -> None:
    thinker = Thinker(fleet_problem(load_fleet(FIELDS)))
    thinker.batches = []
    async with router_on(upstreams(), thinker, decision_timeout_s=0.01) as router:
        routed = await router.route(math())
        assert routed.choice.made_by == "fallback"
        assert "no decision within" in routed.choice.reasons[0]
        assert (await read(routed))[-1] == DONE


# -- learning ---------------------------------------------------------------------------------


async def test_it_learns_to_leave_a_failing_server(tmp_path: Path) -> None:
    servers = upstreams(fast=["500"] * 200)
    pool = tmp_path / "pool.sqlite3"
    async with router_on(servers, "table", pool=pool, explore=True) as router:
        for _ in range(40):
            await ask(router)
            for server in router.fleet.servers:
                # so that only experience keeps it away, and no cool-down
                server.health.succeeded()
        learned = router.status()["totals"]["learned"]
        forecast = router.policy.forecast([router.problem.describe([0, 0, 0, 2, 5.0])])  # type: ignore[attr-defined]
    assert forecast.chance[0, 0] < 0.3 < forecast.chance[0, 1]
    with PoolStore(pool, fleet_problem(load_fleet(FIELDS))) as store:
        assert len(store) == learned


async def test_what_was_learned_survives_the_router(tmp_path: Path) -> None:
    pool = tmp_path / "pool.sqlite3"
    router = router_on(upstreams(), "table", pool=pool)
    async with router:
        for _ in range(5):
            await ask(router)
        # as a kill leaves it: nothing was closed
        again = router_on(upstreams(), "table", pool=pool)
        assert again.policy.table.to_json() == router.policy.table.to_json()  # type: ignore[attr-defined]
        again.books.close()


def an_outcome(number: int) -> Outcome:
    problem = fleet_problem(load_fleet(FIELDS))
    row = [0, 1, 0, 2, 5.0]
    return Outcome(number, problem.describe(row), 1, 0.8, True, observation=tuple(row))  # type: ignore[arg-type]


def test_a_full_disk_costs_no_outcome(tmp_path: Path) -> None:
    problem = fleet_problem(load_fleet(FIELDS))
    with PoolStore(tmp_path / "pool.sqlite3", problem) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        for number in range(60):
            store.append(an_outcome(number))
        written = len(store)
        assert 0 < written < 60
        assert store.pending == 60 - written
        store._db.execute("PRAGMA max_page_count = 100000")
        assert store.flush()
        assert [o.decision_id for o in store.outcomes()] == list(range(60))
        assert next(iter(store.outcomes())) == an_outcome(0)


def test_a_pool_that_somebody_locks_is_written_later(tmp_path: Path) -> None:
    with PoolStore(tmp_path / "pool.sqlite3", fleet_problem(load_fleet(FIELDS))) as store:
        other = sqlite3.connect(tmp_path / "pool.sqlite3")
        other.execute("BEGIN IMMEDIATE")
        store.append(an_outcome(1))
        assert store.pending == 1
        other.rollback()
        other.close()
        assert store.flush()
        assert len(store) == 1


def test_a_pool_belongs_to_its_fleet(tmp_path: Path) -> None:
    path = tmp_path / "pool.sqlite3"
    PoolStore(path, fleet_problem(load_fleet(FIELDS))).close()
    others = load_fleet({"servers": FIELDS["servers"][:2]})  # type: ignore[index]
    with pytest.raises(ConfigurationError, match="Another fleet needs a pool of its own"):
        PoolStore(path, fleet_problem(others))
    (tmp_path / "text").write_text("not a database, but long enough to look like a file" * 20)
    with pytest.raises(ConfigurationError, match="not a database"):
        PoolStore(tmp_path / "text", fleet_problem(others))
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


async def test_the_log_tells_why_but_not_what(tmp_path: Path) -> None:
    log = tmp_path / "log" / "decisions.jsonl"
    async with router_on(upstreams(fast=["500"]), decision_log=log) as router:
        await ask(router)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["became"] for line in lines] == ["failed: server", "answered"]
    assert lines[0]["server"] == lines[0]["wanted"] == "fast"
    assert lines[1]["met"] is True
    assert lines[1]["propensity"] == 0.5
    assert lines[1]["probabilities"].keys() == {"fast", "slow", "spare"}
    assert "secret prompt" not in log.read_text()
    async with router_on(upstreams(), decision_log=log, log_prompts=True) as router:
        await ask(router)
    assert "secret prompt" in log.read_text()


def outcomes_of(policy: Policy) -> Sequence[Any]:
    return policy.table.to_json()  # type: ignore[attr-defined,no-any-return]


async def test_a_router_that_does_not_learn(tmp_path: Path) -> None:
    async with router_on(upstreams(), "table", learn=False) as router:
        await ask(router)
        assert outcomes_of(router.policy) == []


# -- policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("shortest-que", "Did you mean 'shortest-queue'"),
        ("oracle", "unknown policy of a router 'oracle'"),
        ("always-local", "unknown policy of a router"),
        ("dqn", "icl-optimizer train dqn slo-scheduling --set @twin.yaml"),
    ],
)
def test_policies_that_cannot_route(name: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        router_on(upstreams(), name)


def test_a_single_server_leaves_nothing_to_decide() -> None:
    with pytest.raises(ConfigurationError, match="at least two"):
        Router(load_fleet({"servers": FIELDS["servers"][:1]}))  # type: ignore[index]


async def test_a_policy_object_decides() -> None:
    problem = fleet_problem(load_fleet(FIELDS))
    async with router_on(upstreams(), make_policy("least-connections", problem)) as router:
        assert (await ask(router))[-1] == DONE


@pytest.mark.llm
async def test_the_language_model_decides_and_learns() -> None:
    async with router_on(upstreams(), "icl-predict", explore=True) as router:
        for _ in range(8):
            await ask(router)
        status = router.status()
    makers = {line["made_by"] for line in status["decisions"]}
    assert makers <= {"llm", "cache", "explore"}
    assert makers & {"llm", "cache"}
    assert status["totals"]["learned"] == 8


def test_a_policy_begins_with_what_the_fleets_file_says() -> None:
    lengths = {"math": 20.0}
    servers = [
        {
            "name": "quick",
            "llm": "openai:m@http://a/v1",
            "tokens_per_s": 50,
            "mean_tokens": lengths,
        },
        {"name": "slow", "llm": "openai:m@http://b/v1", "tokens_per_s": 3, "mean_tokens": lengths},
    ]
    config = load_fleet({"deadline_s": 5.0, "servers": servers})
    idle = np.array([[0, 0, 2, 5.0]])
    cold = router_policy("table", config, RouterSettings(warm_up=0))
    assert cold.forecast(idle).chance[0].tolist() == [0.5, 0.5]  # type: ignore[attr-defined]
    assert cold.exploration.try_all_first  # type: ignore[attr-defined]
    warm = router_policy("table", config, RouterSettings(warm_up=400))
    quick, slow = warm.forecast(idle).chance[0]  # type: ignore[attr-defined]
    assert quick > 0.8 > 0.5 > slow
    assert not warm.exploration.try_all_first  # type: ignore[attr-defined]
    mine = RouterSettings(exploration=Exploration(start=0.4))
    assert router_policy("table", config, mine).exploration.start == 0.4  # type: ignore[attr-defined]


def test_deadlines_that_differ_are_told_apart_in_words() -> None:
    problem = fleet_problem(load_fleet({**FIELDS, "deadlines_s": [2, 10]}))
    words = [problem.describe(np.array([0, 0, 0, 2, d]))["Deadline"] for d in (1.5, 4, 9, 60)]
    assert words == ["2 s", "2 s", "10 s", "10 s"]
    assert "Deadline" not in fleet_problem(load_fleet(FIELDS)).keywords
