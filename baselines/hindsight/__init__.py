"""What could have been scored on servers with queues, had everything been known.

Bounds from above (:func:`hindsight_bound`, :func:`relaxed_bound`), schedules from below
(:func:`clairvoyant_greedy`, :func:`improved`), and the paper's own formulation
(:func:`paper_optimum`), all for one :class:`Instance`; and what experts that batch could give
(:func:`routing_bound`).
"""

from .clairvoyant import clairvoyant_greedy, improved
from .instance import Instance
from .paper import PaperSolution, paper_optimum
from .routing import RoutingInstance, routing_bound
from .simulation import Outcome, Server, simulate
from .time_indexed import HindsightBound, hindsight_bound, relaxed_bound

__all__ = [
    "HindsightBound",
    "Instance",
    "Outcome",
    "PaperSolution",
    "RoutingInstance",
    "Server",
    "clairvoyant_greedy",
    "hindsight_bound",
    "improved",
    "paper_optimum",
    "relaxed_bound",
    "routing_bound",
    "simulate",
]
