"""What stands before and behind a network, taken into its graph: the normalisation of inputs, and probabilities."""

import copy
from collections.abc import Sequence

import torch
from torch import fx

MEAN, STD = "pixel_mean", "pixel_std"  # the buffers


def with_normalisation(
    network: fx.GraphModule, mean: Sequence[float], std: Sequence[float], unit: float, dims: int
) -> fx.GraphModule:
    """A copy that takes inputs as they are stored, and computes (x - unit mean) / (unit std) by channel, in float32.

    unit: 255 of bytes, else 1. dims: of a batch (N, C, ...). It is what batches of data hold, bit for bit.
    """
    network = copy.deepcopy(network)
    (source,) = (node for node in network.graph.nodes if node.op == "placeholder")
    readers = list(source.users)
    value = source
    with network.graph.inserting_after(source):
        value = network.graph.call_method("float", (source,))
    for name, values, function in ((MEAN, mean, torch.sub), (STD, std, torch.div)):
        path = _free(network, name)
        numbers = torch.tensor([unit * one for one in values]).view(-1, *[1] * (dims - 2))
        network.register_buffer(path, numbers)
        with network.graph.inserting_after(value):
            constant = network.graph.get_attr(path)
        with network.graph.inserting_after(constant):
            value = network.graph.call_function(function, (value, constant))
    for reader in readers:
        reader.replace_input_with(source, value)
    return _checked(network)


def with_probabilities(network: fx.GraphModule) -> fx.GraphModule:
    """A copy that returns the softmax of what `network` returns, over dimension 1."""
    network = copy.deepcopy(network)
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    with network.graph.inserting_before(output):
        found = network.graph.call_function(torch.softmax, (output.args[0], 1))
    output.args = (found,)
    return _checked(network)


def _free(network: fx.GraphModule, name: str) -> str:
    while hasattr(network, name):
        name += "_"
    return name


def _checked(network: fx.GraphModule) -> fx.GraphModule:
    network.graph.lint()
    network.recompile()
    return network
