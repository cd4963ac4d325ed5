"""The batched base of every environment: seeding, episodes, outcomes, autoreset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from pydantic import BaseModel

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Category, Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The decisions that finished in one step, as parallel arrays of length ``n``.

    Attributes:
        decision_id: Which decisions, as handed out in ``info["decision_id"]``.
        reward: Reward of each.
        feasible: Whether every constraint held.
        censored: Whether the episode ended first; their reward is what was known by then.
        metrics: Further measurements by name, each ``(n,)``.
    """

    decision_id: Ints
    reward: Floats
    feasible: Bools
    censored: Bools
    metrics: dict[str, Floats]

    def __len__(self) -> int:
        """Return how many decisions finished."""
        return len(self.decision_id)

    def __eq__(self, other: object) -> bool:
        """Return whether everything is equal, entry by entry."""
        if not isinstance(other, Outcomes) or self.metrics.keys() != other.metrics.keys():
            return False
        mine, theirs = ({**vars(o), **o.metrics} for o in (self, other))
        return all(np.array_equal(mine[k], theirs[k]) for k in mine if k != "metrics")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class StepResult:
    """What one batched transition of the dynamics yields (``E`` sub-environments)."""

    rewards: Floats
    outcomes: Outcomes
    terminated: Bools


class BatchedEnv(VectorEnv[NDArray[np.float32], Ints, NDArray[Any]]):
    """Dynamics written once, batched over sub-environments, as a Gymnasium vector environment.

    A subclass implements :meth:`_begin`, :meth:`_observe` and :meth:`_advance`. Each
    sub-environment owns one :class:`numpy.random.Generator`, and everything random in an
    episode is drawn from it when the episode begins. So a sub-environment's trajectory depends
    on its seed alone, not on the batch size, and what happens to a policy does not change the
    tasks that the next policy sees (common random numbers).

    Args:
        num_envs: Number of sub-environments ``E``.
        problem: Labels and columns; the spaces follow from it.
        autoreset: Whether a finished sub-environment starts anew within the same step
            (``SAME_STEP``, what Stable-Baselines3 needs); its last observation is then in
            ``info["final_obs"]``.
    """

    def __init__(self, num_envs: int, problem: Problem, *, autoreset: bool = True) -> None:
        """Set up spaces and bookkeeping."""
        if num_envs < 1:
            raise ConfigurationError(f"num_envs is {num_envs}; allowed: at least 1.")
        self.num_envs = num_envs
        self.problem = problem
        self.autoreset = autoreset
        mode = AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED
        self.metadata = {"autoreset_mode": mode, "render_modes": []}
        self.single_observation_space = observation_box(problem)
        self.single_action_space = spaces.Discrete(len(problem.labels))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rngs = [np.random.default_rng() for _ in range(num_envs)]
        self.elapsed = np.zeros(num_envs, dtype=np.int64)
        self._decisions = 0

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode everywhere, or where ``options["reset_mask"]`` ``(E,)`` is true.

        Args:
            seed: One integer ``s`` (sub-environment ``i`` gets ``s + i``) or one per
                sub-environment; without one the generators go on.
            options: ``reset_mask`` selects sub-environments; the others keep their generators.
        """
        indices = self._selected((options or {}).get("reset_mask"))
        self._seed(seed, indices)
        self._restart(indices)
        self._arrive(indices)
        return self._observations(), {"decision_id": self._ids()}

    def step(
        self, actions: NDArray[Any] | Sequence[int]
    ) -> tuple[NDArray[np.float32], Floats, Bools, Bools, dict[str, Any]]:
        """Carry out one decision in every sub-environment.

        Returns:
            Observations ``(E, columns)``, rewards, terminated and truncated ``(E,)``, and the
            info: ``decision_id`` of the decisions now due, ``outcomes`` (:class:`Outcomes`) of
            those that finished, and after an autoreset ``final_obs`` ``(E, columns)``, valid
            where the mask ``_final_obs`` is true.
        """
        checked = self._check_actions(actions)
        result = self._advance(checked, self._ids())
        self.elapsed += 1
        self._decisions += self.num_envs
        truncated = (self.elapsed >= self.problem.horizon) & ~result.terminated
        done = result.terminated | truncated
        info: dict[str, Any] = {"outcomes": result.outcomes}
        if self.autoreset and done.any():
            info |= {"final_obs": self._observations(), "_final_obs": done}
            self._restart(np.flatnonzero(done))
        self._arrive(np.arange(self.num_envs))
        info["decision_id"] = self._ids()
        return self._observations(), result.rewards, result.terminated, truncated, info

    def change(self, config: BaseModel) -> None:
        """Let the world be another one from the next decision on, in mid-run (drift).

        What has been observed and what is under way stays; labels and columns must stay, too, so
        that a policy goes on as if nothing had happened.

        Args:
            config: The parameters that hold from now on, as the environment was built from.

        Raises:
            ConfigurationError: This environment, or this parameter, cannot change while running.
        """
        raise ConfigurationError(
            f"environment '{self.problem.name}' cannot change while it is running; allowed for a "
            "drift: one whose class has the method change, such as offloading and slo-scheduling."
        )

    def action_values(self) -> Floats:
        """Return the value of every action in the present state, shape ``(E, actions)``.

        That is its reward, or what the environment says: the best sum of rewards to the end of the
        episode, where it can be computed. Only an oracle may ask: it takes the random numbers of
        what is to come into account.
        """
        raise ConfigurationError(f"{type(self).__name__} has no exhaustive oracle.")

    @property
    def has_oracle(self) -> bool:
        """Whether the class knows the value of every action."""
        return type(self).action_values is not BatchedEnv.action_values

    def summarise(
        self, rewards: Floats, feasible: Bools, metrics: dict[str, Floats]
    ) -> dict[str, float]:
        """Return the metrics of finished decisions, each array ``(n,)``, as a table names them."""
        means = {name: float(values.mean()) for name, values in metrics.items()}
        return {"reward": float(rewards.mean()), "success_rate": float(feasible.mean()), **means}

    @property
    def carries_over(self) -> bool:
        """Whether a decision changes what later decisions meet, as a request in a queue does."""
        return True

    @abstractmethod
    def _begin(self, indices: Ints) -> None:
        """Draw and start an episode in the sub-environments ``indices``."""

    @abstractmethod
    def _observe(self) -> NDArray[Any]:
        """Return the observations, shape ``(E, columns)``."""

    @abstractmethod
    def _advance(self, actions: Ints, decision_ids: Ints) -> StepResult:
        """Carry out ``actions`` ``(E,)`` in the present state."""

    def _arrive(self, indices: Ints) -> None:
        """Prepare the next decision of the sub-environments ``indices``; ``elapsed`` has moved."""

    def _selected(self, mask: Any) -> Ints:
        """Return the indices of the sub-environments that ``mask`` selects, all without one."""
        if mask is None:
            return np.arange(self.num_envs)
        chosen = np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_:
            raise ConfigurationError(
                f"reset_mask has shape {chosen.shape} and type {chosen.dtype}; "
                f"allowed: {self.num_envs} truth values."
            )
        return np.flatnonzero(chosen)

    def _seed(self, seed: int | Sequence[int | None] | None, indices: Ints) -> None:
        if seed is None:
            return
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigurationError(
                f"seed has {len(seed)} entries; allowed: one, or {self.num_envs}."
            )
        for i in indices:
            if (value := seed[i]) is not None:
                self.rngs[i] = np.random.default_rng(value)
        if len(indices) == self.num_envs:
            self._decisions = 0

    def _restart(self, indices: Ints) -> None:
        self.elapsed[indices] = 0
        self._begin(indices)

    def _observations(self) -> NDArray[np.float32]:
        return self._observe().astype(np.float32)

    def _ids(self) -> Ints:
        return self._decisions + np.arange(self.num_envs, dtype=np.int64)

    def _check_actions(self, actions: NDArray[Any] | Sequence[int]) -> Ints:
        checked = np.asarray(actions)
        count = len(self.problem.labels)
        if checked.shape != (self.num_envs,) or not np.issubdtype(checked.dtype, np.integer):
            raise ConfigurationError(
                f"actions have shape {checked.shape} and type {checked.dtype}; "
                f"allowed: {self.num_envs} integers."
            )
        if (checked < 0).any() or (checked >= count).any():
            raise ConfigurationError(
                f"actions hold {checked[(checked < 0) | (checked >= count)][0]}; "
                f"allowed: 0 to {count - 1} ({', '.join(self.problem.labels)})."
            )
        return checked.astype(np.int64)


def observation_box(problem: Problem) -> spaces.Box:
    """Return the box that the columns of ``problem`` span."""
    low = [0.0 if isinstance(c, Category) else c.low for c in problem.columns]
    high = [c.high for c in problem.columns]
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
