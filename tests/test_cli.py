"""The command line, run in this process."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from tiny_prompts import CopyNearest
from typer.testing import CliRunner

from icl_optimizer.agent import ICLAgent
from icl_optimizer.cli import app, expand_lists, main
from icl_optimizer.decision import Outcome
from icl_optimizer.environments.offloading_config import PAPER_TYPES
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ConfigurationError, MissingDependencyError, ModelError
from icl_optimizer.llm.loading import load_llm
from icl_optimizer.llm.scripted import FunctionLLM
from icl_optimizer.logs import write_outcomes
from icl_optimizer.policies import policy_names

PROBLEM = make("offloading").problem
SMALL = ["--set", "users=2", "--set", "horizon=10", "--set", "radio.n_resource_blocks=4"]
TASK = ["--context", "Service type=coding", "--context", "Output size=long"]


def call(*arguments: str) -> str:
    """Return what a command prints; an error in it is raised."""
    result = CliRunner().invoke(app, expand_lists(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """Return the message with which the program ends, after checking that it ends with 2."""
    monkeypatch.setattr(sys, "argv", ["icl-optimizer", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "expanded"),
    [
        (
            ["compare", "e", "--policies", "a", "b", "--seeds", "2"],
            ["compare", "e", "--policies", "a", "--policies", "b", "--seeds", "2"],
        ),
        (["--policies", "a,b", "c"], ["--policies", "a", "--policies", "b", "--policies", "c"]),
        (["compare", "--policies", "a", "-h"], ["compare", "--policies", "a", "-h"]),
        (["decide", "--context", "a=b", "c"], ["decide", "--context", "a=b", "c"]),
        (["--policies", "a", "--policies", "b"], ["--policies", "a", "--policies", "b"]),
        ([], []),
    ],
)
def test_lists_of_policies(arguments: Sequence[str], expanded: list[str]) -> None:
    assert expand_lists(list(arguments)) == expanded


def test_list_names_everything() -> None:
    output = call("list")
    assert "icl_optimizer/Offloading-v0" in output
    assert set(policy_names()) <= set(output.split())


def test_compare_writes_tables_and_a_report(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--seeds", "1", "--interactions", "5", "--eval-tasks", "10", "--no-sweeps"]
    policies = ["--policies", "bandit", "random", "oracle"]
    output = call(
        "compare", "offloading", *policies, *options, *SMALL, "--out", str(out), "--quiet"
    )
    assert output.rstrip().splitlines()[-1] == f"report: {out / 'report.html'}"
    assert (out / "report.html").stat().st_size > 1000
    assert all(name in output for name in ("bandit", "random", "oracle"))
    table = pd.read_csv(out / "results.csv")
    assert set(table.policy) == {"bandit", "random", "oracle"}
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["seeds"], config["interactions"], config["sweeps"]) == (1, 5, False)
    assert config["settings"] == {"users": "2", "horizon": "10", "radio.n_resource_blocks": "4"}
    # the same again is refused without --resume, and repeats nothing with it
    again = ["compare", "offloading", *policies, *options, *SMALL, "--out", str(out), "--quiet"]
    with pytest.raises(ConfigurationError, match="add --resume"):
        call(*again)
    written = (out / "units" / "bandit-0.json").stat().st_mtime_ns
    (out / "report.html").unlink()
    call(*again, "--resume")
    assert (out / "units" / "bandit-0.json").stat().st_mtime_ns == written
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "ofloading"], r"unknown environment 'ofloading'\. Did you mean 'offloading'"),
        (
            ["compare", "offloading", "--policies", "icl", "radnom"],
            r"unknown policy 'radnom'\. Did you mean 'random'",
        ),
        (["compare", "offloading", "--set", "user=3"], r"'user'\. Did you mean 'users'"),
        (["compare", "offloading", "--set", "users"], "--set is 'users'; allowed: key=value"),
        (["compare", "offloading", "--set", "users=0"], "users is '0'"),
        (["compare", "offloading", "--seeds", "0"], "seeds is 0"),
        (["compare", "offloading", "--icl", "orders=99"], "orders is '99'"),
        (["compare", "offloading", "--icl", "replya=x"], "Did you mean 'replay'"),
        (["compare", "offloading", "--llm", "olama:x"], "Did you mean 'ollama'"),
        (["train", "random", "offloading", "--out", "x"], "policy 'random' does not learn"),
        (["decide", "offloading", "--context", "Service typ=x"], "Did you mean 'Service type'"),
        (["decide", "offloading", "--context", "Output size=x"], r"lacks \['Service type'\]"),
        (
            ["decide", "offloading", *TASK, "--agent", "no-such-file"],
            "'no-such-file' cannot be read",
        ),
        (["report", "no-such-folder"], "no-such-folder"),
        (["bench", "no-such-benchmark"], "unknown benchmark 'no-such-benchmark'"),
    ],
)
def test_errors_are_one_message(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "icl_optimizer.llm.loading._load_llamacpp", lambda *_: CopyNearest(PROBLEM.labels)
    )
    error = fails(capsys, monkeypatch, *arguments)
    assert error.startswith("error: ")
    assert re.search(message, error)
    # nothing was begun
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MissingDependencyError("needs: pip install 'icl-optimizer[rl]'"),
        ConfigurationError("template [/x] of ['a', 'b']"),
        ModelError("'ollama:x' did not answer"),
        FileNotFoundError(2, "No such file or directory", "log.jsonl"),
    ],
)
def test_messages_arrive_as_they_are(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        raise error

    monkeypatch.setattr("icl_optimizer.policies.policy_names", broken)
    monkeypatch.setattr("icl_optimizer.cli.machine.console.print", lambda *_: None)
    assert fails(capsys, monkeypatch, "list") == f"error: {error}\n"


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr("icl_optimizer.policies.policy_names", broken)
    monkeypatch.setattr(sys, "argv", ["icl-optimizer", "list"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_train_saves_where_it_is_told(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "bandit.json"
    output = call("train", "bandit", "offloading", "--out", str(out), "--interactions", "4", *SMALL)
    assert output.rstrip().endswith(f"saved: {out}")
    assert json.loads(out.read_text())["num_timesteps"] == 4


def test_decide_from_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CopyNearest(PROBLEM.labels)
    monkeypatch.setattr("icl_optimizer.llm.loading.load_llm", lambda spec: model)
    log = tmp_path / "log.jsonl"
    rows = [("chatting", 0), ("coding", 1), ("chatting", 1), ("coding", 0)]
    write_outcomes(
        log,
        PROBLEM,
        [
            Outcome(i, PROBLEM.context([word, "long"]), action, 9.0 - i)
            for i, (word, action) in enumerate(rows)
        ],
    )
    output = call("decide", "offloading", *TASK, "--log", str(log), "--show-prompt")
    prompt, answer = output.split("{", 1)
    assert "coding -> offload" in prompt
    assert json.loads("{" + answer)["decision"] == "offload"
    assert json.loads("{" + answer)["made_by"] == "llm"


def test_decide_with_a_folder_of_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FunctionLLM(lambda prompt: {"local": 0.3, "offload": 0.7})
    monkeypatch.setattr("icl_optimizer.llm.loading.load_llm", lambda spec: model)
    (tmp_path / "offloading").mkdir()
    (tmp_path / "offloading" / "goal.j2").write_text("Mine: local or offload?")
    output = call("decide", "offloading", *TASK, "--prompts", str(tmp_path), "--show-prompt")
    assert output.startswith("Mine: local or offload?")


@pytest.mark.llm
def test_decide_with_a_saved_agent_and_the_embedded_model(tmp_path: Path) -> None:
    with load_llm("llamacpp") as model:
        agent = ICLAgent(PROBLEM, model)
        # what an operator may have logged: both decisions for two types of each kind
        for kind, best in (("regular", 0), ("quality", 1)):
            names = [n for n, k in PAPER_TYPES.items() if k == kind][:2]
            for name in names:
                context = PROBLEM.context([name, "medium"])
                for action in (0, 1):
                    reward = 10.0 if action == best else -10.0
                    agent.update([Outcome(0, context, action, reward)])
        agent.save(tmp_path / "agent.json")
    for word, label in (("chatting", "local"), ("coding", "offload")):
        task = ["--context", f"Service type={word}", "--context", "Output size=medium"]
        answer = json.loads(
            call("decide", "offloading", *task, "--agent", str(tmp_path / "agent.json"))
        )
        assert answer["decision"] == label
        assert answer["probabilities"][label] > 0.5
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-3)
