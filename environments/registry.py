"""The environments by name, with their Gymnasium ids."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import gymnasium as gym
from pydantic import BaseModel, ValidationError

from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.own_file import SUFFIX, import_file
from icl_optimizer.errors import ConfigurationError, invalid_fields, unknown_name

ENTRY_POINT_GROUP = "icl_optimizer.environments"


@dataclass(frozen=True)
class SweepPoint:
    """A parameter point at which trained policies are evaluated without learning more.

    Attributes:
        name: Scenario in the results, as in ``users=10;pair=llama3-8b+llama3-70b``.
        settings: Parameters that differ from those of learning.
    """

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class EnvironmentSpec:
    """Where an environment is, and what to run on it by default.

    Attributes:
        name: Name on the command line.
        gym_id: Gymnasium id.
        module: Module that holds the classes below; ``__name__`` in the file that holds them.
        vector_class: The batched environment, built as ``vector_class(num_envs, **fields)``.
        single_class: The single environment.
        config_class: Its pydantic configuration.
        policies: Policies that a comparison runs by default.
        interactions: Decisions each of them learns from by default.
        seeds: Repetitions by default.
        summary: One line for listings.
        sweeps: Name of the module's function from a configuration to sweep points, if any.
        evaluation: Parameters that are different in an evaluation (the held-out part of a trace).
        one_by_one: Parameters that are different while a policy learns that judges every decision
            by its own outcome (whatever learns but deep RL), unless they are given.
        episodes: Least number of episodes of an evaluation.
        eval_tasks: Decisions of an evaluation by default; None: as everywhere.
        live: Whether it acts on something real, at real times: there is one of it, an episode
            takes as long as it takes, and nobody knows what would have been best.
        trains_in: Name of the environment that policies learn in instead, if any.
        twin: Name of the module's function from a configuration to the settings of that one.
        session: Name of the module's function from a configuration to a context manager that holds
            what all evaluations share, if any.
    """

    name: str
    gym_id: str
    module: str
    vector_class: str
    single_class: str
    config_class: str
    policies: tuple[str, ...]
    interactions: int
    seeds: int
    summary: str
    sweeps: str | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    one_by_one: Mapping[str, Any] = field(default_factory=dict)
    episodes: int = 1
    eval_tasks: int | None = None
    live: bool = False
    trains_in: str | None = None
    twin: str | None = None
    session: str | None = None

    def learned_in(self, settings: Mapping[str, Any]) -> tuple[EnvironmentSpec, dict[str, Any]]:
        """Return where policies learn that are to run here with ``settings``, and its settings."""
        if self.trains_in is None or self.twin is None:
            return self, dict(settings)
        twin: dict[str, Any] = getattr(import_module(self.module), self.twin)(self.config(settings))
        return get_spec(self.trains_in), twin

    def open_session(self, settings: Mapping[str, Any]) -> AbstractContextManager[object]:
        """Return a context manager that holds what all evaluations with ``settings`` share."""
        if self.session is None:
            return nullcontext()
        opened: AbstractContextManager[object] = getattr(import_module(self.module), self.session)(
            self.config(settings)
        )
        return opened

    def sweep_points(self, settings: Mapping[str, Any]) -> list[SweepPoint]:
        """Return where policies that learned with ``settings`` are evaluated further."""
        if self.sweeps is None:
            return []
        points: list[SweepPoint] = getattr(import_module(self.module), self.sweeps)(
            self.config(settings)
        )
        return points

    def config(self, settings: Mapping[str, Any]) -> BaseModel:
        """Return the configuration with ``settings``, or raise an error that names the field."""
        cls: type[BaseModel] = getattr(import_module(self.module), self.config_class)
        for key in settings:
            if key.split(".")[0] not in cls.model_fields:
                raise unknown_name(f"setting of '{self.name}'", key, cls.model_fields)
        try:
            return cls(**_nested(settings))
        except ValidationError as error:
            raise invalid_fields(self.name, error) from error


OFFLOADING = EnvironmentSpec(
    name="offloading",
    gym_id="icl_optimizer/Offloading-v0",
    module="icl_optimizer.environments.offloading",
    vector_class="OffloadingVectorEnv",
    single_class="OffloadingEnv",
    config_class="OffloadingConfig",
    policies=("icl", "icl-latest", "icl-greedy", "dqn", "ppo", "random", "oracle"),
    interactions=100,
    seeds=3,
    summary="offload generation tasks to the edge or the cloud (Zhou et al. 2024)",
    sweeps="sweep_points",
)

SLO_SCHEDULING = EnvironmentSpec(
    name="slo-scheduling",
    gym_id="icl_optimizer/SLOScheduling-v0",
    module="icl_optimizer.environments.slo_scheduling",
    vector_class="SLOSchedulingVectorEnv",
    single_class="SLOSchedulingEnv",
    config_class="SLOSchedulingConfig",
    policies=(
        "icl-predict",
        "table",
        "knn-predict",
        "linear-predict",
        "dqn-paper",
        "score-in-time",
        "shortest-expected-completion",
        "shortest-queue",
        "round-robin",
        "random",
        "oracle",
    ),
    interactions=500,
    seeds=5,
    summary="send tasks to language models with queues before deadlines (Mekrache et al. 2025)",
    sweeps="sweep_points",
    episodes=30,
)

LOAD_BALANCING = EnvironmentSpec(
    name="load-balancing",
    gym_id="icl_optimizer/LoadBalancing-v0",
    module="icl_optimizer.environments.load_balancing",
    vector_class="LoadBalancingVectorEnv",
    single_class="LoadBalancingEnv",
    config_class="LoadBalancingConfig",
    policies=(
        "icl-predict",
        "table",
        "knn-predict",
        "linear-predict",
        "ppo-tuned",
        "a2c-paper",
        "dqn-paper",
        "shortest-expected-completion",
        "sacrifice",
        "least-loaded",
        "least-connections",
        "round-robin",
        "random",
        "oracle",
    ),
    interactions=500,
    seeds=5,
    summary="balance recorded requests over unequal servers (Abbaraju)",
    sweeps="sweep_points",
    evaluation={"part": "held-out", "horizon": None},
)

QOS_ROUTING = EnvironmentSpec(
    name="qos-routing",
    gym_id="icl_optimizer/QoSRouting-v0",
    module="icl_optimizer.environments.qos_routing",
    vector_class="QoSRoutingVectorEnv",
    single_class="QoSRoutingEnv",
    config_class="QoSRoutingConfig",
    policies=(
        "icl-predict",
        "table",
        "knn-predict",
        "linear-predict",
        "han-ppo",
        "mlp-ppo",
        "han-sac",
        "mlp-sac",
        "impact-greedy",
        "qos-greedy",
        "quality-greedy",
        "latency-greedy",
        "least-kv",
        "shortest-queue",
        "round-robin",
        "random",
        "oracle",
    ),
    interactions=2000,
    seeds=5,
    summary="route requests to edge experts that batch continuously (Yang et al. 2025)",
    sweeps="sweep_points",
    evaluation={"part": "held-out", "impact_penalty": False, "horizon": 1000},
    episodes=5,
)

LAYER_SPLITTING = EnvironmentSpec(
    name="layer-splitting",
    gym_id="icl_optimizer/LayerSplitting-v0",
    module="icl_optimizer.environments.layer_splitting",
    vector_class="LayerSplittingVectorEnv",
    single_class="LayerSplittingEnv",
    config_class="LayerSplittingConfig",
    policies=(
        "icl",
        "icl-greedy",
        "bandit",
        "knn",
        "ppo-split",
        "ppo-paper",
        "ppo-surrogate",
        "a2c-paper",
        "dqn-paper",
        "nearest-record",
        "myopic-split",
        "split-first",
        "split-middle",
        "split-last",
        "random",
        "oracle",
    ),
    interactions=500,
    seeds=5,
    summary="cut a language model between a device and the edge (Chen et al. 2024)",
    sweeps="sweep_points",
    evaluation={"difference": False, "from_start": False},
    one_by_one={"difference": True},
)

LIVE = EnvironmentSpec(
    name="live",
    gym_id="icl_optimizer/Live-v0",
    module="icl_optimizer.environments.live",
    vector_class="LiveVectorEnv",
    single_class="LiveEnv",
    config_class="LiveConfig",
    policies=(
        "round-robin",
        "shortest-queue",
        "shortest-expected-completion",
        "dqn-paper",
        "icl-predict",
        "random",
    ),
    interactions=500,
    seeds=1,
    summary="send tasks to the real servers of a fleet; policies learn in its simulated twin",
    eval_tasks=60,
    live=True,
    trains_in="slo-scheduling",
    twin="twin_of",
    session="open_session",
)

_SPECS = {
    s.name: s
    for s in (OFFLOADING, SLO_SCHEDULING, LOAD_BALANCING, QOS_ROUTING, LAYER_SPLITTING, LIVE)
}

_FROM_FILES: dict[str, EnvironmentSpec] = {}
"""Environments of files that have been read, by name."""


def environment_names() -> list[str]:
    """Return the names of all environments, those of other packages included."""
    return sorted(_SPECS | {e.name: None for e in entry_points(group=ENTRY_POINT_GROUP)})


def get_spec(name: str) -> EnvironmentSpec:
    """Return the environment ``name``; other packages add theirs by entry point.

    Args:
        name: Its name, or a Python file that holds one specification, as in ``links.py``; from
            then on it has its name, too.

    Raises:
        ConfigurationError: There is none, or the file holds none or several.
    """
    if name in _SPECS:
        return _SPECS[name]
    if name.endswith(SUFFIX):
        return _spec_in(name)
    if name in _FROM_FILES:
        return _FROM_FILES[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            spec = entry.load()
            if not isinstance(spec, EnvironmentSpec):
                raise ConfigurationError(f"entry point '{name}' is not an EnvironmentSpec.")
            return spec
    raise unknown_name("environment", name, environment_names())


def _spec_in(path: str) -> EnvironmentSpec:
    """Return the one specification that the file at ``path`` makes."""
    module = import_file(path)
    made = (v for v in vars(module).values() if isinstance(v, EnvironmentSpec))
    found = [spec for spec in made if spec.module == module.__name__]
    if len(found) != 1:
        raise ConfigurationError(
            f"file '{path}' holds {len(found)} environments; allowed: one EnvironmentSpec with "
            "module=__name__."
        )
    spec = found[0]
    if _FROM_FILES.get(spec.name, spec) is not spec or spec.name in environment_names():
        raise ConfigurationError(
            f"file '{path}' names its environment '{spec.name}'; allowed: a name that no other has."
        )
    _FROM_FILES[spec.name] = spec
    return spec


def make(name: str, num_envs: int = 1, *, autoreset: bool = True, **settings: Any) -> BatchedEnv:
    """Return the batched environment ``name`` with ``settings`` (fields of its configuration)."""
    spec = get_spec(name)
    config = spec.config(settings)
    cls = getattr(import_module(spec.module), spec.vector_class)
    env: BatchedEnv = cls(num_envs, config, autoreset=autoreset)
    return env


def register_all() -> None:
    """Register every shipped environment with Gymnasium, once."""
    for spec in _SPECS.values():
        if spec.gym_id not in gym.registry:
            gym.register(
                spec.gym_id,
                entry_point=f"{spec.module}:{spec.single_class}",
                vector_entry_point=f"{spec.module}:{spec.vector_class}",
            )


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"radio.scenario": x}`` into ``{"radio": {"scenario": x}}``."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            held = place.get(part, {})
            if not isinstance(held, Mapping):
                raise ConfigurationError(
                    f"setting '{key}' is given beside '{part}' = {held!r}; allowed: one of them."
                )
            # the caller's own mapping stays as it is
            place[part] = dict(held)
            place = place[part]
        place[last] = value
    return result


register_all()
