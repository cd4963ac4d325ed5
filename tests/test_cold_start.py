"""The study of cold starts: what it asks, who answers from what, and what it says of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from icl_optimizer.environments.slo_scheduling import LEVELS
from icl_optimizer.environments.slo_scheduling_config import TASK_TYPES, served_llms
from icl_optimizer.llm import FunctionLLM, LlamaCpp
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.studies import cold_start, cold_start_questions
from icl_optimizer.studies.catalogue import run_study
from icl_optimizer.studies.cold_start import BASE, cold_start_table, run_cold_start
from icl_optimizer.studies.cold_start_foresight import (
    ModelLikeness,
    Regression,
    RowReading,
    alike,
    describe_task,
    spelling,
    table,
)
from icl_optimizer.studies.cold_start_questions import (
    BANDS,
    NEW_SERVERS,
    NEW_TASKS,
    Experience,
    Question,
    gather,
    in_time,
    known_lengths,
    questions,
)

SIZE = re.compile(r"([\d.]+) billion")


class Reading(FunctionLLM):
    """Knows sizes by their numbers, and tasks by their first word; says "fast" to every row."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: {"fast": 0.9, "late": 0.1}, likelihoods=True)

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        self.prompts += prompts
        return [self._fit(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    @staticmethod
    def _fit(prompt: str, text: str) -> float:
        known, new = SIZE.search(prompt), SIZE.search(text)
        if known and new:
            return -abs(float(np.log(float(known[1]) / float(new[1])))) - 1.0
        return -1.0 if text.split()[0] in prompt.split() else -9.0


@pytest.fixture(scope="module")
def experience() -> Experience:
    return gather(100)


def about(server: str, task: str, length: str = "") -> Question:
    return Question("some", server, task, length, np.full(len(LEVELS), np.nan))


def row(experience: Experience, server: str, task: str) -> list[float]:
    action = experience.models.index(server)
    return [experience.table.chance(action, (task,), (level,)) for level in LEVELS]


# --- what is asked


def test_nothing_is_asked_that_something_was_chosen_or_learned_by() -> None:
    groups = [set(chain(*BANDS)), *map(set, NEW_SERVERS.values())]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert set.union(*groups) <= set(served_llms())
    tasks = [set(TASK_TYPES), *map(set, NEW_TASKS.values())]
    assert sum(map(len, tasks)) == len(set.union(*tasks))


def test_speeds_follow_from_layers_and_size() -> None:
    text = (files("icl_optimizer.environments.data") / "served_llms.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    speeds = [1000 / (0.0878 * int(r["layers"]) + 1.118 * float(r["size_gb"])) for r in rows]
    assert [float(r["tokens_per_s"]) for r in rows] == pytest.approx(speeds, abs=0.6)
    # sizes of four bits a weight and a little more
    assert all(0.45 < float(r["size_gb"]) / float(r["billions"]) < 0.75 for r in rows)


def test_experience_is_random_decisions_at_one_server_of_each_size(experience: Experience) -> None:
    assert all(m in band for m, band in zip(experience.models, BANDS, strict=True))
    assert len(experience.outcomes) == experience.table.received == 500
    shares = np.bincount([o.action for o in experience.outcomes], minlength=4) / 500
    # standard deviation 0.02
    np.testing.assert_allclose(shares, 0.25, atol=0.07)
    assert gather(100).outcomes == experience.outcomes != gather(101).outcomes


def test_the_truth_is_counted_in_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start_questions, "EPISODES", 100)
    models = ("qwen2-0.5b", "llama3-8b", "mistral-large-123b")
    found = in_time(models, {"math": 1.0, "coding": 50_000.0})
    assert found.shape == (3, len(TASK_TYPES), len(LEVELS))
    math, coding, language = (TASK_TYPES.index(t) for t in ("math", "coding", "language"))
    # an idle server writes one token in time, and nobody 50,000
    assert (found[:, math, 0] == 1).all()
    assert np.nanmax(found[:, coding]) == 0
    # 480 tokens: 4 s at 124 tokens/s, 40 s at 12
    assert found[1, language, 0] > 0.9
    assert found[2, language, 0] == 0
    assert np.nanmax(np.diff(found[0, language])) < 0.15
    monkeypatch.setattr(cold_start_questions, "EPISODES", 1)
    assert np.isnan(in_time(models)).mean() > 0.5


def test_questions_name_what_is_new(
    experience: Experience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_start_questions, "EPISODES", 10)
    asked = pd.DataFrame([vars(q) for q in questions(experience.models, "report")])
    new_server = ~asked["server"].isin(experience.models)
    new_task = ~asked["task"].isin(TASK_TYPES)
    kinds = asked["kind"]
    assert (new_server == kinds.str.contains("server")).all()
    assert (new_task == kinds.str.contains("task")).all()
    assert (asked["length"] == "").tolist() == (kinds == "task, its word alone").tolist()
    assert kinds.value_counts().to_dict() == {
        "server": 8 * 5,
        "task, its word alone": 6 * 4,
        "task, length said": 6 * 4,
        "server and task, length said": 8,
    }


# --- who answers from what


def test_the_table_falls_back_to_the_same_queue(experience: Experience) -> None:
    foresee = table(experience)
    small, large = (foresee(about(s, "math")) for s in ("qwen2-0.5b", "mistral-large-123b"))
    assert small.tolist() == large.tolist()
    assert (np.diff(small) < 0.01).all()
    # of a known server it knows the outcomes, whatever the task
    fast, slow = (foresee(about(experience.models[i], "planning")) for i in (0, 3))
    assert (fast > slow).all()


def test_the_row_of_the_most_alike_is_taken(experience: Experience) -> None:
    model = Reading()
    likeness = ModelLikeness(model, PromptBuilder(experience.problem()))
    foresee = alike(experience, likeness)
    small, _, _, large = experience.models
    assert foresee(about("qwen2-0.5b", "math")).tolist() == row(experience, small, "math")
    assert model.prompts == [
        f"Two language models of the same size: one has {served_llms()[m].billions:g} billion "
        "parameters, the other has"
        for m in experience.models
    ]
    foresee(about("qwen2-0.5b", "coding"))
    assert len(model.prompts) == 4
    found = foresee(about(large, "essay writing", "long"))
    assert found.tolist() == row(experience, large, "math")
    known = describe_task("math", "long")
    assert f"Tasks of one kind: {known}, {known}, {known}," in model.prompts
    both = foresee(about("mistral-large-123b", "email reply", "short"))
    assert both.tolist() == row(experience, large, "coding")


def test_lengths_of_known_tasks_in_words() -> None:
    assert known_lengths() == {
        "reasoning": "medium",
        "coding": "short",
        "math": "long",
        "data analysis": "medium",
        "language": "medium",
    }


def test_spelling_knows_no_numbers() -> None:
    seven, seventy = "7 billion parameters", "70 billion parameters"
    assert spelling("server", seven, seventy) > spelling("server", "8 billion parameters", seven)


def test_the_regression_goes_by_size_queue_and_length(experience: Experience) -> None:
    foresee = Regression(experience)
    small, large = (foresee(about(s, "math", "long")) for s in ("qwen2-0.5b", "llama3.1-70b"))
    assert (small > large).all()
    assert (np.diff(small) < 0).all()
    short = foresee(about("llama3.1-8b", "greeting", "short"))
    assert (short > foresee(about("llama3.1-8b", "novel", "long"))).all()


def test_the_row_prompt_has_only_the_name_of_the_new(experience: Experience) -> None:
    model = Reading()
    chances = RowReading(experience, model)(about("qwen2-0.5b", "math"))
    assert len(model.prompts) == len(LEVELS)
    assert all("qwen2-0.5b math: empty fast" in prompt for prompt in model.prompts)
    assert (chances > 0.5).all()


# --- what it says of it


def test_the_study_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start_questions, "EPISODES", 60)
    servers, tasks = ("qwen1.5-1.8b", "mistral-7b", "qwen1.5-72b"), {"joke": 100.0, "novel": 2000.0}
    monkeypatch.setitem(cold_start_questions.NEW_SERVERS, "development", servers)
    monkeypatch.setitem(cold_start_questions.NEW_TASKS, "development", tasks)
    path = run_cold_start(tmp_path, 1, "development", Reading(), progress_bar=False)
    rows = pd.read_csv(tmp_path / "cold-start.csv")
    assert set(rows["seed"]) == {100}
    assert set(rows["server"]) == {*gather(100).models, *servers}
    asked = rows.groupby(["new", "method"]).size().unstack()
    assert (asked.nunique(axis=1) == 1).all()
    text = path.read_text()
    # who reads sizes is right where the mean of others is not
    right = {
        method: float(re.search(rf"\| server \| {method} \| ([\d.]+)", text)[1])  # type: ignore[index]
        for method in ("language model, most alike", "mean at the same queue", BASE)
    }
    assert right["language model, most alike"] > right["mean at the same queue"] + 0.05
    assert right["mean at the same queue"] > right[BASE]


def test_the_table_by_hand() -> None:
    verdicts = pd.DataFrame(
        [(0, 0.9, 0.8), (0, 0.6, 0.1), (0, 0.2, 0.3), (0, 0.4, 0.4), (1, 0.1, 0.9), (1, 0.0, 0.2)],
        columns=["seed", "chance", "in_time"],
    ).assign(new="server", method="somebody")
    # seed 0: one of one and two of three right, 3 of 3 pairs in order; seed 1: the late one alone
    shown = [
        [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in r] for r in cold_start_table(verdicts)
    ]
    assert shown[1:] == [
        ["server", "somebody", "0.62 [0.50, 0.75]", "0.67 [0.50, 0.83]", "1.00"],
        ["server", BASE, "0.62 [0.50, 0.75]", "0.50", "0.50"],
    ]


def test_it_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cold_start, "run_cold_start", lambda *given: asked.append(given))
    run_study("cold-start", tmp_path, 2)
    assert asked == [(tmp_path, 2)]


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaCpp]:
    with LlamaCpp(context_size=512, threads=1) as model:
        yield model


@pytest.mark.llm
def test_the_embedded_model_knows_like_sizes(model: LlamaCpp, experience: Experience) -> None:
    likeness = ModelLikeness(model, PromptBuilder(experience.problem()))
    sizes = [f"{billions} billion parameters" for billions in ("3.8", "72")]
    for new, closest in (("1.5", 0), ("4", 0), ("70", 1), ("123", 1)):
        fits = [likeness("server", known, f"{new} billion parameters") for known in sizes]
        assert int(np.argmax(fits)) == closest
    tasks = [describe_task(t, known_lengths()[t]) for t in ("coding", "language", "math")]
    fits = [likeness("task", known, "long answers to legal contract") for known in tasks]
    assert int(np.argmax(fits)) == 2
