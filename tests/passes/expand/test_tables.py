"""Parameters and MACs in training, against every number that the document prints of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.models.plain.smallnet import SmallNet
from compresskit.passes.expand.network import expand, expanded_layers
from compresskit.passes.expand.options import Expand

IMAGE = (3, 32, 32)
TABLE_6 = {  # (strategy, rate): ours, the document's in its own rounding
    ("fc", 2): (339_402, "339.40K"),
    ("fc", 4): (675_914, "675.91K"),
    ("fc", 8): (1_742_154, "1.74M"),
    ("cl", 2): (562_954, "562.95K"),
    ("cl", 4): (2_171_554, "2.17M"),
    ("cl", 8): (8_578_066, "8.58M"),
    ("ck", 2): (237_722, "237.72K"),
    ("ck", 4): (653_250, "653.25K"),
    ("ck", 8): (2_070_098, "2.07M"),
}
TABLE_6_MACS = {  # in millions, as the document prints them
    **{("fc", 2): 6.30, ("fc", 4): 6.64, ("fc", 8): 7.70, ("cl", 2): 25.16, ("cl", 4): 98.39, ("cl", 8): 389.35},
    **{("ck", 2): 14.38, ("ck", 4): 42.64, ("ck", 8): 141.10},
}
TABLE_9 = {  # rate: ours for 10 and for 100 classes, the document's in thousands
    0.25: (37_912, 43_762, "37.91/43.76"),
    0.5: (42_810, 48_660, "42.81/48.66"),
    0.75: (48_428, 54_278, "48.43/54.28"),
    1.0: (54_766, 60_616, "54.77/60.62"),
    2.0: (87_318, 93_168, "87.32/93.17"),
    4.0: (186_982, 192_832, "187.0/192.8"),
}


def small(channels=(8, 16, 32), classes=10):
    return trace(SmallNet(channels=channels).build(IMAGE, classes))


def parameters(network, options):
    return sum(p.numel() for p in expand(network, options).network.parameters())


def table_6(strategy, rate):
    return Expand(strategy=strategy, rate=rate, first="expand", factors={"fc1": 3})


def thousands(number, digits):
    return f"{number / 1000:.{digits}f}"


@pytest.mark.parametrize(("strategy", "rate"), TABLE_6)
def test_parameters_are_those_of_table_6(strategy, rate):
    """Its first factors have rate times the image's channels, and its FC is of three matrices, on fc1 alone."""
    found, printed = parameters(small((8, 16, 32, 64)), table_6(strategy, rate)), TABLE_6[strategy, rate][1]
    assert found == TABLE_6[strategy, rate][0]
    assert printed == (f"{found / 1e6:.2f}M" if printed.endswith("M") else f"{found / 1e3:.2f}K")


@pytest.mark.parametrize("rate", TABLE_9)
def test_parameters_are_those_of_table_9(rate):
    """Its first factors keep the image's channels."""
    *expected, printed = TABLE_9[rate]
    found = [parameters(small(classes=classes), Expand(strategy="ck", rate=rate)) for classes in (10, 100)]
    assert found == expected
    assert printed == "/".join(thousands(number, 1 if rate == 4 else 2) for number in found)
    assert parameters(small(), Expand(strategy="ck", rate=2, first="expand")) != TABLE_9[2.0][0]


def plain(factor, padding):
    """A layer of the same shape, which hooks see; of factors of stride 1 the first pads."""
    outputs, inputs, *taps = factor.weight.shape
    return nn.Conv2d(inputs, outputs, taps, padding=padding)


def other_macs(network):
    """What the document counts beside products: biases of convolutions, and work on each number of a map."""
    total = 0

    def add(module, inputs, output):
        nonlocal total
        work = {nn.BatchNorm2d: 2 * output.numel(), nn.ReLU: output.numel(), nn.MaxPool2d: inputs[0].numel()}
        total += work.get(type(module), output.numel() if isinstance(module, nn.Conv2d) else 0)

    for name, layer in expanded_layers(network).items():
        if layer.kind == "Conv2d":
            network.set_submodule(name, nn.Sequential(*map(plain, layer.factors, [layer.padding, 0, 0])))
    for module in network.modules():
        module.register_forward_hook(add)
    network.eval()(torch.zeros(1, *IMAGE))
    return total


@pytest.mark.parametrize("case", [None, *TABLE_6_MACS])
def test_macs_are_those_of_table_6(case):
    """The document counts biases of convolutions, batch norms, ReLU and pooling, too: 0.07 to 0.33 million together."""
    network = small((8, 16, 32, 64))
    if case is not None:
        network = expand(network, replace(table_6(*case), mode="sequential")).network
    macs = count(network, IMAGE).macs + other_macs(network)
    assert f"{macs / 1e6:.2f}" == f"{TABLE_6_MACS.get(case, 6.12):.2f}"
