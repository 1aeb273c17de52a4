"""What each selector means, and what is said when it means nothing."""

from collections import OrderedDict

import pytest
from torch import nn

from compresskit.errors import RecipeError
from compresskit.graph.layers.grouped_stack import GroupedStack
from compresskit.graph.selectors import select
from compresskit.graph.trace import trace
from tests.graph.nets import Residual, Shared, make


@pytest.fixture(scope="module")
def network():
    return trace(make(Residual))


CONVS = ["stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut"]


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        (["@conv"], CONVS),
        (["@linear"], ["head"]),
        (["@conv1x1"], ["block2.shortcut"]),
        (["@conv3x3", "head"], [*CONVS[:-1], "head"]),
        (["head", "stem"], ["stem", "head"]),  # in the order of the network
        (["stem", "stem", "re:st.*"], ["stem"]),
        ([r"re:block\d\.conv1"], ["block1.conv1", "block2.conv1"]),
        (["re:.*conv2", "@linear"], ["block1.conv2", "block2.conv2", "head"]),
        ([], []),
    ],
)
def test_selectors(network, selectors, expected):
    assert select(network, selectors) == expected


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("block1.conv3", "'block1.conv3': no convolution or linear layer is named so; did you mean 'block1.conv"),
        ("re:conv1", "'re:conv1': no convolution"),  # the whole name must match
        ("block1.norm1", "no convolution or linear layer is named so"),
        ("re:(", "no regular expression"),
        ("@conv2d", "allowed are @conv, @linear, @conv3x3, re:PATTERN and exact names"),
    ],
)
def test_a_selector_that_means_nothing_is_an_error(network, selector, message):
    with pytest.raises(RecipeError, match=message):
        select(network, ["@conv", selector])


def test_no_layer_of_the_kind():
    with pytest.raises(RecipeError, match="'@conv': no convolution"):
        select(trace(make(Shared)), ["@conv"])


def test_a_layer_that_is_called_twice_is_named_once():
    assert select(trace(make(Shared)), ["@linear"]) == ["fc", "head"]


def test_layers_of_a_stack_are_said_to_be_in_it():
    stack = GroupedStack(features=4, groups=2, layers=3)
    net = trace(nn.Sequential(OrderedDict(stack=stack, head=nn.Linear(4, 2))))
    with pytest.raises(RecipeError, match="the layers that stack stands for are one layer here: export the net with"):
        select(net, ["stack.0"])
