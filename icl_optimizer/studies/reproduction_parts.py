"""What is run to reproduce the papers: one command a part, and the tables it leaves."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icl_optimizer.report.loading import Run
from icl_optimizer.report.verdict import verdict
from icl_optimizer.studies.reproduction_data import ShownTable
from icl_optimizer.studies.reproduction_sources import (
    StudyTable,
    benchmark_table,
    delay_table,
    metrics_table,
    policies_table,
    settings_of,
    study_tables,
    whole_run,
    words_table,
)
from icl_optimizer.studies.reproduction_splitting import splitting_tables

SHOWN_OUT = "runs/reproduction"
STUDIES = "studies"
"""Folder of all studies, below that of the reproduction."""
DELAYS = (
    *(f"users={users}" for users in (5, 20, 60)),
    *(f"mean_tokens={tokens}" for tokens in (250, 1000, 2000)),
    *(f"quality_share={share}" for share in (0.0, 0.5, 1.0)),
)


@dataclass(frozen=True)
class Found:
    """What a part left: its tables, the settings of a comparison, and the report's sentences."""

    tables: tuple[ShownTable, ...]
    settings: Mapping[str, Any]
    said: str = ""


@dataclass(frozen=True)
class Part:
    """A command and what it leaves.

    Attributes:
        name: Of the part.
        system: Whose page it belongs to; ``speed`` for ratios against peers.
        what: It measures.
        argv: The command's words after ``icl-optimizer``; ``{out}`` is the folder of all parts.
        home: Folder or file below that one which it writes, for dates and versions.
        find: Reads the tables from the folder of all parts; raises
            :class:`.reproduction_sources.UnfinishedError` until the command has ended.
        figures: Pictures by their name in ``docs/figures``: the path below the folder of all parts.
    """

    name: str
    system: str
    what: str
    argv: tuple[str, ...]
    home: str
    find: Callable[[Path], Found]
    figures: Mapping[str, str]

    def words(self, out: Path | str) -> list[str]:
        """Return the command's words after ``icl-optimizer``, writing below ``out``."""
        return [word.replace("{out}", str(out)) for word in self.argv]

    @property
    def command(self) -> str:
        """The command as one types it."""
        words = [w for w in self.words(SHOWN_OUT) if w != "--resume"]
        return shlex.join(["icl-optimizer", *words])


def comparison(
    name: str,
    system: str,
    what: str,
    arguments: str,
    *tables: Callable[[Run], ShownTable],
    figures: Mapping[str, str] | None = None,
) -> Part:
    """Return a part that is one comparison.

    Args:
        name: Also of its folder.
        system: Whose page it belongs to.
        what: It measures.
        arguments: Of ``compare``, but for the folder.
        *tables: What they are made of the loaded run.
        figures: By their name in ``docs/figures``, those of the report.
    """

    def find(out: Path) -> Found:
        run = whole_run(out / name)
        shown = tuple(table(run) for table in tables)
        said = verdict(run) if policies_table in tables else ""
        return Found(shown, settings_of(out / name), said)

    argv = ("compare", *shlex.split(arguments), "--out", f"{{out}}/{name}", "--resume")
    drawn = {shown: f"{name}/figures/{file}" for shown, file in (figures or {}).items()}
    return Part(name, system, what, argv, name, find, drawn)


def study(
    name: str,
    system: str,
    what: str,
    *tables: StudyTable,
    seeds: int = 5,
    figures: tuple[str, ...] = (),
    further: Callable[[Path], list[ShownTable]] | None = None,
) -> Part:
    """Return a part that is one study; its figures have the names of those in ``docs/figures``."""

    def find(out: Path) -> Found:
        shown = study_tables(out / STUDIES, tables)
        more = further(out / STUDIES) if further else []
        return Found((*shown, *more), {"seeds": seeds})

    argv = ("study", name, "--seeds", str(seeds), "--out", f"{{out}}/{STUDIES}")
    drawn = {figure: f"{STUDIES}/{figure}" for figure in figures}
    return Part(name, system, what, argv, f"{STUDIES}/{tables[0].file}", find, drawn)


def _benchmarks(out: Path) -> Found:
    return Found((benchmark_table(out / "benchmarks.json"),), {})


POLICIES = "icl icl-paper icl-latest icl-greedy dqn dqn-tuned ppo ppo-tuned bandit knn random"
BALANCED = (
    *("policy", "cumulative reward", "reward per request", "mean response, s", "mean queue"),
    "late, %",
)
TOLD = (
    *("published: cumulative reward", "published: mean response, s", "published: mean queue"),
    "published: late, %",
)
LATE = {
    "reward": ("reward per request", 1.0),
    "response_time_s": ("mean response, s", 1.0),
    "queue_length": ("mean queue", 1.0),
    "slo_violation_rate": ("late, %", 100.0),
}
"""Measures of load balancing: how the page calls them, and its unit."""
OTHER_TRACE = (
    "policy",
    *(
        f"{scenario}: {measure}"
        for scenario in ("nominal", "high-load", "calibrated")
        for measure in ("reward per request", "late, %", "late over least loaded's")
    ),
)

