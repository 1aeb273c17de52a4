"""Fusing nets whose chains are linear is exact, so any misalignment of kernel, stride or padding shows."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compresskit
from compresskit.errors import RecipeError, UnsupportedModelError
from compresskit.graph.edit import reset_parameters
from compresskit.graph.trace import trace
from compresskit.numerics.least_squares.solvers import Cholesky
from compresskit.numerics.moments.moments import MomentSums
from compresskit.passes.fuse.fusible import apply, find
from compresskit.passes.fuse.network import fuse, measure, solve
from compresskit.passes.fuse.options import Fuse, Pair
from compresskit.passes.fuse.together import rehearse
from compresskit.passes.moments import collect
from tests.graph.nets import Depthwise, Plain, Residual, batch, make


def sequence(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*layers).double().eval()


def loader(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of uneven size, targets of no meaning."""
    return [(part, torch.zeros(len(part))) for part in x.split(50)]


def data(*shape: int, count: int = 400, seed: int = 2) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).double()


EXACT = {  # chains without activation, inner padding or bias at a border: least squares finds them exactly
    "dense": ([nn.Linear(7, 9), nn.Linear(9, 4)], (7,)),
    "dense, three": ([nn.Linear(7, 9), nn.Linear(9, 8), nn.Linear(8, 4)], (7,)),
    "tokens": ([nn.Linear(7, 9), nn.Linear(9, 4)], (5, 7)),
    "1-D": ([nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(3, 4, 3)], (2, 12)),
    "2-D": ([nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, (3, 1))], (2, 8, 7)),
    "pooling": ([nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3)], (2, 10, 8)),
    "odd map": ([nn.Conv1d(2, 3, 3, padding=1), nn.AvgPool1d(2), nn.Conv1d(3, 4, 2)], (2, 13)),
    "strides": ([nn.Conv1d(2, 3, 3, stride=2), nn.Conv1d(3, 4, 3, stride=2)], (2, 23)),
    "dilation": ([nn.Conv1d(2, 3, 2, dilation=3), nn.Conv1d(3, 4, 3, dilation=2)], (2, 16)),
    "uneven": ([nn.Conv1d(1, 3, 4, stride=3, padding=3), nn.Conv1d(3, 4, 2)], (1, 15)),
    "crop": ([nn.Conv1d(1, 3, 2, stride=2), nn.AvgPool1d(2), nn.Conv1d(3, 2, 1, stride=2)], (1, 30)),
    "norm": ([nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 4, 2)], (2, 6, 6)),
    "flatten": ([nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)], (2, 6, 6)),
    "global": ([nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)], (2, 5, 5)),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_linear_chain_is_fused_exactly(name):
    layers, shape = EXACT[name]
    net = sequence(*copy.deepcopy(layers))
    x = data(*shape)
    fused, (row,) = fuse(net, loader(x), [["0", str(len(layers) - 1)]])
    torch.testing.assert_close(fused(x), net(x), rtol=1e-7, atol=1e-9)  # normal equations square the condition number
    assert row.unexplained < 1e-12  # rounding of the normal equations
    assert len(list(fused.modules())) == 2  # the root and one layer


@pytest.mark.parametrize("kernel", [None, 1, 2, 3, 4, 5, 11])
def test_any_kernel_keeps_the_size_of_the_map(kernel):
    net = sequence(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1))
    x = data(2, 7, 9, count=60)
    fused, (row,) = fuse(net, loader(x), [["0", "3"]], kernel=kernel)
    assert fused(x).shape == net(x).shape
    assert row.weight_shape[2:] == ((kernel, kernel) if kernel else (8, 8))
    assert 0 < row.error < row.variance


