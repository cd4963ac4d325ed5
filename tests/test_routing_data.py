"""Questions to route: their split, the predicted scores and lengths, what the page says of them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from icl_optimizer.environments.routing_data import (
    DEFAULT_EXPERTS,
    MODELS,
    Questions,
    predict_answer_tokens,
    predictors,
    questions,
)
from icl_optimizer.environments.routing_data.accuracy import (
    calibration,
    calibration_error,
    r_squared,
    routing,
    tables,
)
from icl_optimizer.environments.routing_data.lengths import LENGTHS_FILE, TRACE, TRAIN_SHARE
from icl_optimizer.environments.routing_data.questions import (
    PREDICTIONS_FILE,
    SCORES_FILE,
    read_shipped,
)
from icl_optimizer.environments.routing_data.splitting import (
    KEY,
    drop_repeats,
    families,
    read_scores,
    split_questions,
)
from icl_optimizer.environments.traces import Trace, read_trace, split
from icl_optimizer.errors import ConfigurationError

PAGE = Path(__file__).parents[1] / "docs" / "routing-data.md"
PARTS = (questions("train"), questions("held-out"))
RIDGES = {name: c for name, c in predictors.CANDIDATES.items() if name.startswith("ridge")}


def made_scores(rows: int, seed: int) -> pd.DataFrame:
    """Return a table with many equal questions, of two tasks and few lengths."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.random((rows, 9)).round(3), columns=list(MODELS))
    words = rng.integers(1, 30, rows)
    table.insert(0, "question_words", words)
    table.insert(0, "question_chars", 5 * words + rng.integers(0, 2, rows))
    table.insert(0, "task", rng.choice(["sums", "words"], rows))
    table.insert(0, "split", rng.choice(["train", "test"], rows, p=[0.8, 0.2]))
    return table


# the split


def test_no_question_is_in_both_parts() -> None:
    train, held = (set(zip(p.task, p.chars, p.words, strict=True)) for p in PARTS)
    assert not train & held


def test_parts_have_all_questions_but_the_repeats_and_their_share_of_each_task() -> None:
    train, held = PARTS
    assert len(train) + len(held) == 6108 - 248
    assert len(np.unique(train.task)) == len(np.unique(held.task)) == 14
    for task in np.unique(train.task):
        learned, left = (np.count_nonzero(part.task == task) for part in PARTS)
        assert learned / (learned + left) == pytest.approx(0.7, abs=0.015)


@pytest.mark.parametrize("part", PARTS)
def test_arrays_are_whole_and_locked(part: Questions) -> None:
    assert part.names == MODELS
    for array in (part.scores, part.predicted):
        assert array.shape == (len(part), 9)
        assert ((array >= 0) & (array <= 1)).all()
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0.5
    assert (part.chars >= part.words).all()
    assert part.columns(DEFAULT_EXPERTS).tolist() == [1, 5, 6]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"part 'tests'.*held-out, train"):
        questions("tests")
    with pytest.raises(ConfigurationError, match=r"model 'gemma-2-9b'.*'gemma-2-9b-it'"):
        PARTS[0].columns(["gemma-2-9b"])


