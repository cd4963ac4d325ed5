"""The graph of requests: its layout, and its network against PyTorch Geometric's."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny_env import tiny_problem
from tiny_routing import PLACES, draw_rows, requests_of, routing_problem
from torch import Tensor, nn

from icl_optimizer.baselines.graph.han import EDGES, SEVERAL, WIDTH, HanLayer
from icl_optimizer.baselines.graph.layout import EXPERT, EXTRA, REQUEST, GraphLayout
from icl_optimizer.baselines.graph.policies import FlatExtractor, GraphExtractor, GraphHeads
from icl_optimizer.columns import Quantity
from icl_optimizer.environments.base import observation_box
from icl_optimizer.errors import ConfigurationError

SIZES = {"arrived": 3, "expert": 5, "running": 4, "waiting": 6}


@pytest.fixture(scope="module")
def geometric() -> ModuleType:
    """Return PyTorch Geometric; what it warns of while it is imported is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_geometric.nn
    return torch_geometric.nn


def reference(layer: HanLayer, geometric: ModuleType) -> nn.Module:
    """Return ``HANConv`` with the weights of ``layer``."""
    names = [(source, "to", target) for source, target in layer.edges]
    conv: nn.Module = geometric.HANConv(SIZES, WIDTH, (list(SIZES), names), heads=8)
    given = layer.state_dict()
    state = conv.state_dict()
    for name in SIZES:
        for part in ("weight", "bias"):
            state[f"proj.{name}.{part}"] = given[f"project.{name}.{part}"]
    for source, target in SEVERAL:
        for side, theirs in (("source", "lin_src"), ("target", "lin_dst")):
            state[f"{theirs}.{source}__to__{target}"] = given[f"{side}.{source}__{target}"][None]
    state |= {"k_lin.weight": given["semantic.weight"], "k_lin.bias": given["semantic.bias"]}
    # weights of single neighbours stay random: they make no difference
    conv.load_state_dict(state | {"q": given["query"]})
    return conv


def edges_of(present: dict[str, Tensor], count: int) -> dict[tuple[str, str, str], Tensor]:
    """Return the edges of one graph whose requests are numbered without gaps."""
    every, one = torch.arange(count), torch.zeros(count, dtype=torch.long)
    found = {
        ("arrived", "to", "arrived"): torch.zeros(2, 1, dtype=torch.long),
        ("expert", "to", "arrived"): torch.stack([every, one]),
        ("expert", "to", "expert"): torch.stack([every, every]),
        ("arrived", "to", "expert"): torch.stack([one, every]),
    }
    for kind, there in present.items():
        at = there.nonzero()[:, 0]
        found[kind, "to", "expert"] = torch.stack([torch.arange(len(at)), at])
        found[kind, "to", kind] = torch.arange(len(at)).expand(2, -1)
    return {(a, "to", b): found[a, "to", b] for a, b in EDGES}


def test_a_layer_is_that_of_pytorch_geometric_graph_by_graph(geometric: ModuleType) -> None:
    torch.manual_seed(0)
    graphs, count, places = 50, 4, 5
    layer = HanLayer(SIZES)
    conv = reference(layer, geometric)
    nodes = {
        "arrived": torch.randn(graphs, 1, SIZES["arrived"]),
        "expert": torch.randn(graphs, count, SIZES["expert"]),
        "running": torch.randn(graphs, count, places, SIZES["running"]),
        "waiting": torch.randn(graphs, count, places, SIZES["waiting"]),
    }
    present = {
        "running": torch.rand(graphs, count, places) < torch.rand(graphs, 1, 1),
        "waiting": torch.rand(graphs, count, places) < torch.rand(graphs, 1, 1),
    }
    # graphs in which nobody waits, or is there at all, must not differ either
    present["waiting"][:5] = present["running"][:2] = False
    mine = layer(nodes, present)
    for i in range(graphs):
        there = {kind: mask[i] for kind, mask in present.items()}
        alone = {name: nodes[name][i] for name in ("arrived", "expert")}
        alone |= {kind: nodes[kind][i][mask] for kind, mask in there.items()}
        theirs = conv(alone, edges_of(there, count))
        for name in ("arrived", "expert"):
            torch.testing.assert_close(mine[name][i], theirs[name], rtol=1e-5, atol=1e-5)
        for kind, mask in there.items():
            torch.testing.assert_close(mine[kind][i][mask], theirs[kind], rtol=1e-5, atol=1e-5)


def test_semantic_attention_is_not_shared_by_the_batch() -> None:
    torch.manual_seed(1)
    layer = HanLayer(SIZES)
    nodes = {
        "arrived": torch.randn(6, 1, 3),
        "expert": torch.randn(6, 2, 5),
        "running": torch.randn(6, 2, 3, 4),
        "waiting": torch.randn(6, 2, 3, 6),
    }
    present = {kind: torch.rand(6, 2, 3) < 0.5 for kind in ("running", "waiting")}
    whole = layer(nodes, present)["expert"]
    for i in range(6):
        one = layer(
            {k: v[i : i + 1] for k, v in nodes.items()},
            {k: v[i : i + 1] for k, v in present.items()},
        )
        torch.testing.assert_close(one["expert"][0], whole[i])


