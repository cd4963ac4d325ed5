"""A made-up run on disk: every file of a comparison, values known by formula."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

HOSTILE = "</script><img src=x onerror=alert(1)>$_{&"
SEEDS = 3
# start and end of the optimality, own budget, whether it learns
POLICIES = {
    "icl": (0.5, 0.99, 100, True),
    "icl-latest": (0.3, 0.7, 100, True),
    "dqn": (-0.8, 0.97, 2000, True),
    "bandit": (0.2, 0.8, 100, True),
    "random": (0.0, 0.0, 100, False),
    "oracle": (1.0, 1.0, 100, False),
}
KEYS = ("environment", "scenario", "policy", "llm")
RESULTS = (*KEYS, "seed", "split", "step", "metric", "value")
SUMMARY = (*KEYS, "metric", "mean", "ci_low", "ci_high", "n")
Rows = list[tuple[object, ...]]


def learning_rows(policy: str, seed: int, end: float) -> Rows:
    start, _, budget, learns = POLICIES[policy]
    rows: Rows = []
    for step in [s for s in (10, 50, 100, 500, 2000) if s <= budget]:
        level = end - (end - start) * math.exp(-4 * step / budget) + 0.01 * seed * learns
        metrics = {
            "optimality": level,
            "reward": -10 + 8 * level,
            "reward_regular": -5 + 3 * level,
            "reward_quality": -20 + 15 * level,
            "success_rate": 0.5 + 0.4 * level,
            "delay_s": 20 - 5 * level,
        }
        rows += [("default", policy, seed, "eval", step, m, v) for m, v in metrics.items()]
    for step in range(1, 101 if learns else 0):
        rows.append(("default", policy, seed, "train", step, "reward", -10 + (step + seed) % 7))
    return rows


def further_rows(policy: str, seed: int) -> Rows:
    rows: Rows = []
    for key, points in (
        ("users", (5, 20)),
        ("mean_tokens", (500, 2000)),
        ("quality_share", (0.2, 0.8)),
    ):
        for pair in ("small+large", f"{HOSTILE}+big"):
            for x in points:
                name = f"{key}={x};pair={pair}"
                rows.append((name, policy, seed, "eval", 100, "delay_s", 10 + x / 100 + seed))
    rows.append(
        ("words=unseen;quality_share=0.85", policy, seed, "eval", 100, "balanced_accuracy", 0.7)
    )
    # an optimality elsewhere must stay out of the learning curves
    rows.append(("words=unseen;quality_share=0.85", policy, seed, "eval", 100, "optimality", -9.0))
    return rows


def write_table(path: Path, header: tuple[str, ...], rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def explanation() -> dict[str, object]:
    words = {"service type": HOSTILE, "size": "long"}
    pool = {"words": words, "decision": "local", "reward": -3.2, "evaluation": "good", "count": 4}
    decision = {
        "context": words,
        "probabilities": {"local": 0.7, "offload": 0.3},
        "decision": "local",
        "made_by": "llm",
        "oracle_decision": "offload",
        "prompt": f"Task goal: {HOSTILE}, and this very task",
        "examples": [pool | {"decision": "offload"}],
    }
    other = decision | {"context": {**words, "size": "short"}, "oracle_decision": "local"}
    told = {"prompt": f"Task goal: {HOSTILE}", "pool": [pool], "decisions": [decision, other]}
    return {"policies": {"icl": told, "icl-latest": told | {"decisions": [other]}}}


def write_run(folder: Path, seeds: int = SEEDS, **ends: float) -> Path:
    """Write a run in which ``ends`` replaces the final optimality of policies."""
    folder.mkdir(parents=True, exist_ok=True)
    results: Rows = []
    summary: Rows = []
    for policy, (_, end, budget, _learns) in POLICIES.items():
        llm = "scripted" if policy.startswith("icl") else ""
        for seed in range(seeds):
            rows = learning_rows(policy, seed, ends.get(policy, end))
            rows += further_rows(policy, seed) if policy in ("icl", "random", "oracle") else []
            results += [("offloading", s, p, llm, *rest) for s, p, *rest in rows]
        costs = {
            "decision_ms_p50": 2.0,
            "decision_ms_p95": 3.5,
            "train_s": 1.5,
            "interactions": budget,
        }
        costs["interactions_to_95"] = {"icl": 50.0, "dqn": 500.0}.get(policy, math.nan)
        if llm:
            costs |= {"llm_calls": 61, "llm_cached": 39, "prompt_tokens": 12345}
        for metric, value in costs.items():
            n = 2 if metric == "interactions_to_95" else seeds
            row = ("offloading", "default", policy, llm, metric, value, value * 0.9, value * 1.1, n)
            summary.append(row)
    write_table(folder / "results.csv", RESULTS, results)
    write_table(folder / "summary.csv", SUMMARY, summary)
    config = {
        "environment": "offloading",
        "settings": {"users": 20},
        "policies": list(POLICIES),
        "llm": "scripted",
        "seeds": seeds,
        "interactions": 100,
        "budgets": {p: b for p, (_, _, b, _) in POLICIES.items()},
        "checkpoints": [10, 50, 100],
        "command": "icl-optimizer compare offloading --seeds 3",
        "versions": {"numpy": "2.0"},
        "title": f"Run {HOSTILE}",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "explain.json").write_text(json.dumps(explanation()))
    return folder
