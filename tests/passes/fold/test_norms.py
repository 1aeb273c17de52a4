"""Folded batch norms against torch's own, in float64, with random statistics and affine parameters."""

import pytest
import torch
from torch import Tensor, fx, nn

from compresskit.graph.format.table import to_table
from compresskit.graph.trace import trace
from compresskit.passes.fold.affine import before, behind
from compresskit.passes.fold.norms import fold_norms


def randomised(net: nn.Module) -> nn.Module:
    """In eval mode and float64, statistics and affine parameters drawn."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net.eval().double()


def folded(net: nn.Module, shape: tuple[int, ...], masks: dict[str, Tensor] | None = None):
    """The outcome, after its function was compared with the original's."""
    network = trace(randomised(net), shape).eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    outcome = fold_norms(network, shape, masks or {})
    inputs = torch.randn(4, *shape, dtype=torch.float64)
    expected = network(inputs).detach()
    close = 1e-10 * float(expected.abs().max())  # of deep nets, whose values cancel
    torch.testing.assert_close(outcome.network(inputs), expected, rtol=0, atol=close)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    to_table(outcome.network)  # a checkpoint can hold it
    return outcome


def norms(network: fx.GraphModule) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


LAYERS = {
    "linear": (nn.Linear(6, 4), nn.BatchNorm1d(4), (6,)),
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4), (6, 7)),
    "conv2d": (nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2), nn.BatchNorm2d(4), (6, 7, 8)),
    "conv3d": (nn.Conv3d(6, 4, 2, bias=False), nn.BatchNorm3d(4, affine=False), (6, 3, 4, 5)),
    "groups": (nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4), (6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, padding=1), nn.BatchNorm2d(12), (6, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2), nn.BatchNorm2d(4), (6, 3, 3)),
    "transposed, groups": (nn.ConvTranspose1d(6, 8, 3, groups=2, bias=False), nn.BatchNorm1d(8), (6, 5)),
    "dropout between": (nn.Sequential(nn.Conv2d(6, 4, 3), nn.Dropout2d(0.5)), nn.BatchNorm2d(4), (6, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_behind_a_layer(name):
    torch.manual_seed(0)
    layer, norm, shape = LAYERS[name]
    outcome = folded(nn.Sequential(layer, norm, nn.Tanh()), shape)
    assert (list(outcome.layers), outcome.left) == (["1"], {})
    assert norms(outcome.network) == 0


BEFORE = {
    "linear": (nn.BatchNorm1d(6), nn.Linear(6, 4), (6,)),
    "conv1d": (nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3, bias=False), (6, 7)),
    "conv2d, groups": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, stride=2, groups=2), (6, 7, 8)),
    "depthwise": (nn.BatchNorm2d(6), nn.Conv2d(6, 12, 3, groups=6, padding="valid"), (6, 7, 8)),
    "conv3d": (nn.BatchNorm3d(6), nn.Conv3d(6, 4, 1), (6, 3, 4, 5)),
    "reflected": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (6, 7, 8)),
    "same, one tap": (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, padding="same"), (6, 7, 8)),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_norm_before_a_layer(name):
    torch.manual_seed(0)
    norm, layer, shape = BEFORE[name]
    outcome = folded(nn.Sequential(nn.Tanh(), norm, layer), shape)
    assert (outcome.layers, outcome.left) == ({"1": ["2"]}, {})


@pytest.mark.parametrize("padding", [1, "same"])
def test_zero_padding_takes_a_norm_without_shift_alone(padding):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=padding))
    assert "pads with zeros" in folded(net, (3, 6, 6)).left["1"]
    network = trace(net, (3, 6, 6)).eval()
    norm = network.get_submodule("1")
    nn.init.zeros_(norm.bias)
    nn.init.zeros_(norm.running_mean)
    outcome = fold_norms(network, (3, 6, 6), {})
    inputs = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(outcome.network(inputs), network(inputs), rtol=1e-11, atol=1e-11)
    assert (outcome.layers, outcome.left) == ({"1": ["2"]}, {})


class ReadTwice(nn.Module):
    """The first norm's layer is read by a shortcut, too; the second norm is read by two layers."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.tail = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.behind, self.one, self.two = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), second

    def forward(self, x):
        x = self.conv(x)
        y = self.behind(torch.tanh(self.tail(torch.relu(self.norm(x))) + x))
        return self.one(y).mean((2, 3)) + self.two(y).mean((2, 3))


def test_a_layer_that_others_read_is_left_and_a_norm_for_several_layers_is_taken_into_all():
    torch.manual_seed(0)
    outcome = folded(ReadTwice(nn.Conv2d(4, 2, 1)), (3, 6, 6))
    assert sorted(outcome.layers["behind"]) == ["one", "two"]
    assert outcome.left["norm"].startswith("conv before it is also read by add; relu behind it is no convolution")
    outcome = folded(ReadTwice(nn.Conv2d(4, 2, 3, padding=1)), (3, 6, 6))
    assert outcome.layers == {}
    assert "two behind it pads with zeros" in outcome.left["behind"]


class Shared(nn.Module):
    """One convolution and one norm, each called twice; and a norm behind two layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.left, self.right, self.both = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(torch.relu(self.norm(self.conv(x))))))
        return torch.relu(self.both(self.left(x))) + torch.relu(self.both(self.right(x)))


