"""The optimisation problem of the paper as it is printed.

Mekrache, Ksentini, Verikoukis, "DRL-enabled SLO-aware Task Scheduling for Large Language Models
in 6G Networks", section III. It is no bound for the simulated system: constraint (6) caps the
*total* number of tasks of an LLM (so that more tasks than the sum of capacities are infeasible
with (5)), (7) forbids late tasks (so that the penalty sigma never acts), and nobody waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye_array, kron, vstack

from icl_optimizer.errors import ConfigurationError

from .instance import Floats, Instance, Ints


@dataclass(frozen=True, eq=False)
class PaperSolution:
    """The solution of equations (1)-(8).

    Attributes:
        status: ``optimal`` or ``infeasible``.
        reason: Why it is infeasible; empty if it is not.
        objective: Equation (2), None if infeasible.
        assignment: The server of each request, shape ``(n,)``, None if infeasible.
        gap: The solver's relative gap, None if infeasible.
    """

    status: Literal["optimal", "infeasible"]
    reason: str
    objective: float | None
    assignment: Ints | None
    gap: float | None


def paper_optimum(instance: Instance, *, sigma: float = 1.0) -> PaperSolution:
    """Solve equations (1)-(8) by mixed-integer programming.

    Linear form: z of (3) has data as its lower bounds and only ever costs, so it takes
    max(0, t + P/delta - tau) and the product x z of (2) becomes linear in x. Big M of (8) is
    taken per pair as small as it may be: then (8) reads x <= 0 where a task alone would be late.

    Args:
        instance: Requests and servers; ``slots`` does not occur in the paper's problem.
        sigma: Penalty per second of lateness, at least 0.

    Raises:
        ConfigurationError: ``sigma`` is negative or not finite.
        RuntimeError: The solver failed.
    """
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ConfigurationError(f"sigma is {sigma}; allowed: a finite number from 0.")
    if reason := _obvious(instance):
        return PaperSolution("infeasible", reason, None, None, None)
    if instance.requests == 0:
        return PaperSolution("optimal", "", 0.0, np.empty(0, dtype=np.int64), 0.0)
    late_s = np.maximum(0.0, instance.service_s - instance.deadline_s[:, None])
    found = milp(
        -(instance.score - sigma * late_s).ravel(),
        integrality=np.ones(late_s.size),
        bounds=Bounds(0.0, (late_s == 0).astype(np.float64).ravel()),
        constraints=_rows(instance),
        options={"presolve": False},  # not always right in HiGHS 1.12, and no faster here
    )
    if found.x is None:
        if found.status != 2:  # scipy's number for infeasible
            raise RuntimeError(f"HiGHS did not solve the paper's problem: {found.message}")
        reason = "the servers on which requests would be in time have too little capacity (6)"
        return PaperSolution("infeasible", reason, None, None, None)
    chosen: Floats = found.x.reshape(late_s.shape)
    return PaperSolution(
        "optimal", "", -float(found.fun), chosen.argmax(axis=1), float(found.mip_gap)
    )


def _obvious(instance: Instance) -> str:
    """Return why no assignment exists, if that can be seen without solving."""
    n, room = instance.requests, int(instance.capacity.sum())
    if n > room:
        return f"{n} requests, but the capacities of all servers sum to {room} (5, 6)"
    hopeless = np.flatnonzero(~instance.reachable.any(axis=1))
    if hopeless.size:
        return f"request {hopeless[0]} would be late on every server (5, 7)"
    return ""


def _rows(instance: Instance) -> LinearConstraint:
    """Return (5), exactly one server each, and (6), at most the capacity in total."""
    n, m = instance.requests, instance.servers
    each = kron(eye_array(n), np.ones((1, m)))
    total = kron(np.ones((1, n)), eye_array(m))
    lower = np.concatenate([np.ones(n), np.full(m, -np.inf)])
    upper = np.concatenate([np.ones(n), instance.capacity])
    return LinearConstraint(csr_array(vstack([each, total])), lower, upper)
