"""What the router observes: columns, bounds, words."""

from __future__ import annotations

from icl_optimizer.environments.qos_routing_config import SHOWN, QoSRoutingConfig
from icl_optimizer.environments.qos_routing_expert import RoutingExpert
from icl_optimizer.environments.qos_routing_impact import Costs
from icl_optimizer.problem import Column, Context, Problem, Quantity

PROMPT, EXPECTED = "Prompt tokens", "Expected tokens"
ROLES = ("Quality", "Queue", "Running", "Waiting", "KV", "Backlog", "Slack", "Impact")
"""Roles of the columns of each expert, in order."""
KINDS = ("running", "waiting")
FEATURES = ("prompt", "quality", "expected", "kv", "generated", "latency")
"""What is shown of each request at an expert, in order; all 0 where there is none."""
MOST_PROMPT, MOST_ANSWER, MOST_BACKLOG = 4096.0, 1024.0, 8192.0
"""Tokens that are told apart; more are observed as this."""
ANSWERS = ("short", "medium", "long")
ANSWER_EDGES = (150.0, 300.0)
QUALITIES = ("poor", "fair", "good", "excellent")
QUEUES = ("idle", "light", "moderate", "busy", "full")
BACKLOGS = ("little", "some", "much")
SLACKS = ("tight", "some", "ample")
IMPACTS = ("harmless", "harms one", "harms several")
LATENCY_BOUNDS = 4.0
"""Latency that is told apart, in latency bounds."""
DROP = "drop"


def build_problem(config: QoSRoutingConfig, costs: Costs) -> Problem:
    """Return labels and observation columns for ``config``, whose experts have these costs."""
    labels = tuple(expert.label for expert in config.served)
    columns: list[Column] = [
        Quantity(PROMPT, "tokens", 0.0, MOST_PROMPT),
        Quantity(EXPECTED, "tokens", 0.0, MOST_ANSWER, ANSWER_EDGES, ANSWERS),
    ]
    for action, label in enumerate(labels):
        columns += _expert(config, label, action)
    for action, label in enumerate(labels):
        columns += _requests(config, label, action)
    profiles = tuple(
        Context({"Model": e.family, "Size": f"{e.billions:g} billion parameters"})
        for e in config.served
    )
    return Problem(
        "qos-routing",
        (*labels, DROP),
        tuple(columns),
        config.horizon,
        (*profiles, Context({"Model": "none", "Size": "none"})),
        RoutingExpert(config, costs),
    )


def _expert(config: QoSRoutingConfig, label: str, action: int) -> list[Column]:
    """Return the columns of one expert, in the order of :data:`ROLES`."""
    bound, places = config.latency_bound_s, float(config.max_running)
    room = max(float(config.queue_size), 1.0)

    def column(
        role: str,
        unit: str,
        high: float,
        edges: tuple[float, ...] = (),
        words: tuple[str, ...] = (),
        *,
        stake: bool = False,
    ) -> Column:
        return Quantity(f"{label} {role}", unit, 0.0, high, edges, words, action, role, stake=stake)

    return [
        column("Quality", "score", 1.0, (0.25, 0.5, 0.75), QUALITIES, stake=True),
        column("Queue", "requests", places + room, queue_edges(places), QUEUES),
        column("Running", "requests", places),
        column("Waiting", "requests", room),
        column("KV", "share", 1.0),
        column("Backlog", "tokens", MOST_BACKLOG, (300.0, 900.0), BACKLOGS),
        column("Slack", "s/token", bound, (0.15 * bound, 0.4 * bound), SLACKS, stake=True),
        column("Impact", "score", places, (0.05, 0.95), IMPACTS, stake=True),
    ]


def queue_edges(places: float) -> tuple[float, ...]:
    """Return where words for requests at an expert change: 1, 3, 6 and 10 of ten places."""
    return tuple(1.0 + share * places for share in (0.0, 0.2, 0.5, 0.9))


def _requests(config: QoSRoutingConfig, label: str, action: int) -> list[Column]:
    """Return the columns of the requests at one expert."""
    scales = {
        "prompt": ("tokens", MOST_PROMPT),
        "quality": ("score", 1.0),
        "expected": ("tokens", MOST_ANSWER),
        "kv": ("share", 1.0),
        "generated": ("tokens", MOST_ANSWER),
        "latency": ("s/token", LATENCY_BOUNDS * config.latency_bound_s),
    }
    return [
        Quantity(
            f"{label} {kind} {k} {feature}",
            scales[feature][0],
            0.0,
            scales[feature][1],
            action=action,
            role=f"{kind} {k} {feature}",
            detail=True,
        )
        for kind in KINDS
        for k in range(1, SHOWN + 1)
        for feature in FEATURES
    ]
