"""Operations, energy and time of a split, by hand and against torch's own counter."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_llama import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from icl_optimizer.environments.splitting.channel import Channel
from icl_optimizer.environments.splitting.cost import (
    Architecture,
    Device,
    Link,
    SplitCost,
    paper_flops,
    state_bits,
)
from icl_optimizer.environments.splitting.model import SplitModel, load_split_model
from icl_optimizer.environments.splitting.packing import pack
from icl_optimizer.errors import ConfigurationError


def counted(model: SplitModel, split: int, tokens: int, cached: int = 0) -> int:
    """Return what torch counts while the device computes ``tokens`` after ``cached`` others."""
    cache = DynamicCache()
    if cached:
        model.ue(torch.ones(1, cached, dtype=torch.long), split, cache)
    # the counter knows no fused attention on the CPU; this back-end uses matrix products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.ue(torch.ones(1, tokens, dtype=torch.long), split, cache)
    return counter.get_total_flops()


def test_eq_2_by_hand() -> None:
    assert paper_flops(1, 10, 4) == 12 * 10 * 16
    assert paper_flops(3, 10, 4) == 12 * 10 * 16 + 2 * 12 * 64
    with pytest.raises(ConfigurationError, match="split is 0; allowed: at least 1"):
        paper_flops(0, 10, 4)


def test_a_layer_by_hand() -> None:
    tiny = Architecture(hidden=4, heads=2, key_heads=1, head_width=2, inner=6)
    projections = 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4  # queries, keys, values, output
    attention = 2 * 2 * (2 * 8)  # two heads of width 2, scores and sums over 5 + 3 tokens
    assert tiny.layer_flops(3, cached=5) == 2 * 3 * (projections + attention + 3 * 4 * 6)


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize(("tokens", "cached"), [(16, 0), (1, 16), (3, 5)])
def test_counted_as_torch_counts(split: int, tokens: int, cached: int) -> None:
    model = tiny_model()
    ours = Architecture.of(model.module.config).ue_flops(split, tokens, cached)
    assert ours == counted(model, split, tokens, cached)


@pytest.mark.llm
def test_counted_as_torch_counts_in_the_real_model() -> None:
    model = load_split_model()
    architecture = Architecture.of(model.module.config)
    for split in (1, 5, 10, 29):
        assert architecture.ue_flops(split, 16) == counted(model, split, 16)
        assert architecture.ue_flops(split, 1, 16) == counted(model, split, 1, 16)


def test_heads_without_groups_and_without_a_width() -> None:
    old = SimpleNamespace(hidden_size=8, num_attention_heads=2, intermediate_size=16)
    assert Architecture.of(old) == Architecture(8, 2, 2, 4, 16)


def test_energy_and_time() -> None:
    link = Link.shannon(snr_db=10 * math.log10(3), bandwidth_hz=1e6)
    assert link.bit_per_s == pytest.approx(2e6)  # log2(1 + 3)
    cost = SplitCost.of(4 * 10**9, 10**6, Device(flops_per_joule=2e9), link)
    assert (cost.energy_j, cost.send_s) == pytest.approx((2.0, 0.5))


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_bits_on_the_link_are_those_that_are_sent(bits: int | None) -> None:
    states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    channel = Channel(bits=bits)  # type: ignore[arg-type]
    packed = pack(states, channel, torch.Generator())
    assert 8 * len(packed.payload) == state_bits(5, 32, bits)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_no_rates_or_efficiencies_that_are_none(value: float) -> None:
    with pytest.raises(ConfigurationError, match="bit_per_s is"):
        Link(value)
    with pytest.raises(ConfigurationError, match="flops_per_joule is"):
        Device(value)
    with pytest.raises(ConfigurationError, match="bandwidth_hz is"):
        Link.shannon(10.0, value)
