"""The response cache: what is kept, for whom, and what happens when the disk does not take part."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import LABELS, Flaky, Untouchable, probabilities, server_error

from icl_optimizer.errors import ConfigurationError, ModelError, ReplayError
from icl_optimizer.llm import (
    Capabilities,
    FunctionLLM,
    LanguageModel,
    PromptTooLongError,
    Usage,
    allow_model_requests,
)
from icl_optimizer.llm.conversation import Conversation, as_prompt
from icl_optimizer.llm.resilience import BreakerPolicy, ResilientModel, RetryPolicy
from icl_optimizer.llm.response_cache import CachedModel, ResponseCacheWarning

FILE = "responses.sqlite3"


def everything(model: LanguageModel) -> dict[str, Any]:
    return {
        "capabilities": model.capabilities,
        "score": model.score(["small talk", "coding"], LABELS).tolist(),
        "likelihood": model.likelihood(["a", "b"], [" local", " offload"]).tolist(),
        "generate": model.generate(["small talk", "coding"], choices=["local", "offload"]),
        "chat": model.chat([{"role": "user", "content": "talk"}]),
        "embed": model.embed(["a", "bcd"]).tolist(),
        "tokens": model.count_tokens("one two"),
        "first": model._first_tokens("", LABELS),
        "template": as_prompt(model, [{"role": "user", "content": "talk"}]),
    }


def counts(usage: Usage) -> dict[str, float]:
    return {k: v for k, v in usage.as_dict().items() if k != "seconds"}


def test_a_replay_repeats_answers_and_counts_without_the_model(tmp_path: Path) -> None:
    with CachedModel(Flaky().forget(), tmp_path) as model:
        recorded, used = everything(model), counts(model.usage)
    assert used["cached"] == 0
    inner = Untouchable()
    with CachedModel(inner, tmp_path, "replay") as replay:
        replay.reset()
        assert everything(replay) == recorded
    assert used["calls"] == replay.usage.cached == 9
    assert counts(replay.usage) == used | {"cached": 9}
    assert replay.usage.latency_ms(50) is None
    inner = Flaky().forget()
    with CachedModel(inner, tmp_path) as reused:
        assert everything(reused) == recorded
    assert (inner.sent, inner.probed) == ([], 0)


def test_a_batch_asks_only_for_what_is_missing_and_each_once(tmp_path: Path) -> None:
    inner = Flaky()
    with CachedModel(inner, tmp_path) as model:
        model.score(["talk one"], LABELS)
        prompts = ["coding", "talk one", "coding", "maths"]
        scores = model.score(prompts, LABELS)
    assert inner.sent == [["talk one"], ["coding", "maths"]]
    np.testing.assert_array_equal(scores, FunctionLLM(probabilities).score(prompts, LABELS))
    # five answers: two were cached, though not for nothing in tokens
    assert (model.usage.calls, model.usage.cached, model.usage.prompt_tokens) == (5, 2, 7)


class Batch(FunctionLLM):
    """Reports the tokens of a batch in one sum."""

    def _ask(self, prompt: str) -> Any:
        return self._answer(prompt)

    def _score(self, prompts: list[str], labels: list[str]) -> Any:
        self.usage.add(len(prompts), prompt_tokens=100, reused_tokens=11, completion_tokens=5)
        return super()._score(prompts, labels)


def test_the_tokens_of_a_batch_are_divided_exactly(tmp_path: Path) -> None:
    prompts = ["a", "b", "c"]
    with CachedModel(Batch(probabilities), tmp_path) as model:
        model.score(prompts, LABELS)
        used = counts(model.usage)
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        replay._capabilities = model.capabilities
        assert [int(replay.score([p], LABELS).size) for p in prompts] == [2, 2, 2]
    assert used["prompt_tokens"] == 100
    assert counts(replay.usage) == used | {"cached": 3}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


texts = st.text(st.characters(), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompts=st.lists(texts, min_size=1, max_size=4),
    labels=st.lists(texts, min_size=1, max_size=3, unique=True),
    values=st.lists(st.floats(), min_size=12, max_size=12),
)
def test_any_text_and_any_number_survive(
    shared: Path, prompts: list[str], labels: list[str], values: list[float]
) -> None:
    class Any12(FunctionLLM):
        def _score(self, prompts: list[str], labels: list[str]) -> Any:
            return np.array(values[: len(prompts) * len(labels)]).reshape(len(prompts), -1)

        @property
        def identity(self) -> dict[str, Any]:
            return {"name": self.name, "values": [repr(value) for value in values]}

    inner = Any12(probabilities)
    with CachedModel(inner, shared) as model:
        first = model.score(prompts, labels)
        text = model.chat([{"role": "user", "content": prompts[0]}])
    with CachedModel(inner, shared, "replay") as replay:
        again = replay.score(prompts, labels)
        assert replay.chat([{"role": "user", "content": prompts[0]}]) == text
    assert first.tobytes() == again.tobytes() or all(map(math.isnan, first[first != again]))


def test_the_key_holds_request_and_model(tmp_path: Path) -> None:
    class Named(Flaky):
        @property
        def identity(self) -> dict[str, Any]:
            return {"temperature": 0.5, "name": self.name}

    inner, other = Flaky(), Named()
    with CachedModel(inner, tmp_path) as model, CachedModel(other, tmp_path) as second:
        for ask in (
            lambda m: m.generate(["a"], max_tokens=8),
            lambda m: m.generate(["a"], max_tokens=9),
            lambda m: m.generate(["a"], stop=["\n"]),
            lambda m: m.generate(["a"], choices=["local", "offload"]),
            lambda m: m.score(["a"], ["local", "offload"]),
            lambda m: m.score(["a"], ["offload", "local"]),
            lambda m: m.chat([{"role": "user", "content": "a"}]),
            lambda m: m.chat([{"role": "system", "content": "a"}]),
        ):
            for _ in range(2):
                ask(model)
                ask(second)
    assert len(inner.sent) == len(other.sent) == 8


def test_a_conversation_is_more_than_its_text(tmp_path: Path) -> None:
    split = Conversation([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    joined = Conversation([{"role": "user", "content": "a\nuser: b"}])
    assert split == joined == str(split)
    inner = Flaky()
    inner.apply_template = None  # type: ignore[assignment,method-assign]
    with CachedModel(inner, tmp_path) as model:
        for _ in range(2):
            for prompt in (split, joined, str(split)):
                model.generate([prompt])
        assert [type(prompt) for (prompt,) in inner.sent] == [Conversation, Conversation, str]
        assert as_prompt(model, split.messages).messages == split.messages


def test_a_missing_answer_names_what_is_missing(tmp_path: Path) -> None:
    with CachedModel(Flaky(), tmp_path) as model:
        model.generate(["first"])
        model.score(["first"], LABELS)
    prompt = "Decide. " * 20
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        expected = (
            f"the recording in '{tmp_path}' has no answer of 'function' to generate {prompt[:80]!r}"
            ". A replay needs"
        )
        with pytest.raises(ReplayError, match=f"^{re.escape(expected)}"):
            replay.generate(["first", prompt])
        with pytest.raises(ReplayError, match=r"to chat .*'role': 'user'"):
            replay.chat([{"role": "user", "content": "first"}])
        assert replay.generate(["first"]) == ["offload"]


def test_a_cached_answer_needs_no_permission(tmp_path: Path) -> None:
    with CachedModel(Flaky(), tmp_path) as model:
        answer = model.generate(["first"])
        with allow_model_requests(False):
            assert model.generate(["first"]) == answer
            with pytest.raises(ConfigurationError, match="forbidden"):
                model.generate(["second"])


def test_a_recorded_failure_is_replayed_and_never_reused(tmp_path: Path) -> None:
    failures = [
        ModelError("off label", "answer"),
        PromptTooLongError(300, 256),
        server_error(),
        None,
    ]
    with CachedModel(Flaky(failures), tmp_path) as model:
        for prompt in ("a", "b", "c"):
            with pytest.raises((ModelError, PromptTooLongError)):
                model.generate([prompt, "talk"])
        assert model.generate(["c"]) == ["offload"]
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        with pytest.raises(ModelError, match="off label") as caught:
            replay.generate(["a", "talk"])
        assert caught.value.kind == "answer"
        assert replay.usage.failures == model.usage.failures == 0
        with pytest.raises(PromptTooLongError, match="300"):
            replay.generate(["b", "talk"])
        with pytest.raises(ModelError, match="500"):
            replay.generate(["c", "talk"])
        assert replay.generate(["c"]) == ["offload"]
        with pytest.raises(ReplayError, match="'d'"):
            replay.generate(["a", "d"])
    with CachedModel(Flaky(), tmp_path) as reused:
        assert reused.generate(["a"]) == ["offload"]


PROMPTS = ("talk one", "talk two", "coding", "maths")
SAME = ("calls", "prompt_tokens", "completion_tokens", "failures")


def failure(kind: str) -> Exception | None:
    if kind == "long":
        return PromptTooLongError(300, 256)
    return ModelError(f"it is {kind}", kind) if kind else None  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    asks=st.lists(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4), max_size=12),
    fails=st.lists(st.sampled_from(["", "", "server", "answer", "long"]), max_size=40),
    resilient=st.booleans(),
)
def test_a_run_with_outages_repeats_failure_by_failure(
    asks: list[list[str]], fails: list[str], resilient: bool
) -> None:
    def run(model: CachedModel) -> list[Any]:
        seen: list[Any] = []
        for prompts in asks:
            try:
                seen.append(model.score(prompts, LABELS).tolist())
            except (ModelError, PromptTooLongError) as error:
                seen.append((str(error), getattr(error, "kind", "")))
            seen.append({name: counts(model.usage)[name] for name in SAME})
        return seen

    with tempfile.TemporaryDirectory() as folder:
        inner: LanguageModel = Flaky(map(failure, fails))
        if resilient:
            retry, breaker = RetryPolicy(attempts=2, base=0), BreakerPolicy(failures=3)
            inner = ResilientModel(inner, retry, breaker, sleep=lambda s: None)
        with CachedModel(inner, folder) as model:
            recorded = run(model)
        with CachedModel(Untouchable(), folder, "replay") as replay:
            replay._capabilities = model.capabilities
            assert run(replay) == recorded


def test_a_batch_keeps_the_answers_before_the_failure(tmp_path: Path) -> None:
    # the batch fails, then its second prompt alone; the third is not asked
    inner = Flaky([server_error(), None, server_error(7.0)])
    resilient = ResilientModel(inner, RetryPolicy(attempts=2, base=0, max_wait=1))
    with CachedModel(resilient, tmp_path) as model:
        with pytest.raises(ModelError):
            model.generate(["talk", "coding", "maths"])
        assert model.generate(["talk"]) == ["local"]
    assert inner.sent == [["talk", "coding", "maths"], ["talk"], ["coding"]]
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        replay._capabilities = model.capabilities
        with pytest.raises(ReplayError, match="'maths'"):
            replay.generate(["maths"])
        with pytest.raises(ModelError) as caught:
            replay.generate(["talk", "coding", "maths"])
        assert caught.value.retry_after == 7.0
        assert replay.generate(["talk"]) == ["local"]
        with pytest.raises(ReplayError, match="'maths'"):
            replay.generate(["talk", "maths"])


def test_recordings_of_one_folder_keep_their_own_failures(tmp_path: Path) -> None:
    def outcomes(model: CachedModel, times: int = 2) -> str:
        found = ""
        for _ in range(times):
            try:
                found += model.generate(["talk"])[0][0]
            except ModelError as error:
                found += str(error)
        return found

    # as of two processes that work at the same time, or one that was interrupted
    first = CachedModel(Flaky([ModelError("1"), ModelError("2")]), tmp_path)
    second = CachedModel(Flaky([ModelError("3")]), tmp_path)
    first.begin_recording("icl/0")
    second.begin_recording("icl/1")
    assert (outcomes(first, 2), outcomes(second, 2), outcomes(first, 1)) == ("12", "3l", "l")
    first.begin_recording("icl/2")
    assert outcomes(first) == "ll"
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        for name, expected in (("icl/1", "3ll"), ("icl/2", "lll"), ("icl/0", "12l")):
            replay.begin_recording(name)
            assert outcomes(replay, 3) == expected
    # a unit that is done again replaces what it recorded before, and nothing else
    second.begin_recording("icl/0")
    assert outcomes(second) == "ll"
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        replay.begin_recording("icl/0")
        assert outcomes(replay) == "ll"
        replay.begin_recording("icl/1")
        assert outcomes(replay) == "3l"
    first.close()
    second.close()


def test_messages_of_failures_are_kept_short_and_without_keys(tmp_path: Path) -> None:
    text = "Bearer abcdefgh12345 " + "words " * 200
    model = CachedModel(Flaky([ModelError(text, "server", 3.0)]), tmp_path)
    with model, pytest.raises(ModelError):
        model.generate(["talk"])
    assert b"abcdefgh12345" not in (tmp_path / FILE).read_bytes()
    replay = CachedModel(Untouchable(), tmp_path, "replay")
    replay._capabilities = model.capabilities
    with replay, pytest.raises(ModelError, match=r"^Bearer \[redacted\] words") as caught:
        replay.generate(["talk"])
    assert (caught.value.kind, caught.value.retry_after) == ("server", 3.0)
    assert len(str(caught.value)) < 210


def test_capabilities_of_another_version_are_read(tmp_path: Path) -> None:
    with CachedModel(Flaky().forget(), tmp_path) as model:
        assert model.capabilities == Capabilities(True, True, constrained=True, likelihoods=True)
    with sqlite3.connect(tmp_path / FILE) as db:
        (answer,) = db.execute("SELECT answer FROM entries").fetchone()
        changed = answer.replace('"logprobs"', '"telepathy": true, "logprobs"')
        db.execute("UPDATE entries SET answer = ?", (changed,))
    db.close()
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        assert replay.capabilities == model.capabilities


WRITER = """
import sys
from icl_optimizer.llm import FunctionLLM
from icl_optimizer.llm.conversation import Conversation, as_prompt
from icl_optimizer.llm.response_cache import CachedModel

