"""The heterogeneous graph attention network over padded batches of graphs (imports torch).

A graph is one observation: the arrived request, ``N`` experts, and at each expert up to ``K``
running and ``K`` waiting requests. As they hang on their expert in groups, every edge type is a
reshaping, and a batch needs no loop and no index of edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from icl_optimizer.baselines.graph.layout import REQUEST, GraphLayout

WIDTH = 64
"""Features of a node's embedding, over all heads."""
HEADS = 8
"""Heads of the attention among neighbours."""
SLOPE = 0.2
"""Of the leaky ReLU, below 0."""
ABSENT = -1e9
"""Logit of a neighbour that is not there."""

Edge = tuple[str, str]
Nodes = dict[str, Tensor]

EDGES: tuple[Edge, ...] = (
    ("arrived", "arrived"),
    ("expert", "arrived"),
    ("expert", "expert"),
    ("arrived", "expert"),
    ("running", "expert"),
    ("waiting", "expert"),
    ("running", "running"),
    ("waiting", "waiting"),
)
"""Source and destination of each edge type.

The paper's edges are arrived-expert, expert-running and expert-waiting. A decision needs them
towards the experts, and between experts and arrived request both ways, so that an expert knows what
would come to it. Nothing reads a request but its own expert, which knows itself, so that no edge
goes back to requests. Each node is its own neighbour, too, as in Wang et al. (2019), where the
neighbours by a meta-path include the node itself: without, its own features would only steer
attention and never be passed on.
"""

SEVERAL: frozenset[Edge] = frozenset(
    {("expert", "arrived"), ("running", "expert"), ("waiting", "expert")}
)
"""Edge types by which a destination has any number of sources; by the others it has one."""