def test_more_kernel_never_explains_less():
    net = sequence(nn.Conv1d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(3, 4, 3, padding=1))
    x = data(1, 16)
    errors = [fuse(net, loader(x), [["0", "3"]], kernel=kernel)[1][0].error for kernel in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


def test_joint_channels_are_never_worse_than_independent_ones():
    net, x = trace(make(Plain)), batch(Plain, 200)
    plain = Cholesky(ridge=0.0)
    joint = fuse(net, loader(x), [["conv1", "conv2"]], solver=plain)[1][0]
    independent = fuse(net, loader(x), [["conv1", "conv2"]], solver=plain, channels="independent")[1][0]
    assert joint.error < independent.error


def test_independent_channels_of_a_flattened_map_are_whole_maps():
    net, x = trace(make(Plain)), batch(Plain, 300)
    joint, independent = (
        fuse(net, loader(x), [["conv2", "fc1"]], channels=how)[1][0] for how in ("joint", "independent")
    )
    assert find(net, ("conv2", "fc1"), (2, 8, 8)).taps == 16
    assert joint.error < independent.error < 2 * independent.variance


def test_a_solver_can_be_named():
    net, x = trace(make(Plain)), batch(Plain, 300)
    assert fuse(net, loader(x), [["conv2", "fc1"]], solver="eigh")[1][0].solver == "eigh"


def test_a_random_baseline_draws_every_layer_and_names_what_no_layer_draws():
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(4))
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x + self.token, x)[0]

    network = trace(Token())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    assert reset_parameters(network, 3) == ["token"]
    assert torch.equal(torch.random.get_rng_state(), state)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} <= changed


def test_a_block_with_its_shortcut_becomes_one_convolution_before_the_activation():
    net, x = make(Residual), batch(Residual, 300)
    network, (row,) = fuse(net, loader(x), [["block2"]])
    assert row.weight_shape == (6, 4, 7, 7)  # conv 3x3 of stride 2, conv 3x3: 3 + 2 * 2
    names = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    assert "block2.fused" in names
    assert "block2.relu" in names
    assert not names & {"block2.conv1", "block2.conv2", "block2.shortcut", "block2.norm2"}
    assert row.unexplained < 1


def test_the_batch_norm_behind_the_last_layer_stays():
    net, x = make(Residual), batch(Residual, 300)
    network, _ = fuse(net, loader(x), [["block1.conv1", "block1.conv2"]])
    names = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    assert "block1.norm2" in names
    assert "block1.norm1" not in names


def test_groups_are_kept_where_nothing_mixes_them():
    net, x = make(Depthwise), batch(Depthwise, 300)
    network, (row,) = fuse(net, loader(x), [["conv1", "conv2"]])
    assert network.get_submodule("conv2").groups == 2
    assert row.weight_shape == (8, 2, 8)
    widened, _ = fuse(net, loader(x), [["conv1", "conv2"]], kernel=3)
    assert widened.get_submodule("conv2").weight.shape == (8, 2, 3)


def test_pairs_are_fused_one_after_another_under_the_name_of_the_last():
    net, x = make(Plain), batch(Plain, 300)
    network, rows = fuse(net, loader(x), [["fc1", "fc2"], ["conv2", "fc2"], ["conv1", "fc2"]])
    assert [row.layers for row in rows] == [("fc1", "fc2"), ("conv2", "fc2"), ("conv1", "fc2")]
    assert [str(node.target) for node in network.graph.nodes if node.op == "call_module"] == ["fc2"]
    assert network.get_submodule("fc2").weight.shape == (3, 2 * 8 * 8)


def test_the_argument_stays_as_it_was():
    net, x = make(Plain).train(), batch(Plain, 100)
    before = copy.deepcopy(net.state_dict())
    network = trace(net)
    fuse(network, loader(x), [["conv1", "conv2"]])
    assert net.training
    assert {name for name, _ in network.named_modules()} >= {"conv1", "conv2"}
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_predicted_errors_are_those_measured_on_the_same_images():
    network, x = trace(make(Plain)), batch(Plain, 300)
    for layers in (("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")):
        fusible = find(network, layers, (2, 8, 8))
        sums = {fusible.request.name: fusible.request.zeros("cpu")}
        collect(network, [fusible.request], loader(x), sums)
        fusion = solve(fusible, sums[fusible.request.name].finish(), Fuse())
        error, share = measure(network, fusible, fusion, loader(x))
        assert error == pytest.approx(fusion.error, rel=1e-9)
        assert share == pytest.approx(fusion.error / fusion.variance, rel=1e-9)
        fused = apply(network, fusible, fusion)
        assert not torch.equal(fused(x), network(x))


def test_one_row_has_no_variance_of_which_to_take_a_share():
    network, x = trace(make(Plain)), batch(Plain, 300)
    fusible = find(network, ("fc1", "fc2"), (2, 8, 8))
    sums = {fusible.request.name: fusible.request.zeros("cpu")}
    collect(network, [fusible.request], loader(x), sums)
    error, share = measure(network, fusible, solve(fusible, sums[fusible.request.name].finish(), Fuse()), loader(x[:1]))
    assert error > 0
    assert math.isnan(share)


