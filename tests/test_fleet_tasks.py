"""Checkable tasks, and what their answers tell about a fleet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from live_stub import StubServers
from typer.testing import CliRunner

from icl_optimizer.cli import app
from icl_optimizer.environments.fleet.answers import text_of
from icl_optimizer.environments.fleet.config import load_fleet
from icl_optimizer.environments.fleet.fitting import (
    Sample,
    fit_fleet,
    fit_line,
    relative_lengths,
    spreads,
)
from icl_optimizer.environments.fleet.tasks import CheckableTask, draw_checkable
from icl_optimizer.environments.registry import make
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES
from icl_optimizer.errors import ConfigurationError


def drawn(kind: str, count: int = 40) -> list[CheckableTask]:
    rng = np.random.default_rng(0)
    return [draw_checkable(TASK_TYPES.index(kind), rng) for _ in range(count)]


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_the_right_answer_earns_everything_and_none_nothing(kind: str) -> None:
    tasks = drawn(kind)
    assert len({task.messages for task in map(_hashable, tasks)}) > 5
    for task in tasks:
        assert task.check(task.answer) == 1
        assert task.check(f"I think: {task.answer}.") == 1
        assert task.check("") == task.check("I do not know.") == 0
        for other in task.others:
            assert task.check(other) == 0
        assert 12 <= task.max_tokens <= 60
        assert task.body["stream"]
        assert task.body["temperature"] == 0


def _hashable(task: CheckableTask) -> Any:
    return type("Asked", (), {"messages": json.dumps(task.messages)})


def test_the_seed_decides_the_tasks() -> None:
    assert drawn("math") == drawn("math")


def test_answers_are_right() -> None:
    for task in drawn("math"):
        a, sign, b = re.findall(r"\d+|\+|times", task.messages[-1]["content"])
        expected = int(a) + int(b) if sign == "+" else int(a) * int(b)
        assert task.answer == str(expected)
    for task in drawn("data analysis"):
        text = task.messages[-1]["content"]
        wanted = re.findall(r"price of the (\w+)", text)[0]
        assert f"\n{wanted}: {task.answer}\n" in text
        assert not set(task.others) & {task.answer}
    for task in drawn("reasoning"):
        more = dict(re.findall(r"(\w+) is \w+ than (\w+)", task.messages[-1]["content"]))
        assert set(more) - set(more.values()) == {task.answer}
    for task in drawn("coding"):
        assert task.messages[-1]["content"].endswith(", ".join(json.loads(task.answer)))


def test_hedging_earns_nothing() -> None:
    task = drawn("language")[0]
    assert task.check("positive or negative") == 0
    task = drawn("reasoning")[0]
    assert task.check(f"{task.answer}, since {task.others[0]} is not") == 1
    assert task.check(f"{task.others[0]} is less than {task.answer}") == 0


def test_a_list_of_some_words_earns_half() -> None:
    task = drawn("coding")[0]
    words = json.loads(task.answer)
    assert task.check(json.dumps(words[:-1])) == 0.5
    assert task.check(json.dumps([*words, "sun"])) == 0
    assert task.check("[not json]") == task.check("[]") == 0


def test_text_of_events_and_answers() -> None:
    assert text_of(b'data: {"choices": [{"delta": {"content": "a b"}}]}\n\n') == "a b"
    assert text_of(b'{"choices": [{"message": {"content": "whole"}}]}') == "whole"
    assert text_of(b'data: {"choices": [{"text": "plain"}]}\n\n') == "plain"
    for chunk in (b"data: [DONE]\n\n", b'data: {"choices": []}\n\n', b": waiting\n\n", b"[1]"):
        assert text_of(chunk) == ""


# --- fitting

SPEEDS, OVERHEADS = (12.0, 5.0, 40.0), (0.5, 0.2, 0.0)


def made_up(
    tasks: int = 300, shared: float = 0.4, own: float = 0.2, noise: float = 0.02
) -> list[Sample]:
    """Return answers of three servers whose lines and spreads are known."""
    rng = np.random.default_rng(1)
    samples = []
    for task in range(tasks):
        kind = task % len(TASK_TYPES)
        common = shared * rng.standard_normal()
        for server, (speed, overhead) in enumerate(zip(SPEEDS, OVERHEADS, strict=True)):
            log = common + own * rng.standard_normal() - (shared**2 + own**2) / 2
            tokens = max(1, round(100 * (kind + 1) * np.exp(log)))
            service = overhead + tokens / speed + noise * rng.standard_normal()
            samples.append(Sample(server, task, kind, tokens, service, float(server == kind)))
    return samples


def test_what_was_put_in_is_found() -> None:
    fit = fit_fleet(("a", "b", "c"), made_up())
    for server, speed, overhead in zip(fit.servers, SPEEDS, OVERHEADS, strict=True):
        assert server.tokens_per_s == pytest.approx(speed, rel=0.002)
        assert server.overhead_s == pytest.approx(overhead, abs=0.02)
        assert server.r2 > 0.999
        assert server.residual_s < 0.03
        assert server.answers == 300
        assert server.mean_tokens["coding"] == pytest.approx(200, rel=0.15)
    assert fit.servers[1].scores == {t: float(t == "coding") for t in TASK_TYPES}
    assert fit.length_spread == pytest.approx(0.4, rel=0.1)
    assert fit.model_spread == pytest.approx(0.2, rel=0.1)


def test_lengths_are_kept_as_they_were_measured() -> None:
    # the second server is twice as wordy, which says nothing about the tasks
    lengths = {0: (10, 20), 1: (30, 60)}
    samples = [
        Sample(server, task, 2, tokens, 1.0, 1.0)
        for task, each in lengths.items()
        for server, tokens in enumerate(each)
    ]
    assert relative_lengths(samples) == {"math": (0.5, 1.5)}


def test_equal_models_have_no_spread_of_their_own() -> None:
    shared, own = spreads(3, made_up(own=0.0))
    assert shared == pytest.approx(0.4, rel=0.1)
    assert own < 0.02
    alone = [s for s in made_up(own=0.3) if s.server == 0]
    assert spreads(1, alone) == (pytest.approx(0.5, rel=0.15), 0.0)


def test_a_few_answers_that_waited_do_not_move_the_line() -> None:
    tokens = np.arange(5.0, 45.0)
    service = 0.5 + tokens / 12
    service[::10] += 5.0
    overhead, per_token = fit_line(tokens, service)
    # plain least squares has 0.7 s and more
    assert overhead == pytest.approx(0.5, abs=0.06)
    assert 1 / per_token == pytest.approx(12, rel=0.02)


def test_no_overhead_is_negative() -> None:
    tokens = np.array([10.0, 20.0, 30.0, 40.0])
    overhead, per_token = fit_line(tokens, tokens / 10 - 0.5)
    assert overhead == pytest.approx(0, abs=1e-6)
    assert per_token > 0


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'a' gave 4 answers .* at least 5"):
        fit_fleet(("a",), [s for s in made_up(4) if s.server == 0])
    same = [Sample(0, k, 0, 7, 1.0, 1.0) for k in range(9)]
    with pytest.raises(ConfigurationError, match="9 answers of 1 lengths"):
        fit_fleet(("a",), same)


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServers]:
    with StubServers() as servers:
        yield servers


def test_measuring_writes_the_twin_and_the_hints(stub: StubServers, tmp_path: Path) -> None:
    file, out = tmp_path / "fleet.yaml", tmp_path / "twin.yaml"
    fleet = {**stub.fleet("longer", "longer2", slots=2), "deadline_s": 4.0}
    fleet["servers"][1]["llm"] = fleet["servers"][0]["llm"]
    file.write_text("# mine\n" + yaml.safe_dump(fleet))
    arguments = ["fleet", "measure", str(file), "--tasks", "15", "--out", str(out), "--quiet"]
    result = CliRunner().invoke(app, [*arguments, "--update"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "mean tokens / mean score" in result.output
    settings = yaml.safe_load(out.read_text())
    env = make("slo-scheduling", 2, **settings)
    assert env.problem.labels == ("longer", "longer2")
    assert env.config.deadline_s == 4.0  # type: ignore[attr-defined]
    assert all(3 <= n <= 5 for n in settings["servers"][0]["mean_tokens"].values())
    assert file.read_text().startswith("# mine\n")
    hints = load_fleet(file).servers[0]
    assert hints.mean_tokens == settings["servers"][0]["mean_tokens"]
    assert (hints.slots, hints.llm) == (2, fleet["servers"][0]["llm"])


def test_a_server_that_gives_no_answers_stops_the_measurement(
    stub: StubServers, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(stub.fleet("longer", "broken")))
    result = CliRunner().invoke(
        app, ["fleet", "measure", str(file), "--tasks", "10", "--out", str(tmp_path / "t.yaml")]
    )
    assert "broken" in str(result.exception)
    assert not (tmp_path / "t.yaml").exists()
    result = CliRunner().invoke(app, ["fleet", "measure", "demo", "--update"])
    assert "--update is given with 'demo'" in str(result.exception)
