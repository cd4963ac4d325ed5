"""The demo, whole but small: the shipped defaults on the real embedded model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from icl_optimizer.environments.registry import get_spec


@pytest.mark.llm
@pytest.mark.slow
def test_the_demo_runs_at_a_reduced_size(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-c", "from icl_optimizer.cli import main; main()"),
        # a relative folder, as the demo has it
        *("compare", "offloading", "--out", "runs/demo", "--resume"),
        *("--seeds", "1", "--interactions", "6", "--drl-interactions", "20"),
        *("--set", "horizon=10", "--eval-tasks", "10", "--quiet"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("report.html")
    summary = pd.read_csv(tmp_path / "runs" / "demo" / "summary.csv")
    assert set(summary["policy"]) == set(get_spec("offloading").policies)
    calls = summary[summary["metric"] == "llm_calls"].set_index("policy")["mean"]
    assert set(calls.index) == {"icl", "icl-latest", "icl-greedy"}
    # the others may spend so few decisions on trying what is untried
    assert calls["icl-greedy"] > 0
    report = (tmp_path / "runs" / "demo" / "report.html").read_text()
    assert "optimality" in report
    assert "Choose local or offload" in report
