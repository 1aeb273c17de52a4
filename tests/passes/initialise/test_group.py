"""Grouped layers in the place of masked ones: the same function, the same gradients, and what is left alone."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compresskit.graph.counting import count
from compresskit.graph.format.table import to_table
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.layers.grouped_stack import GroupedStack
from compresskit.graph.masks import apply_masks, kept
from compresskit.graph.trace import trace
from compresskit.numerics.sparse.ramanujan import blocks
from compresskit.passes.initialise.group import Grouped, group
from compresskit.passes.initialise.stack import unstacked
from compresskit.storage.checkpoint import Checkpoint, load, save
from tests.sparse import block_mask, scattered


class Mlp(nn.Module):
    """A dense layer behind sparse ones, another behind a sum, and values that are viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 24)
        self.drop, self.head, self.last = nn.Dropout(0.5), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = torch.tanh(self.fc1(x))
        x = x + F.relu(self.fc2(x))
        x = self.drop(self.fc3(x).clamp(-1.0, 1.0)).view(-1, 12)  # of two rows for each sample
        return self.last(self.head(x).view(-1, 3, 4).flatten(1))


class Cnn(nn.Module):
    """Strides, paddings, batch norms, pools, a residual sum, and a flatten before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="circular", bias=False),
            nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.conv3, self.conv4 = nn.Conv2d(16, 8, 3, padding="same"), nn.Conv2d(8, 8, 1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8 * 8, 4)

    def forward(self, x):
        x = self.block(self.conv1(x))
        x = F.avg_pool2d(F.gelu(self.conv3(x)), 1)
        return self.fc(torch.flatten(x + self.norm(self.conv4(x)), 1))


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.slopes, self.two = nn.Conv1d(4, 8, 3, stride=2), nn.PReLU(8), nn.Conv1d(8, 4, 2)
        self.three, self.head = nn.Conv1d(4, 4, 1), nn.Linear(9, 9)

    def forward(self, x):
        return self.head(self.three(self.two(self.slopes(self.one(x)))))


NETS = {
    "mlp": (Mlp, (16,), {"fc1": 4, "fc2": 2, "fc3": 4, "head": 6}),
    "cnn": (Cnn, (3, 9, 8), {"block.0": 4, "conv3": 2, "conv4": 2}),
    "1-D": (Signal, (4, 21), {"one": 2, "two": 4, "head": 3}),
}


def make(name: str, seed: int | None = 0) -> tuple[fx.GraphModule, dict[str, torch.Tensor], torch.Tensor]:
    """A masked network in float64, its masks and a batch. seed: of the orders in the masks, None for shuffles."""
    torch.manual_seed(0)
    kind, shape, degrees = NETS[name]
    network = trace(kind()).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.9)
    masks = {}
    for number, (layer, degree) in enumerate(degrees.items()):
        weight = network.get_parameter(f"{layer}.weight")
        mask = block_mask(*weight.shape[:2], degree)
        mask = mask if seed is None else scattered(mask, seed + number)
        masks[f"{layer}.weight"] = mask.view(*mask.shape, *[1] * (weight.ndim - 2)).expand_as(weight).clone()
    apply_masks(network, masks)
    return network.eval(), masks, torch.randn(6, *shape, dtype=torch.float64)


def gradients(network: nn.Module, x: torch.Tensor, direction: torch.Tensor) -> dict[str, torch.Tensor]:
    value = (network(x) * direction).sum()
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


def check_same(network: nn.Module, found: Grouped, x: torch.Tensor) -> None:
    """Outputs, and gradients of the weights that are kept."""
    expected = network(x)
    torch.testing.assert_close(found.network(x), expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    theirs, ours = gradients(network, x, direction), gradients(found.network, x, direction)
    for layer in found.layers:
        rows, columns = layer.blocks.rows, layer.blocks.columns
        mine, whole = ours[f"{layer.name}.weight"], theirs[f"{layer.name}.weight"]
        blocks = whole[rows[:, :, None], columns[:, None, :]].flatten(0, 1)
        torch.testing.assert_close(mine, blocks, rtol=1e-11, atol=1e-11)  # sums over batch and positions
        if f"{layer.name}.bias" in theirs:
            torch.testing.assert_close(
                ours[f"{layer.name}.bias"], theirs[f"{layer.name}.bias"][rows.flatten()], rtol=1e-11, atol=1e-11
            )


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("name", NETS)
def test_the_function_and_the_gradients_stay(name, seed):
    network, masks, x = make(name, seed)
    before = copy.deepcopy(network.state_dict())
    found = group(network, masks)
    assert ({f"{layer.name}.weight" for layer in found.layers}, found.skipped, found.masks) == (set(masks), {}, {})
    check_same(network, found, x)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    counts = count(found.network, tuple(x.shape[1:]))
    assert (counts.parameters, counts.macs) == kept(count(network, tuple(x.shape[1:])), masks)
    to_table(found.network)


@pytest.mark.parametrize("name", NETS)
def test_training_mode_and_what_is_trained_stay(name):
    network, masks, x = make(name)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what is dropped is drawn in another order
    network.get_parameter(next(iter(masks))).requires_grad_(False)
    found = group(network.train(), masks)
    frozen = [key for key, parameter in found.network.named_parameters() if not parameter.requires_grad]
    assert frozen == [next(iter(masks))]
    assert all(module.training for module in found.network.modules() if type(module) not in (ChannelPermutation,))
    torch.testing.assert_close(found.network(x), network(x), rtol=1e-12, atol=1e-12)
    for key, statistics in network.named_buffers():  # in another order where a permutation moved over the norm
        torch.testing.assert_close(
            found.network.get_buffer(key).double().sort().values, statistics.double().sort().values,
            rtol=1e-12, atol=1e-12,
        )  # fmt: skip


def modules(network: fx.GraphModule) -> list[str]:
    """What is called, in order."""
    return [str(node.target) for node in network.graph.nodes if node.op == "call_module"]


def test_layers_keep_their_options():
    network, masks, _ = make("cnn")
    ours, theirs = group(network, masks).network.get_submodule("block.0"), network.get_submodule("block.0")
    for option in ("kernel_size", "stride", "padding", "dilation", "padding_mode", "in_channels", "out_channels"):
        assert getattr(ours, option) == getattr(theirs, option)
    assert (ours.groups, ours.bias, ours.weight.shape) == (4, None, (16, 4, 3, 3))


def test_permutations_meet_merge_and_vanish():
    network, masks, _ = make("mlp")
    assert modules(group(network, masks).network) == [  # fc1's is read twice, head's is viewed
        "fc1_in", "fc1", "fc1_out", "fc2_in", "fc2", "fc2_out", "fc3_in", "fc3", "fc3_out", "drop", "head_in", "head",
        "head_out", "last",
    ]  # fmt: skip
    network, masks, _ = make("cnn")
    assert modules(group(network, masks).network) == [  # conv3's blocks have one output each, which are in order
        "conv1", "block.0_in", "block.0", "block.0_out", "block.1", "block.2", "block.3", "conv3", "conv4_in", "conv4",
        "conv4_out", "norm", "fc",
    ]  # fmt: skip
    network, masks, _ = make("1-D")  # two's order goes into the weight of three, which is dense
    assert modules(group(network, masks).network) == [
        "one", "one_out", "slopes", "two_in", "two", "three", "head_in", "head", "head_out"
    ]  # fmt: skip


def test_a_chain_of_shuffles_has_one_each_and_no_numbers():
    network = trace(nn.Sequential(*[module for _ in range(3) for module in (nn.Linear(16, 16), nn.Tanh())]))
    masks = {f"{number}.weight": block_mask(16, 16, 4) for number in (0, 2, 4)}
    found = group(network, masks).network
    assert modules(found) == ["0", "0_out", "1", "2", "2_out", "3", "4", "4_out", "5"]
    assert isinstance(found.get_submodule("0"), GroupedLinear)
    assert not list(found.buffers())


def test_orders_that_undo_each_other_vanish():
    network = trace(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)))
    masks = {"0.weight": block_mask(16, 16, 4), "2.weight": block_mask(16, 16, 4).t().clone()}
    found = group(network, masks)
    assert modules(found.network) == ["0", "1", "2"]
    apply_masks(network, masks)
    torch.testing.assert_close(found.network(torch.ones(2, 16)), network(torch.ones(2, 16)))


def test_a_dense_layer_with_a_mask_of_its_own_takes_an_order_with_its_mask():
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))).double()
    masks = {"0.weight": block_mask(16, 16, 4), "2.weight": torch.rand(5, 16) > 0.5}
    apply_masks(network, masks)
    found = group(network, masks)
    assert modules(found.network) == ["0", "1", "2"]
    assert (list(found.skipped), list(found.masks)) == (["2"], ["2.weight"])
    assert not torch.equal(found.masks["2.weight"], masks["2.weight"])
    assert not found.network.get_parameter("2.weight")[~found.masks["2.weight"]].any()
    check_same(network, found, torch.randn(4, 16, dtype=torch.float64))


class Stops(nn.Module):
    """What an order of channels must not be taken over or into, between a sparse layer and a dense one each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv1d(8, 8, 1) for _ in range(3))
        self.mix1, self.mix2, self.mix3 = nn.Conv1d(10, 8, 1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1)
        self.pool, self.norm = nn.MaxPool1d(2, return_indices=True), nn.BatchNorm1d(8)
        self.fc, self.twice, self.rows = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.columns = nn.Conv1d(8, 8, 1)

    def forward(self, x):
        x = self.mix1(F.pad(self.conv1(x), (0, 0, 0, 2)))  # two more channels
        x = self.mix2(self.pool(self.conv2(x))[0])
        x = self.mix3(self.norm(self.norm(self.conv3(x))))
        x = self.twice(self.twice(self.fc(x)))
        return self.columns(torch.tanh(self.rows(x)))  # along different dimensions


