"""A comparison whose models are recorded, replayed, limited, interrupted or gone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from loopback import Asked, Reply, chat_reply, serve
from test_comparison import Model, config

from icl_optimizer.cli import main
from icl_optimizer.comparison.runner import compare
from icl_optimizer.errors import (
    BudgetError,
    ConfigurationError,
    FailureKind,
    ModelError,
    ReplayError,
)
from icl_optimizer.llm.base import Capabilities, LanguageModel
from icl_optimizer.llm.budget import Budget
from icl_optimizer.llm.chain import ModelChain
from icl_optimizer.llm.guard import GuardOptions
from icl_optimizer.llm.requests import allow_model_requests
from icl_optimizer.report import write_report

ICL: dict[str, Any] = {
    "policies": ("icl", "random"),
    "seeds": 2,
    "interactions": 30,
    "eval_tasks": 20,
}


class Recorded(Model):
    """Counts what it is asked and can be told to fail from some request on."""

    remote = True

    def __init__(self, fail_from: int | None = None, kind: FailureKind = "server") -> None:
        super().__init__()
        self.fail_from, self.kind, self.asked = fail_from, kind, 0

    def _score(self, prompts: list[str], labels: list[str]) -> Any:
        self.asked += 1
        if self.fail_from is not None and self.asked >= self.fail_from:
            raise ModelError("it is gone", self.kind)
        return super()._score(prompts, labels)


class Forbidden(Recorded):
    """Fails whoever asks it anything."""

    def _score(self, prompts: list[str], labels: list[str]) -> Any:
        raise AssertionError("the network was used")

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        raise AssertionError("the network was used")


def run(
    folder: Path, model: LanguageModel, access: GuardOptions | None = None, **fields: Any
) -> Path:
    resume = fields.pop("resume", False)
    return compare(
        config(**ICL | fields),
        folder,
        progress_bar=False,
        model=model,
        access=access,
        resume=resume,
    )


def value(folder: Path, metric: str, file: str = "summary.csv") -> float:
    rows = pd.read_csv(folder / file)
    mine = rows[(rows["policy"] == "icl") & (rows["metric"] == metric)]
    return float(mine["mean" if file == "summary.csv" else "value"].iloc[0])


def test_a_recorded_run_repeats_without_the_model(tmp_path: Path) -> None:
    cache = tmp_path / "answers"
    first = run(tmp_path / "first", Recorded(), GuardOptions(cache=cache))
    with allow_model_requests(False):
        again = run(tmp_path / "again", Forbidden(), GuardOptions(cache=cache, replay=True))
    for table in ("results.csv", "explain.json"):
        assert (first / table).read_bytes() == (again / table).read_bytes()
    assert value(first, "llm_disk_cached") < value(first, "llm_calls")
    assert value(again, "llm_disk_cached") == value(again, "llm_calls") > 0


def test_a_replay_says_what_was_not_recorded(tmp_path: Path) -> None:
    cache = tmp_path / "answers"
    run(tmp_path / "first", Recorded(), GuardOptions(cache=cache))
    replay = GuardOptions(cache=cache, replay=True)
    with pytest.raises(ReplayError, match="function"):
        run(tmp_path / "other", Forbidden(), replay, icl={"passes": 1})


def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = Recorded()
    whole = run(tmp_path / "whole", model)
    with pytest.raises(BudgetError, match=r"the budget is \d+ requests"):
        run(folder, Recorded(), GuardOptions(budget=Budget(max_calls=len(model.prompts) * 3 // 4)))
    # one seed is whole; the one under way is kept as far as it went
    told = json.loads((folder / "explain.json").read_text())
    assert told["stopped"]
    assert len(pd.read_csv(folder / "results.csv")) > 0
    assert "--resume" in write_report(folder).read_text()
    run(folder, Recorded(), GuardOptions(budget=Budget(max_calls=10_000)), resume=True)
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert json.loads((folder / "explain.json").read_text())["stopped"] == []


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", (model := Model()))
    enough, model, seen = len(model.prompts) // 3, Model(), []

    def interrupt() -> None:
        seen.append(1)
        if len(seen) == enough:
            raise KeyboardInterrupt

    model.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", model)
    stopped = json.loads((tmp_path / "run" / "explain.json").read_text())["stopped"]
    assert [name for name, _, step in stopped if step > 0] == ["icl"]
    run(tmp_path / "run", Model(), resume=True)
    assert (tmp_path / "run/results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_model_that_goes_away_costs_no_decision(tmp_path: Path) -> None:
    quick = GuardOptions(retry={"attempts": 1})
    folder = run(tmp_path / "run", Recorded(fail_from=4), quick)
    assert value(folder, "interactions") == 30
    assert value(folder, "fallback_rate") > 0
    told = json.loads((folder / "explain.json").read_text())["models"]["icl"]
    assert set(told["failures"]) <= {"server", "open"}
    page = write_report(folder).read_text()
    assert "experience decided in its place" in page


def test_it_can_stop_instead_and_go_on_later(tmp_path: Path) -> None:
    quick = GuardOptions(retry={"attempts": 1})
    fields = {"icl": {"on_failure": "stop"}}
    with pytest.raises(ModelError, match="it is gone"):
        run(tmp_path / "run", Recorded(fail_from=4), quick, **fields)
    whole = run(tmp_path / "whole", Recorded(), **fields)
    run(tmp_path / "run", Recorded(), quick, resume=True, **fields)
    assert (tmp_path / "run/results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_costs_follow_the_price_table(tmp_path: Path) -> None:
    table = tmp_path / "prices.csv"
    table.write_text("model,input,output\nfunction,1000000,0\n")
    folder = run(tmp_path / "run", Recorded(), GuardOptions(price_table=table))
    assert value(folder, "cost_usd") == pytest.approx(value(folder, "prompt_tokens"))
    table.write_text("model,input,output\nanother,1,1\n")


def test_a_budget_needs_one_process(tmp_path: Path) -> None:
    access = GuardOptions(budget=Budget(max_calls=1))
    with pytest.raises(ConfigurationError, match="jobs is 2; allowed: 1 with a budget"):
        compare(config(llm="llamacpp"), tmp_path / "run", jobs=2, access=access)


def test_replay_needs_a_folder(
    capsys: pytest.CaptureFixture[str], call: Callable[..., int]
) -> None:
    assert call("compare", "offloading", "--replay") == 2
    assert "--replay is given without --llm-cache" in capsys.readouterr().err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line as a shell does and return its exit code."""

    def run_main(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["icl-optimizer", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run_main


@pytest.mark.llm
def test_the_command_line_stops_at_the_budget_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int]
) -> None:
    folder = tmp_path / "run"
    arguments = [
        *("compare", "offloading", "--policies", "icl", "random", "--seeds", "1"),
        *("--interactions", "10", "--set", "horizon=10", "--eval-tasks", "10"),
        *("--no-sweeps", "--quiet", "--out", str(folder)),
    ]
    assert call(*arguments, "--max-calls", "8") == 3
    out = capsys.readouterr().out
    assert "the budget is 8 requests" in out
    assert "--resume" in out
    assert call(*arguments, "--max-calls", "500", "--resume") == 0
    assert (folder / "report.html").is_file()


