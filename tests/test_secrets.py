"""A key from the environment is used, and found nowhere afterwards."""

from __future__ import annotations

import itertools
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from loopback import Asked, Reply, chat_reply, serve

from icl_optimizer.agent import ICLAgent
from icl_optimizer.comparison.config import default_config
from icl_optimizer.comparison.runner import compare
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import ModelError
from icl_optimizer.llm.guard import GuardOptions, guard
from icl_optimizer.llm.loading import load_llm
from icl_optimizer.llm.opening import open_llm
from icl_optimizer.llm.redaction import redact
from icl_optimizer.llm.resilience import RetryPolicy
from icl_optimizer.logs import log_to
from icl_optimizer.report import write_report

KEY = "sk-a1b2c3d4e5f6g7h8i9j0"
QUICK = RetryPolicy(attempts=2, base=0.0, cap=0.0)


class Telltale:
    """Answers chats, and repeats the caller's key in every third answer, an error."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.keys: set[str] = set()

    def __call__(self, asked: Asked) -> Reply:
        if not asked.path.endswith("/chat/completions"):
            return Reply({"error": "no such path"}, 404)
        key = asked.headers.get("Authorization", "")
        self.keys.add(key)
        if next(self.numbers) % 3 == 2:
            return Reply({"error": {"message": f"who sent {key}?", "key": key}}, 500)
        return chat_reply("local", {"local": -0.5, "off": -1.0})


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def files_with_the_key(folder: Path) -> list[str]:
    found = [p for p in folder.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    return [str(path.relative_to(folder)) for path in found]


def test_nothing_that_is_written_holds_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server = Telltale()
    caplog.set_level(logging.DEBUG, "openai")
    with serve(server) as url:
        access = GuardOptions(retry=QUICK, cache=tmp_path / "answers")
        spec = f"openai:tiny@{url}/v1"
        config = default_config(
            "offloading",
            policies=("icl", "random"),
            llm=spec,
            seeds=1,
            interactions=10,
            eval_tasks=50,
            sweeps=False,
        )
        folder = compare(config, tmp_path / "run", access=access, progress_bar=False)
        write_report(folder)
        with open_llm(spec, access) as model:
            env = make("offloading", 1)
            agent = ICLAgent(env.problem, model, env=env)
            log_to(agent, tmp_path / "log")
            agent.learn(8)
            agent.logger.close()
            agent.save(tmp_path / "agent.json")
            shown = f"{model!r} {model.name} {model.identity} {model.usage} {agent.config!r}"
    # the key was sent, and the server told it back
    assert server.keys == {f"Bearer {KEY}"}
    assert next(server.numbers) > 3
    assert (tmp_path / "answers" / "responses.sqlite3").is_file()
    assert files_with_the_key(tmp_path) == []
    said = capfd.readouterr()
    assert KEY not in shown + caplog.text + said.out + said.err


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_no_error_holds_the_key(status: int) -> None:
    def refuse(asked: Asked) -> Reply:
        return Reply({"error": {"message": f"bad {asked.headers.get('Authorization')}"}}, status)

    with serve(refuse) as url:
        model: Any = open_llm(f"openai:tiny@{url}/v1", GuardOptions(retry=QUICK))
        with pytest.raises(ModelError) as caught:
            model.generate(["Decide:"])
        model.close()
    told = "".join(traceback.format_exception(caught.value))
    assert KEY not in told + repr(caught.value) + str(vars(caught.value))


OWN = "own-key-of-an-object-0123456789"


@pytest.mark.parametrize(
    "given",
    [
        {"api_key": OWN},
        {"api_key": "none", "default_headers": {"X-Team": OWN}},
        {"api_key": "none", "default_query": {"code": OWN}},
    ],
)
def test_a_key_in_an_object_is_found_nowhere(tmp_path: Path, given: dict[str, Any]) -> None:
    def echo(asked: Asked) -> Reply:
        told = f"{asked.path} {dict(asked.headers)}".replace("Bearer ", "")
        return Reply({"error": {"message": told}}, 500)

    with serve(echo) as url:
        theirs = ChatOpenAI(model="x", base_url=f"{url}/v1", max_retries=0, **given)
        model = guard(load_llm(theirs), GuardOptions(retry=QUICK, cache=tmp_path))
        with pytest.raises(ModelError, match="redacted") as caught:
            model.generate(["Decide:"])
        model.close()
    assert OWN not in "".join(traceback.format_exception(caught.value)) + str(model.identity)
    assert [p for p in tmp_path.iterdir() if OWN.encode() in p.read_bytes()] == []


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('{"a": "Bearer abc.def"}', '{"a": "Bearer [redacted]"}'),
        ("the key sk-proj_ABC-12345678, no", "the key [redacted], no"),
        ("a task-specific risk-assessment", "a task-specific risk-assessment"),
        ("at http://me:pw@host/v1", "at http://[redacted]@host/v1"),
        ("openai:a@http://h,openai:b@http://h2", "openai:a@http://h,openai:b@http://h2"),
    ],
)
def test_what_looks_like_a_key_is_struck_out(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean
