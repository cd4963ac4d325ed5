"""The study of the levers: what it measures, on what, and that it can go on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from icl_optimizer.agent import ICLConfig
from icl_optimizer.environments.offloading_config import service_types
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.scripted import FunctionLLM
from icl_optimizer.problem import Context
from icl_optimizer.studies.frozen import Queries, held_out, random_log
from icl_optimizer.studies.lever_settings import SCENARIOS, SETTINGS, SHIPPED
from icl_optimizer.studies.lever_table import lever_tables
from icl_optimizer.studies.levers import COLUMNS, run_levers

SMALL = "closed, labels A and B"
NEW_WORDS = next(s for s in SCENARIOS if s.new_words)


class Copying(FunctionLLM):
    """Gives most to the label that the query has elsewhere in the prompt; writes the first one."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: "A")

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        self.usage.add(calls=len(prompts))
        return np.log([self._shares(prompt, labels) for prompt in prompts])

    def _shares(self, prompt: str, labels: list[str]) -> list[float]:
        query = prompt.splitlines()[-1].split("; ")[-1]
        found = [query + label in prompt for label in labels]
        return [0.9 if here else 0.05 for here in found]


def test_a_study_is_written_and_goes_on_where_it_was(tmp_path: Path) -> None:
    model = Copying()
    table = run_levers(tmp_path, 1, [SMALL], model, progress_bar=False)
    rows = pd.read_csv(tmp_path / "levers.csv")
    assert list(rows.columns) == COLUMNS
    # variants of the closed scenario choose nothing
    assert set(rows["split"]) == {"report"}
    assert set(rows["seed"]) == {0}
    accuracy = rows[rows["metric"] == "accuracy"].set_index("setting")["value"]
    assert accuracy["auto"] == accuracy["predict"] == accuracy["letters"] == 1.0
    assert accuracy["generate, held to the labels"] < 0.8
    assert "| decider | auto | 1.00 |" in table.read_text()
    calls = model.usage.calls
    written = (tmp_path / "levers.csv").read_text()
    run_levers(tmp_path, 1, [SMALL], model, progress_bar=False)
    assert model.usage.calls == calls
    assert (tmp_path / "levers.csv").read_text() == written
    # a trial that is not there is run, and only that one
    (lost,) = (tmp_path / "trials").glob("*predict_0.json")
    lost.unlink()
    run_levers(tmp_path, 1, [SMALL], model, progress_bar=False)
    assert calls < model.usage.calls < calls + 60


def test_an_unknown_environment_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'congested'"):
        run_levers(tmp_path, 1, ["congestion"], Copying(), progress_bar=False)


def test_trials_of_another_model_are_not_taken_over(tmp_path: Path) -> None:
    run_levers(tmp_path, 1, [SMALL], Copying(), progress_bar=False)
    other = Copying()
    other.name = "other"
    with pytest.raises(ConfigurationError, match="of the model 'function', asked for 'other'"):
        run_levers(tmp_path, 1, [SMALL], other, progress_bar=False)


def test_settings_differ_from_each_other_and_from_the_default() -> None:
    configs = [ICLConfig(**setting.options) for setting in SETTINGS]
    assert ICLConfig(**SHIPPED.options) == ICLConfig()
    assert len({c.model_dump_json() for c in configs}) == len(SETTINGS) >= 10
    assert len({(s.lever, s.name) for s in SETTINGS}) == len(SETTINGS)


def test_defaults_are_chosen_on_other_words_than_reported() -> None:
    for mix in NEW_WORDS.mixes:
        met = {
            split: {c["Service type"] for c in held_out(NEW_WORDS.queries(mix, split), 0).contexts}
            for split in ("choose", "report")
        }
        assert met["choose"] <= set(service_types("development"))
        assert met["report"] <= set(service_types("unseen"))
    log = random_log(NEW_WORDS.learning, 100, 0)
    assert {o.context["Service type"] for o in log} == set(service_types("learned"))


def test_experience_and_queries_repeat_with_the_seed() -> None:
    log, other = random_log({}, 60, 3), random_log({}, 60, 4)
    assert log == random_log({}, 60, 3) != other
    # both decisions about equally often: 30 expected, standard deviation 3.9
    assert 15 < sum(o.action for o in log) < 45
    one, same = held_out({}, 3, 100), held_out({}, 3, 100)
    assert one.contexts == same.contexts
    assert one.values.tolist() == same.values.tolist()
    assert len(one.contexts) == len(one.values) == 100


def test_metrics_by_hand() -> None:
    contexts = [Context({"a": word}) for word in "xxxy"]
    queries = Queries(contexts, np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 8.0]]))
    assert queries.distinct == [contexts[0], contexts[3]]
    # always the first: 3 of 4, one class of two; it earns 3, the best 5, chance 2.5
    metrics = queries.metrics(np.zeros(4, dtype=np.int64))
    assert metrics == {
        "accuracy": 0.75,
        "balanced_accuracy": 0.5,
        "optimality": pytest.approx(0.2),
    }


def test_the_table_by_hand() -> None:
    def row(
        setting: str, metric: str, value: float, seed: int, place: str = "closed"
    ) -> list[object]:
        return [place, "as learned", "order", setting, seed, "report", metric, value]

    values = [
        row("nearest-again", "balanced_accuracy", 0.5, 0),
        row("random", "balanced_accuracy", 0.5, 0),
        row("random", "balanced_accuracy", 1.0, 1),
        row("random", "decisions_per_s", 8.0, 0),
        row("similar", "balanced_accuracy", 1.0, 0),
        row("similar", "balanced_accuracy", 1.0, 1),
        row("similar", "decisions_per_s", 1.25, 0),
        row("similar", "balanced_accuracy", 0.75, 0, "congested"),
    ]
    assert lever_tables(pd.DataFrame(values, columns=COLUMNS)).splitlines() == [
        "## Reported",
        "",
        "| lever | setting | closed | congested | decisions/s, closed |",
        "|---|---|---|---|---|",
        "| order | random | 0.75 [0.50,\u00a01.00] | – | 8 |",
        "| order | similar | 1.00 | 0.75 | 1.25 |",
        "| order | nearest-again | 0.50 | – | – |",
    ]
