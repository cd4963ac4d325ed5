"""PPO that learns on from a surrogate of what it has measured (Algorithm 1 of Chen et al.)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from icl_optimizer.baselines.drl import DrlPolicy
from icl_optimizer.baselines.drl_config import DrlConfig, SurrogatePpoConfig
from icl_optimizer.environments.base import BatchedEnv
from icl_optimizer.environments.splitting.surrogate import INPUTS, Bounds, Surrogate
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.problem import Problem

Floats = NDArray[np.float64]


COLUMNS = [*INPUTS, "extra_nats"]


class SurrogatePpoPolicy(DrlPolicy):
    """PPO whose rewards come from a surrogate as soon as it has measured enough for one.

    For ``true_rollouts`` rollouts the environment's own rewards are measured and written down; then
    a surrogate is fitted on these records, and learning goes on with what it foretells. Outside of
    :meth:`learn` the environment has its own rewards.

    Neither records nor surrogate are saved: a loaded policy decides as before, and measures anew
    when it learns on.

    Attributes:
        surrogate: What it has fitted; None until then.
        records: What it has measured: columns ``split``, ``sigma``, ``loss``, ``extra_nats``.
    """

    config: SurrogatePpoConfig

    def __init__(
        self,
        problem: Problem,
        config: DrlConfig | None = None,
        *,
        name: str = "ppo-surrogate",
        env: BatchedEnv | None = None,
        seed: int = 0,
    ) -> None:
        """Build an untrained network; see :class:`DrlPolicy`.

        Raises:
            ConfigurationError: The environment's rewards cannot be replaced.
        """
        if env is not None and not hasattr(env, "use_rewards"):
            raise ConfigurationError(
                f"policy '{name}' was given {type(env).__name__}; "
                "allowed: an environment whose rewards can be replaced (layer-splitting)."
            )
        super().__init__(problem, config, name=name, env=env, seed=seed)
        self._forget()

    def _forget(self) -> None:
        self.surrogate: Surrogate | None = None
        self._rollouts = 0
        self._rows: list[Floats] = []

    @property
    def records(self) -> pd.DataFrame:
        """What it has measured so far, one row per decision."""
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, len(COLUMNS)))
        return pd.DataFrame(rows, columns=COLUMNS)

    def learn(self, total_timesteps: int, callback: Any = None, progress_bar: bool = False) -> Self:
        """Learn from ``total_timesteps`` more decisions; see :meth:`DrlPolicy.learn`."""
        env: Any = self.require_env()
        own = env.source
        if self.surrogate is not None:
            env.use_rewards(self.surrogate)

        def after_step(*_: Any) -> None:
            if self.surrogate is None:
                self._rows.append(env.measured.copy())

        def after_rollout() -> None:
            self._rollouts += 1
            if self.surrogate is None and self._rollouts >= self.config.true_rollouts:
                self.surrogate = self._fit()
                env.use_rewards(self.surrogate)

        mine = self._callback_classes.AfterRollout(after_rollout)
        try:
            callbacks = [*self._callbacks(after_step), mine, *self._callbacks(callback)]
            return super().learn(total_timesteps, callbacks, progress_bar)
        finally:
            # what learns in this environment next is paid by what was measured again
            env.use_rewards(own)

    def _fit(self) -> Surrogate:
        from icl_optimizer.baselines.surrogate import fit_surrogate

        steps = self.config.surrogate_steps
        columns = {column.name: column for column in self.problem.columns}
        ranges = [columns[name] for name in ("Split", "Noise", "Loss")]
        low, high = [c.low for c in ranges], [c.high for c in ranges]
        bounds = Bounds((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        return fit_surrogate(self.records, bounds=bounds, steps=steps, seed=self.seed)

    def load(self, path: str | Path) -> Self:
        """Take over weights and settings; see :meth:`DrlPolicy.load`."""
        self._forget()
        return super().load(path)
