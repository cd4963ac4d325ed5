"""Pictures, tables and benchmark of the split model; on records and models made up for it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_split_perplexity import records_of
from tiny_llama import tiny_model
from typer.testing import CliRunner

from icl_optimizer.bench import splitting as bench
from icl_optimizer.cli import app
from icl_optimizer.cli.measure import layer_numbers
from icl_optimizer.comparison.statistics import Estimate
from icl_optimizer.environments.splitting import model as models
from icl_optimizer.environments.splitting.excerpt import excerpt_paragraphs, windows
from icl_optimizer.environments.splitting.perplexity import PerplexityMeter
from icl_optimizer.environments.splitting.records import shipped_records
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.studies import splitting_cost
from icl_optimizer.studies.splitting import case_table
from icl_optimizer.studies.splitting_channels import (
    PANELS,
    channel_means,
    channels_table,
    draw_channels,
    shipped_channels,
)
from icl_optimizer.studies.splitting_learning import SWEPT, Trained
from icl_optimizer.studies.splitting_pictures import (
    draw_choices,
    draw_curves,
    draw_sweeps,
    draw_violins,
    loess,
    straight_line,
)
from icl_optimizer.studies.training_cost import TrainingCost


def test_the_shipped_records_are_as_many_as_the_papers() -> None:
    records = shipped_records()
    assert len(records) >= 9_718
    cells = records.groupby(["split", "sigma", "loss"]).size()
    assert len(cells) == 550
    assert set(cells) == {18}


def test_the_shipped_channels_cover_every_panel_and_layer() -> None:
    ratios = channel_means(shipped_channels())
    assert list(ratios.index) == list(range(1, 30))
    assert set(ratios) == {str(c) for panel in PANELS for c in panel.channels.values()}
    # noise of fixed size harms early splits most, as the paper found
    low_snr = ratios["sigma=2"]
    assert low_snr.idxmax() == 1
    assert low_snr[1] > 5 * low_snr[10] > 5


def test_channels_are_drawn_and_told(tmp_path: Path) -> None:
    table = channels_table(shipped_channels())
    assert len(table) == 13
    draw_channels({"one": shipped_channels(), "two": shipped_channels()}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_loess_follows_a_bend_and_the_line_is_fitted() -> None:
    x = np.linspace(0, 2, 200)
    line = loess(x, np.abs(x - 1))
    assert np.abs(line[:, 1] - np.abs(x - 1)).mean() < 0.1
    assert straight_line(x, 3 * x + 1) == pytest.approx((3.0, 1.0))


def test_learning_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"sigma": rng.random(50), "loss": rng.random(50), "split": rng.integers(1, 11, 50)}
    ).assign(reward=rng.random(50))
    draw_choices(rows, tmp_path / "choices.png")
    draw_violins({"ppo-paper": rows, "random": rows}, tmp_path / "violins.png")
    curve = pd.DataFrame({"step": [400, 800] * 2, "seed": [0, 0, 1, 1], "reward": [1, 2, 1, 3]})
    swept = [curve.assign(setting=s, value=v) for s in SWEPT for v in (1, 2)]
    draw_sweeps(pd.concat(swept), tmp_path / "sweeps.png")
    learned = curve.rename(columns={"reward": "value"}).assign(policy="dqn-paper", metric="reward")
    draw_curves({"A": learned, "L": learned}, ["dqn-paper"], tmp_path / "curves.png")
    assert len(list(tmp_path.iterdir())) == 4


def test_the_table_of_cases_takes_the_last_evaluation() -> None:
    rows = pd.DataFrame(
        {
            "policy": "dqn-paper",
            "seed": [0, 0, 1, 1],
            "step": [1, 2, 1, 2],
            "metric": "optimality",
            "value": [0.1, 0.5, 0.1, 0.7],
        }
    )
    header, row = case_table({"A": rows})
    assert header[1] == "optimality, case A"
    assert row[:2] == ["dqn-paper", "0.60 [0.50,\xa00.70]"]


def test_table_four_multiplies_only_what_is_asked_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        splitting_cost, "measure_training", lambda *_: TrainingCost(24_000, 10.0, 12.0, 400.0)
    )
    rewards = {
        p: Estimate(-3.0 - 0.003 * i, 0, 0, 5) for i, p in enumerate(splitting_cost.POLICIES)
    }
    table = splitting_cost.cost_table(rewards, splitting_cost.LiveCost(0.5, 2000.0))
    by_name = {row[0]: row[1:] for row in table}
    assert by_name["against without"] == ["", "-0.10%", "-0.20%"]
    assert by_name["rewards asked of the model"] == ["24,000", "2,000", "0"]
    live = next(row for row in table if "multiplied" in row[0])
    assert live[1:] == ["200.2 min", "16.8 min", "10.0 s"]


def test_settings_of_a_sweep_reach_the_learner() -> None:
    policy, budget = Trained("ppo-surrogate-shipped", 0, {"clip_range": 0.3}).make()
    assert policy.config.clip_range == 0.3  # type: ignore[attr-defined]
    assert budget == 24_000
    assert Trained("ppo-paper", 0, learns=False).make()[1] == 0


def test_what_saved_layers_allow_by_hand() -> None:
    model = tiny_model()
    # all layers and the head over two of four layers and the head
    layer = 2 * 33 * (32 * (2 * 32 + 2 * 16) + 2 * 32 * 33 + 3 * 32 * 64)
    head = 2 * 33 * 32 * 257
    expected = (4 * layer + head) / (2 * layer + head)
    assert bench.saved_ratio(model, [2]) == pytest.approx(expected)


def test_pairing_takes_the_texts_own_variance_away() -> None:
    records = records_of(np.ones((2, 2, 2))).assign(text=lambda r: r["draw"])
    # texts differ by 1 nat without a channel, by 0.02 in what it adds
    assert bench.pairing_gain(records, [2.0, 3.0]) == pytest.approx((1.02 / 0.02) ** 2)


def test_both_ways_of_measuring_agree_in_the_benchmark() -> None:
    model = tiny_model()
    groups = windows(excerpt_paragraphs(), model.tokenizer, tokens=8, texts=2)[:2]
    meter = PerplexityMeter(model, groups)
    assert bench.largest_difference(meter, [1, 2, 3]) < 1e-5
    assert bench.per_minute(meter.extra_nats, [1, 2], 0) > 0


def test_layers_are_written_as_ranges() -> None:
    assert layer_numbers("1-3,7") == [1, 2, 3, 7]
    with pytest.raises(ConfigurationError, match="splits is '1-x'"):
        layer_numbers("1-x")


def test_the_command_measures_into_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_split_model", lambda path: tiny_model())
    out = tmp_path / "records.csv"
    command = ["split", "measure", str(out), "--splits", "1,3", "--draws", "2", "--tokens", "8"]
    command += ["--texts", "2", "--channel", "loss=0.1", "--channel", "sigma=1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "8 records in" in done.output.replace("\n", " ")
    assert len(pd.read_csv(out)) == 8
