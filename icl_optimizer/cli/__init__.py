"""The command line: list, setup, doctor, compare, train, decide, report, bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icl_optimizer.errors import (
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    unknown_name,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A language model makes network decisions by in-context learning, beside its baselines.",
)
console = Console()

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Environment parameter, as in key=value.")
]
IclOptions = Annotated[
    list[str] | None, typer.Option("--icl", help="Option of the in-context agent, key=value.")
]
Llm = Annotated[str, typer.Option(help="Language model, as in llamacpp or ollama:llama3.1:8b.")]
Prompts = Annotated[Path | None, typer.Option(help="Folder of your own prompt templates.")]


def main() -> None:
    """Run the command line; expected errors are one line each, without a traceback."""
    try:
        app(expand_lists(sys.argv[1:]))
    except (ConfigurationError, MissingDependencyError, ModelError, OSError) as error:
        _fail(str(error))


@app.command("list")
def list_all() -> None:
    """List environments and policies."""
    from icl_optimizer.environments.registry import environment_names, get_spec
    from icl_optimizer.policies import get_policy_spec, policy_names

    table = Table("environment", "Gymnasium id", "what it is")
    for name in environment_names():
        spec = get_spec(name)
        table.add_row(name, spec.gym_id, spec.summary)
    console.print(table)
    table = Table("policy", "what it is")
    for name in policy_names():
        table.add_row(name, get_policy_spec(name).summary)
    console.print(table)


@app.command()
def setup() -> None:
    """Install the weights of the embedded language model."""
    from icl_optimizer.llm.weights import install_weights

    console.print(f"weights: {install_weights().name}")


@app.command()
def doctor() -> None:
    """Say what is installed, which models answer, and what to do about the rest."""
    from icl_optimizer.llm.doctor import diagnose

    table = Table("", "part", "finding", "remedy")
    findings = diagnose()
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[yellow]--[/]"
        table.add_row(mark, finding.name, escape(finding.detail), escape(finding.remedy))
    console.print(table)


@app.command()
def compare(
    environment: Annotated[str, typer.Argument(help="Name of the environment.")],
    policies: Annotated[
        list[str] | None, typer.Option("--policies", help="Policies, separated by spaces.")
    ] = None,
    llm: Llm = "llamacpp",
    seeds: Annotated[int | None, typer.Option(help="Repetitions.")] = None,
    interactions: Annotated[int | None, typer.Option(help="Decisions to learn from.")] = None,
    drl_interactions: Annotated[
        int | None, typer.Option(help="Budget of the deep-RL policies.")
    ] = None,
    eval_tasks: Annotated[int | None, typer.Option(help="Held-out tasks.")] = None,
    settings: Settings = None,
    icl: IclOptions = None,
    prompts: Prompts = None,
    sweeps: Annotated[bool, typer.Option(help="Evaluate at further points.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and report.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue a run; repeats nothing.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Compare policies on an environment and write tables and a report."""
    from icl_optimizer.comparison.config import default_config
    from icl_optimizer.comparison.runner import compare as run
    from icl_optimizer.report import require_plotting

    require_plotting()
    config = default_config(
        environment,
        policies=tuple(policies) if policies else None,
        llm=llm,
        seeds=seeds,
        interactions=interactions,
        drl_interactions=drl_interactions,
        eval_tasks=eval_tasks,
        settings=_pairs("--set", settings),
        icl=_pairs("--icl", icl),
        prompts=str(prompts) if prompts else None,
        sweeps=sweeps,
    )
    folder = out or Path("runs") / f"{environment}-{config.scenario.replace('=', '-')[:60]}"
    run(config, folder, resume=resume, jobs=jobs, progress_bar=not quiet)
    _finish(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")]) -> None:
    """Write the report of a comparison again from its tables."""
    _finish(folder)


@app.command()
def train(
    policy: Annotated[str, typer.Argument(help="Name of the policy.")],
    environment: Annotated[str, typer.Argument(help="Name of the environment.")],
    out: Annotated[Path, typer.Option(help="File or folder to save the policy to.")],
    interactions: Annotated[int | None, typer.Option(min=1, help="Decisions.")] = None,
    llm: Llm = "llamacpp",
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    settings: Settings = None,
    icl: IclOptions = None,
    prompts: Prompts = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for CSV and TensorBoard logs.")
    ] = None,
) -> None:
    """Let one policy learn and save it."""
    from icl_optimizer.environments.registry import get_spec, make
    from icl_optimizer.llm.loading import load_llm
    from icl_optimizer.policies import get_policy_spec, make_policy

    spec = get_policy_spec(policy)
    if not spec.learns:
        raise ConfigurationError(f"policy '{policy}' does not learn; allowed: one that does.")
    env = make(environment, spec.num_envs, **_pairs("--set", settings))
    model = load_llm(llm) if spec.needs_llm else None
    agent = make_policy(
        policy,
        env.problem,
        env=env,
        model=model,
        seed=seed,
        prompts=prompts,
        options=_pairs("--icl", icl),
    )
    if log_dir is not None:
        from icl_optimizer.logs import log_to

        log_to(agent, log_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    budget = interactions or (spec.budget if spec.is_drl else get_spec(environment).interactions)
    agent.learn(budget, progress_bar=True)
    agent.save(out)
    console.print(f"saved: {out}", markup=False, soft_wrap=True)


@app.command()
def decide(
    environment: Annotated[str, typer.Argument(help="Name of the environment.")],
    context: Annotated[
        list[str], typer.Option("--context", help="keyword=words, once per keyword.")
    ],
    agent: Annotated[Path | None, typer.Option(help="A saved in-context agent.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="Logged outcomes (JSON lines) to learn from first.")
    ] = None,
    llm: Llm = "llamacpp",
    settings: Settings = None,
    prompts: Prompts = None,
    show_prompt: Annotated[bool, typer.Option(help="Print the prompt, too.")] = False,
) -> None:
    """Decide for a context in words; no environment runs."""
    from icl_optimizer.agent import ICLAgent
    from icl_optimizer.environments.registry import make
    from icl_optimizer.llm.loading import load_llm
    from icl_optimizer.logs import read_outcomes
    from icl_optimizer.problem import Context

    problem = make(environment, 1, **_pairs("--set", settings)).problem
    given = _pairs("--context", context)
    names = [c.name for c in problem.columns]
    for name in given:
        if name not in names:
            raise unknown_name("context keyword", name, names)
    if missing := [name for name in names if name not in given]:
        raise ConfigurationError(f"context lacks {missing}; allowed: all of {names}.")
    query = Context({name: str(given[name]) for name in names})
    policy = ICLAgent(problem, load_llm(llm), prompts=prompts)
    if agent is not None:
        policy.load(agent)
    if log is not None:
        policy.learn_from(read_outcomes(log, problem))
    decision = policy.decide([query])[0]
    if show_prompt:
        console.print(policy.prompt(query), markup=False, highlight=False)
    chances = dict(zip(problem.labels, (round(p, 4) for p in decision.probabilities), strict=True))
    answer = {"decision": decision.label, "probabilities": chances, "made_by": decision.made_by}
    console.print_json(json.dumps(answer))


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="One benchmark; default: all.")] = None,
    out: Annotated[Path, typer.Option(help="File for the ratios.")] = Path(
        "benchmarks/results.json"
    ),
) -> None:
    """Measure ratios against peers, both sides in the same run."""
    from icl_optimizer.bench.runner import run_benchmarks

    console.print(run_benchmarks(name, out))


def expand_lists(arguments: list[str]) -> list[str]:
    """Turn ``--policies a b`` into ``--policies a --policies b``, which the parser understands."""
    expanded: list[str] = []
    inside = False
    for argument in arguments:
        if argument.startswith("-"):
            inside = argument == "--policies"
            if not inside:
                expanded.append(argument)
        elif inside:
            expanded += [part for name in argument.split(",") for part in ("--policies", name)]
        else:
            expanded.append(argument)
    return expanded


def _finish(folder: Path) -> None:
    """Write the report and print the table, the report's path last."""
    from icl_optimizer.report import summary_table, write_report

    path = write_report(folder)
    console.print(summary_table(folder))
    console.print(f"report: {path}", markup=False, soft_wrap=True)


def _pairs(option: str, items: list[str] | None) -> dict[str, Any]:
    """Turn ``key=value`` texts into a dictionary."""
    pairs: dict[str, Any] = {}
    for item in items or []:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigurationError(f"{option} is '{item}'; allowed: key=value.")
        pairs[key.strip()] = value.strip()
    return pairs


def _fail(message: str) -> NoReturn:
    text = f"[red]error:[/] {escape(message)}"
    Console(stderr=True).print(text, soft_wrap=True, highlight=False)
    sys.exit(2)
