"""A model across the split: the same logits and texts, in one process and in two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_llama import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from icl_optimizer.cli import app
from icl_optimizer.environments.splitting.channel import Channel
from icl_optimizer.environments.splitting.converted import converted_folder
from icl_optimizer.environments.splitting.cost import Architecture
from icl_optimizer.environments.splitting.edge_process import EdgeProcess
from icl_optimizer.environments.splitting.generation import (
    SplitSession,
    continuation_nats,
    generate,
)
from icl_optimizer.environments.splitting.model import SplitModel, load_split_model
from icl_optimizer.environments.splitting.remote import RemoteEdge
from icl_optimizer.environments.splitting.wire import Address, EdgeError
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.weights import find_weights

PROMPT = "Split"
NEW = 12
NOISY = Channel(sigma=0.5, loss=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in the format of Hugging Face, with a token for each byte."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise).save_pretrained(folder)
    tiny_model().module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> SplitModel:
    return load_split_model(folder)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[Address]:
    """An edge in another process, started and stopped as a user does it."""
    code = "from icl_optimizer.cli import main; main()"
    program = [sys.executable, "-c", code, "split", "edge", "--port", "0", "--model", str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as edge:
        assert edge.stdout is not None
        host, _, port = edge.stdout.readline().decode().partition("edge: ")[2].rpartition(":")
        yield host, int(port)
        edge.send_signal(signal.SIGTERM)
        assert edge.wait(60) == 0
        assert edge.stdout.read() == b"stopped\n"


@pytest.fixture(scope="module")
def real() -> SplitModel:
    return load_split_model()


@pytest.fixture(scope="module")
def real_address() -> Iterator[Address]:
    with EdgeProcess() as process:
        yield process.address
    assert gone(process.pid)


def tokens(model: SplitModel, text: str = PROMPT) -> list[int]:
    ids: list[int] = model.tokenizer(text).input_ids
    return ids


def reference(model: SplitModel, prompt: list[int], new: int) -> list[int]:
    """Return what transformers itself generates."""
    found = model.module.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=new)
    continued: list[int] = found[0, len(prompt) :].tolist()
    return continued


def check_logits(model: SplitModel, address: Address, prompt: list[int]) -> None:
    """Every split, in one process and in two, gives the logits of the model that is whole."""
    whole = model.logits(torch.tensor([prompt]))[0]
    for split in range(1, model.layers):
        with RemoteEdge(address, model, split) as edge:
            for other in (None, edge):
                found = SplitSession(model, split, other).logits(prompt)
                assert (found - whole).abs().max() < 1e-4, f"split {split}, edge {other}"


def check_texts(
    model: SplitModel, address: Address, prompt: list[int], splits: tuple[int, ...]
) -> None:
    """Greedy generation gives what transformers gives, in one process and in two."""
    expected = reference(model, prompt, NEW)
    for split in splits:
        with RemoteEdge(address, model, split) as edge:
            for other in (None, edge):
                found = generate(SplitSession(model, split, other), prompt, NEW)
                assert list(found.tokens) == expected


def test_a_perfect_channel_gives_the_logits_of_the_whole(
    model: SplitModel, address: Address
) -> None:
    check_logits(model, address, tokens(model))


def test_greedy_texts_are_those_of_transformers(model: SplitModel, address: Address) -> None:
    check_texts(model, address, tokens(model), (1, 2, 3, 4))


@pytest.mark.llm
def test_the_real_model_split_anywhere_gives_the_logits_of_the_whole(
    real: SplitModel, real_address: Address
) -> None:
    prompt = tokens(real, "The hidden state crosses a wireless channel.")
    check_logits(real, real_address, prompt)


@pytest.mark.llm
def test_the_real_model_writes_the_same_across_the_split(
    real: SplitModel, real_address: Address
) -> None:
    check_texts(real, real_address, tokens(real, "The capital of France is"), (1, 15, 29))


def test_keys_and_values_are_kept_on_both_sides(model: SplitModel, address: Address) -> None:
    prompt = tokens(model)
    with RemoteEdge(address, model, 2) as edge:
        session = SplitSession(model, 2, edge)
        found = generate(session, prompt, NEW)
        # 32 numbers of 4 bytes per token; the first token's state is not sent
        assert found.sent == ((len(prompt) - 1) * 128, *[128] * (NEW - 1))
        assert edge.position == session.position == len(prompt) + NEW - 1
        assert sum(found.sent) < edge.sent_bytes < sum(found.sent) + 200 * (NEW + 1)
    architecture = Architecture.of(model.module.config)
    lengths = range(len(prompt), len(prompt) + NEW - 1)
    steps = sum(architecture.ue_flops(2, 1, cached) for cached in lengths)
    assert found.flops == architecture.ue_flops(2, len(prompt)) + steps


@pytest.mark.parametrize(("bits", "size"), [(8, 36), (4, 20)])
def test_fewer_bits_are_fewer_bytes(
    model: SplitModel, address: Address, bits: int, size: int
) -> None:
    channel = Channel(bits=bits, loss=0.1)  # type: ignore[arg-type]
    with RemoteEdge(address, model, 2) as edge:
        there = generate(SplitSession(model, 2, edge, channel), tokens(model), 4)
        assert edge.sent_bytes < sum(there.sent) + 5 * 200
    here = generate(SplitSession(model, 2, None, channel), tokens(model), 4)
    assert here.tokens == there.tokens
    assert here.sent == there.sent == (4 * size, size, size, size)


def test_every_later_token_goes_through_the_channel(model: SplitModel) -> None:
    prompt = tokens(model)

    def next_logits(token: int, channel: Channel) -> torch.Tensor:
        session = SplitSession(model, 2, None, channel)
        session.logits(prompt)
        return session.logits([token])

    # nothing arrives, so what is sent makes no difference
    assert torch.equal(next_logits(7, Channel(loss=1.0)), next_logits(8, Channel(loss=1.0)))
    assert not torch.equal(next_logits(7, Channel()), next_logits(8, Channel()))


def test_the_same_seed_meets_the_same_channel(model: SplitModel, address: Address) -> None:
    prompt = tokens(model)

    def found(seed: int) -> torch.Tensor:
        with RemoteEdge(address, model, 2) as edge:
            return SplitSession(model, 2, edge, NOISY, seed).logits(prompt)

    here = SplitSession(model, 2, None, NOISY, 1).logits(prompt)
    assert torch.equal(found(1), here)
    assert not torch.equal(found(2), here)


def test_nats_of_a_continuation(model: SplitModel) -> None:
    prompt, new = tokens(model), [5, 6, 7]
    logits = model.logits(torch.tensor([[*prompt, *new]]))[0].log_softmax(-1)
    by_hand = [logits[len(prompt) - 1 + place, token] for place, token in enumerate(new)]
    found = continuation_nats(SplitSession(model, 3), prompt, new)
    assert found == pytest.approx(-float(torch.stack(by_hand).mean()), abs=1e-4)


def test_a_text_ends_with_the_models_token_and_no_later_than_its_context(
    folder: Path,
) -> None:
    model = load_split_model(folder)
    prompt = tokens(model)
    plain = reference(model, prompt, NEW)
    model.module.generation_config.eos_token_id = [plain[3], 999]
    ended = generate(SplitSession(model, 2), prompt, NEW).tokens
    assert list(ended) == plain[: plain.index(plain[3]) + 1]
    with pytest.raises(ConfigurationError, match="257 tokens come after 0; allowed: 1 to 256"):
        SplitSession(model, 2).logits([1] * 257)
    with pytest.raises(ConfigurationError, match="max_tokens is 0"):
        generate(SplitSession(model, 2), prompt, 0)


def gone(pid: int, within: float = 20.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_an_edge_ends_with_the_process_that_started_it(folder: Path) -> None:
    code = (
        "import sys, time\n"
        "from icl_optimizer.environments.splitting.edge_process import EdgeProcess\n"
        f"print(EdgeProcess({str(folder)!r}).pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        edge = int(parent.stdout.readline())
        os.kill(edge, 0)  # it runs
        parent.send_signal(signal.SIGKILL)
    assert gone(edge)


def test_an_edge_stops_and_says_what_it_cannot_load(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the edge's process: model is '.*nowhere'"):
        EdgeProcess(tmp_path / "nowhere")
    with pytest.raises(EdgeError, match=r"did not listen within 0\.01 s"):
        EdgeProcess(folder, timeout_s=0.01)


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["split", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_command_says_what_it_costs(folder: Path, address: Address) -> None:
    host, port = address
    options = ["--model", str(folder), "--split", "2", "--tokens", "4"]
    here = call("generate", PROMPT, *options)
    assert "5 in the prompt, 4 new" in here
    assert "896 bytes (512 for the prompt, 128 each new one)" in here
    assert "channel perfect" in here
    there = call("generate", PROMPT, *options, "--edge", f"{host}:{port}", "--channel", "loss=0.9")
    assert "with frames" in there
    assert "loss=0.9: another text from new token" in there
    assert "nats per token on the text without it" in there


def test_the_command_refuses_a_chat_without_a_template(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no chat template"):
        call("generate", PROMPT, "--model", str(folder), "--chat")


def test_converted_weights_are_kept_and_no_file_is_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []

    def convert(file: Path, folder: Path) -> None:
        made.append(file)
        (folder / "config.json").write_text(file.read_text())

    monkeypatch.setattr("icl_optimizer.environments.splitting.converted._convert", convert)
    file = tmp_path / "some.gguf"
    file.write_text("GGUF one")
    first = converted_folder(file)
    assert first.is_relative_to(tmp_path / "icl-optimizer")
    assert converted_folder(file) == first
    file.write_text("GGUF two")
    assert converted_folder(file) != first
    assert (converted_folder(file) / "config.json").read_text() == "GGUF two"
    assert len(made) == 2
    assert len(list(first.parent.iterdir())) == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    file = tmp_path / "some.gguf"
    file.write_text("GGUF")
    with pytest.raises(OSError, match="Set XDG_CACHE_HOME to a folder that can be written"):
        converted_folder(file)
    with pytest.raises(ConfigurationError, match="which is no GGUF file"):
        load_split_model(tmp_path / "taken")


@pytest.mark.llm
def test_converted_weights_belong_to_the_installed_file(real: SplitModel) -> None:
    assert real.identity == find_weights().name
    assert (real.layers, real.hidden) == (30, 576)