def test_repeats_are_told_by_size_whatever_their_scores() -> None:
    table = made_scores(4, 0)
    table["split"] = ["train", "test", "test", "test"]
    table["task"] = ["sums", "sums", "sums", "words"]
    table["question_chars"] = [9, 9, 10, 9]
    table["question_words"] = [2, 2, 2, 2]
    assert drop_repeats(table).index.tolist() == [0, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_families_are_whole_on_one_side(seed: int) -> None:
    table = drop_repeats(made_scores(400, seed))
    held_out = split_questions(table)
    sides = pd.Series(held_out).groupby(families(table)).nunique()
    assert (sides == 1).all()
    for _, part in pd.Series(held_out, index=table.index).groupby(table["task"]):
        largest = table.loc[part.index].groupby(KEY).size().max()
        assert -1e-9 <= 0.3 * len(part) + 0.001 - part.sum() <= largest + 0.001


def test_scores_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    with pytest.raises(ConfigurationError, match=r"scores\.csv' is not there"):
        read_scores(path)
    table = made_scores(5, 0)
    table.drop(columns=["task", MODELS[3]]).to_csv(path)
    with pytest.raises(ConfigurationError, match=f"lacks the columns task, {MODELS[3]};"):
        read_scores(path)
    for wrong in (1.5, -0.1, np.nan):
        table.loc[2, MODELS[0]] = wrong
        table.to_csv(path)
        with pytest.raises(ConfigurationError, match=rf"'{MODELS[0]}' is {wrong}; allowed: 0 to 1"):
            read_scores(path)


# predicted scores


def test_shipped_files_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # the two ensembles lose, and take long
    monkeypatch.setattr(predictors, "CANDIDATES", RIDGES)
    predictors.main(["--out", str(tmp_path)])
    for name in (SCORES_FILE, PREDICTIONS_FILE, LENGTHS_FILE):
        # numbers are rounded, and the last digit may fall either way
        atol = 0.11 if name == LENGTHS_FILE else 1.1e-4
        made, shipped = pd.read_csv(tmp_path / name), read_shipped(name)
        pd.testing.assert_frame_equal(made, shipped, rtol=0, atol=atol)
    printed = capsys.readouterr().out
    assert "ridge, sizes by task                0.1545    yes" in printed
    assert "azure-code" in printed


def test_any_table_of_scores_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "CANDIDATES", {"ridge, task": RIDGES["ridge, task"]})
    table = made_scores(300, 1).assign(idx=range(300))
    table.to_csv(tmp_path / "mine.csv", index=False)
    predictors.main(["--scores", str(tmp_path / "mine.csv"), "--out", str(tmp_path / "new")])
    kept = pd.read_csv(tmp_path / "new" / SCORES_FILE)
    pd.testing.assert_frame_equal(kept, table.drop(columns="idx"))
    packed = (tmp_path / "new" / PREDICTIONS_FILE).read_bytes()
    # bytes 4 to 7 are the time: none, so that equal tables are equal files
    assert packed[4:8] == bytes(4)
    assert gzip.decompress(packed).startswith(b"row,part,")


def test_predictions_of_the_training_part_never_saw_the_question() -> None:
    table = made_scores(300, 2)
    candidate = RIDGES["ridge, sizes by task"]
    before = predictors.out_of_fold(candidate, table)
    family = families(table)
    changed = family == family[0]
    table.loc[changed, list(MODELS)] = 1 - table.loc[changed, list(MODELS)]
    after = predictors.out_of_fold(candidate, table)
    np.testing.assert_array_equal(before[changed], after[changed])
    assert (before != after).any(axis=1).mean() > 0.5


def test_predictions_of_the_held_out_part_come_from_the_training_part_alone() -> None:
    table = made_scores(300, 3)
    candidate = RIDGES["ridge, task and sizes"]
    before = predictors.predict_scores(candidate, table)
    held = before.loc[before["part"] == "held-out", "row"]
    table.loc[held, list(MODELS)] = 0.0
    pd.testing.assert_frame_equal(predictors.predict_scores(candidate, table), before)


def test_errors_are_alike_in_both_parts() -> None:
    learned, held = (np.abs(part.predicted - part.scores).mean() for part in PARTS)
    assert learned == pytest.approx(held, rel=0.03)


def test_predictions_are_calibrated_and_help_to_choose() -> None:
    train, held = PARTS
    assert r_squared(held.predicted, held.scores) > 0.3
    assert calibration_error(held.predicted.ravel(), held.scores.ravel()) < 0.02
    found = routing(train, held, DEFAULT_EXPERTS)
    assert found.random < found.single < found.predicted - found.gain
    assert found.predicted < found.best


