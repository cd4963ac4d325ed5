"""Commands about logs of decisions: record one, and evaluate other policies by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from icl_optimizer.cli.app import app, console
from icl_optimizer.cli.options import IclOptions, Llm, Settings, pairs, refuse_folder
from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    from icl_optimizer.environments.base import BatchedEnv
    from icl_optimizer.off_policy import Evaluation, PolicyValue, Value
    from icl_optimizer.policy import Policy
    from icl_optimizer.problem import Problem

ASIDE = 1_000_003
"""Seed of evaluated policies: their ties must not fall as the log's random decisions did."""
FORMATS = (".csv", ".json")


@app.command()
def record(
    policy: Annotated[str, typer.Argument(help="Who decides.")],
    environment: Annotated[str, typer.Argument(help="Name of the environment.")],
    interactions: Annotated[int, typer.Option(min=1, help="Decisions; whole episodes.")],
    out: Annotated[Path, typer.Option(help="File for one line of JSON per decision.")],
    epsilon: Annotated[
        float | None, typer.Option(help="Chance of a random decision instead of the policy's.")
    ] = None,
    explore: Annotated[
        bool, typer.Option("--explore", help="Let the policy explore in its own way.")
    ] = False,
    learn: Annotated[
        bool, typer.Option("--learn", help="Let it learn from what comes of its decisions.")
    ] = False,
    agent: Annotated[Path | None, typer.Option(help="A saved policy.")] = None,
    llm: Llm = "llamacpp",
    settings: Settings = None,
    icl: IclOptions = None,
    seed: Annotated[int, typer.Option(help="Seed of policy and environment.")] = 0,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Let a policy decide in an environment and log every decision with its chance."""
    from icl_optimizer.environments.registry import get_spec, make
    from icl_optimizer.off_policy import EpsilonGreedy, write_records
    from icl_optimizer.off_policy import record as run
    from icl_optimizer.rollout import progress

    if epsilon is not None and explore:
        raise ConfigurationError("--epsilon and --explore are both given; allowed: one of them.")
    refuse_folder(out)
    if get_spec(environment).live:
        raise ConfigurationError(
            f"environment is '{environment}'; allowed: a simulated one. The log of real servers is "
            "written by 'icl-optimizer route FLEET --log FILE'."
        )
    env = make(environment, 1, **pairs("--set", settings))
    decider = _policy(policy, env.problem, agent, llm, seed, learn, icl, env)
    if epsilon is not None:
        decider = EpsilonGreedy(decider, epsilon, seed=seed)
    with progress(f"{policy} decides", interactions, shown=not quiet) as advance:
        records = run(
            *(decider, env, interactions),
            **{"explore": explore, "learn": learn, "seed": seed, "on_decision": advance},
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_records(out, records)
    supported = sum(one.support > 0 for one in records)
    text = f"{len(records)} decisions, {supported} with a chance for every action"
    console.print(text, highlight=False)
    console.print(f"log: {out}", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    log: Annotated[Path, typer.Argument(help="Log of 'record' or of a router.")],
    policies: Annotated[
        list[str], typer.Option("--policy", help="Policy to evaluate; may be repeated.")
    ],
    env: Annotated[str | None, typer.Option("--env", help="Environment of the log.")] = None,
    fleet: Annotated[
        str | None, typer.Option(help="Fleet file of the router that wrote it, or demo.")
    ] = None,
    settings: Settings = None,
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", help="Saved policy, PATH, or POLICY=PATH where several learn."),
    ] = None,
    llm: Llm = "llamacpp",
    icl: IclOptions = None,
    out: Annotated[Path | None, typer.Option(help="Table as .csv or .json.")] = None,
) -> None:
    """Estimate from a log what other policies would earn: ask before you switch."""
    from icl_optimizer.off_policy import evaluate as run
    from icl_optimizer.off_policy import read_records, verdicts

    if out is not None and out.suffix not in FORMATS:
        raise ConfigurationError(f"--out is '{out}'; allowed: a file {' or '.join(FORMATS)}.")
    problem, carries_over = _problem(env, fleet, settings)
    records = read_records(log, problem)
    agents = _agents(agent, policies)
    made = {
        name: _policy(name, problem, agents.get(name), llm, ASIDE, False, icl, None)
        for name in policies
    }
    found = run(records, problem, made, carries_over=carries_over)
    console.print(_table(found, log))
    for sentence in verdicts(found):
        console.print(f"- {sentence}", markup=False, highlight=False)
    if out is not None:
        _write(found, out)
        console.print(f"table: {out}", markup=False, soft_wrap=True)


def _problem(
    env: str | None, fleet: str | None, settings: list[str] | None
) -> tuple[Problem, bool]:
    """Return what the log is about, and whether decisions there change what later ones meet."""
    if (env is None) == (fleet is None):
        raise ConfigurationError(
            f"--env is {env!r} and --fleet is {fleet!r}; allowed: exactly one of them."
        )
    if env is not None:
        from icl_optimizer.environments.registry import make

        made = make(env, 1, **pairs("--set", settings))
        return made.problem, made.carries_over
    if settings:
        raise ConfigurationError("--set is given with --fleet; allowed: with --env.")
    from icl_optimizer.environments.fleet.config import load_fleet
    from icl_optimizer.router.building import fleet_problem

    return fleet_problem(load_fleet(str(fleet))), True


def _agents(given: list[str] | None, policies: Sequence[str]) -> dict[str, Path]:
    """Return the saved policy of each name."""
    from icl_optimizer.policies import get_policy_spec

    learners = [name for name in policies if get_policy_spec(name).learns]
    found: dict[str, Path] = {}
    for item in given or []:
        name, separator, path = item.partition("=")
        if separator and name in policies:
            found[name] = Path(path)
        elif len(learners) == 1:
            found[learners[0]] = Path(item)
        else:
            raise ConfigurationError(
                f"--agent is '{item}'; allowed: PATH where one of the policies learns, or "
                f"POLICY=PATH with one of {', '.join(policies)}."
            )
    return found


def _policy(
    name: str,
    problem: Problem,
    agent: Path | None,
    llm: str,
    seed: int,
    learn: bool,
    icl: list[str] | None,
    env: BatchedEnv | None,
) -> Policy:
    """Return a policy that knows what it has to know.

    Raises:
        ConfigurationError: It needs its environment, or has learned nothing yet.
    """
    from icl_optimizer.judging import AskingPolicy
    from icl_optimizer.llm.opening import open_llm
    from icl_optimizer.policies import get_policy_spec, make_policy

    spec = get_policy_spec(name)
    if spec.needs_env and env is None:
        raise ConfigurationError(
            f"policy '{name}' decides only in its environment; allowed: one that needs no more "
            "than observations."
        )
    model = open_llm(llm) if spec.needs_llm else None
    options = pairs("--icl", icl)
    policy = make_policy(name, problem, env=env, model=model, seed=seed, options=options)
    if agent is not None:
        return policy.load(agent)
    # a language model knows something before it has learned
    if spec.learns and not learn and not isinstance(policy, AskingPolicy):
        raise ConfigurationError(
            f"policy '{name}' has not learned; allowed: with --agent, a file that 'icl-optimizer "
            f"train {name} ENV --out FILE' wrote."
        )
    return policy


def _table(found: Evaluation, log: Path) -> Table:
    title = f"{log.name}: {found.support.used} of {found.support.records} decisions tell"
    caption = "reward per decision with 95 % intervals; ESS: effective sample size"
    table = Table(title=title, caption=caption, box=SIMPLE, pad_edge=False)
    table.add_column("policy", overflow="fold")
    for heading in ("IPS", "SNIPS", "DR", "ESS", "largest\nweight"):
        table.add_column(heading, justify="right", no_wrap=True)
    own = _shown(found.logged)
    table.add_row("(the log's own)", own, own, own, str(found.support.used), "1.0")
    for one in found.policies:
        table.add_row(one.policy, *_cells(one))
    return table


def _cells(one: PolicyValue) -> list[str]:
    values = [_shown(one.values[n]) if one.known else "cannot tell" for n in ("ips", "snips", "dr")]
    return [*values, f"{one.effective:.0f}", f"{one.largest_weight:.1f}"]


def _shown(value: Value) -> str:
    return f"{value.mean:.3g}\n{value.low:.3g} to {value.high:.3g}"


def _write(found: Evaluation, out: Path) -> None:
    """Write everything, as one JSON object or as one row per policy and estimator."""
    import json

    import pandas as pd

    from icl_optimizer.off_policy import verdicts

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        text = json.dumps(asdict(found) | {"verdicts": verdicts(found)}, indent=2)
        out.write_text(text + "\n", encoding="utf-8")
        return
    shared = asdict(found.support)
    rows = [{"policy": "", "estimator": "logged", **asdict(found.logged), **shared}]
    for one in found.policies:
        about = {"effective": one.effective, "agreement": one.agreement}
        about |= {"largest_weight": one.largest_weight}
        rows += [
            {"policy": one.policy, "estimator": name, **asdict(value), **about, **shared}
            for name, value in one.values.items()
        ]
    pd.DataFrame(rows).to_csv(out, index=False)