def test_the_report_says_which_model_of_a_chain_failed(tmp_path: Path) -> None:
    gone = Recorded(fail_from=1)
    gone.name = "gone"
    chain = ModelChain([gone, Model()])
    folder = run(tmp_path / "run", chain, GuardOptions(retry={"attempts": 1}), seeds=1)
    told = json.loads((folder / "explain.json").read_text())["models"]["icl"]
    assert told["answered_by"] == {"function": told["asked"]}
    assert sum(told["passed_on"]["gone"].values()) == told["asked"]
    page = write_report(folder).read_text()
    assert "icl: gone failed to answer" in page
    assert "the next model of the chain was asked" in page


@pytest.mark.slow
def test_parallel_units_keep_what_they_measured(tmp_path: Path) -> None:
    numbers = itertools.count()

    def answer(asked: Asked) -> Reply:
        if not asked.path.endswith("/chat/completions"):
            return Reply({"error": "no such path"}, 404)
        if next(numbers) > 30:
            return Reply({"error": "down"}, 500)
        return chat_reply("local", {"local": -0.5, "off": -1.0})

    with serve(answer) as url, pytest.raises(ModelError, match="500"):
        compare(
            config(**ICL | {"llm": f"openai:tiny@{url}/v1", "icl": {"on_failure": "stop"}}),
            tmp_path / "run",
            jobs=2,
            progress_bar=False,
            access=GuardOptions(retry={"attempts": 1}),
        )
    units = {path.name for path in (tmp_path / "run" / "units").iterdir()}
    assert {"random-0.json", "random-1.json"} <= units
    assert units & {"icl-0.stopped.json", "icl-1.stopped.json"}


class Flaky(Recorded):
    """Is gone for some requests, and comes back."""

    def __init__(self, gone: range) -> None:
        super().__init__()
        self.gone = gone

    def _score(self, prompts: list[str], labels: list[str]) -> Any:
        if self.asked in self.gone:
            self.asked += 1
            raise ModelError("it is gone", "timeout")
        return super()._score(prompts, labels)


@pytest.mark.parametrize("gone", [range(5, 12), range(1, 30)])
def test_an_outage_that_passed_is_replayed(tmp_path: Path, gone: range) -> None:
    cache = tmp_path / "answers"
    quick = {"retry": {"attempts": 1}, "breaker": {"failures": 1000}}
    first = run(tmp_path / "first", Flaky(gone), GuardOptions(cache=cache, **quick))
    replay = GuardOptions(cache=cache, replay=True, **quick)
    again = run(tmp_path / "again", Forbidden(), replay)
    assert value(first, "fallback_rate") > 0
    assert (first / "results.csv").read_bytes() == (again / "results.csv").read_bytes()


def test_credentials_never_reach_the_folder(tmp_path: Path) -> None:
    fields = config(policies=("random",), llm="openai:m@http://user:pw@host/v1")
    with pytest.raises(ConfigurationError) as caught:
        compare(fields, tmp_path / "run", progress_bar=False)
    assert "pw" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_report_says_that_answers_named_no_label(tmp_path: Path) -> None:
    class Babbling(Recorded):
        def _generate(self, prompts: list[str], *_: Any) -> list[str]:
            self.usage.add(calls=len(prompts))
            return ["I would rather not say."] * len(prompts)

    model = Babbling()
    model._capabilities = Capabilities(logprobs=False, embeddings=False, constrained=False)
    folder = run(tmp_path / "run", model, seeds=1)
    assert value(folder, "invalid_rate") == value(folder, "fallback_rate") == 1.0
    assert "queries the answer named no label" in write_report(folder).read_text()