def test_shared_layers_are_left_and_a_shared_norm_is_taken_into_each():
    torch.manual_seed(0)
    outcome = folded(Shared(), (3, 6, 6))
    assert outcome.layers == {"both": ["left", "right"]}
    assert "conv before it is called more than once" in outcome.left["norm"]
    assert norms(outcome.network) == 1


class Partly(nn.Module):
    """A norm that one of two layers can take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))) + torch.relu(self.norm(torch.tanh(x)))


def test_a_norm_stays_for_the_calls_that_need_it():
    torch.manual_seed(0)
    outcome = folded(Partly(), (3, 6, 6))
    assert outcome.layers == {"norm": ["conv"]}
    assert list(outcome.left) == ["norm"]
    assert norms(outcome.network) == 1


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.other = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.other(torch.relu(self.norm(self.one(x))))


def test_tied_weights_are_left():
    torch.manual_seed(0)
    assert "shares its weights" in folded(Tied(), (4,)).left["norm"]


def test_other_dimensions_and_norms_without_statistics_are_left():
    torch.manual_seed(0)
    rows = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Tanh())
    assert "another dimension" in folded(rows, (5, 6)).left["1"]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert folded(net, (3, 5, 5)).left == {"1": "it normalises by each batch, since it has no statistics"}


def test_masks_of_weights_stay_right_and_those_of_biases_keep_the_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    mask, bias = torch.rand(4, 3, 3, 3) > 0.5, torch.tensor([True, False])
    with torch.no_grad():
        net[0].weight.mul_(mask)
        net[3].bias.mul_(bias)
    outcome = folded(net, (3, 8, 8), {"0.weight": mask, "3.bias": bias})
    assert outcome.layers == {"1": ["0"]}
    assert torch.equal(outcome.network.get_parameter("0.weight") != 0, mask)
    assert "the bias of 3 before it is masked" in outcome.left["4"]
    outcome = folded(net, (3, 8, 8), {"1.weight": torch.ones(4, dtype=torch.bool)})
    assert "it has masks of its own" in outcome.left["1"]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_formulas_entry_by_entry(groups):
    """Rows s W and s b + t; columns W s and b + sum W t, by loops."""
    torch.manual_seed(0)
    rows, columns = nn.Conv1d(4, 6, 2, groups=groups).double(), nn.Conv1d(4, 6, 2, groups=groups).double()
    scale, shift, wide = torch.randn(6).double(), torch.randn(6).double(), torch.randn(2, 4).double()
    weights, biases = ([getattr(one, kind).detach().clone() for one in (rows, columns)] for kind in ("weight", "bias"))
    behind(rows, scale, shift)
    before(columns, wide[0], wide[1])
    for out in range(6):
        moved = float(scale[out] * biases[0][out] + shift[out])
        assert float(rows.bias.detach()[out]) == pytest.approx(moved, abs=1e-14)
        bias = float(biases[1][out])
        for place in range(4 // groups):
            channel = out // (6 // groups) * (4 // groups) + place
            for tap in range(2):
                assert float(rows.weight.detach()[out, place, tap]) == float(weights[0][out, place, tap] * scale[out])
                weight = float(weights[1][out, place, tap])
                assert float(columns.weight.detach()[out, place, tap]) == weight * float(wide[0][channel])
                bias += weight * float(wide[1][channel])
        assert float(columns.bias.detach()[out]) == pytest.approx(bias, abs=1e-13)


def of_torchvision(name: str) -> None:
    from torchvision import models

    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = 80 if name == "inception_v3" else 224 if "vit" in name else 32 if "vgg" in name else 64
    net = models.get_model(name, weights=None, **options)
    before = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    outcome = folded(net, (3, size, size))
    assert len(outcome.layers) + len(outcome.left) == before
    assert norms(outcome.network) == len(outcome.left)
    assert not before or len(outcome.layers) >= before // 3


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_of_torchvision(name):
    of_torchvision(name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_of_torchvision():
    from torchvision import models

    for name in models.list_models(module=models):
        if not name.startswith(("vit", "regnet_y_128")):  # without batch norms; of gigabytes
            of_torchvision(name)