def test_an_order_stops_where_channels_are_told_apart():
    torch.manual_seed(0)
    network = trace(Stops()).double()
    for tensor in (network.norm.running_mean, network.norm.weight, network.norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    masks = {f"{name}.weight": block_mask(8, 8, 2) for name in ("conv1", "conv2", "conv3", "fc", "rows")}
    masks = {name: mask[..., None] if "conv" in name else mask for name, mask in masks.items()}
    masks["columns.weight"] = block_mask(8, 8, 2).t()[..., None]  # its inputs are in another order, not its outputs
    apply_masks(network, masks)
    found = group(network.eval(), masks)
    permutations = [name for name in modules(found.network) if "_" in name]
    assert permutations == ["conv1_out", "conv2_out", "conv3_out", "fc_out", "rows_out", "columns_in"]
    check_same(network, found, torch.randn(3, 8, 16, dtype=torch.float64))


def test_names_that_are_taken():
    network, masks, x = make("mlp")
    network.add_submodule("fc2_in", nn.Tanh())
    with network.graph.inserting_before(next(n for n in network.graph.nodes if n.op == "output")) as _:
        (last,) = (n for n in network.graph.nodes if n.target == "last")
        node = network.graph.call_module("fc2_in", (last,))
    last.replace_all_uses_with(node, lambda user: user is not node)
    network.recompile()
    found = group(network, masks)
    assert "fc2_in_" in modules(found.network)
    check_same(network, found, x)


class Odd(nn.Module):
    """Every reason why a layer stays."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.read, self.overlapping, self.uneven = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.empty, self.full, self.biased, self.fine = (nn.Linear(8, 8) for _ in range(4))
        self.conv, self.depth, self.cube = nn.Conv1d(8, 8, 2), nn.Conv1d(8, 8, 1, groups=2), nn.Conv3d(8, 8, 1)

    def forward(self, x):
        x = self.two(self.one(self.twice(self.twice(x))))
        x = self.overlapping(self.read(x) + self.read.weight[0])
        x = self.fine(self.biased(self.full(self.empty(self.uneven(x)))))
        x = self.depth(self.conv(x[:, :, None].expand(-1, -1, 2)))
        return self.cube(x[..., None, None]).flatten(1)


def test_what_is_no_such_layer_is_left_alone_with_the_reason():
    torch.manual_seed(0)
    network, mask = trace(Odd()).double(), block_mask(8, 8, 2)
    masks = {f"{name}.weight": mask.clone() for name in ("twice", "one", "read", "biased", "fine")}
    masks["biased.bias"] = torch.arange(8) > 0
    masks["overlapping.weight"] = mask | mask.roll(1, 1)
    masks["overlapping.weight"][0] = mask[0]
    masks["uneven.weight"] = torch.block_diag(torch.ones(2, 2), torch.ones(6, 6)) > 0
    masks["empty.weight"] = mask.clone()
    masks["empty.weight"][:, 3] = False
    masks["full.weight"] = torch.ones(8, 8, dtype=torch.bool)
    masks["conv.weight"] = mask[:, :, None].expand(8, 8, 2).clone()
    masks["conv.weight"][0, 0, 1] = False
    masks["depth.weight"] = torch.ones(8, 4, 1, dtype=torch.bool)
    masks["cube.weight"] = mask[:, :, None, None, None].clone()
    apply_masks(network, masks)
    found = group(network, masks)
    reasons = {
        "twice": "it is called 2 times",
        "one": "its weights are read by something else, too",
        "read": "its weights are read by something else, too",
        "overlapping": "outputs share some of their inputs, but not all",
        "uneven": "its blocks are of several sizes",
        "empty": "an input or an output has no weight left",
        "full": "its mask keeps every weight",
        "biased": "its bias is masked, too",
        "biased.bias": "it is no weight of a linear layer or of a convolution in one or two dimensions",
        "conv": "its mask takes single weights out of kernels",
        "depth": "it has groups already",
        "cube": "it is no weight of a linear layer or of a convolution in one or two dimensions",
    }
    assert found.skipped == reasons
    assert [layer.name for layer in found.layers] == ["fine"]
    assert set(found.masks) == set(masks) - {"fine.weight"}
    check_same(network, found, torch.randn(3, 8, dtype=torch.float64))


def test_a_file_holds_the_weights_that_are_kept_and_no_more(tmp_path):
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(256, 256)))
    masks = {"0.weight": block_mask(256, 256, 4)}
    apply_masks(network, masks)
    found, x = group(network, masks), torch.randn(3, 256)
    save(Checkpoint(found.network, {"kind": "mlp"}, (256,), "classification", {}, []), tmp_path / "model.pt")
    back = load(tmp_path / "model.pt")
    assert (back.masks, torch.equal(back.network(x), found.network(x))) == ({}, True)
    assert sum(tensor.numel() for tensor in back.network.state_dict().values()) == 256 * 4 + 256
    overhead = 6000  # names, the graph, and the archive around them
    assert 4 * (256 * 4 + 256) < (tmp_path / "model.pt").stat().st_size < 4 * (256 * 4 + 256) + overhead


class Deep(nn.Module):
    """Square layers: five with tanh, as modules and as calls, two with ReLU, and between them what breaks a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.deep = nn.ModuleList(nn.Linear(16, 16) for _ in range(9))
        self.act, self.drop, self.last = nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for layer in self.deep[:3]:
            x = self.act(layer(x))
        x = self.deep[4](self.deep[3](x).tanh()).tanh()
        x = self.drop(x)
        x = F.relu(self.deep[6](F.relu(self.deep[5](x))))
        x = F.relu(self.deep[7](x)) + x
        return self.last(F.relu(self.deep[8](x)))


def deep() -> tuple[fx.GraphModule, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network, generator = trace(Deep()).double(), torch.Generator()
    masks = {f"deep.{n}.weight": blocks(16, 16, 4, "shuffle", generator).mask() for n in range(9)}
    masks["first.weight"] = blocks(16, 8, 4, "shuffle", generator).mask()
    apply_masks(network, masks)
    return network, masks


def test_chains_become_stacks():
    network, masks = deep()
    found = group(network, masks)
    assert found.stacks == [[f"deep.{n}" for n in range(5)], ["deep.5", "deep.6"]]
    assert not found.skipped
    modules = dict(found.network.named_modules())
    assert {name for name, module in modules.items() if isinstance(module, GroupedStack)} == {"deep.0", "deep.5"}
    assert all(isinstance(modules[name], GroupedLinear) for name in ("deep.7", "deep.8"))
    for training in (False, True):
        x = torch.randn(6, 8, dtype=torch.float64)
        outputs = []
        for each in (network, found.network):
            each.train(training).zero_grad()
            torch.manual_seed(3)
            outputs.append(each(x))
            outputs[-1].square().sum().backward()
        if not training:  # dropout draws in another order where channels are in another
            torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
            for layer in found.layers:
                rows, columns = layer.blocks.rows[:, :, None], layer.blocks.columns[:, None, :]
                whole = network.get_parameter(f"{layer.name}.weight").grad[rows, columns].flatten(0, 1)
                torch.testing.assert_close(gradient_of(found, layer.name), whole, rtol=1e-11, atol=1e-11)


def gradient_of(found: Grouped, layer: str) -> torch.Tensor:
    for names in found.stacks:
        if layer in names:
            return found.network.get_parameter(f"{names[0]}.weight").grad[names.index(layer)]
    return found.network.get_parameter(f"{layer}.weight").grad


def test_a_stack_is_saved_and_loaded(tmp_path):
    network, masks = deep()
    found = group(network, masks)
    save(Checkpoint(found.network, {}, (8,), "classification", {}, []), tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt").network
    x = torch.randn(6, 8, dtype=torch.float64)
    assert loaded(x).equal(found.network.eval()(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_stack_comes_apart_again(bias):
    torch.manual_seed(0)
    modules = [m for _ in range(4) for m in (nn.Linear(16, 16, bias), nn.Tanh())]
    network = trace(nn.Sequential(*modules)).double()
    masks = {f"{n}.weight": blocks(16, 16, 4, "shuffle", torch.Generator()).mask() for n in (0, 2, 4, 6)}
    apply_masks(network, masks)
    found = group(network, masks).network.eval()
    apart = unstacked(found)
    names = [name for name, module in apart.named_modules() if isinstance(module, GroupedLinear)]
    assert names == ["0.0", "0.1", "0.2", "0.3"]
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(apart(x), found(x), rtol=1e-13, atol=1e-13)
    assert isinstance(found.get_submodule("0"), GroupedStack)
