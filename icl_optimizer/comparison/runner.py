"""Runs a comparison: every policy with every seed, in one or several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.live import live_tasks
from icl_optimizer.comparison.shipping import refuse_stale, shipped_weights
from icl_optimizer.comparison.store import RunStore
from icl_optimizer.comparison.unit import Unit, UnitResult, unit_budget
from icl_optimizer.deciders.chain import ChainDecider
from icl_optimizer.environments.registry import get_spec, make
from icl_optimizer.errors import (
    BudgetError,
    ConfigurationError,
    ModelError,
    ReplayError,
    invalid_fields,
)
from icl_optimizer.forecast_agent import ForecastAgent
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.credentials import refuse_credentials
from icl_optimizer.llm.guard import GuardOptions, guard
from icl_optimizer.llm.opening import open_llm, validate_chain
from icl_optimizer.policies import get_policy_spec, make_policy, options_of, unsuitable
from icl_optimizer.policy import Policy
from icl_optimizer.prompting import PromptBuilder
from icl_optimizer.rollout import progress

Work = tuple[str, int]
EXPECTED = (BudgetError, ModelError, ReplayError)
"""What may stop a unit, and leaves the others as they are."""


def compare(
    config: ComparisonConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    jobs: int = 1,
    progress_bar: bool = True,
    model: LanguageModel | None = None,
    access: GuardOptions | None = None,
) -> Path:
    """Run ``config`` and write its tables into ``folder``.

    Every policy sees the same tasks with the same seed. Finished units are on disk at once.

    Args:
        config: What to compare.
        folder: Where to; new, or holding the same comparison when ``resume``.
        resume: Continue, repeating nothing that was finished.
        jobs: Processes; each loads its own language model.
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
    """
    validate(config, model)
    access = access or GuardOptions()
    spec = get_spec(config.environment)
    alone = (
        ("a model object", model is not None),
        ("a budget", access.budget is not None),
        ("a live environment", spec.live),
    )
    for what, given in alone:
        if given and jobs > 1:
            raise ConfigurationError(f"jobs is {jobs}; allowed: 1 with {what}.")
    store = RunStore(Path(folder), config, resume=resume)
    work = [(p, s) for s in range(config.seeds) for p in config.policies]
    missing = [item for item in work if store.finished(*item) is None]
    real = live_tasks(config.environment, config.settings, config.eval_tasks)
    total = sum(unit_budget(config, policy) + real for policy, _ in missing)
    with progress(f"{config.environment}", total, shown=progress_bar) as advance:
        try:
            if jobs == 1:
                with spec.open_session(config.settings) if missing else nullcontext():
                    _run_here(config, missing, store, advance, model, access)
            else:
                _run_parallel(config, missing, store, advance, jobs, access)
        finally:
            # whatever ended the run, what was computed is in the tables
            store.write_tables()
    return store.folder


def validate(config: ComparisonConfig, model: LanguageModel | None = None) -> None:
    """Check every name, value and template of ``config``."""
    # whether a policy asks it or not, the spec is written into the run's folder
    refuse_credentials(config.llm)
    get_spec(config.environment).config(config.settings)
    env = make(config.environment, 1, **config.settings)
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


def _run_here(
    config: ComparisonConfig,
    work: list[Work],
    store: RunStore,
    advance: Callable[[int], None],
    model: LanguageModel | None,
    access: GuardOptions,
) -> None:
    needs_llm = any(get_policy_spec(policy).needs_llm for policy, _ in work)
    if needs_llm:
        model = open_llm(config.llm, access) if model is None else guard(model, access)
    if model is not None:
        _check_model(config, model, {policy for policy, _ in work})
    for policy, seed in work:
        unit = Unit(config, policy, seed, model, access.prices)
        try:
            store.keep(policy, seed, unit.run(advance))
        except BaseException:
            # whatever stopped it, an interrupt included: what it had measured is kept
            store.keep_partial(policy, seed, unit.result)
            raise


def _check_model(config: ComparisonConfig, model: LanguageModel, policies: set[str]) -> None:
    """Ask the model once what it can do, before the first policy learns.

    Raises:
        ConfigurationError: It cannot do what a policy asks of it, or tell the labels apart.
        ModelError: It does not answer.
    """
    asking = [policy for policy in policies if get_policy_spec(policy).needs_llm]
    if not asking:
        return
    problem = make(config.environment, 1, **config.settings).problem
    for name in asking:
        policy = make_policy(name, problem, model=model, prompts=config.prompts, options=config.icl)
        if model.capabilities.logprobs:
            # known only once the model's tokens are
            model.check_labels([f" {word}" for word in answers_of(policy)])
        decider = getattr(policy, "decider", None)
        if isinstance(decider, ChainDecider):
            decider.prepare()


def answers_of(policy: Policy) -> Sequence[str]:
    """Return what a language model chooses from: the labels, or words for what comes of them."""
    return policy.rows.words if isinstance(policy, ForecastAgent) else policy.problem.labels


def _run_parallel(
    config: ComparisonConfig,
    work: list[Work],
    store: RunStore,
    advance: Callable[[int], None],
    jobs: int,
    access: GuardOptions,
) -> None:
    from joblib import Parallel, delayed

    calls = (delayed(_run_alone)(config, policy, seed, access) for policy, seed in work)
    stopped: list[Exception] = []
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")
    for policy, seed, result, error in parallel(calls):
        if error is None:
            store.keep(policy, seed, result)
            advance(unit_budget(config, policy))
        else:
            store.keep_partial(policy, seed, result)
            stopped.append(error)
    if stopped:
        raise stopped[0]


def _run_alone(
    config: ComparisonConfig, policy: str, seed: int, access: GuardOptions
) -> tuple[str, int, UnitResult, Exception | None]:
    """Run one unit in a process of its own; return what it measured, and what stopped it."""
    needs_llm = get_policy_spec(policy).needs_llm
    # one thread each: processes that share the cores would otherwise wait for each other
    model = open_llm(config.llm, access, **_one_thread(config.llm)) if needs_llm else None
    unit = Unit(config, policy, seed, model, access.prices)
    try:
        return policy, seed, unit.run(lambda steps: None), None
    except EXPECTED as error:
        return policy, seed, unit.result, error


def _one_thread(spec: str) -> dict[str, int]:
    alone = spec.startswith("llamacpp") and "," not in spec and "threads" not in spec
    return {"threads": 1} if alone else {}
