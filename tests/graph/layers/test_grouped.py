"""Grouped linear layers and orders of channels against dense matrices and indexing."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.counting import count
from compresskit.graph.format.table import from_table, named_tensors, to_table
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.masks import kept
from compresskit.graph.trace import trace
from compresskit.graph.weights import weights_of

ORDERS = {
    "shuffle": torch.arange(12).view(3, 4).t().flatten(),
    "shuffle back": torch.arange(12).view(4, 3).t().flatten(),
    "random": torch.tensor([5, 0, 11, 3, 8, 1, 2, 10, 4, 9, 6, 7]),
}


def layer(bias: bool = True) -> GroupedLinear:
    torch.manual_seed(0)
    return GroupedLinear(12, 8, 4, bias).double()


def dense(grouped: GroupedLinear) -> nn.Linear:
    """torch's own layer with the same weights."""
    made = nn.Linear(grouped.in_features, grouped.out_features, grouped.bias is not None).double()
    with torch.no_grad():
        made.weight.copy_(torch.block_diag(*grouped.weight.unflatten(0, (grouped.groups, -1))))
        if grouped.bias is not None:
            made.bias.copy_(grouped.bias)
    return made


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (1, 12), (0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_grouped_linear_layer_is_a_block_diagonal_one(shape, bias):
    grouped = layer(bias)
    whole, x = dense(grouped), batch(*shape)
    y, expected = grouped(x), whole(x)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    y.view(*shape[:-1], 4, 2)  # as a network may
    if len(shape) > 2:
        y.view(len(y), -1)
    if len(shape) == 2:
        assert y.t().is_contiguous()  # what makes chains of them fast
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad((y * direction).sum(), [x, *grouped.parameters()])
    theirs = torch.autograd.grad((expected * direction).sum(), [x, *whole.parameters()])
    blocks = torch.block_diag(*torch.ones(4, 2, 3)).bool()
    theirs = [theirs[0], theirs[1][blocks].view(8, 3), *theirs[2:]]
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-12, atol=1e-12)


def test_gradients_of_both_orders():
    assert gradcheck(layer(), batch(3, 12))
    assert gradgradcheck(layer(), batch(3, 12))
    for order in ORDERS.values():
        assert gradcheck(ChannelPermutation.of(order), batch(2, 12, 2))
        assert gradgradcheck(ChannelPermutation.of(order), batch(2, 12))


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(("dim", "shape"), [(1, (3, 12)), (-1, (3, 12)), (1, (3, 12, 2, 5)), (-1, (3, 2, 12))])
def test_a_permutation_is_indexing(order, dim, shape):
    permutation, x = ChannelPermutation.of(order, dim), batch(*shape)
    assert torch.equal(permutation.indices(), order)
    expected = x.index_select(dim, order)
    assert torch.equal(permutation(x), expected)
    assert torch.equal(permutation(x.movedim(0, -1).contiguous().movedim(-1, 0)), expected)  # of any strides
    direction = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((y * direction).sum(), x)[0] for y in (permutation(x), expected))
    assert torch.equal(ours, theirs)


def test_a_shuffle_holds_no_numbers():
    kinds = {name: list(ChannelPermutation.of(order).buffers()) for name, order in ORDERS.items()}
    assert (kinds["shuffle"], kinds["shuffle back"]) == ([], [])
    (order,) = kinds["random"]
    assert order.dtype == torch.int32
    for size in range(1, 5):
        for order in torch.cartesian_prod(*[torch.arange(size)] * size).view(-1, size):
            if len(order.unique()) == size:
                assert torch.equal(ChannelPermutation.of(order).indices(), order)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_jacobians_by_batches_of_gradients(order):
    """As both of torch's ways take them: is_grads_batched, and vmap of a vjp."""
    net, x = nn.Sequential(ChannelPermutation.of(order), layer(), nn.Tanh()), batch(3, 12)
    directions = torch.eye(24, dtype=torch.float64).view(24, 3, 8)
    y = net(x)
    expected = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in directions])
    (batched,) = torch.autograd.grad(y, x, directions, is_grads_batched=True)
    torch.testing.assert_close(batched, expected, rtol=1e-13, atol=1e-13)
    _, back = torch.func.vjp(net, x.detach())
    torch.testing.assert_close(torch.func.vmap(back)(directions)[0], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_lower_precision(order):
    net = nn.Sequential(ChannelPermutation.of(order), layer().float())
    x = torch.randn(16, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), net(x), rtol=0.03, atol=0.03)  # eight bits
    y.sum().backward()
    assert net[1].weight.grad.dtype == torch.float32


