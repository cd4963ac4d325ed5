"""What no policy can beat: a time-indexed programme of the real system in hindsight.

Binary x[i, j, k]: request i starts on server j in step k of the grid. Only starts that can still
meet the deadline have a variable, since others earn nothing and whoever may drop requests does
no better by serving them. The rows say that

- each request starts at most once;
- at the end of each step at most ``slots`` requests run on a server;
- after each arrival at most ``capacity`` requests are in its system, counted from arrival;
- in windows of 8, 16, 32, ... steps a server does at most ``slots`` times that much work.

It is an upper bound on the total score of every policy in continuous time, at every resolution.
Take what any policy did, keep the requests that scored, and let each choose the step that holds
its start s. None of the rows is broken:

- *Running.* A request counts only at ends of steps at which it runs wherever in its step it
  started: at the end of its first step and at later ones up to its earliest possible end
  (duration rounded down). So those that count at the end u of a step all run just before u, and
  there the real servers ran at most ``slots``.
- *Capacity.* Likewise a request counts only after arrivals at which it was there for sure.
- *Work.* Likewise it counts with the least work it can have done in the window. These rows give
  back most of what rounding durations down gave away, which makes coarse grids useful.
- *Deadlines.* The last step is the one that holds the latest start in time.

Requests that did not score only take room, so leaving them out breaks nothing. FIFO order is
relaxed: a server may start its requests in any order, which only matters where deadlines differ,
a server has several slots, or a queue is full (short ones first would empty it sooner). Otherwise
a set that can be served in time can be served so in order of arrival, and the bound comes down
to the optimum as steps get finer.
Times are rounded to 1e-9 of a step, and the solver's own tolerance is about 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from .instance import Instance, Ints, require_positive
from .starts import Starts, starts


@dataclass(frozen=True, eq=False)
class HindsightBound:
    """What the solver proved.

    Attributes:
        status: ``optimal`` (within the gap asked for) or ``time limit``. A result cut by the
            time limit depends on the machine; its bound holds nonetheless.
        bound: No policy scores more (the solver's dual bound).
        value: Score of the best integer solution. It solves the programme on the grid, so it
            may be a little more than a real schedule earns: :func:`.simulate` says what is.
        gap: (bound - value) / bound; 0 if the bound is 0.
        assignment: The server of each request in that solution, -1 for none, shape ``(n,)``: a
            start for :func:`.improved`.
    """

    status: Literal["optimal", "time limit"]
    bound: float
    value: float
    gap: float
    assignment: Ints


def hindsight_bound(
    instance: Instance,
    *,
    resolution_s: float = 0.25,
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
) -> HindsightBound:
    """Return an upper bound on what any policy scores, by mixed-integer programming.

    Meant for up to a few hundred requests. Under overload it comes hardly below
    :func:`relaxed_bound` of the same resolution, in far more time, and where the time limit stops
    it the value it found may be poor: :func:`.improved` finds better schedules.

    Args:
        instance: Requests and servers.
        resolution_s: Width of a step in seconds; finer is tighter and slower.
        time_limit_s: When the solver stops with what it has proved, in seconds.
        gap: Relative gap between bound and value at which the solver stops.

    Raises:
        ConfigurationError: An argument is not positive.
    """
    require_positive("resolution_s", resolution_s)
    require_positive("time_limit_s", time_limit_s)
    require_positive("gap", gap)
    table = starts(instance, resolution_s)
    if not len(table.score):
        return HindsightBound("optimal", 0.0, 0.0, 0.0, np.full(instance.requests, -1))
    # presolve gained no time here and has cut off the optimum (HiGHS 1.12)
    options: dict[str, float | bool] = {
        "time_limit": time_limit_s,
        "mip_rel_gap": gap,
        "presolve": False,
    }
    found = _solve(table, 1, options)
    return _result(instance, table, found)


def relaxed_bound(instance: Instance, *, resolution_s: float = 0.5) -> float:
    """Return the bound with fractional starts allowed: weaker, fast, no time limit.

    Memory and time grow with requests over resolution; for a thousand requests take 1 s.

    Args:
        instance: Requests and servers.
        resolution_s: Width of a step in seconds; finer is tighter and slower.

    Raises:
        ConfigurationError: The resolution is not positive.
        RuntimeError: The solver failed.
    """
    require_positive("resolution_s", resolution_s)
    table = starts(instance, resolution_s)
    if not len(table.score):
        return 0.0
    found = _solve(table, 0, {})
    if not found.success:
        raise RuntimeError(f"HiGHS did not solve the relaxation: {found.message}")
    return min(instance.score_limit, -float(found.fun))


def _solve(table: Starts, integrality: int, options: dict[str, float | bool]) -> OptimizeResult:
    return milp(
        -table.score,
        integrality=np.full(len(table.score), integrality),
        bounds=Bounds(0.0, 1.0),
        constraints=LinearConstraint(table.use, -np.inf, table.limit),
        options=options,
    )


def _result(instance: Instance, table: Starts, found: OptimizeResult) -> HindsightBound:
    assignment = np.full(instance.requests, -1)
    value = 0.0  # serving nobody is a solution, if the time limit came before any other
    bound = instance.score_limit
    if found.x is not None:
        chosen = found.x > 0.5
        assignment[table.request[chosen]] = table.server[chosen]
        value = float(table.score[chosen].sum())
        # inf or nan until the first relaxation is solved
        bound = float(np.fmin(bound, -found.mip_dual_bound))
    bound = max(bound, value)
    gap = (bound - value) / bound if bound > 0 else 0.0
    status: Literal["optimal", "time limit"] = "optimal" if found.success else "time limit"
    return HindsightBound(status, bound, value, gap, assignment)
