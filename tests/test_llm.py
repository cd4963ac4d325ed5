"""The embedded model, run for real."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm import LlamaCpp, PromptTooLongError, load_llm, native
from icl_optimizer.llm.doctor import diagnose
from icl_optimizer.llm.llamacpp import _file_identity
from icl_optimizer.studies.ollama_server import serve_ollama

pytestmark = pytest.mark.llm

EXAMPLES = (
    "Choose where to run each task. Reply with local or offload only.\n\n"
    "Task: coding\nDecision: offload\n\nTask: small talk\nDecision: local\n\n"
)
LABELS = [" local", " offload"]


def decision(task: str) -> str:
    return f"{EXAMPLES}Task: {task}\nDecision:"


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaCpp]:
    with LlamaCpp(context_size=1024) as model:
        yield model


@pytest.fixture(scope="module")
def address(model: LlamaCpp) -> Iterator[str]:
    with model.serve() as address:
        yield address


def test_scores_are_logprobs_and_agree_with_the_greedy_token(model: LlamaCpp) -> None:
    prompts = [decision("coding"), decision("small talk")]
    scores = model.score(prompts, LABELS)
    assert scores.shape == (2, 2)
    assert (scores < 0).all()
    assert (np.exp(scores).sum(axis=1) <= 1).all()
    for prompt, row in zip(prompts, scores, strict=True):
        greedy = model.generate([prompt], max_tokens=1)[0]
        assert LABELS[int(row.argmax())].startswith(greedy)


def test_labels_outside_the_top_list_get_their_own_probability(model: LlamaCpp) -> None:
    prompt = decision("coding")
    model.score([prompt], LABELS)
    rare = model.score([prompt], [" offload", " neoliberal", " strawberry"])[0]
    answer = model._running.complete(
        {"prompt": prompt, "max_tokens": 1, "n_probs": 100_000, "temperature": 0}
    )
    listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    by_text = {entry["token"]: entry["logprob"] for entry in listed}
    assert rare[1:].max() < -10
    expected = [by_text[" off"], by_text[" neoliberal"], by_text[" strawberry"]]
    assert rare == pytest.approx(expected, abs=0.3)


def test_the_likelihood_of_a_text_starts_with_its_first_token(model: LlamaCpp) -> None:
    prompt = decision("coding")
    local, off = model.score([prompt], LABELS)[0]
    likelihoods = model.likelihood([prompt, prompt], [" local", " offload"])
    assert likelihoods == pytest.approx([local, off], abs=0.3)
    assert likelihoods[1] < 0
    sensible, odd = model.likelihood([prompt] * 2, [" offload\n\nTask:", " offload strawberry"])
    assert odd + 5 < sensible < 0


def test_a_shared_prefix_is_computed_once(model: LlamaCpp) -> None:
    start = model.usage.snapshot()
    model.score([decision("writing poems")], LABELS)
    middle = model.usage.snapshot()
    model.score([decision("solving equations")], LABELS)
    second = model.usage.snapshot() - middle
    assert (middle - start).calls == second.calls == 1
    assert second.prompt_tokens > 40
    assert second.reused_tokens > 30
    assert second.processed_tokens < 12
    assert second.seconds > 0


def test_without_prefix_reuse_scores_do_not_depend_on_what_came_before() -> None:
    with LlamaCpp(context_size=1024, reuse_prefix=False) as model:
        alone = model.score([decision("coding")], LABELS)
        model.score([decision("small talk")], LABELS)
        again = model.score([decision("coding")], LABELS)
        assert model.usage.reused_tokens == 0
    np.testing.assert_array_equal(alone, again)


def test_labels_with_a_common_first_token_are_refused(model: LlamaCpp) -> None:
    model.check_labels(LABELS, decision("coding"))
    with pytest.raises(ConfigurationError, match=r"' offload' and ' off' .* ' off'.* A and B"):
        model.check_labels([" offload", " off"])
    with pytest.raises(ConfigurationError, match="both start with the token"):
        model.score([decision("coding")], [" offload", " off"])


def test_a_trailing_space_in_the_prompt_is_refused(model: LlamaCpp) -> None:
    with pytest.raises(ConfigurationError, match="Move spaces"):
        model.score([decision("coding") + " "], ["local", "offload"])


def test_prompts_must_fit(model: LlamaCpp) -> None:
    calls = model.usage.calls
    with pytest.raises(PromptTooLongError) as caught:
        model.score(["word " * 1100], LABELS)
    assert (caught.value.limit, caught.value.tokens > 1100) == (1024, True)
    with pytest.raises(PromptTooLongError):
        model.generate(["word " * 1000], max_tokens=64)
    with pytest.raises(PromptTooLongError):
        model.chat([{"role": "user", "content": "word " * 1100}])
    with pytest.raises(PromptTooLongError):
        model.embed(["word " * 600])
    assert model.usage.calls == calls


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaCpp(context_size=256) as model:
        model.score(["Yes or no?"], [" yes", " no"])
        model.generate(["Yes or no?"], choices=["yes", "no"])
        model.embed(["yes"])
        with pytest.raises(PromptTooLongError):
            model.score(["word " * 300], LABELS)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_generation_is_limited_stopped_or_held_to_choices(model: LlamaCpp) -> None:
    prompt = decision("coding")
    assert model.generate([prompt], max_tokens=8, stop=["\n"]) == [" offload"]
    assert model.generate([prompt], max_tokens=8)[0].startswith(" offload\n")
    choices = ["B: never", 'A "quoted" \\ one', "C"]
    assert model.generate([prompt], max_tokens=1, choices=choices)[0] in choices
    with pytest.raises(ConfigurationError, match="printable"):
        model.generate([prompt], choices=["two\nlines", "one"])


def test_chat_uses_the_template_and_counts(model: LlamaCpp) -> None:
    before = model.usage.snapshot()
    assert model.chat([{"role": "user", "content": "Say hello."}], max_tokens=4)
    used = model.usage.snapshot() - before
    assert (used.calls, used.completion_tokens) == (1, 4)
    assert used.prompt_tokens > model.count_tokens("Say hello.") + 10


def test_embeddings_are_unit_vectors_and_put_like_with_like(model: LlamaCpp) -> None:
    vectors = model.embed(["coding", "programming", "a walk in the park with my dog"])
    assert vectors.shape == (3, 576)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.05


def test_same_settings_share_the_weights_until_the_last_one_closes(model: LlamaCpp) -> None:
    other = LlamaCpp(context_size=1024, temperature=0.5, seed=3)
    assert other._engine is model._engine
    other.close()
    assert model.count_tokens("local") == 1
    with pytest.raises(ConfigurationError, match="was closed"):
        other.count_tokens("local")


def test_threads_may_share_a_model(model: LlamaCpp) -> None:
    prompts = [decision(task) for task in ("coding", "small talk", "paraphrasing", "debugging")]
    alone = model.score(prompts, LABELS)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda part: model.score(part, LABELS), (prompts[:2], prompts[2:])))
    np.testing.assert_allclose(np.concatenate(halves), alone, atol=0.3)


def test_a_bad_file_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("weights") / "broken.gguf"
    file.write_bytes(b"GGUF but not really")
    with pytest.raises(ConfigurationError, match=r"could not load 'broken\.gguf'"):
        LlamaCpp(file)


def template(question: str) -> str:
    return (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


QUESTION = "Which letter comes first in the alphabet, A or B? Reply with A or B only."
ASKED = [{"role": "user", "content": QUESTION}]


def test_the_template_ends_where_the_reply_starts(model: LlamaCpp) -> None:
    assert model.apply_template(ASKED) == template(QUESTION)
    turns = [*ASKED, {"role": "assistant", "content": "A"}, {"role": "user", "content": "Sure?"}]
    text = model.apply_template(turns)
    assert text.startswith(template(QUESTION) + "A<|im_end|>")
    assert model.generate([text], max_tokens=4)[0] == model.chat(turns, max_tokens=4)
    with pytest.raises(ConfigurationError, match="at least one message"):
        model.apply_template([])


def test_a_server_gives_what_the_embedded_model_gives(address: str) -> None:
    prompts = [decision("coding"), decision("small talk")]
    labels = [*LABELS, " strawberry"]
    texts = [" offload", " local\n\nTask:"]
    with LlamaCpp(context_size=1024) as here, load_llm(f"openai:tiny@{address}") as there:
        here.reset()
        there.score(prompts[-1:], labels)
        for same in (here, there):  # both start from the same prefix
            same.score(["Something else."], labels)
        np.testing.assert_allclose(here.score(prompts, labels), there.score(prompts, labels))
        np.testing.assert_allclose(
            here.likelihood(prompts, texts), there.likelihood(prompts, texts), atol=0.2
        )
        for choices in (["left", "right"], None):
            assert here.generate(prompts, 3, choices) == there.generate(prompts, 3, choices)
        assert here.chat(ASKED, 3) == there.chat(ASKED, 3)
        assert here.count_tokens(prompts[0]) == there.count_tokens(prompts[0])
        assert there.apply_template(ASKED) == template(QUESTION)  # type: ignore[attr-defined]
        known, found = here.capabilities, there.capabilities
        assert (found.logprobs, found.likelihoods, found.constrained) == (True, True, True)
        assert found.context_size == known.context_size == 1024
        assert not found.embeddings  # this server was not started for them
        with pytest.raises(PromptTooLongError):
            there.score(["word " * 1100], LABELS)
        with pytest.raises(ConfigurationError, match="both start with the token"):
            there.score(prompts, [" offload", " off"])


def test_an_openai_client_gets_the_same_answers(model: LlamaCpp, address: str) -> None:
    remote = load_llm(f"openai:smollm2@{address}?endpoint=chat")
    assert (remote.capabilities.top_logprobs, remote.capabilities.constrained) == (20, True)
    before = remote.usage.snapshot()
    scores = remote.score([QUESTION], ["A", "B"])
    assert scores == pytest.approx(model.score([template(QUESTION)], ["A", "B"]), abs=0.3)
    used = remote.usage - before
    assert used.prompt_tokens == model.count_tokens(template(QUESTION))
    assert (used.calls, used.completion_tokens) == (1, 1)
    assert remote.generate([QUESTION], max_tokens=5)[0] == model.chat(ASKED, max_tokens=5)
    assert remote.generate([QUESTION], choices=["A", "B"])[0] in ("A", "B")


def test_ollamas_format_gets_the_same_answers(model: LlamaCpp) -> None:
    with serve_ollama(model) as url:
        plain = load_llm(f"ollama:smollm2?base_url={url}")
        prompt = decision("coding")
        assert plain.score([prompt], LABELS) == pytest.approx(
            model.score([prompt], LABELS), abs=0.3
        )
        assert plain.generate([prompt], max_tokens=2) == model.generate([prompt], max_tokens=2)
        remote = load_llm(f"ollama:smollm2?base_url={url}&endpoint=chat")
        scores = remote.score([QUESTION], ["A", "B"])
        assert scores == pytest.approx(model.score([template(QUESTION)], ["A", "B"]), abs=0.3)
        assert remote.generate([QUESTION], max_tokens=5)[0] == model.chat(ASKED, max_tokens=5)
        assert remote.generate([QUESTION], choices=["A", "B"])[0] in ("A", "B")
        assert remote.capabilities.context_size == 1024


def test_sampling_follows_the_parameters(model: LlamaCpp) -> None:
    def texts(query: str) -> list[str]:
        with load_llm(f"llamacpp?context_size=1024&{query}") as other:
            return other.generate(["Once upon a time"], max_tokens=4)

    assert texts("temperature=2&top_p=0.0001") == texts("temperature=0")
    warm = texts("temperature=2&seed=5")
    assert texts("temperature=2&seed=5") == warm != texts("temperature=2&seed=6")
    with load_llm("llamacpp?context_size=1024&repeat_penalty=5") as other:
        prompt = decision("coding") + " offload, offload, offload,"
        plain, penalised = (m.generate([prompt], max_tokens=2)[0] for m in (model, other))
        assert plain.startswith(" off")
        assert not penalised.startswith(" off")
        np.testing.assert_allclose(other.score([prompt], LABELS), model.score([prompt], LABELS))


def test_an_identity_names_the_weights_and_what_changes_answers(
    model: LlamaCpp, tmp_path: Path
) -> None:
    def identity(query: str) -> str:
        with load_llm(f"llamacpp?context_size=1024&{query}") as other:
            return json.dumps(other.identity, sort_keys=True)

    known = json.dumps(model.identity, sort_keys=True)
    assert identity("threads=1&cache_mib=100") == known
    assert identity("seed=1") != known != identity("logprobs=false")
    assert "/" not in known  # the same file elsewhere is the same model
    digests = set()
    for content in (b"x" * 3_000_000, b"x" * 3_000_001, b"x" * 2_999_999 + b"y"):
        file = tmp_path / f"{len(digests)}.gguf"
        file.write_bytes(content)
        digests.add(_file_identity(file)["sha256_of_ends"])
    assert len(digests) == 3


def test_a_model_told_to_write_only_does_not_score() -> None:
    with load_llm("llamacpp?logprobs=false&context_size=1024") as model:
        assert not model.capabilities.logprobs
        assert not model.capabilities.likelihoods
        assert model.generate([decision("coding")], choices=["local", "offload"])
        with pytest.raises(ConfigurationError, match="cannot give log-probabilities"):
            model.score([decision("coding")], LABELS)


def test_the_private_port_wants_its_key_and_the_served_one_closes(model: LlamaCpp) -> None:
    private = model._running.address.removeprefix("http://")
    connection = http.client.HTTPConnection(private, timeout=10)
    connection.request("POST", "/tokenize", '{"content": "x"}')
    assert connection.getresponse().status == 401
    connection.close()
    with model.serve() as address:
        host = address.removeprefix("http://").removesuffix("/v1")
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(host, timeout=10).request("GET", "/health")


def test_servers_that_end_at_once_do_not_hang(model: LlamaCpp) -> None:
    for _ in range(4):
        with model.serve():
            pass


def test_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, icl_optimizer.llm, icl_optimizer.llm.doctor\n"
        "heavy = {'torch', 'xllamacpp', 'langchain', 'langchain_core', 'openai', 'ollama'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_the_doctor_runs_the_model() -> None:
    spec = "llamacpp?context_size=1024"
    findings = {finding.name: finding for finding in diagnose([spec])}
    told = "label scores, likelihoods, held to labels, embeddings, context 1024"
    assert findings[spec].detail.endswith(told)
    assert findings["embedded model"].ok, findings["embedded model"].detail
    assert findings["embedded weights"].detail.startswith("SmolLM2-135M-Instruct.Q4_1.gguf, 98")
    assert all(finding.ok for finding in findings.values() if finding.required)


@pytest.mark.parametrize(("first", "sleeps"), [("no_torch", True), ("torch", False)])
def test_threads_are_one_where_they_would_spin(first: str, sleeps: bool) -> None:
    code = (
        f"import sys, os; sys.modules.setdefault({first!r}, os)\n"
        "from icl_optimizer.llm import native\n"
        "native.import_xllamacpp()\n"
        "cores = min(native._physical_cores(), 8)\n"
        f"assert native.default_threads() == (cores if {sleeps} else 1)\n"
        "assert 'GOMP_SPINCOUNT' not in os.environ"
    )
    clean = {name: value for name, value in os.environ.items() if name not in native._SWITCHES}
    subprocess.run([sys.executable, "-c", code], env=clean, check=True)