def test_the_same_seed_draws_a_layer_as_a_grouped_convolution():
    torch.manual_seed(3)
    ours = GroupedLinear(12, 8, 4)
    torch.manual_seed(3)
    theirs = nn.Conv1d(12, 8, 1, groups=4)
    assert torch.equal(ours.weight, theirs.weight[:, :, 0])
    assert torch.equal(ours.bias, theirs.bias)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="4 groups do not divide both 12 and 6"):
        GroupedLinear(12, 6, 4)
    with pytest.raises(ValueError, match="do not fill a matrix of 5 rows"):
        ChannelPermutation(12, 5)
    with pytest.raises(ValueError, match="along dimension 1 or -1, given 0"):
        ChannelPermutation(12, 3, dim=0)
    with pytest.raises(RuntimeError, match="11 channels were given to a permutation of 12"):
        ChannelPermutation(12, 3)(torch.ones(2, 11))


def net() -> nn.Sequential:
    return nn.Sequential(
        ChannelPermutation.of(ORDERS["random"], dim=-1), layer(), nn.Tanh(),
        ChannelPermutation.of(torch.arange(8).view(2, 4).t().flatten()), GroupedLinear(8, 8, 2, bias=False).double(),
    )  # fmt: skip


def test_a_net_of_them_is_stored_as_plain_data():
    network = trace(net())
    table = to_table(network)
    assert table["modules"]["1"]["options"] == {"in_features": 12, "out_features": 8, "groups": 4, "bias": True}
    assert table["modules"]["0"]["options"] == {"channels": 12, "rows": None, "dim": -1}
    assert table["modules"]["3"]["options"] == {"channels": 8, "rows": 2, "dim": 1}
    read = from_table(table)
    assert to_table(read) == table
    assert [name for name, _ in named_tensors(read)] == [name for name, _ in named_tensors(network)]


def test_counts_are_those_of_the_weights_that_are_kept():
    counts = count(trace(nn.Sequential(layer(), ChannelPermutation.of(ORDERS["random"][:8].argsort()))), (12,))
    whole = trace(nn.Sequential(dense(layer())))
    masks = {"0.weight": whole.get_parameter("0.weight") != 0}
    assert (counts.parameters, counts.macs) == kept(count(whole, (12,)), masks) == (8 * 3 + 8, 8 * 3)
    assert [(row.kind, row.weight_shape, row.macs) for row in counts.layers] == [("GroupedLinear", (8, 3), 24)]


def test_weights_are_listed_with_their_groups():
    (weight, other), skipped = weights_of(trace(net()))
    assert (weight.name, weight.kind, weight.groups, weight.tensor.shape) == ("1", "linear", 4, (8, 3))
    assert (other.groups, skipped) == (2, {})


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_channels_keep_their_labels_through_a_permutation_and_can_be_cut(order):
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(3, 12), nn.ReLU(), ChannelPermutation.of(order), nn.Linear(12, 2)).double())
    channels = find_channels(network, (3,))
    assert torch.equal(channels.reads["3"], channels.writes["0"][order])
    gone = channels.writes["0"][[1, 4, 5, 9]]
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[gone] = False
    zeroed = copy.deepcopy(network)
    zeroed.get_parameter("3.weight").data[:, torch.isin(order, torch.tensor([1, 4, 5, 9]))] = 0
    smaller, x = cut(network, channels, alive), batch(5, 3)
    assert smaller.get_submodule("2").channels == smaller.get_submodule("0").out_features == 8
    torch.testing.assert_close(smaller(x), zeroed(x), rtol=1e-12, atol=1e-12)


def test_channels_of_a_grouped_linear_layer_and_of_a_permutation_called_twice_stay():
    channels = find_channels(trace(nn.Sequential(nn.Linear(3, 12).double(), layer(), nn.Linear(8, 2).double())), (3,))
    reasons = {channels.frozen[int(atom)] for atom in channels.writes["0"]}
    assert reasons == {"1: GroupedLinear mixes channels, or is not known"}
    twice = ChannelPermutation.of(ORDERS["shuffle"])
    channels = find_channels(trace(nn.Sequential(nn.Linear(3, 12), twice, twice, nn.Linear(12, 2))), (3,))
    assert all(int(atom) in channels.frozen for atom in channels.writes["0"])
