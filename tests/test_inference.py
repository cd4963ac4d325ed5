"""How long models take to generate, and where the numbers come from."""

from __future__ import annotations

import csv
from importlib.resources import files

import numpy as np
import pytest

from icl_optimizer.environments.inference import (
    LlmProfile,
    find_profile,
    generation_time,
    load_profiles,
)
from icl_optimizer.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "tokens_per_second"),
    [
        ("llama3-8b", 75),
        ("llama3-70b", 32),
        ("gemma-7b", 155),
        ("gemini-1.5-pro", 58),
        ("llama2-7b", 89),
        ("llama2-70b", 40),
    ],
)
def test_the_papers_models_have_the_papers_speed(name: str, tokens_per_second: int) -> None:
    assert 1 / load_profiles()[name].tpot_s == pytest.approx(tokens_per_second, rel=1e-6)


def test_every_profile_is_sourced_and_possible() -> None:
    text = files("icl_optimizer.environments.data").joinpath("llm_profiles.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len({row["name"] for row in rows}) == len(rows) == len(load_profiles())
    for row in rows:
        assert len(row["latency_source"]) > 10
        assert len(row["quality_source"]) > 10
        profile = load_profiles()[row["name"]]
        # from a thousand tokens a second down to ten seconds for the first one
        assert 0 < profile.ttft_s < 10
        assert 0.001 < profile.tpot_s < 1
        # four choices make 25 percent by chance
        assert 25 < profile.mmlu < 100


def test_faster_hardware_generates_faster() -> None:
    a10, a100, h100 = (load_profiles()[f"llama-7b@{gpu}"] for gpu in ("a10", "a100", "h100"))
    assert a10.tpot_s > a100.tpot_s > h100.tpot_s
    assert a10.mmlu == a100.mmlu == h100.mmlu


def test_a_thousand_tokens_at_the_edge_and_in_the_cloud() -> None:
    # 0.23 + 1000 / 75 = 13.563 s and 0.42 + 1000 / 32 = 31.67 s
    assert generation_time(find_profile("x", "llama3-8b"), 1000) == pytest.approx(13.5633, abs=1e-4)
    assert generation_time(find_profile("x", "llama3-70b"), 1000) == pytest.approx(31.67, abs=1e-9)


def test_times_of_an_array_keep_its_shape() -> None:
    profile = LlmProfile("x", ttft_s=0.5, tpot_s=0.25, mmlu=50.0)
    seconds = generation_time(profile, [[0, 1, 2], [10, 100, 1000]])
    np.testing.assert_array_equal(seconds, [[0.5, 0.75, 1.0], [3.0, 25.5, 250.5]])


def test_an_unknown_profile_names_field_and_nearest() -> None:
    with pytest.raises(
        ConfigurationError, match=r"unknown edge_llm 'lama3-8b'\. Did you mean 'llama3-8b'"
    ):
        find_profile("edge_llm", "lama3-8b")


@pytest.mark.parametrize(("ttft", "tpot"), [(-0.1, 0.1), (0.1, 0.0), (0.1, -1.0)])
def test_impossible_times_are_refused(ttft: float, tpot: float) -> None:
    with pytest.raises(ConfigurationError, match=r"profile 'x' has ttft_s=.*tpot_s > 0"):
        LlmProfile("x", ttft, tpot, 50.0)