PARTS = (
    comparison(
        "offloading",
        "offloading",
        "figures 5(a) to 5(f)",
        f"offloading --seeds 5 --interactions 100 --policies {POLICIES} oracle",
        policies_table,
        lambda run: delay_table(run, DELAYS),
        figures={"offloading-learning-curve.png": "learning-curve.png"},
    ),
    comparison(
        "open",
        "offloading",
        "words that nobody met while learning",
        "offloading --set vocabulary=open --seeds 5 --interactions 150 --policies icl embedding "
        "embedding-minilm dqn dqn-tuned ppo ppo-tuned bandit knn random oracle",
        policies_table,
        words_table,
        figures={"offloading-new-words.png": "open-vocabulary.png"},
    ),
    comparison(
        "congested",
        "offloading",
        "edge slots with a queue, a backhaul that varies",
        "offloading --set congested=True --seeds 5 --interactions 300 --no-sweeps "
        "--policies icl dqn dqn-tuned ppo ppo-tuned bandit knn random oracle",
        policies_table,
    ),
    study(
        "scheduling",
        "slo-scheduling",
        "figures 2, 3a, 3b, and what hindsight allows",
        StudyTable("rates", "All arrival rates", "scheduling.md", keys=2),
        StudyTable("speed", "How fast icl-predict decides", "scheduling.md", 1),
        figures=("scheduling-fig2.png", "scheduling-fig3.png"),
    ),
    study(
        "cold-start",
        "slo-scheduling",
        "servers and tasks never seen",
        StudyTable(
            "verdicts", "Whether a request will be answered in time", "cold-start.md", keys=2
        ),
    ),
    study(
        "twin",
        "slo-scheduling",
        "policies on real servers and in their twin",
        StudyTable("sides", "Live and in the twin, on the same arrivals", "twin.md"),
        StudyTable("fit", "What was measured of the servers", "twin-fit.md"),
        seeds=2,
    ),
    study(
        "router-endpoint",
        "slo-scheduling",
        "requests through the router, and its decisions",
        StudyTable("clients", "Requests, and decisions of icl-predict", "router-endpoint.md"),
        seeds=1,
    ),
    study(
        "balancing",
        "load-balancing",
        "tables I and II, figures 4 to 10, the harder scenario and the other trace",
        *(
            StudyTable(name, title, "balancing.md", index, header=header)
            for index, (name, title, header) in enumerate(
                (
                    ("nominal", "Table I: nominal load", (*BALANCED, *TOLD)),
                    ("high-load", "Table II: high load", (*BALANCED, *TOLD)),
                    ("calibrated", "Calibrated", (*BALANCED, "late over least loaded's")),
                    ("conversation", "On the conversation trace", OTHER_TRACE),
                    ("ablation", "PPO trained without a component", ("without", *BALANCED[1:])),
                )
            )
        ),
        figures=("balancing-fig5.png", "balancing-fig9.png"),
    ),
    *(
        comparison(
            f"ppo-{scenario}",
            "load-balancing",
            f"{table} with the paper's PPO, trained anew",
            f"load-balancing --set scenario={scenario} --seeds 5 --policies ppo-paper least-loaded "
            "round-robin --train --no-sweeps",
            lambda run: metrics_table(run, "PPO with the paper's settings and decisions", LATE),
        )
        for scenario, table in (("nominal", "table I"), ("high-load", "table II"))
    ),
    study(
        "inference",
        "qos-routing",
        "the simulator against measured servers",
        StudyTable("errors", "Errors against LLM-Pilot", "inference.md"),
        StudyTable("lengths", "If only the mean of the answers were known", "inference-lengths.md"),
        StudyTable("splitwise", "Costs against SplitwiseSim, ms", "inference-splitwise.md"),
        seeds=3,
        figures=("inference-itl.png", "inference-throughput.png"),
    ),
    study(
        "routing",
        "qos-routing",
        "quality of service over the load",
        StudyTable("loads", "Quality of service per request", "routing.md"),
        StudyTable("details", "What else was measured at λ = 3", "routing.md", 1),
        StudyTable("elsewhere", "Run where nobody learned", "routing.md", 2),
        figures=("routing-rates.png",),
    ),
    study(
        "splitting",
        "layer-splitting",
        "figures 3 and 5 to 8, table IV",
        StudyTable("cases", "All cases", "splitting.md"),
        StudyTable("surrogate", "What the surrogate foretells", "splitting-surrogate.md", keys=3),
        StudyTable("channels", "Perplexity over the clean one", "splitting-channels.md", keys=2),
        StudyTable("cost", "Table IV", "splitting-cost.md"),
        figures=tuple(
            f"splitting-{name}.png"
            for name in ("channels", "curves", "violins", "choices", "sweeps")
        ),
        further=splitting_tables,
    ),
    Part(
        "bench",
        "speed",
        "speed against peers",
        ("bench", "--out", "{out}/benchmarks.json"),
        "benchmarks.json",
        _benchmarks,
        {},
    ),
)
