"""Traces: reading, malformed rows, statistics, features, the command."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import RobustScaler
from typer.testing import CliRunner

from icl_optimizer.cli import app
from icl_optimizer.environments.traces import (
    FEATURES,
    Malformed,
    MalformedRowsWarning,
    RobustScaling,
    Trace,
    TraceStatistics,
    engineer,
    iter_trace,
    read_trace,
    split,
    summarise,
)
from icl_optimizer.environments.traces.rows import (
    CLOSER,
    Findings,
    Layout,
    _parse_at_once,
    _parse_one_by_one,
)
from icl_optimizer.environments.traces.statistics import GAP_EDGES_S
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.report.trace_picture import draw_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TIME = "2023-11-16 18:17:0"
GOOD = f"{TIME}1.0000001,5,6\n"


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def made(arrival_s: list[float], context: list[int], generated: list[int]) -> Trace:
    tokens = (np.array(x, dtype=np.int32) for x in (context, generated))
    return Trace("made", pd.Timestamp("2024-05-10 23:59:58"), np.array(arrival_s), *tokens)


# reading


@pytest.mark.parametrize(
    ("name", "rows", "start", "duration", "first", "last"),
    [
        ("azure-code", 8819, "18:17:03.97996", 3435.948056, (4808, 10), (549, 173)),
        ("azure-conversation", 19366, "18:15:46.68059", 3501.721937, (374, 44), (197, 183)),
    ],
)
def test_shipped_traces(
    name: str,
    rows: int,
    start: str,
    duration: float,
    first: tuple[int, int],
    last: tuple[int, int],
) -> None:
    trace = read_trace(name)
    assert (trace.name, len(trace)) == (name, rows)
    assert trace.start == pd.Timestamp(f"2023-11-16 {start}")
    assert trace.arrival_s[0] == 0
    assert trace.arrival_s[-1] == pytest.approx(duration, abs=1e-9)
    assert (trace.context_tokens[0], trace.generated_tokens[0]) == first
    assert (trace.context_tokens[-1], trace.generated_tokens[-1]) == last
    assert trace.arrival_s.dtype == np.float64
    assert trace.context_tokens.dtype == trace.generated_tokens.dtype == np.int32


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".csv", bytes), (".csv.gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_compression_goes_by_the_ending(
    ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = written(tmp_path / f"mine{ending}", pack((HEADER + GOOD).encode()))
    trace = read_trace(path)
    assert (trace.name, len(trace), trace.start.nanosecond) == ("mine", 1, 100)


def test_other_columns_order_zones_quotes_and_line_ends(tmp_path: Path) -> None:
    text = (
        "\ufeffGeneratedTokens,model,TIMESTAMP,ContextTokens\r\n"
        "7,m,2024-05-12 00:00:00.009930+00:00,374\r\n"
        '8,"n",2024-05-12T02:00:01.009930+02:00,"12"\r\n'
        "\r\n"
        "9,,2024-05-12 00:00:02.009930Z,13.0"
    )
    trace = read_trace(written(tmp_path / "week.csv", text))
    assert trace.start == pd.Timestamp("2024-05-12 00:00:00.009930")
    assert trace.arrival_s.tolist() == [0, 1, 2]
    assert trace.context_tokens.tolist() == [374, 12, 13]
    assert trace.generated_tokens.tolist() == [7, 8, 9]


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1_000])
def test_parts_together_are_the_whole(chunk_rows: int, tmp_path: Path) -> None:
    code = read_trace("azure-code", max_rows=200)
    frame = {"TIMESTAMP": code.times, "ContextTokens": code.context_tokens}
    path = tmp_path / "some.csv"
    pd.DataFrame(frame | {"GeneratedTokens": code.generated_tokens}).to_csv(path, index=False)
    shares: list[float] = []
    parts = list(iter_trace(path, chunk_rows=chunk_rows, progress=shares.append))
    assert {len(p) for p in parts[:-1]} <= {chunk_rows}
    assert {p.start for p in parts} == {code.start}
    for name in ("arrival_s", "context_tokens", "generated_tokens"):
        whole = np.concatenate([getattr(p, name) for p in parts])
        assert np.array_equal(whole, getattr(code, name))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert_equal(summarise(parts), summarise([read_trace(path)]))


def test_max_rows_counts_good_rows_and_looks_no_further(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", HEADER + GOOD + "bad\n" + GOOD * 3 + "worse\n")
    with pytest.warns(MalformedRowsWarning, match="1 line is malformed"):
        assert len(read_trace(path, max_rows=3, malformed="skip")) == 3
    assert len(read_trace(path, max_rows=1)) == 1


# malformed rows

MALFORMED = {
    f"{TIME}2,,1": "ContextTokens is missing",
    f"{TIME}2,4,": "GeneratedTokens is missing",
    f"{TIME}2,x,1": "ContextTokens is 'x'",
    f"{TIME}2,1,-3": "GeneratedTokens is '-3'",
    f"{TIME}2,1.5,1": "ContextTokens is '1.5'",
    f"{TIME}2,nan,1": "ContextTokens is 'nan'",
    f"{TIME}2,True,1": "ContextTokens is 'True'",
    f"{TIME}2,1,2147483648": "GeneratedTokens is '2147483648'",
    f"{TIME}2,1,99999999999999999999": "GeneratedTokens is '9",
    f"{TIME}2,1_0,1": "ContextTokens is '1_0'",
    f"{TIME}2,0x1,1": "ContextTokens is '0x1'",
    f"{TIME}2,\x00,1": r"ContextTokens is '\\x00'",
    f"{TIME}2,4,808,1": "number of columns is 4;",
    f"{TIME}2,4": "number of columns is 2;",
    ",1,1": "TIMESTAMP is missing",
    "now,1,1": "TIMESTAMP is 'now'",
    "2024,1,1": "TIMESTAMP is '2024'",
    "1700158623.98,1,1": "TIMESTAMP is '1700158623.98'",
    "2023-11-16 18:17:60,1,1": "TIMESTAMP is '2023-11-16 18:17:60'",
    "0001-01-01 00:00:00,1,1": "TIMESTAMP is '0001-01-01 00:00:00'",
    "2300-01-01 00:00:00,1,1": "TIMESTAMP is '2300-01-01 00:00:00'",
    f"{TIME}0,1,1": f"TIMESTAMP is '{TIME}0', earlier than a row before it",
}


@pytest.mark.parametrize(("row", "reason"), MALFORMED.items())
@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
def test_a_malformed_row_is_reported_by_its_line(
    row: str, reason: str, chunk_rows: int, tmp_path: Path
) -> None:
    path = written(tmp_path / "x.csv", f"{HEADER}{GOOD}\n{GOOD}{row}\n{GOOD}")
    with pytest.raises(ConfigurationError, match=f"1 line is malformed:\n  line 5: {reason}.*allo"):
        list(iter_trace(path, chunk_rows=chunk_rows))
    with pytest.warns(MalformedRowsWarning, match=f"line 5: {reason}"):
        parts = list(iter_trace(path, chunk_rows=chunk_rows, malformed="skip"))
    assert np.concatenate([p.context_tokens for p in parts]).tolist() == [5, 5, 5]


FIELDS = st.sampled_from(["1", " 7 ", "+5", "-0", "1.0", "1e3", "", "x", "nan", "inf", "-1", "1.5"])
TIMES = st.sampled_from(
    [f"{TIME}2", f"{TIME}3.1234567Z", f" {TIME}2", "2023-11-16", "20231116T181702", "today", "2023"]
)


@given(st.lists(st.tuples(TIMES, FIELDS, FIELDS).map(",".join), min_size=1, max_size=3))
def test_the_quick_way_agrees_with_the_careful_one(rows: list[str]) -> None:
    lines, layout, findings = [f"{r}\n".encode() for r in rows], Layout(3, (0, 1, 2)), Findings()
    earliest = int(np.iinfo(np.int64).min)
    quick = _parse_at_once(lines, layout)
    careful = _parse_one_by_one(lines, layout, 2, earliest, findings)
    if quick is not None and (np.diff(quick.time_ns) >= 0).all():
        assert findings.count == 0
        assert all(np.array_equal(a, b) for a, b in zip(quick, careful, strict=True))


def test_many_malformed_rows_are_counted_and_the_first_ten_named(tmp_path: Path) -> None:
    rows = [GOOD, "x\n"] * CLOSER
    path = written(tmp_path / "x.csv", HEADER + "".join(rows))
    with pytest.raises(ConfigurationError) as error:
        read_trace(path)
    lines = str(error.value).splitlines()
    assert lines[0] == f"trace '{path}': {CLOSER:,} lines are malformed:"
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [
        f"line {n}" for n in range(3, 23, 2)
    ]
    assert lines[11] == f"  … and {CLOSER - 10:,} more"
    with pytest.warns(MalformedRowsWarning) as caught:
        trace = read_trace(path, malformed="skip")
    assert len(trace) == CLOSER
    assert len(caught) == 1


def test_no_part_comes_after_a_malformed_row(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", HEADER + GOOD * 4 + "x\n" + GOOD * 4)
    parts = iter_trace(path, chunk_rows=2)
    assert [len(next(parts)), len(next(parts))] == [2, 2]
    with pytest.raises(ConfigurationError, match="line 6"):
        next(parts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "is empty; allowed: a CSV file with the columns TIMESTAMP, Con"),
        ("x.csv", b"\n\n", "is empty"),
        ("x.csv", HEADER.encode(), "holds no request"),
        ("x.csv", b"TIMESTAMP,Tokens\n1,2\n", "lacks the columns ContextTokens, GeneratedTokens"),
        ("x.csv", b"\xff\xfe\x00" * 99, "lacks the columns"),
        ("x.csv.gz", b"no gzip at all", "x.csv.gz' cannot be read: Not a gzipped file"),
        (
            "x.csv.gz",
            gzip.compress(HEADER.encode() * 99, mtime=0)[:-9],
            "cannot be read: .*ended before",
        ),
    ],
)
def test_files_that_are_no_traces(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_trace(written(tmp_path / name, content))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'azure-code'"):
        read_trace("azure-cod")
    with pytest.raises(ConfigurationError, match=r"none\.csv' is not there; allowed: azure-code"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="is a folder"):
        iter_trace(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"malformed": "drop"}, "malformed is 'drop'; allowed: reject, skip"),
        ({"chunk_rows": 0}, "chunk_rows is 0; allowed: 1 and more"),
        ({"max_rows": 0}, "max_rows is 0"),
    ],
)
def test_bad_options(options: dict[str, Malformed], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        iter_trace("azure-code", **options)  # type: ignore[arg-type]


# in memory


def test_a_slice_is_a_trace_of_its_own() -> None:
    trace = made([0.0, 1.5, 3.0, 3.25], [1, 2, 3, 4], [5, 6, 7, 8])
    part = trace.slice(1, 3)
    assert part.start == pd.Timestamp("2024-05-10 23:59:59.5")
    assert part.arrival_s.tolist() == [0.0, 1.5]
    assert part.total_tokens.tolist() == [8, 10]
    assert part.times.tolist() == trace.times[1:3].tolist()
    with pytest.raises(ConfigurationError, match="from 4 to None holds no request"):
        trace.slice(4)
    with pytest.raises(ValueError, match="read-only"):
        part.arrival_s[0] = 1.0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([0.0, 1.0], [1], [1, 1]), r"arrays of \[2, 1, 2\] requests"),
        (([1.0, 0.0], [1, 1], [1, 1]), "arrival_s falls"),
        (([0.0, np.nan], [1, 1], [1, 1]), "not finite"),
        (([0.0, 1.0], [1, -1], [1, 1]), "context_tokens has negative"),
    ],
)
def test_a_trace_is_checked(arrays: tuple[list[float], list[int], list[int]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(*arrays)


def test_total_tokens_do_not_overflow() -> None:
    most = 2**31 - 1
    assert made([0.0], [most], [most]).total_tokens.tolist() == [2 * most]


# statistics


def assert_equal(a: TraceStatistics, b: TraceStatistics) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name in ("context", "generated", "total"):
            value, other = list(vars(value).values()), list(vars(other).values())
            assert all(np.allclose(x, y, rtol=1e-12) for x, y in zip(value, other, strict=True))
        elif isinstance(value, str | pd.Timestamp):
            assert value == other
        else:
            assert np.allclose(value, other, rtol=1e-12, equal_nan=True), name


@pytest.mark.parametrize("name", ["azure-code", "azure-conversation"])
def test_statistics_are_those_of_numpy_on_the_whole(name: str) -> None:
    trace = read_trace(name)
    found = summarise(iter_trace(name, chunk_rows=1_000))
    gaps, at = np.diff(trace.arrival_s), trace.arrival_s
    assert (found.name, found.start, found.requests) == (name, trace.start, len(trace))
    assert found.duration_s == at[-1]
    assert found.mean_rate == pytest.approx(len(trace) / at[-1])
    assert found.longest_gap_s == pytest.approx(gaps.max())
    assert found.gap_cv == pytest.approx(gaps.std() / gaps.mean(), rel=1e-9)
    seconds, minutes = (np.bincount((at // w).astype(int)) for w in (1, 60))
    assert (found.peak_per_second, found.peak_per_minute) == (seconds.max(), minutes.max())
    # the last window is not whole
    assert found.dispersion_1s == pytest.approx(seconds[:-1].var() / seconds[:-1].mean())
    assert found.dispersion_60s == pytest.approx(minutes[:-1].var() / minutes[:-1].mean())
    assert found.per_minute.tolist() == minutes.tolist()
    survival = [(gaps >= edge).mean() for edge in GAP_EDGES_S]
    assert found.gap_survival == pytest.approx(survival)
    for kind in ("context", "generated", "total"):
        tokens, values = getattr(found, kind), getattr(trace, f"{kind}_tokens")
        assert tokens.mean == pytest.approx(values.mean())
        assert tokens.std == pytest.approx(values.std(), rel=1e-9)
        quantiles = np.quantile(values, [0.5, 0.95, 0.99], method="inverted_cdf")
        assert [tokens.p50, tokens.p95, tokens.p99] == quantiles.tolist()
        assert tokens.max == values.max()
        assert np.array_equal(np.repeat(tokens.values, tokens.counts), np.sort(values))


def test_statistics_by_hand() -> None:
    found = summarise([made([0.0, 0.5, 1.0, 3.0, 3.5], [1, 2, 3, 4, 5], [0, 0, 0, 0, 9])])
    assert (found.peak_per_second, found.longest_gap_s) == (2, 2.0)
    # gaps 0.5, 0.5, 2, 0.5: mean 0.875, variance 0.421875
    assert found.gap_cv == pytest.approx(np.sqrt(0.421875) / 0.875)
    # whole seconds: 2, 1, 0 requests
    assert found.dispersion_1s == pytest.approx((2 / 3) / 1)
    assert np.isnan(found.dispersion_60s)
    assert (found.generated.p50, found.generated.p95, found.context.p50) == (0, 9, 3)
    alone = summarise([made([0.0], [3], [4])])
    assert (alone.duration_s, alone.longest_gap_s, alone.total.std) == (0, 0, 0)
    assert np.isnan([alone.mean_rate, alone.gap_cv, alone.dispersion_1s]).all()


def test_poisson_arrivals_have_variation_and_dispersion_one() -> None:
    at = np.random.default_rng(0).exponential(0.1, 200_000).cumsum()
    tokens = np.ones(200_000, dtype=np.int32)
    found = summarise([Trace("poisson", pd.Timestamp(0), at, tokens, tokens)])
    assert found.gap_cv == pytest.approx(1, abs=0.02)
    assert found.dispersion_1s == pytest.approx(1, abs=0.05)
    assert found.dispersion_60s == pytest.approx(1, abs=0.35)


def test_great_token_numbers_are_rounded_down_a_little() -> None:
    most = 2**31 - 1
    found = summarise([made([0.0, 1.0, 2.0], [2**20 - 1, 2**20 + 5, most], [0, 0, most])])
    assert found.context.values.tolist()[:2] == [2**20 - 1, 2**20]
    assert found.context.max == most
    assert found.context.p99 == pytest.approx(most, rel=0.004)
    assert found.total.max == 2 * most


def test_parts_must_fit_together() -> None:
    trace = made([0.0, 1.0], [1, 1], [1, 1])
    with pytest.raises(ConfigurationError, match="before the one before it ended"):
        summarise([trace, trace])
    with pytest.raises(ConfigurationError, match="counts from"):
        summarise([trace, trace.slice(1)])
    with pytest.raises(ConfigurationError, match="no request"):
        summarise([])


STREAM = """
import sys
from icl_optimizer.environments.traces import iter_trace, summarise

