"""Commands about one policy: train it, ask it for a decision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from icl_optimizer.cli.app import app, console
from icl_optimizer.cli.options import IclOptions, Llm, Prompts, Settings, pairs, refuse_folder
from icl_optimizer.errors import ConfigurationError, unknown_name


@app.command()
def train(
    policy: Annotated[str, typer.Argument(help="Name of the policy.")],
    environment: Annotated[str, typer.Argument(help="Name of the environment.")],
    out: Annotated[Path, typer.Option(help="File to save the policy to.")],
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
    from icl_optimizer.environments.registry import get_spec
    from icl_optimizer.llm.opening import open_llm
    from icl_optimizer.policies import get_policy_spec, make_policy

    spec = get_policy_spec(policy)
    if not spec.learns:
        raise ConfigurationError(f"policy '{policy}' does not learn; allowed: one that does.")
    refuse_folder(out)
    given = pairs("--set", settings)
    env = spec.training_env(environment, given)
    model = open_llm(llm) if spec.needs_llm else None
    agent = make_policy(
        policy,
        env.problem,
        env=env,
        model=model,
        seed=seed,
        prompts=prompts,
        options=pairs("--icl", icl),
    )
    if log_dir is not None:
        from icl_optimizer.logs import log_to

        log_to(agent, log_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    usual = get_spec(environment).interactions
    if spec.is_drl:
        where, learned = get_spec(environment).learned_in(given)
        usual = spec.budget_in(where.name, learned)
    agent.learn(interactions or usual, progress_bar=True)
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
    from icl_optimizer.comparison.model_use import model_use
    from icl_optimizer.environments.registry import make
    from icl_optimizer.llm.opening import open_llm
    from icl_optimizer.logs import read_outcomes
    from icl_optimizer.problem import Context

    problem = make(environment, 1, **pairs("--set", settings)).problem
    given = pairs("--context", context)
    names = list(problem.keywords)
    for name in given:
        if name not in names:
            raise unknown_name("context keyword", name, names)
    if missing := [name for name in names if name not in given]:
        raise ConfigurationError(f"context lacks {missing}; allowed: all of {names}.")
    query = Context({name: str(given[name]) for name in names})
    policy = ICLAgent(problem, open_llm(llm), prompts=prompts)
    if agent is not None:
        policy.load(agent)
    if log is not None:
        policy.learn_from(read_outcomes(log, problem))
    decision = policy.decide([query])[0]
    if show_prompt:
        console.print(policy.prompt(query), markup=False, highlight=False)
    chances = dict(zip(problem.labels, (round(p, 4) for p in decision.probabilities), strict=True))
    answer: dict[str, object] = {
        "decision": decision.label,
        "probabilities": chances,
        "made_by": decision.made_by,
    }
    use = model_use(policy)
    if use is not None and use.decider:
        answer["asked_for"] = use.decider
    console.print_json(json.dumps(answer))
