"""Channels, measured perplexity and its tables; on a tiny random model where one is needed."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_llama import tiny_model

from icl_optimizer.environments.splitting.channel import (
    Channel,
    dequantised,
    fading_scale,
    loss_probability,
    quantised,
)
from icl_optimizer.environments.splitting.excerpt import (
    excerpt_paragraphs,
    file_paragraphs,
    windows,
)
from icl_optimizer.environments.splitting.measuring import measure
from icl_optimizer.environments.splitting.perplexity import PerplexityMeter, nats
from icl_optimizer.environments.splitting.records import (
    MeasuredTable,
    link_channels,
    link_records,
    plan,
    read_records,
)
from icl_optimizer.errors import ConfigurationError

HIDDEN = torch.randn(4, 50, 64, generator=torch.Generator().manual_seed(1)) * 3


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sent(channel: Channel, hidden: torch.Tensor = HIDDEN) -> torch.Tensor:
    return channel.send(hidden, source())


def test_eq_4_by_hand_and_its_inverse() -> None:
    assert loss_probability(1.0, 1.0) == pytest.approx(1 - math.exp(-0.5))
    assert loss_probability(0.1, fading_scale(0.3, 0.1)) == pytest.approx(0.3)
    assert fading_scale(0.0, 0.1) == math.inf


def test_rayleigh_fading_loses_what_eq_4_says() -> None:
    channel = Channel(fading=fading_scale(0.2, 0.5), threshold=0.5, known_start=False)
    lost = (sent(channel) == 0).double().mean()
    assert lost == pytest.approx(0.2, abs=0.01)


def test_loss_of_elements_is_bernoulli_and_keeps_the_rest() -> None:
    received = sent(Channel(loss=0.3))
    assert torch.equal(received[:, 0], HIDDEN[:, 0])
    lost = received[:, 1:] == 0
    assert lost.double().mean() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(received[:, 1:][~lost], HIDDEN[:, 1:][~lost])


def test_loss_of_tokens_takes_whole_packets() -> None:
    received = sent(Channel(loss=0.3, unit="token", known_start=False))
    lost = (received == 0).double().mean(-1)
    assert set(lost.unique().tolist()) == {0.0, 1.0}
    assert lost.mean() == pytest.approx(0.3, abs=0.1)


def test_noise_has_the_given_size_absolute_or_relative() -> None:
    absolute = (sent(Channel(sigma=2.0)) - HIDDEN)[:, 1:]
    assert absolute.std() == pytest.approx(2.0, rel=0.03)
    assert (sent(Channel(sigma=2.0)) - HIDDEN)[:, 0].abs().max() == 0
    # 10 dB: a tenth of each token's power, whatever its scale
    scaled = HIDDEN * torch.linspace(0.1, 10, 50)[None, :, None]
    noise = (sent(Channel(snr_db=10.0), scaled) - scaled)[:, 1:]
    ratio = noise.square().mean((0, 2)) / scaled[:, 1:].square().mean((0, 2))
    assert ratio.mean() == pytest.approx(0.1, rel=0.05)
    assert ratio.std() < 0.03


def test_a_receiver_that_knows_the_gain_has_only_more_noise() -> None:
    known = sent(Channel(fading=1.0, known_start=False))
    assert torch.equal(known, HIDDEN)
    unknown = sent(Channel(fading=1.0, equalised=False, known_start=False))
    gains = unknown / HIDDEN
    # mean of a Rayleigh variable
    assert gains.mean() == pytest.approx(math.sqrt(math.pi / 2), rel=0.02)


def test_quantisation_errs_by_half_a_step_at_most() -> None:
    for bits in (4, 8):
        numbers, scale = quantised(HIDDEN, bits)
        assert numbers.abs().max() == 2 ** (bits - 1) - 1
        assert ((dequantised(numbers, scale) - HIDDEN).abs() <= scale / 2 + 1e-6).all()
        assert not torch.equal(sent(Channel(bits=bits))[:, 1:], HIDDEN[:, 1:])


def test_the_same_seed_gives_the_same_channel() -> None:
    channel = Channel(sigma=1.0, loss=0.1)
    assert torch.equal(sent(channel), sent(channel))
    assert not torch.equal(sent(channel), channel.send(HIDDEN, source(5)))


@pytest.mark.parametrize(
    "text",
    ["perfect", "sigma=1,loss=0.1", "snr_db=-5,unit=token", "fading=0.5,threshold=0.1,bits=8"],
)
def test_a_channel_is_written_as_it_is_read(text: str) -> None:
    assert str(Channel.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss=2", "loss is 2.0; allowed: 0 to 1"),
        ("loss=high", "loss is 'high'; allowed: a number"),
        ("bits=3", "bits is 3; allowed: 4, 8"),
        ("unit=bit", "unit is 'bit'; allowed: element, token"),
        ("sigma=1,snr_db=3", "snr_db is 3.0; allowed: none with a sigma"),
        ("threshold=1", "threshold needs a fading scale"),
        ("colour=red", "colour"),
    ],
)
def test_a_wrong_channel_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Channel.parse(text)


def test_nats_by_hand() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = math.log(5)  # 5 / 8 for token 2
    found = nats(logits, torch.tensor([[0, 2, 1]]))
    assert found[0].tolist() == pytest.approx([math.log(8 / 5), math.log(4)])


def test_the_excerpt_makes_groups_of_different_texts() -> None:
    tokenizer = tiny_model().tokenizer
    groups = windows(excerpt_paragraphs(), tokenizer, tokens=32, texts=8)
    assert len(groups) == 6
    assert all(group.shape == (8, 33) for group in groups)
    assert all((group[:, 0] == tokenizer.bos_token_id).all() for group in groups)
    rows = torch.cat(groups)[:, 1:]
    assert len({tuple(row.tolist()) for row in rows}) == 48


def test_texts_that_are_too_few_or_missing_are_named(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("= Heading =\n\nshort\na longer paragraph\n")
    assert file_paragraphs(file) == ["short", "a longer paragraph"]
    with pytest.raises(ConfigurationError, match="1 paragraphs of at least 8 tokens"):
        windows(file_paragraphs(file), tiny_model().tokenizer, tokens=8, texts=2)
    with pytest.raises(ConfigurationError, match=r"none\.txt"):
        file_paragraphs(tmp_path / "none.txt")


@pytest.fixture(scope="module")
def meter() -> PerplexityMeter:
    model = tiny_model()
    groups = windows(excerpt_paragraphs(), model.tokenizer, tokens=12, texts=3)[:2]
    return PerplexityMeter(model, groups)


@pytest.mark.parametrize("split", [1, 2, 3, 4])
def test_saved_layers_give_the_same_record_as_a_full_pass(
    meter: PerplexityMeter, split: int
) -> None:
    asked = (split, Channel(sigma=1.0, loss=0.1), 1, 7)
    assert meter.extra_nats(*asked) == pytest.approx(meter.full_pass(*asked), abs=1e-5)
    assert meter.extra_nats(split, Channel(), 0, 7) == 0
    assert meter.full_pass(split, Channel(), 0, 7) == pytest.approx(0, abs=1e-6)


def test_a_plan_covers_everything_in_every_draw_with_seeds_of_its_own() -> None:
    planned = list(plan([1, 3], link_channels((0.0, 1.0), (0.0, 0.1)), draws=2))
    assert len(planned) == 16
    assert len({item.key for item in planned}) == 16
    assert len({item.seed for item in planned}) == 16
    assert [item.draw for item in planned] == [0] * 8 + [1] * 8


def test_measuring_goes_on_where_it_was_killed(meter: PerplexityMeter, tmp_path: Path) -> None:
    planned = list(plan([1, 3], link_channels((0.0, 1.0), (0.0, 0.1)), draws=2))
    whole, torn = tmp_path / "whole.csv", tmp_path / "torn.csv"
    measure(meter, planned, whole)
    measure(meter, planned[:5], torn)
    with torn.open("a") as file:
        file.write("3,sigma=1,0,")  # killed in the middle of a line
    asked = []
    honest = meter.extra_nats
    meter.extra_nats = lambda *query: asked.append(query) or honest(*query)  # type: ignore[method-assign, func-returns-value]
    try:
        measure(meter, planned, torn)
    finally:
        del meter.extra_nats  # type: ignore[method-assign]
    assert len(asked) == 11
    assert torn.read_text() == whole.read_text()


def test_records_of_other_texts_are_not_mixed(meter: PerplexityMeter, tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    measure(meter, list(plan([1], [Channel(loss=0.1)], draws=1)), path)
    other = PerplexityMeter(meter.model, meter.groups[:1])
    with pytest.raises(ConfigurationError, match="was measured with texts"):
        measure(other, [], path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="columns a, b"):
        read_records(path)


def records_of(values: np.ndarray) -> pd.DataFrame:
    """Records of splits 1 and 2, noise 0 and 2, loss 0 and 0.1 with these means, two each."""
    rows = [
        (p, s, x, d, 0, values[i, j, k] + (0.01 if d else -0.01))
        for i, p in enumerate((1, 2))
        for j, s in enumerate((0.0, 2.0))
        for k, x in enumerate((0.0, 0.1))
        for d in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["split", "sigma", "loss", "draw", "text", "extra_nats"])


def test_the_table_interpolates_between_means() -> None:
    values = np.array([[[0.0, 1.0], [2.0, 3.0]], [[0.0, 0.5], [1.0, 1.5]]])
    table = MeasuredTable.of(records_of(values))
    assert table.mean == pytest.approx(values)
    assert table.extra_nats(1, 2.0, 0.1) == pytest.approx(3.0)
    found = table.extra_nats([1, 2], [1.0, 1.0], [0.05, 0.05])
    assert found == pytest.approx([1.5, 0.75])
    assert table.extra_nats(2, 9.0, 0.9) == pytest.approx(1.5)


def test_a_table_with_a_hole_is_refused() -> None:
    records = records_of(np.zeros((2, 2, 2)))
    with pytest.raises(ConfigurationError, match="allowed: all of them"):
        MeasuredTable.of(records[records["loss"] + records["sigma"] + records["split"] > 1])


def test_records_tell_noise_and_loss() -> None:
    rows = {"split": [1], "channel": ["sigma=1.5,loss=0.12"], "draw": [0], "text": [0]}
    found = link_records(pd.DataFrame(rows | {"extra_nats": [0.3]}))
    assert found[["sigma", "loss"]].to_numpy().tolist() == [[1.5, 0.12]]


def test_smoothing_keeps_a_cubic_and_takes_noise_away() -> None:
    sigmas, losses = np.linspace(0, 2, 5), np.linspace(0, 0.3, 11)
    s, x = np.meshgrid(sigmas / 2, losses / 0.3, indexing="ij")
    truth = np.stack([s**2 + x, 2 * s * x + x**3])
    noise = np.random.default_rng(0).normal(0, 0.1, truth.shape)
    table = MeasuredTable((1, 2), sigmas, losses, truth).smoothed()
    assert table.mean == pytest.approx(truth, abs=1e-9)
    noisy = MeasuredTable((1, 2), sigmas, losses, truth + noise).smoothed()
    assert np.square(noisy.mean - truth).mean() < 0.4 * np.square(noise).mean()
    assert noisy.extra_nats(1, 0.0, 0.0) == 0
