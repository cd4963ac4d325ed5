"""What the load balancer observes: columns, bounds, words."""

from __future__ import annotations

from icl_optimizer.environments.load_balancing_config import LoadBalancingConfig
from icl_optimizer.environments.load_balancing_expert import BalancingExpert
from icl_optimizer.environments.load_balancing_requests import Requests
from icl_optimizer.environments.traces import FEATURES
from icl_optimizer.problem import Column, Context, Problem, Quantity

ROLES = ("Waiting", "Load", "Response", "Active", "Speed", "Slots")
"""Roles of the columns of each server, in order."""
MOST_WAITING = 200.0
"""Requests waiting that are told apart; longer queues are observed as this."""
MOST_LOAD_S = 10.0
"""Load that is told apart, seconds of a server's whole capacity."""
MOST_RESPONSE_S = 10.0
"""Mean response that is told apart, seconds."""
SIZE_EDGES = (1500.0, 4000.0)
SIZES = ("small", "medium", "large")
"""Total tokens of a request in words."""
LOAD_EDGES = (0.2, 0.6, 0.85, 1.1)
LOADS = ("light", "moderate", "heavy", "very heavy", "overloaded")
"""Tokens in flight in words: the time they keep the whole server busy, in shares of the SLO.

With the size, these five words tell in 97 to 98 of 100 requests of the training parts (random and
least loaded play) whether a server answers in time, as many as all columns do to within 1.5 %; the
queue's length adds nothing to them, so that it has no words. The first edge is near where the last
slot is taken.
"""


def build_problem(config: LoadBalancingConfig, requests: Requests) -> Problem:
    """Return labels and observation columns for ``config``."""
    labels = tuple(f"server {i}" for i in range(len(config.setup.servers)))
    columns: list[Column] = [_feature(name, requests) for name in FEATURES]
    for action, label in enumerate(labels):
        columns += _server(config, label, action)
    profiles = tuple(
        Context({"Speed": f"{s.tokens_per_s:g} tokens per second", "Slots": f"{s.slots}"})
        for s in config.setup.servers
    )
    expert = BalancingExpert(config, requests)
    return Problem("load-balancing", labels, tuple(columns), requests.horizon, profiles, expert)


def _feature(name: str, requests: Requests) -> Quantity:
    clip = requests.scaling.clip
    if name != "total_tokens":
        return Quantity(name.replace("_", " "), "scaled", -clip, clip)
    edges = tuple(requests.scaled(name, tokens) for tokens in SIZE_EDGES)
    return Quantity("Request", "scaled", -clip, clip, edges, SIZES)


def _server(config: LoadBalancingConfig, label: str, action: int) -> list[Column]:
    """Return the columns of one server, in the order of :data:`ROLES`."""
    servers = config.setup.servers
    own = servers[action]
    at_once = own.slots if config.start_rule == "slots" else 1
    edges = tuple(share * config.slo_s * own.tokens_per_s * at_once for share in LOAD_EDGES)
    scales = {
        "Waiting": ("requests", MOST_WAITING),
        "Load": ("tokens", MOST_LOAD_S * own.tokens_per_s * own.slots),
        "Response": ("s", MOST_RESPONSE_S),
        "Active": ("requests", float(own.slots)),
        "Speed": ("tokens/s", max(s.tokens_per_s for s in servers)),
        "Slots": ("requests", float(max(s.slots for s in servers))),
    }
    columns: list[Column] = []
    for role in ROLES:
        unit, high = scales[role]
        bounds, words = (edges, LOADS) if role == "Load" else ((), ())
        name = f"{label} {role.lower()}"
        columns.append(Quantity(name, unit, 0.0, high, bounds, words, action, role))
    return columns