name, folder = sys.argv[1:]
# each process has numbers of its own, so that it shows who was first
share = {"one": 0.25, "two": 0.75}[name]
model = CachedModel(FunctionLLM(lambda p: {"a": share, "b": 1 - share}), folder)
print("ready", flush=True)
sys.stdin.readline()
for i in range(150):
    batch = [f"prompt {i} {k}" for k in range(3)]
    print(model.score(batch, ["a", "b"]).tolist())
model.close()
"""


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, name, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    printed = [writer.communicate()[0].splitlines() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(printed[0]) == 150
    assert printed[0] == printed[1]
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        replay._capabilities = Capabilities(True, False)
        again = [
            str(replay.score([f"prompt {i} {k}" for k in range(3)], ["a", "b"]).tolist())
            for i in range(150)
        ]
    assert again == printed[0]


def test_threads_share_a_model_and_each_counts_its_own(tmp_path: Path) -> None:
    def ask(number: int) -> list[str]:
        return model.generate([f"talk {number % 50}", "and " * (number % 50 + 1)])

    with CachedModel(Flaky(), tmp_path) as model:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(200)))
        recorded = model.usage.snapshot()
    assert answers == [["local", "offload"]] * 200
    assert recorded.calls == 400
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        replay._capabilities = model.capabilities
        for number in range(50):
            replay.generate([f"talk {number}"])
            replay.generate(["and " * (number + 1)])
    # two words and n words, one each in the answers: nobody else's tokens slipped in
    assert replay.usage.prompt_tokens == 50 * 2 + sum(range(1, 51))
    assert replay.usage.completion_tokens == 100


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 64 KiB; writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_warns_once_and_decisions_go_on(tmp_path: Path) -> None:
    inner = Flaky()
    with CachedModel(inner, tmp_path) as model:
        model.generate(["first"])
        with pytest.warns(ResponseCacheWarning) as caught, full_disk():
            answers = [model.generate([f"talk {i % 100}", f"code {i % 100}"]) for i in range(200)]
        assert model.generate(["first"]) == ["offload"]
    assert answers == [["local", "offload"]] * 200
    (warning,) = caught
    assert re.search("cannot be written .*no answers are kept", str(warning.message))
    # what was written before still counts
    assert 101 < len(inner.sent) < 200
    assert inner.sent.count(["first"]) == 1
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        assert replay.generate(["first", "talk 0"]) == ["offload", "local"]


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Yield an empty folder and be nobody special, to whom a read-only folder is read-only."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        if user == 0:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_a_read_only_folder_is_read(tmp_path: Path) -> None:
    with unprivileged() as folder:
        with CachedModel(Flaky(), folder) as model:
            recorded = model.generate(["first"])
        (folder / FILE).chmod(0o444)
        folder.chmod(0o555)
        with CachedModel(Untouchable(), folder, "replay") as replay:
            assert replay.generate(["first"]) == recorded
        inner = Flaky()
        with CachedModel(inner, folder) as reused:
            assert reused.generate(["first"]) == recorded
            with pytest.warns(ResponseCacheWarning, match="cannot be written") as caught:
                answers = [reused.generate(["talk"]) for _ in range(2)]
            assert answers == [["local"]] * 2
            assert len(caught) == 1
        assert inner.sent == [["talk"], ["talk"]]
        assert [path.name for path in folder.iterdir()] == [FILE]


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(ResponseCacheWarning, match="cannot be written"):
        model = CachedModel(Flaky(), tmp_path / "file" / "cache")
    assert model.generate(["first"]) == model.generate(["first"])
    assert model.usage.cached == 0
    with unprivileged() as folder:
        folder.chmod(0o555)
        with pytest.warns(ResponseCacheWarning, match="cannot be written"):
            model = CachedModel(Flaky(), folder)
        assert model.generate(["first"]) == ["offload"]


def spoil_head(path: Path) -> None:
    path.write_bytes(b"this is no database" * 300)


def spoil_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xa5" * 4096
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [spoil_head, spoil_middle])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    for number in (1, 2):
        with CachedModel(Flaky(), tmp_path) as model:
            model.generate([f"{i} " * 100 for i in range(50)])
        spoil(tmp_path / FILE)
        damaged = (tmp_path / FILE).read_bytes()
        with pytest.raises(
            ConfigurationError, match=f"{FILE}' cannot be read: .*Use another folder"
        ):
            CachedModel(Untouchable(), tmp_path, "replay")
        inner = Flaky()
        with pytest.warns(ResponseCacheWarning, match=f"moved to .*damaged-{number}'"):
            model = CachedModel(inner, tmp_path)
        with model:
            assert [model.generate(["talk"]) for _ in range(2)] == [["local"]] * 2
        assert inner.sent == [["talk"]]
        assert (tmp_path / f"{FILE}.damaged-{number}").read_bytes() == damaged


def test_a_damaged_file_is_moved_aside_once(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database" * 300)
    together = threading.Barrier(8)

    def open_and_ask(number: int) -> None:
        together.wait()
        with CachedModel(Flaky(), tmp_path) as model:
            model.generate([f"talk {number}"])

    with (
        pytest.warns(ResponseCacheWarning, match="damaged") as caught,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(open_and_ask, range(8)))
    assert len(caught) == 1
    assert [path.name for path in tmp_path.glob("*.damaged-*")] == [f"{FILE}.damaged-1"]
    with CachedModel(Untouchable(), tmp_path, "replay") as replay:
        assert replay.generate([f"talk {number}" for number in range(8)]) == ["local"] * 8


def test_damage_in_mid_run_costs_the_cache_alone(tmp_path: Path) -> None:
    with CachedModel(Flaky(), tmp_path) as model:
        model.generate(["first"])
        assert model._store._db is not None
        model._store._db.execute("DROP TABLE entries")
        with pytest.warns(ResponseCacheWarning, match="cannot be read"):
            assert model.generate(["first"]) == ["offload"]
        assert model.generate(["first"]) == ["offload"]


def test_there_must_be_something_to_replay(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no recording in the folder"):
        CachedModel(Untouchable(), tmp_path, "replay")
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(tmp_path / FILE).close()
    (tmp_path / FILE).touch()
    with pytest.raises(ConfigurationError, match="holds no recording"):
        CachedModel(Untouchable(), tmp_path, "replay")
    with pytest.raises(ConfigurationError, match="mode is 'record'; allowed"):
        CachedModel(Untouchable(), tmp_path, "record")  # type: ignore[arg-type]


def test_a_file_of_another_format_is_left_alone(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("PRAGMA user_version = 7")
    db.close()
    for mode in ("reuse", "replay"):
        with pytest.raises(ConfigurationError, match="has format 7, this version"):
            CachedModel(Untouchable(), tmp_path, mode)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with CachedModel(Flaky(), tmp_path) as model:
            model.generate(["first"])
    # all is in one file, ready to be copied
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    model.close()