def network(experts: int = 3, *, extra: bool = True, seed: int = 0) -> GraphHeads:
    """Return an untrained network, whose logits are far from even."""
    torch.manual_seed(seed)
    heads = GraphHeads(GraphLayout.of(routing_problem(experts), extra=extra), [64], nn.ReLU)
    for head in (heads.expert_head, heads.drop_head):
        nn.init.normal_(head[-1].weight)
    return heads


def rows_of(experts: int = 3, count: int = 20) -> Tensor:
    rows = draw_rows(routing_problem(experts), count, np.random.default_rng(3))
    return torch.as_tensor(rows, dtype=torch.float32)


def test_the_layout_follows_the_roles() -> None:
    problem = routing_problem(4)
    layout = GraphLayout.of(problem, extra=True)
    assert layout.count == 4
    assert layout.nodes == {"arrived": ["Prompt", "Expected"], "expert": [*EXPERT, *EXTRA]}
    assert problem.columns[layout.experts[2, 1]].name == "expert 2 KV"
    assert layout.requests["waiting"].shape == (4, PLACES, len(REQUEST))
    assert problem.columns[layout.requests["waiting"][3, 1, 5]].name == "expert 3 waiting 2 latency"
    assert layout.columns.tolist() == list(range(len(problem.columns)))
    plain = GraphLayout.of(problem, extra=False)
    assert plain.experts.shape == (4, len(EXPERT))
    assert len(plain.columns) == len(problem.columns) - 4 * len(EXTRA)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="column 'Thing' of 'tiny' holds words"):
        GraphLayout.of(tiny_problem(), extra=False)
    problem = routing_problem(3)
    with pytest.raises(ConfigurationError, match="3 labels for 3 experts; allowed: 4"):
        GraphLayout.of(replace(problem, labels=problem.labels[:-1]), extra=False)
    unnamed = tuple(c for c in problem.columns if not c.name.endswith("Slack"))
    with pytest.raises(ConfigurationError, match="no column 'Slack'"):
        GraphLayout.of(replace(problem, columns=unnamed), extra=True)
    place = int(problem.role("running 1 prompt")[0])
    column = problem.columns[place]
    assert isinstance(column, Quantity)
    columns = [*problem.columns]
    columns[place] = replace(column, low=-1.0)
    with pytest.raises(ConfigurationError, match=r"'expert 0 running 1 prompt' begins at -1\.0"):
        GraphLayout.of(replace(problem, columns=tuple(columns)), extra=True)


def test_requests_that_are_not_there_have_no_influence() -> None:
    heads, rows = network(), rows_of()
    changed, added = rows.clone(), rows.clone()
    for kind in ("running", "waiting"):
        places = torch.from_numpy(requests_of(routing_problem(), kind))
        absent = rows[:, places[..., 0]] == 0
        for feature in range(1, len(REQUEST)):
            column = places[..., feature]
            changed[:, column] = torch.where(absent, 7.0, rows[:, column])
        added[:, places[..., 0]] = torch.where(absent, 0.5, rows[:, places[..., 0]])
    for mine, theirs in zip(heads(rows), heads(changed), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert (heads(rows)[0] - heads(added)[0]).abs().max() > 1e-3


def test_the_order_of_requests_does_not_matter() -> None:
    heads, rows = network(), rows_of()
    turned = rows.clone()
    for kind in ("running", "waiting"):
        places = torch.from_numpy(requests_of(routing_problem(), kind))
        turned[:, places] = rows[:, places.flip(1)]
    torch.testing.assert_close(heads(rows), heads(turned))


def test_the_order_of_experts_permutes_the_logits() -> None:
    heads, rows = network(), rows_of()
    order = [2, 0, 1]
    own = torch.arange(2, rows.shape[1]).view(3, -1)
    turned = rows.clone()
    turned[:, own] = rows[:, own[order]]
    logits, values = heads(rows)
    others, same = heads(turned)
    torch.testing.assert_close(others, logits[:, [*order, 3]])
    torch.testing.assert_close(same, values)
    assert logits.std(dim=0).min() > 1e-3


def test_the_same_weights_fit_any_number_of_experts() -> None:
    state = network(3).state_dict()
    wide = network(5, seed=1)
    wide.load_state_dict(state)
    logits, values = wide(rows_of(5))
    assert (logits.shape, values.shape) == ((20, 6), (20, 1))


def test_without_extra_these_columns_have_no_influence() -> None:
    rows = rows_of()
    changed = rows.clone()
    for role in EXTRA:
        changed[:, routing_problem().role(role)] = 0.5
    plain, whole = network(extra=False), network()
    torch.testing.assert_close(plain(rows), plain(changed))
    assert (whole(rows)[0] - whole(changed)[0]).abs().max() > 1e-3


def test_the_extractors_have_the_size_they_name() -> None:
    problem = routing_problem()
    layout = GraphLayout.of(problem, extra=False)
    graph = GraphExtractor(observation_box(problem), layout)
    flat = FlatExtractor(observation_box(problem), layout)
    rows = rows_of()
    assert graph(rows).shape == (20, graph.features_dim)
    assert flat(rows).shape == (20, flat.features_dim)
    assert set(flat(rows)[0].tolist()) <= set(rows[0].tolist())
    # one number per expert tells them apart, or no embedding could
    own = torch.arange(2, rows.shape[1]).view(3, -1)
    turned = rows.clone()
    turned[:, own] = rows[:, own[[2, 0, 1]]]
    assert (graph(rows) - graph(turned)).abs().max() > 1e-3
