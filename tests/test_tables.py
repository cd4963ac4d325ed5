"""Tables: written a unit at a time, read as far as they are needed, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.store import RunStore
from icl_optimizer.comparison.summary import Summary
from icl_optimizer.comparison.tables import COLUMNS, ResultsTable
from icl_optimizer.comparison.unit import Row, UnitResult
from icl_optimizer.comparison.writing import TableWriter
from icl_optimizer.errors import ConfigurationError

ROWS = [
    ("e", scenario, policy, llm, seed, split, step, metric, value)
    for policy, llm in (("icl", "model, with a comma"), ("bandit", ""))
    for seed in (0, 1)
    for scenario in ("default", "users=3")
    for split, step, metric, value in (
        ("eval", 10, "reward", 1 / 3 + seed),
        ("eval", 10, "delay_s", 0.1),
        ("eval", 20, "reward", float("nan") if seed else -1e-7),
        ("train", 1, "reward", 1e9),
        ("train", 20, "interactions", 20.0),
    )
]


def written(folder: Path, *, parts: int = 3, parquet: bool = True) -> Path:
    with TableWriter(folder / "results.csv", parquet=parquet) as table:
        for start in range(0, len(ROWS), parts):
            table.write(ROWS[start : start + parts])
    return folder


@pytest.fixture(params=["parquet", "csv"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> ResultsTable:
    return ResultsTable(written(tmp_path, parquet=request.param == "parquet"))


def frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS)).round({"value": 10})


def test_parts_make_the_table_that_pandas_writes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = frame(ROWS).to_csv(index=False).encode()
    for group in (1, 4, 10_000):
        monkeypatch.setattr("icl_optimizer.comparison.writing.GROUP_ROWS", group)
        assert (written(tmp_path) / "results.csv").read_bytes() == wanted
        assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "results.parquet"}
    with TableWriter(tmp_path / "results.csv", parquet=True):
        pass
    assert (tmp_path / "results.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert ResultsTable(tmp_path).select().empty


def test_an_error_leaves_the_table_that_was_there(tmp_path: Path) -> None:
    before = (written(tmp_path) / "results.csv").read_bytes()
    rows = (row if i else 1 / i for i, row in enumerate(ROWS))
    with pytest.raises(ZeroDivisionError), TableWriter(tmp_path / "results.csv") as table:
        table.write(rows)
    assert (tmp_path / "results.csv").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_without_pyarrow_no_old_parquet_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    monkeypatch.setattr("icl_optimizer.comparison.writing.find_spec", lambda name: None)
    written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_everything_is_read_as_it_was(table: ResultsTable) -> None:
    assert table.columns == list(COLUMNS)
    pd.testing.assert_frame_equal(table.select(), frame(ROWS))
    assert table.values("policy") == ["icl", "bandit"]


def test_rows_and_columns_are_chosen(table: ResultsTable) -> None:
    got = table.select(["seed", "value"], split="eval", metric="delay_s", policy=("icl", "bandit"))
    assert got.to_numpy().tolist() == [[seed, 0.1] for seed in (0, 0, 1, 1) * 2]
    assert set(table.select(scenario="users=3").scenario) == {"users=3"}
    nothing = table.select(policy="nobody")
    assert nothing.empty
    pd.testing.assert_series_equal(nothing.dtypes, table.select().dtypes)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_last_step_of_each(
    table: ResultsTable, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icl_optimizer.comparison.tables.CHUNK_ROWS", chunk)
    got = table.select(
        ["policy", "seed", "value"], split="eval", scenario="default", last_only=True
    )
    # the delay was measured at 10 alone, the reward at 20, too
    assert got.policy.tolist() == ["icl"] * 4 + ["bandit"] * 4
    np.testing.assert_array_equal(got.value, [0.1, -1e-7, 0.1, np.nan] * 2)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",10,delay_s,0.1", ",10,delay_s,fast", r"line 3: column 'value' has 'fast'; .*: a number"),
        (",10,delay_s,0.1", ",ten,delay_s,0.1", "line 3: column 'step' has 'ten'; .*whole number"),
        (",10,delay_s,0.1", ",1.5,delay_s,0.1", "line 3: column 'step' has '1.5'"),
        (",10,delay_s,0.1", ",,delay_s,0.1", "line 3: column 'step' has ''"),
        ("policy,llm", "policy,model", "has no column 'llm'"),
    ],
)
def test_bad_cells_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = written(tmp_path, parquet=False) / "results.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=said):
        ResultsTable(tmp_path).select()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"results.csv is missing"):
        ResultsTable(tmp_path)
    table = ResultsTable(written(tmp_path))
    with pytest.raises(ConfigurationError, match="no column 'point'; it has: environment"):
        table.select(point="one")
    with pytest.raises(ConfigurationError, match="no column 'vlaue'"):
        table.select(["vlaue"])


def test_the_summary_keeps_the_last_step_in_any_order() -> None:
    one, other = Summary(), Summary()
    one.add(ROWS)
    for row in ROWS:
        other.add([row])
    assert repr(one.rows()) == repr(other.rows())
    found = {line[:5]: line[5:] for line in one.rows()}
    # seed 1 has no value at the last step; while learning the reward is not summarised
    assert found["e", "default", "bandit", "", "reward"] == (-1e-7, -1e-7, -1e-7, 1)
    assert found["e", "default", "bandit", "", "interactions"] == (20.0, 20.0, 20.0, 2)


def filled(folder: Path, units: int) -> RunStore:
    """Return the folder of a comparison of which every unit is finished, 20 rows each."""
    policies = tuple(f"always-{label}" for label in ("local", "offload"))
    config = ComparisonConfig(environment="offloading", policies=policies, seeds=units // 2)
    store = RunStore(folder, config, resume=False)
    text = ""
    for policy in policies:
        for seed in range(units // 2):
            if not text:
                rows = [
                    Row("offloading", "default", "POLICY", "", 0, "eval", step, metric, 0.1 * step)
                    for step in range(4)
                    for metric in ("reward", "delay_s", "success_rate", "accuracy", "optimality")
                ]
                text = json.dumps(UnitResult(rows).to_json())
            mine = text.replace("POLICY", policy).replace('"seed": 0', f'"seed": {seed}')
            (folder / "units" / f"{policy}-{seed}.json").write_text(mine)
    return store


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icl_optimizer.comparison.writing.GROUP_ROWS", 2_000)
    monkeypatch.setattr("icl_optimizer.comparison.tables.CHUNK_ROWS", 2_000)

    def peaks(store: RunStore) -> tuple[int, int]:
        found = []
        for work in (store.write_tables, lambda: read(store.folder)):
            tracemalloc.start()
            work()
            found.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        return found[0], found[1]

    def read(folder: Path) -> None:
        table = ResultsTable(folder)
        rows = table.select(["value"], metric="reward", policy="always-local", last_only=True)
        assert set(rows.value) == {0.3}

    # what is imported on the way, and the summary's 2,000 resamples of so many seeds, aside
    monkeypatch.setattr("icl_optimizer.comparison.summary.estimate", lambda values: FEW)
    peaks(filled(tmp_path / "first", 20))
    few, many = (peaks(filled(tmp_path / str(n), n)) for n in (200, 2000))
    assert len(ResultsTable(tmp_path / "2000").select(["value"])) == 40_000
    # ten times the rows; the numbers that stay, one per seed and metric, take 1 MB
    assert many[0] < few[0] + 2 * 2**20
    assert many[1] < few[1] + 2 * 2**20


class FEW:
    mean = low = high = 0.0
    n = 1
