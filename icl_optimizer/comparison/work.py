"""Units of work, described so that any process can run them with the same result."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from icl_optimizer.comparison.config import ComparisonConfig
from icl_optimizer.comparison.unit import Unit, UnitResult, unit_budget
from icl_optimizer.deciders.chain import ChainDecider
from icl_optimizer.environments.registry import make
from icl_optimizer.errors import BudgetError, ModelError, ReplayError
from icl_optimizer.forecast_agent import ForecastAgent
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.guard import GuardOptions, guard
from icl_optimizer.llm.opening import open_llm
from icl_optimizer.policies import get_policy_spec, make_policy
from icl_optimizer.policy import Policy

EXPECTED = (BudgetError, ModelError, ReplayError)
"""What may stop a unit, and leaves the others as they are."""
_SWITCHES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Work:
    """One unit: a policy with a seed, in a comparison.

    Attributes:
        config: The comparison.
        policy: Name of the policy.
        seed: Seed of the repetition.
        access: Retries, cache and budget of the language model.
    """

    config: ComparisonConfig
    policy: str
    seed: int
    access: GuardOptions = field(default_factory=GuardOptions)

    @property
    def needs_llm(self) -> bool:
        """Whether the policy asks a language model."""
        return get_policy_spec(self.policy).needs_llm

    @property
    def budget(self) -> int:
        """Interactions that the policy learns from."""
        return unit_budget(self.config, self.policy)

    def __str__(self) -> str:
        """Name the unit."""
        where = f"{self.config.environment} ({self.config.scenario})"
        return f"policy '{self.policy}' with seed {self.seed} on {where}"


class Bench:
    """What one process has to run units with: a language model stays for the units that follow.

    Every unit resets it, so that results do not depend on what ran before.

    Args:
        model: A loaded one, for all units; None: each unit's own.
    """

    def __init__(self, model: LanguageModel | None = None) -> None:
        """Load nothing yet."""
        self._given = model
        self._model: LanguageModel | None = None
        self._of: tuple[str, int, GuardOptions] | None = None
        self._checked: set[tuple[str, str]] = set()

    def check(self, work: Work) -> None:
        """Ask the model once what it can do, before the policy learns.

        Raises:
            ConfigurationError: It cannot do what the policy asks of it, or tell the labels apart.
            ModelError: It does not answer.
        """
        if not work.needs_llm:
            return
        model, config = self._model_for(work), work.config
        key = (config.model_dump_json(), work.policy)
        if key in self._checked:
            return
        problem = make(config.environment, 1, **config.settings).problem
        policy = make_policy(
            work.policy, problem, model=model, prompts=config.prompts, options=config.icl
        )
        if model.capabilities.logprobs:
            # known only once the model's tokens are
            model.check_labels([f" {word}" for word in answers_of(policy)])
        decider = getattr(policy, "decider", None)
        if isinstance(decider, ChainDecider):
            decider.prepare()
        self._checked.add(key)

    def unit(self, work: Work) -> Unit:
        """Return the unit, ready to run."""
        model = self._model_for(work) if work.needs_llm else None
        return Unit(work.config, work.policy, work.seed, model, work.access.prices)

    def _model_for(self, work: Work) -> LanguageModel:
        wanted = (work.config.llm, work.config.threads, work.access)
        if self._model is None or wanted != self._of:
            # the one before goes first: two might not fit into memory
            self._model, self._checked = None, set()
            self._model = (
                open_llm(work.config.llm, work.access, threads=work.config.threads)
                if self._given is None
                else guard(self._given, work.access)
            )
            self._of = wanted
        return self._model


def answers_of(policy: Policy) -> Sequence[str]:
    """Return what a language model chooses from: the labels, or words for what comes of them."""
    return policy.rows.words if isinstance(policy, ForecastAgent) else policy.problem.labels


_bench = Bench()


def run_work(work: Work) -> tuple[UnitResult, Exception | None]:
    """Run one unit in a worker process; return what it measured, and what stopped it."""
    unit: Unit | None = None
    with limited_threads(work.config.threads):
        try:
            _bench.check(work)
            unit = _bench.unit(work)
            return unit.run(lambda steps: None), None
        except EXPECTED as error:
            return UnitResult() if unit is None else unit.result, error


def to_check(works: Sequence[Work]) -> list[Work]:
    """Return one unit of each comparison and policy that asks a language model."""
    first: dict[tuple[str, str], Work] = {}
    for work in works:
        if work.needs_llm:
            first.setdefault((work.config.model_dump_json(), work.policy), work)
    return list(first.values())


def check_work(work: Work) -> None:
    """Ask the model of a unit in a worker process what it can do, see :meth:`Bench.check`."""
    with limited_threads(work.config.threads):
        _bench.check(work)


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let linear algebra use ``count`` threads, of libraries loaded by now and meanwhile."""
    from threadpoolctl import threadpool_limits

    kept = {name: os.environ.get(name) for name in _SWITCHES}
    os.environ.update(dict.fromkeys(_SWITCHES, str(count)))
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    try:
        with threadpool_limits(limits=count):
            if torch is not None:
                torch.set_num_threads(count)
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
