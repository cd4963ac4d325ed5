"""The report of every environment of the registry, from a comparison that was really run."""

from __future__ import annotations

from pathlib import Path

import pytest

from icl_optimizer.comparison.config import default_config
from icl_optimizer.comparison.runner import compare
from icl_optimizer.environments.registry import environment_names, get_spec
from icl_optimizer.policies import get_policy_spec
from icl_optimizer.report import write_report

SIMULATED = [name for name in environment_names() if not get_spec(name).live]


@pytest.mark.parametrize("name", SIMULATED)
@pytest.mark.slow
def test_every_environment_has_a_report(name: str, tmp_path: Path) -> None:
    known = [get_policy_spec(p) for p in get_spec(name).policies]
    rules = [spec.name for spec in known if not (spec.needs_llm or spec.is_drl)]
    config = default_config(
        name,
        policies=tuple(rules[-2:]),
        seeds=1,
        interactions=5,
        eval_tasks=20,
        sweeps=False,
    )
    folder = compare(config, tmp_path / "run", progress_bar=False)
    page = write_report(folder).read_text(encoding="utf-8")
    for figure in (folder / "figures").glob("*.png"):
        assert f'id="{figure.stem}"' in page
    assert all(policy in page for policy in config.policies)
