"""Which chains there are, and why others are refused."""

import pytest
from torch import fx

from compresskit.errors import RecipeError, UnsupportedModelError
from compresskit.graph.chains import find_chain
from compresskit.graph.trace import trace
from compresskit.passes.fuse.candidates import candidates
from tests.graph.nets import Depthwise, Plain, Residual, Shared, make


def traced(kind) -> fx.GraphModule:
    return trace(make(kind))


def test_a_chain_runs_from_the_input_of_the_first_to_the_output_of_the_last():
    chain = find_chain(traced(Plain), "conv2", "fc1")
    assert chain.layers == ("conv2", "fc1")
    assert chain.name == "fc1"
    assert chain.nodes[0] == "conv2"
    assert chain.nodes[-1] == "fc1"
    assert chain.source == "max_pool2d"
    assert str(chain) == "conv2+fc1"


def test_three_layers_at_once():
    assert find_chain(traced(Plain), "conv1", "fc1").layers == ("conv1", "conv2", "fc1")


def test_a_block_with_a_shortcut_ends_before_its_activation():
    network = traced(Residual)
    plain, projected = find_chain(network, "block1"), find_chain(network, "block2")
    assert plain.layers == ("block1.conv1", "block1.conv2")
    assert projected.layers == ("block2.conv1", "block2.conv2", "block2.shortcut")
    assert plain.target == "add"
    assert projected.target == "add_1"
    assert plain.name == "block1.fused"


def test_a_block_without_a_shortcut_keeps_its_batch_norm():
    network = traced(Residual)
    inner = find_chain(network, "block1.conv1", "block1.conv2")
    assert inner.target == "block1_conv2"
    assert inner.name == "block1.conv2"


@pytest.mark.parametrize(
    ("kind", "first", "last", "message"),
    [
        (Plain, "conv3", "fc1", r"no layer is named 'conv3'; did you mean 'conv2'"),
        (Plain, "fc1", "conv1", r"fc1 comes behind conv1 in the network; write \[conv1, fc1\]"),
        (Plain, "conv1", "conv1", r"needs two convolutions or linear layers, or more, and it has conv1 \(transposed"),
        (Residual, "stem", "block1.conv1", r"block1_shortcut, outside of it, also reads stem"),
        (Residual, "block1.conv2", "block2.conv1", r"add also reads block1_shortcut from outside of it"),
        (Shared, "fc", "head", r"fc: it is called 2 times; a shared layer cannot be fused"),
    ],
)
def test_refusals_say_what_stands_in_the_way(kind, first, last, message):
    with pytest.raises((RecipeError, UnsupportedModelError), match=message):
        find_chain(traced(kind), first, last)


def test_an_unknown_block_lists_near_names():
    with pytest.raises(RecipeError, match="no block is named 'block3'; did you mean 'block2' or 'block1'"):
        find_chain(traced(Residual), "block3")


def test_candidates_are_all_pairs_of_neighbours_and_the_blocks():
    assert [str(chain) for chain in candidates(traced(Plain), 2)[0]] == ["conv1+conv2", "conv2+fc1", "fc1+fc2"]
    assert len(candidates(traced(Plain), 4)[0]) == 6
    names = [str(chain) for chain in candidates(traced(Residual), 3)[0]]
    assert names == [
        "block1.conv1+block1.conv2",
        "block1.conv1+block1.conv2+add",
        "block2.conv1+block2.conv2",
        "block2.conv1+block2.conv2+block2.shortcut+add_1",
    ]


def test_grouped_layers_are_candidates_too():
    assert [str(chain) for chain in candidates(traced(Depthwise), 2)[0]] == ["conv1+conv2", "conv2+head"]


def test_layers_in_no_candidate_are_named_with_the_reason():
    _, left = candidates(traced(Residual), 3)
    assert left.keys() == {"stem", "head"}
    assert left["head"] == "no chain of up to 3 layers holds it"
    assert candidates(traced(Residual), 4)[1].keys() == {"stem"}  # block2 with its shortcut, and the head
    chains, left = candidates(traced(Shared), 3)
    assert chains == []
    assert "it is called 2 times" in left["head"]