def test_accuracy_by_hand() -> None:
    true, predicted = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.05, 0.05, 1.0, 0.0])
    # 0.05² + 0.95² over 4 · 0.25
    assert r_squared(predicted, true) == pytest.approx(1 - 0.905)
    bins = calibration(predicted, true)
    assert bins["count"].tolist() == [3, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert bins["predicted"].iloc[[0, -1]].tolist() == pytest.approx([0.1 / 3, 1.0])
    assert bins["true"].iloc[[0, -1]].tolist() == pytest.approx([1 / 3, 1.0])
    assert calibration_error(predicted, true) == pytest.approx(0.75 * 0.9 / 3)


def test_routing_by_hand() -> None:
    train = _part(["a", "a", "b"], [[1, 0], [1, 0.5], [0, 1]], np.zeros((3, 2)))
    # mean 2/3 for the first, 1/2 for the second; tasks a and b prefer one each
    held = _part(
        ["a", "b", "b", "a"],
        [[1, 0], [0, 1], [1, 0.5], [0.5, 0.5]],
        [[0.9, 0.1], [0.6, 0.5], [0.2, 0.4], [0.1, 0.9]],
    )
    found = routing(train, held, MODELS[:2])
    assert found.random == pytest.approx(4.5 / 8)
    assert found.single == pytest.approx(2.5 / 4)
    assert found.by_task == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert found.predicted == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert found.best == pytest.approx(3.5 / 4)
    assert (found.hits, found.decisive_hits, found.decisive) == pytest.approx((1 / 2, 1 / 3, 3 / 4))
    # differences to the single one: 0, 0, -0.5, 0
    assert found.gain == pytest.approx(1.96 * 0.25 / 2)


def _part(task: list[str], scores: Any, predicted: Any) -> Questions:
    sizes = np.ones(len(task), dtype=np.int64)
    wide = [
        np.pad(np.asarray(values, dtype=float), ((0, 0), (0, 7))) for values in (scores, predicted)
    ]
    return Questions(MODELS, np.array(task), sizes, sizes.copy(), *wide)


# predicted lengths


def test_lengths_at_the_ends_of_the_bins() -> None:
    table = read_shipped(LENGTHS_FILE)
    ends, tokens = table["prompt_tokens_up_to"].to_numpy(), table["answer_tokens"].to_numpy()
    assert ends[-1] == np.inf
    assert (np.diff(ends) > 0).all()
    np.testing.assert_array_equal(predict_answer_tokens(np.floor(ends[:-1])), tokens[:-1])
    np.testing.assert_array_equal(predict_answer_tokens(np.floor(ends[:-1]) + 1), tokens[1:])
    prompts = np.array([[0, 10**9]])
    assert predict_answer_tokens(prompts).tolist() == [[tokens[0], tokens[-1]]]


@pytest.mark.parametrize("wrong", [-1.0, np.nan])
def test_lengths_of_no_prompt_are_refused(wrong: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"prompt_tokens holds {wrong:g}; allowed: 0"):
        predict_answer_tokens([5.0, wrong])


def test_lengths_hold_on_later_requests() -> None:
    learned, later = split(read_trace(TRACE), TRAIN_SHARE)
    assert read_shipped(LENGTHS_FILE)["requests"].sum() == len(learned)
    mean = predict_answer_tokens(learned.context_tokens).mean()
    assert mean == pytest.approx(learned.generated_tokens.mean(), abs=0.1)
    true = later.generated_tokens.astype(np.float64)
    assert r_squared(predict_answer_tokens(later.context_tokens), true) > 0.6


def test_a_step_is_learned_from_a_trace() -> None:
    rng = np.random.default_rng(0)
    context = rng.integers(1, 1000, 3000).astype(np.int32)
    generated = np.where(context <= 400, 50, 300).astype(np.int32)
    trace = Trace("made", pd.Timestamp("2024-05-10"), np.arange(3000.0), context, generated)
    found = predictors.learn_lengths(trace)
    assert found["prompt_tokens_up_to"].iloc[0] == pytest.approx(400.5, abs=2)
    assert found["answer_tokens"].tolist() == [50, 300]
    assert found["requests"].tolist() == [(context <= 400).sum(), (context > 400).sum()]


# the page, the package


def test_page_holds_the_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = tables(*PARTS, read_shipped(LENGTHS_FILE))
    lines = ["| " + " | ".join(row) + " |" for t in found for row in [t.header, *t.rows]]
    assert [line for line in lines if line not in text] == []
    assert f"{len(PARTS[0]):,}" in text
    assert f"{len(PARTS[1]):,} held out" in text


def test_page_would_show_other_predictions() -> None:
    train, held = PARTS
    other = replace(held, predicted=1 - held.predicted)
    text = PAGE.read_text(encoding="utf-8")
    found = tables(train, other, read_shipped(LENGTHS_FILE))
    assert not any(" | ".join(row) in text for row in found[0].rows)


def test_using_them_needs_no_scikit_learn() -> None:
    code = (
        "import sys; from icl_optimizer.environments.routing_data import *;"
        "questions('train'); predict_answer_tokens([1]); assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
