"""Runs a comparison: every policy with every seed, here, in several processes or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.engines import Engine, InProcess, Processes, RayCluster
from icl_optimizer.comparison.live import live_tasks
from icl_optimizer.comparison.shipping import refuse_stale, shipped_weights
from icl_optimizer.comparison.store import RunStore
from icl_optimizer.comparison.unit import UnitResult, unit_budget
from icl_optimizer.comparison.work import Work
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.errors import ConfigurationError, invalid_fields, unknown_name
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.credentials import refuse_credentials
from icl_optimizer.llm.guard import GuardOptions
from icl_optimizer.llm.opening import validate_chain
from icl_optimizer.policies import get_policy_spec, options_of, unsuitable
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.rollout import progress

EngineName = Literal["local", "ray"]


def compare(
    config: ComparisonConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    jobs: int | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
    progress_bar: bool = True,
    model: LanguageModel | None = None,
    access: GuardOptions | None = None,
) -> Path:
    """Run ``config`` and write its tables into ``folder``.

    Every policy sees the same tasks with the same seed. Finished units are on disk at once, and
    ``results.csv`` is the same whatever the engine and the number of jobs.

    Args:
        config: What to compare.
        folder: Where to; new, or holding the same comparison when ``resume``.
        resume: Continue, repeating nothing that was finished.
        jobs: Units at a time; None for one, and with Ray for as many as it has cores.
        engine: ``local`` for this machine, ``ray`` for a Ray cluster.
        ray_address: Of an existing cluster; None starts one on this machine.
        progress_bar: Whether to draw one.
        model: A loaded language model instead of ``config.llm`` (one process only).
        access: Retries, cache and budget of the language model; none of it is part of what is
            compared, so that a run resumes with other values.

    Returns:
        The folder.

    Raises:
        ConfigurationError: Any option is wrong; nothing has been run by then.
        BudgetError: The calls or the money allowed were used up.
        ModelError: No model answered at the start, or ``on_failure`` is ``stop``.
        ReplayError: A replay met a request that was not recorded.
        WorkerError: A unit's worker process was lost several times.
    """
    validate(config, model)
    access = access or GuardOptions()
    check_engine(engine, jobs, ray_address)
    refuse_several([config], engine, jobs, model, access)
    spec = get_spec(config.environment)
    store = RunStore(Path(folder), config, resume=resume)
    missing = [
        Work(config, policy, seed, access)
        for seed in range(config.seeds)
        for policy in config.policies
        if not store.has(policy, seed)
    ]
    real = live_tasks(config.environment, config.settings, config.eval_tasks)
    total = sum(work.budget + real for work in missing)
    with progress(f"{config.environment}", total, shown=progress_bar) as advance:
        try:
            with spec.open_session(config.settings) if missing else nullcontext():
                runs = make_engine(engine, jobs, ray_address, advance, model)
                keep_finished(runs, missing, store.receive, advance)
        finally:
            # whatever ended the run, what was computed is in the tables
            store.write_tables()
    return store.folder


def check_engine(engine: str, jobs: int | None, ray_address: str | None) -> None:
    """Check what says where units run.

    Raises:
        ConfigurationError: A name or a number is not allowed.
    """
    if engine not in get_args(EngineName):
        raise unknown_name("engine", engine, get_args(EngineName))
    if jobs is not None and jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}; allowed: 1 or more.")
    if ray_address is not None and engine != "ray":
        raise ConfigurationError(
            f"ray_address is '{ray_address}' with engine '{engine}'; allowed: with engine 'ray'."
        )


def refuse_several(
    configs: Iterable[ComparisonConfig],
    engine: str,
    jobs: int | None,
    model: LanguageModel | None,
    access: GuardOptions,
) -> None:
    """Raise where only this process can run units, and others were asked for.

    Raises:
        ConfigurationError: So it is; the message says why.
    """
    alone = (
        ("a model object", model is not None),
        ("a budget", access.budget is not None),
        ("a live environment", any(get_spec(config.environment).live for config in configs)),
    )
    for what, given in alone:
        if given and (jobs or 1) > 1:
            raise ConfigurationError(f"jobs is {jobs}; allowed: 1 with {what}.")
        if given and engine != "local":
            raise ConfigurationError(f"engine is '{engine}'; allowed: 'local' with {what}.")


def make_engine(
    engine: EngineName,
    jobs: int | None,
    ray_address: str | None,
    advance: Callable[[int], None] = lambda _: None,
    model: LanguageModel | None = None,
) -> Engine:
    """Return the engine of that name; options as for :func:`compare`."""
    if engine == "ray":
        return RayCluster(ray_address, jobs)
    if jobs is None or jobs == 1:
        return InProcess(advance, model)
    return Processes(jobs)


def keep_finished(
    engine: Engine,
    works: Sequence[Work],
    receive: Callable[[Work, UnitResult, bool], None],
    advance: Callable[[int], None],
) -> None:
    """Run ``works`` and hand over each as it ends, with whether it is whole.

    Raises:
        BudgetError, ModelError, ReplayError: What stopped the first of those that were stopped,
            once all that could be run has been.
    """
    stopped: list[BaseException] = []
    for done in engine.run(works):
        work = works[done.index]
        receive(work, done.result, done.error is None)
        if done.error is not None:
            stopped.append(done.error)
        elif not isinstance(engine, InProcess):
            # which has counted every decision already
            advance(work.budget)
    if stopped:
        raise stopped[0]


def validate(config: ComparisonConfig, model: LanguageModel | None = None) -> None:
    """Check every name, value and template of ``config``."""
    # whether a policy asks it or not, the spec is written into the run's folder
    refuse_credentials(config.llm)
    get_spec(config.environment).config(config.settings)
    env = make(config.environment, 1, **config.settings)
    if not get_spec(config.environment).live and not env.has_oracle:
        raise ConfigurationError(
            f"environment is '{config.environment}', which has no oracle to compare with; "
            "allowed: one whose class has the method action_values."
        )
    if config.drift_at is not None and get_spec(config.environment).live:
        raise ConfigurationError(f"drift_at is {config.drift_at}; allowed live: none.")
    if config.drift_at is not None:
        env.reset(seed=0)
        env.change(get_spec(config.environment).config(config.final_settings))
    specs = [get_policy_spec(policy) for policy in config.policies]
    if len(set(config.policies)) != len(config.policies):
        raise ConfigurationError(f"policies are {config.policies}; allowed: each once.")
    for spec in specs:
        if not spec.suits(env.problem.name, env.problem.roles):
            raise unsuitable(spec, env.problem.name)
        if spec.needs_env and get_spec(config.environment).live:
            raise ConfigurationError(
                f"policy '{spec.name}' knows what is to come; allowed live: policies that do not."
            )
    for policy, seed in ((p, s) for p in config.policies for s in range(config.seeds)):
        shipped = shipped_weights(config, policy, seed, unit_budget(config, policy))
        if shipped is not None:
            refuse_stale(*shipped)
    if any(spec.needs_llm for spec in specs):
        PromptBuilder(env.problem, folder=config.prompts)
        _check_icl_options(config.icl)
        if model is None:
            validate_chain(config.llm)


def _check_icl_options(options: Mapping[str, Any]) -> None:
    try:
        options_of("icl", options)
    except ValidationError as error:
        raise invalid_fields("--icl", error) from error
