"""Candidates grown from their ends against all pairs tried by name: the same chains, left-over layers and reasons."""

import random

import pytest
import torch
from torch import fx, nn

from compresskit.graph.trace import trace
from compresskit.passes.fuse.candidates import candidates
from tests.passes.fuse.all_pairs import all_pairs

QUICK = [
    *("torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:squeezenet1_0", "torchvision:vit_b_32"),
    *("timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:inception_next_atto"),
]
LARGE = [
    *("torchvision:densenet121", "torchvision:googlenet", "torchvision:inception_v3", "torchvision:resnet50"),
    *("torchvision:shufflenet_v2_x0_5", "torchvision:regnet_y_400mf", "timm:efficientnet_b0", "timm:mixer_s32_224"),
]


def of_others(name: str) -> fx.GraphModule:
    library, _, name = name.partition(":")
    if library == "timm":
        return trace(pytest.importorskip("timm").create_model(name))
    models = pytest.importorskip("torchvision.models")
    given = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return trace(models.get_model(name, weights=None, **given))


def drawn(seed: int) -> fx.GraphModule:
    """A graph of layers, batch norms, activations, sums and concatenations, in modules within modules.

    Some layers are called twice, some nodes read parameters, or nothing at all, and some are read by nobody.
    """
    draw = random.Random(seed)
    root, graph = nn.Module(), fx.Graph()
    root.table = nn.Parameter(torch.zeros(3))
    values = [graph.placeholder(f"x{index}") for index in range(draw.choice([1, 1, 2]))]
    scopes, layers = ["a", "a.b", "a.b.c", "d", "d.e"], []
    width = draw.choice([1, 1, 2, 4])  # how far back a node reads: 1 makes sequences
    for index in range(draw.randint(4, 30)):
        recent = values[-width:]
        scope = scopes[min(len(scopes) - 1, index * len(scopes) // 20)]
        kind = draw.choices(["layer", "norm", "relu", "add", "cat", "table", "nothing"], [8, 2, 3, 3, 1, 1, 0.2])[0]
        if kind in ("layer", "norm"):
            name = f"{scope}.n{index}"
            _put(root, name, nn.Linear(3, 3) if kind == "layer" else nn.BatchNorm1d(3))
            layers.append(name)
            node = graph.call_module(draw.choice(layers) if draw.random() < 0.05 else name, (draw.choice(recent),))
        elif kind == "table":
            table = graph.get_attr("table")
            second = graph.call_function(torch.neg, (table,)) if draw.random() < 0.2 else table
            node = graph.call_function(torch.mul, (draw.choice(recent), second))
        elif kind == "nothing":
            node = graph.call_function(torch.zeros, (3,))
        elif kind == "relu":
            node = graph.call_function(torch.relu, (draw.choice(recent),))
        else:
            parts = [draw.choice(recent), draw.choice(values[-2 * width :])]
            node = (
                graph.call_function(torch.add, tuple(parts))
                if kind == "add"
                else graph.call_function(torch.cat, (parts,))
            )
        node.meta["scope"] = scope
        values.append(node)
    graph.output(values[-1])
    return fx.GraphModule(root, graph)


def _put(root: nn.Module, path: str, layer: nn.Module) -> None:
    *scopes, name = path.split(".")
    for scope in scopes:
        if not hasattr(root, scope):
            root.add_module(scope, nn.Module())
        root = getattr(root, scope)
    root.add_module(name, layer)


@pytest.mark.parametrize("longest", [2, 3, 30])
def test_random_graphs(longest):
    counts = []
    for seed in range(250):
        network = drawn(seed)
        (chains, left), (expected, left_by_all) = candidates(network, longest), all_pairs(network, longest)
        assert chains == expected
        assert left.keys() == left_by_all.keys()
        counts.append(len(chains))
    assert sum(count > 0 for count in counts) > 100
    assert max(counts) > 5


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_nets_of_others(name):
    network = of_others(name)
    for longest in (2, 4):
        assert candidates(network, longest) == all_pairs(network, longest)


def test_a_layer_that_only_longer_chains_hold_is_left_with_that_reason():
    """All pairs tried has the reason of a layer far before it."""
    root, graph = nn.Module(), fx.Graph()
    value = graph.placeholder("x")
    for name in ("first", "one", "two", "last"):
        root.add_module(name, nn.Linear(3, 3))
    value = graph.call_module("first", (value,))
    branches = graph.call_module("one", (value,)), graph.call_module("two", (value,))
    graph.output(graph.call_module("last", (graph.call_function(torch.add, branches),)))
    chains, left = candidates(fx.GraphModule(root, graph), 2)
    assert chains == []
    assert left["last"] == "no chain of up to 2 layers holds it"