class HanLayer(nn.Module):
    """``HANConv`` of PyTorch Geometric, graph by graph.

    Of each edge type, every destination takes the mean of its projected sources, weighted by
    attention per head; then the edge types of a destination are weighted, alike for all its nodes
    of one graph (semantic attention). A destination without sources takes zeros.

    Args:
        inputs: Features of each node type.
        edges: The edge types; a node type that none leads to has no output.
    """

    def __init__(self, inputs: Mapping[str, int], edges: Sequence[Edge] = EDGES) -> None:
        """Draw the weights as ``HANConv`` does."""
        super().__init__()
        self.edges = tuple(edges)
        used = {name for edge in edges for name in edge}
        self.project = nn.ModuleDict(
            {name: nn.Linear(size, WIDTH) for name, size in inputs.items() if name in used}
        )
        # a single neighbour has all the attention, whatever the weights
        several = [edge for edge in edges if edge in SEVERAL]
        self.source = nn.ParameterDict({_key(e): _glorot(HEADS, WIDTH // HEADS) for e in several})
        self.target = nn.ParameterDict({_key(e): _glorot(HEADS, WIDTH // HEADS) for e in several})
        self.semantic = nn.Linear(WIDTH, WIDTH)
        self.query = _glorot(1, WIDTH)

    def forward(self, nodes: Nodes, present: Nodes) -> Nodes:
        """Return the new embeddings.

        Args:
            nodes: Features: arrived ``(B, 1, F)``, expert ``(B, N, F)``, running and waiting
                ``(B, N, K, F)``.
            present: Which running and waiting requests are there, ``(B, N, K)``.
        """
        own = {name: self.project[name](nodes[name]) for name in self._projected}
        messages: dict[str, list[Tensor]] = {}
        for edge in self.edges:
            source, target = edge
            if edge in SEVERAL:
                near = nodes[source].unsqueeze(1) if target == "arrived" else nodes[source]
                message = self._attend(edge, near, own[target], present.get(source))
            else:
                message = own[source]
            messages.setdefault(target, []).append(functional.relu(message))
        return {name: self._weigh(own[name], found) for name, found in messages.items()}

    @property
    def _projected(self) -> set[str]:
        """Node types whose projection is needed as such; attention takes the features instead."""
        single = {source for source, target in self.edges if (source, target) not in SEVERAL}
        return single | {target for _, target in self.edges}

    def _attend(self, edge: Edge, near: Tensor, target: Tensor, present: Tensor | None) -> Tensor:
        """Return the mean of the neighbours ``near`` ``(B, n, K, F)``, shape ``(B, n, WIDTH)``.

        As projecting is linear, features are averaged first and projected after, and the logits
        come from the features too: the same numbers for a fraction of the work.
        """
        layer = cast(nn.Linear, self.project[edge[0]])
        weight = layer.weight.view(HEADS, WIDTH // HEADS, -1)
        bias = layer.bias.view(HEADS, WIDTH // HEADS)
        to_logit = torch.einsum("hd,hdf->hf", self.source[_key(edge)], weight)
        constant = (self.source[_key(edge)] * bias).sum(-1)
        by_head = target.view(*target.shape[:2], 1, HEADS, -1)
        mine = (by_head * self.target[_key(edge)]).sum(-1) + constant
        logits = functional.leaky_relu(near @ to_logit.T + mine, SLOPE)
        if present is not None:
            logits = logits.masked_fill(~present.unsqueeze(3), ABSENT)
        mean = torch.softmax(logits, dim=2).transpose(2, 3) @ near
        message = (torch.einsum("bnhf,hdf->bnhd", mean, weight) + bias).flatten(2)
        return message if present is None else message * present.any(2, keepdim=True)

    def _weigh(self, own: Tensor, messages: list[Tensor]) -> Tensor:
        """Return the mean of the edge types' messages by semantic attention, as wide as ``own``."""
        if len(messages) == 1:
            return messages[0]
        stacked = torch.stack([message.expand_as(own) for message in messages], dim=1)
        seen = torch.tanh(self.semantic(stacked)).mean(2)
        share = torch.softmax(seen @ self.query[0], dim=1)
        return torch.einsum("bt,btnw->bnw", share, stacked)


class GraphEncoder(nn.Module):
    """Two layers of graph attention over encoded observations.

    The weights do not depend on the number of experts, unless these are ``numbered``.

    Args:
        layout: Which columns are which features.
        numbered: Whether experts carry their number as a one-hot code. A network that decides from
            the arrived request's embedding alone, to which all experts look alike, needs it.
        experts: Whether the embeddings of the experts are wanted as well.
    """

    def __init__(
        self, layout: GraphLayout, *, numbered: bool = False, experts: bool = True
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.count, self.numbered = layout.count, numbered
        columns = {"arrived": layout.arrived, "expert": layout.experts} | layout.requests
        self.shapes = {name: index.shape for name, index in columns.items()}
        for name, index in columns.items():
            flat = torch.from_numpy(index.ravel().copy())
            self.register_buffer(f"{name}_columns", flat, persistent=False)
        inputs = {name: len(REQUEST) for name in layout.requests} | {
            "arrived": len(layout.arrived),
            "expert": layout.experts.shape[1] + (self.count if numbered else 0),
        }
        wanted = ("arrived", "expert") if experts else ("arrived",)
        last = [edge for edge in EDGES if edge[1] in wanted]
        self.first = HanLayer(inputs)
        self.second = HanLayer(dict.fromkeys(inputs, WIDTH), last)

    def forward(self, features: Tensor) -> Nodes:
        """Return the embeddings of encoded observations ``(B, columns)``.

        Returns:
            ``arrived`` ``(B, WIDTH)``, and ``expert`` ``(B, N, WIDTH)`` if wanted.
        """
        return self.embed(*self.nodes(features))

    def embed(self, nodes: Nodes, present: Nodes) -> Nodes:
        """Return the embeddings of what :meth:`nodes` returns."""
        found: Nodes = self.second(self.first(nodes, present), present)
        return found | {"arrived": found["arrived"].squeeze(1)}

    def nodes(self, features: Tensor) -> tuple[Nodes, Nodes]:
        """Return the features of the nodes, and which requests are there."""
        nodes = {
            name: features.index_select(1, self.get_buffer(f"{name}_columns")).view(-1, *shape)
            for name, shape in self.shapes.items()
        }
        nodes["arrived"] = nodes["arrived"].unsqueeze(1)
        if self.numbered:
            number = torch.eye(self.count, dtype=features.dtype).expand(len(features), -1, -1)
            nodes["expert"] = torch.cat([nodes["expert"], number], dim=2)
        requests = [name for name in nodes if name not in ("arrived", "expert")]
        return nodes, {name: nodes[name][..., 0] > 0 for name in requests}


def _key(edge: Edge) -> str:
    return "__".join(edge)


def _glorot(*shape: int) -> nn.Parameter:
    """Return weights as PyTorch Geometric's ``glorot`` draws them."""
    bound = (6.0 / (shape[-2] + shape[-1])) ** 0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