def peak_mb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

next(iter_trace("azure-code", max_rows=10))
before = peak_mb()
print(summarise(iter_trace(sys.argv[1], chunk_rows=int(sys.argv[2]))).requests)
print(peak_mb() - before)
"""


def test_a_million_rows_stream_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "million.csv"
    with path.open("w") as file:
        file.write(HEADER)
        for i in range(1000):
            stamp = f"2024-05-{i // 100 + 10} 00:{i // 10 % 10:02}:{i % 10:02}.1234567"
            file.write(f"{stamp},{i},{1000 - i}\n" * 1000)
    command = [sys.executable, "-c", STREAM, str(path), "25000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    requests, growth_mb = done.stdout.split()
    assert int(requests) == 1_000_000
    # the file alone is 36 MB, and 100 MB and more as a whole in pandas
    assert float(growth_mb) < 30


# features


def test_features_by_hand() -> None:
    trace = made(
        [0.0, 1.0, 4.0, 4.0, 6.0, 7.0, 17.0], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 13]
    )
    frame = engineer(trace)
    assert tuple(frame.columns) == FEATURES
    assert set(frame.dtypes) == {np.dtype(np.float64)}
    # two seconds to midnight, Friday 10 May 2024
    assert frame.hour.tolist() == [23, 23, 0, 0, 0, 0, 0]
    assert frame.weekday.tolist() == [4, 4, 5, 5, 5, 5, 5]
    assert frame.day_of_month.tolist() == [10, 10, 11, 11, 11, 11, 11]
    assert set(frame.iso_week) == {19}
    assert frame.total_tokens.tolist() == [10, 10, 10, 10, 10, 10, 20]
    assert frame.total_tokens_lag_1.tolist() == [0, 10, 10, 10, 10, 10, 10]
    assert frame.context_tokens_lag_1.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert frame.generated_tokens_lag_1.tolist() == [0, 9, 8, 7, 6, 5, 4]
    # the present request is among the five: 10, 10, 10, 10, 20
    assert frame.total_mean_5.tolist() == [10, 10, 10, 10, 10, 10, 12]
    assert frame.total_std_5.tolist() == pytest.approx([0, 0, 0, 0, 0, 0, np.sqrt(20)])
    assert frame.total_mean_10.iloc[-1] == pytest.approx(80 / 7)
    assert frame.total_std_20.iloc[-1] == pytest.approx(np.sqrt(100 / 7))
    # gaps 1, 3, 0, 2, 1, 10
    assert frame.mean_gap_5.tolist() == pytest.approx([0, 1, 2, 4 / 3, 1.5, 1.4, 3.2])
    assert frame.mean_gap_10.iloc[-1] == pytest.approx(17 / 6)


def test_features_of_a_request_depend_on_nothing_after_it() -> None:
    trace = read_trace("azure-conversation", max_rows=300)
    whole, part = engineer(trace), engineer(trace.slice(0, 200))
    assert not whole.isna().any(axis=None)
    pd.testing.assert_frame_equal(whole.iloc[:200], part)
    windows = np.lib.stride_tricks.sliding_window_view(trace.total_tokens, 20)
    assert whole.total_mean_20[19:].to_numpy() == pytest.approx(windows.mean(axis=1))
    assert whole.total_std_20[19:].to_numpy() == pytest.approx(windows.std(axis=1, ddof=1))


def test_scaling_is_that_of_scikit_learn() -> None:
    learned, held_out = (engineer(part) for part in split(read_trace("azure-conversation")))
    scaling = RobustScaling.fit(learned, clip=1e9)
    ours, theirs = scaling.transform(held_out), RobustScaler().fit(learned).transform(held_out)
    spread = learned.quantile(0.75) > learned.quantile(0.25)
    assert spread.sum() > 12
    assert np.allclose(ours.loc[:, spread], theirs[:, spread])
    clipped = RobustScaling.fit(learned).transform(held_out)
    assert np.array_equal(clipped, ours.clip(-5, 5))
    assert (clipped == 5).any(axis=None)
    assert clipped.columns.tolist() == list(FEATURES)


def test_features_that_hardly_change_are_scaled_by_what_there_is() -> None:
    frame = pd.DataFrame({"rare": [0.0] * 9 + [10.0], "same": [3.0] * 10})
    scaled = RobustScaling.fit(frame).transform(frame)
    assert scaled.rare.tolist() == pytest.approx([0] * 9 + [10 / 3])
    assert scaled.same.tolist() == [0] * 10
    with pytest.raises(ConfigurationError, match=r"features are \['same'\]"):
        RobustScaling.fit(frame).transform(frame[["same"]])
    with pytest.raises(ConfigurationError, match="0 rows with clip 5"):
        RobustScaling.fit(frame.iloc[:0])


def test_the_later_part_is_held_out() -> None:
    trace = read_trace("azure-code")
    learned, held_out = split(trace)
    assert (len(learned), len(held_out)) == (6173, 2646)
    assert learned.times[-1] <= held_out.start == trace.times[6173]
    assert np.array_equal(held_out.context_tokens, trace.context_tokens[6173:])
    for share in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(ConfigurationError, match=f"share is {share} of 8819"):
            split(trace, share)


# the command


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["trace", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def row(output: str, name: str) -> list[str]:
    (line,) = [part for part in output.splitlines() if part.startswith(f"│ {name}")]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_the_command_shows_traces_side_by_side(tmp_path: Path) -> None:
    output = call("azure-code", "azure-conversation", "--out", tmp_path / "new")
    assert row(output, "requests") == ["8,819", "19,366"]
    assert row(output, "variation of gaps") == ["13.2", "1.09"]
    assert row(output, "most in a minute") == ["632", "507"]
    assert row(output, "total tokens: 99 %") == ["7,462", "4,259"]
    for name in ("azure-code", "azure-conversation"):
        picture = tmp_path / "new" / f"trace-{name}.png"
        assert f"picture: {picture}" in output
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000


def test_the_command_skips_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "mine.csv", HEADER + GOOD + "x\n")
    with pytest.raises(ConfigurationError, match="line 3"):
        call(path)
    assert list(tmp_path.iterdir()) == [path]
    output = call(path, "--malformed", "skip")
    assert "warning: trace" in output
    assert "line 3: number of columns is 1" in output
    assert row(output, "requests") == ["1"]
    assert (tmp_path / "trace-mine.png").exists()
    with pytest.raises(ConfigurationError, match="malformed is 'drop'"):
        call(path, "--malformed", "drop")
    with pytest.raises(ConfigurationError, match=r"several traces are named \['mine'\]"):
        call(path, path)


def test_pictures_of_odd_traces(tmp_path: Path) -> None:
    odd = {
        "one": made([0.0], [0], [0]),
        "$years$": made([0.0, 0.0, 9e8], [1, 1, 2**31 - 1], [0, 0, 3]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, trace in odd.items():
            draw_trace(summarise([trace]), tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 10_000
