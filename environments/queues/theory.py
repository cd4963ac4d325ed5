"""What queueing theory says in closed form: mean waits, and how bursty arrivals are.

Waiting times are those in the queue, without the service, in the unit of the service time.

Sources: Erlang, "Solution of some problems in the theory of probabilities of significance in
automatic telephone exchanges", 1917 (M/M/c, M/D/1); Pollaczek 1930 and Khinchine 1932 (M/G/1),
as in Kleinrock, "Queueing Systems", vol. 1, 1975, ch. 3 and 5; Fischer and Meier-Hellstern, "The
Markov-modulated Poisson process (MMPP) cookbook", Performance Evaluation 18, 1993 (dispersion of
the counts of a two-state process).
"""

from __future__ import annotations

import math

from icl_optimizer.environments.queues.arrivals import Bursts
from icl_optimizer.errors import ConfigurationError


def erlang_b(servers: int, offered: float) -> float:
    """Return the share of requests that find all servers busy where nobody may wait.

    Args:
        servers: Servers, or slots of one.
        offered: Arrival rate times mean service time, in Erlang.
    """
    if servers < 1 or offered <= 0:
        raise ConfigurationError(
            f"servers are {servers}, offered is {offered}; allowed: at least 1, and above 0."
        )
    blocked = 1.0
    for c in range(1, servers + 1):
        blocked = offered * blocked / (c + offered * blocked)
    return blocked


def erlang_c(servers: int, offered: float) -> float:
    """Return the probability to wait in M/M/c, Erlang's second formula; arguments as above."""
    _check_stable(offered / servers)
    blocked = erlang_b(servers, offered)
    return blocked / (1 - (offered / servers) * (1 - blocked))


def mmc_wait(servers: int, utilisation: float, mean_service: float = 1.0) -> float:
    """Return the mean wait in M/M/c, ``C(c, a) s / (c (1 - rho))``.

    Args:
        servers: Servers, or slots of one.
        utilisation: Arrival rate times mean service time over servers, below 1.
        mean_service: Mean service time.
    """
    waits = erlang_c(servers, servers * utilisation)
    return waits * mean_service / (servers * (1 - utilisation))


def mm1_wait(utilisation: float, mean_service: float = 1.0) -> float:
    """Return the mean wait in M/M/1, ``rho s / (1 - rho)``."""
    return mg1_wait(utilisation, 1.0, mean_service)


def md1_wait(utilisation: float, mean_service: float = 1.0) -> float:
    """Return the mean wait in M/D/1, half of that in M/M/1."""
    return mg1_wait(utilisation, 0.0, mean_service)


def mg1_wait(utilisation: float, cv2: float, mean_service: float = 1.0) -> float:
    """Return the mean wait in M/G/1, the Pollaczek-Khinchine formula.

    Args:
        utilisation: Arrival rate times mean service time, below 1.
        cv2: Squared coefficient of variation of the service time.
        mean_service: Mean service time.
    """
    _check_stable(utilisation)
    return utilisation * (1 + cv2) / 2 * mean_service / (1 - utilisation)


def lognormal_cv2(spread: float) -> float:
    """Return the squared coefficient of variation at a log-standard deviation ``spread``."""
    return math.expm1(spread**2)


def mmpp_dispersion(bursts: Bursts, mean_rate: float, window_s: float) -> float:
    """Return variance over mean of the arrivals in a window of the stationary process.

    1 for a Poisson process. Fischer and Meier-Hellstern 1993:
    ``1 + A - A (1 - exp(-r t)) / (r t)`` with ``r = r1 + r2`` and
    ``A = 2 r1 r2 (l1 - l2)^2 / (r^2 (l1 r2 + l2 r1))``.

    Args:
        bursts: How the rate changes.
        mean_rate: Mean arrivals per second.
        window_s: Length of the window, seconds.
    """
    quiet, burst = bursts.rates(mean_rate)
    begins, ends = 1 / bursts.quiet_s, 1 / bursts.mean_s
    turn = begins + ends
    excess = 2 * begins * ends * (burst - quiet) ** 2 / (turn**3 * mean_rate)
    return 1 + excess * (1 + math.expm1(-turn * window_s) / (turn * window_s))


def _check_stable(utilisation: float) -> None:
    if not 0 < utilisation < 1:
        raise ConfigurationError(
            f"utilisation is {utilisation}; allowed: more than 0, less than 1, or the queue grows "
            "without end."
        )