def test_targets_can_come_from_another_net():
    student, teacher, x = trace(make(Plain)), trace(make(Plain, seed=5)), batch(Plain, 40)
    request = find(student, ("conv1", "conv2"), (2, 8, 8)).request
    sums = {request.name: request.zeros("cpu")}
    collect(student, [request], loader(x), sums, teacher=teacher)
    expected = MomentSums.zeros(request.features, request.outputs)
    hidden = F.max_pool2d(F.relu(teacher.norm1(teacher.conv1(x))), 2)
    expected.add(x, teacher.conv2(hidden), request.patches)
    for name, tensor in expected.tensors().items():
        torch.testing.assert_close(sums[request.name].tensors()[name], tensor)


def test_savings_are_what_the_counts_say():
    network = trace(make(Plain))
    fusible = find(network, ("conv2", "fc1"), (2, 8, 8))
    removed = (4 * 3 * 9 + 4) + (64 * 5 + 5)
    assert fusible.saved_params == removed - (5 * 48 + 5)
    assert fusible.saved_macs == (4 * 3 * 9 * 16 + 64 * 5) - 5 * 48


@pytest.mark.parametrize(
    ("layers", "kernel", "message"),
    [
        (("conv1", "conv2"), (3, 3, 3), r"conv1\+conv2: kernel \(3, 3, 3\) has 3 sizes, the maps 2 dimensions"),
        (("fc1", "nothing"), None, r"no layer is named 'nothing'"),
    ],
)
def test_refusals(layers, kernel, message):
    with pytest.raises((RecipeError, UnsupportedModelError), match=message):
        find(trace(make(Plain)), layers, (2, 8, 8), kernel)


def test_a_chain_that_sees_the_whole_map_asks_for_a_kernel():
    gate = sequence(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(3), nn.Conv1d(2, 2, 1))
    network = trace(gate)
    with pytest.raises(UnsupportedModelError, match=r"sees the whole map; give a `kernel`"):
        find(network, ("0", "2"), (1, 9))
    assert find(network, ("0", "2"), (1, 9), kernel=3).weight_shape == (2, 1, 3)


def test_rehearse_stops_at_the_first_entry_that_cannot_be():
    network = trace(make(Plain))
    planned = rehearse(network, (2, 8, 8), Fuse(layers=(("conv1", "conv2"), Pair(first="conv2", last="fc1"))))
    assert [str(one.fusible.chain) for one in planned] == ["conv1+conv2", "conv2+fc1"]
    with pytest.raises(RecipeError, match="no layer is named 'conv1'"):
        rehearse(network, (2, 8, 8), Fuse(layers=(("conv1", "conv2"), ("conv1", "fc1"))))


def test_the_python_interface_is_this_function():
    assert compresskit.fuse is fuse


class Padded(nn.Module):
    """Two convolutions with paddings of the map around them."""

    def __init__(self, between: nn.Module | None = None, pads=(1, 1, 1, 1)) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
        self.pad, self.pads, self.between = nn.ZeroPad2d((1, 1, 1, 1)), pads, between or nn.Identity()

    def forward(self, x):
        return self.last(torch.nn.functional.pad(self.between(self.first(self.pad(x))), self.pads))


@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (2, 0, 1, 1), (0, 0, 0, 0), (-1, -1, -1, -1)])
def test_paddings_are_part_of_a_chain(pads):
    """Without activations the fused layer is exact away from the border, so it is aligned."""
    net = Padded(pads=pads).double()
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, 12, 12, generator=draws, dtype=torch.float64)
    traced = trace(net)
    with torch.no_grad():
        traced.first.bias.zero_()
        fused, rows = fuse(traced, loader(x), [["first", "last"]])
        expected, found = traced(x), fused(x)
    assert expected.shape == found.shape
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    if pads == (0, 0, 0, 0) or pads == (-1, -1, -1, -1):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    else:  # one kernel for border and middle: least squares gives the border its part
        assert float((found - expected)[inner].norm() / expected[inner].norm()) < 0.2
    assert rows[0].unexplained < 0.1


@pytest.mark.parametrize("layer", [nn.Upsample(scale_factor=2), nn.ConvTranspose2d(3, 3, 2, stride=2)])
def test_what_makes_a_map_larger_is_refused_by_name(layer):
    x = torch.randn(4, 1, 12, 12)
    with pytest.raises(UnsupportedModelError, match="between makes the map larger, which no convolution can"):
        fuse(trace(Padded(layer)), loader(x), [["first", "last"]])
