"""Every way of drawing weights, on linear layers and convolutions: what it promises of the true operator."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.errors import RecipeError
from compresskit.graph.format.table import from_table, to_table
from compresskit.graph.trace import trace
from compresskit.passes.initialise.network import initialise, regular_masks
from compresskit.passes.initialise.options import (
    DeltaOrthogonal,
    Explicit,
    Kaiming,
    Normal,
    Orthogonal,
    Skew,
    Uniform,
    Xavier,
)
from compresskit.passes.initialise.sparse_options import (
    INITIALISATIONS,
    SAO,
    Ramanujan,
    RamanujanNormal,
    RamanujanUniform,
    SAODelta,
    SAOExplicit,
    Sparse,
)

SIZE = (3, 16, 16)
KINDS = list(INITIALISATIONS)
ISOMETRIC = ["delta-orthogonal", "eco", "soc", "sao-delta", "sao-eco"]  # on convolutions and linear layers


def layers():
    """Wider and narrower convolutions, one with a stride, of which each side divides by 4 but the ends'."""
    named = {
        "first": nn.Conv2d(3, 8, 3, padding=1),
        "act": nn.ReLU(),
        "same": nn.Conv2d(8, 8, 3, padding=1, bias=False),
        "wider": nn.Conv2d(8, 16, 3, padding=1),
        "narrower": nn.Conv2d(16, 8, 3, padding=1),
        "strided": nn.Conv2d(8, 16, 3, stride=2, padding=1),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(16, 8),
        "square": nn.Linear(8, 8),
        "last": nn.Linear(8, 6),
    }
    return trace(nn.Sequential(OrderedDict(named))).double()


def way_of(kind, **options):
    cls = INITIALISATIONS[kind]
    return cls(**({"degree": 4} if issubclass(cls, Sparse) else {}), **options)


def singular_values(module, channels, side=8):
    """Of the Jacobian of what stands in the place of a layer, `min(inputs, outputs)` of them."""
    shape = (1, channels, side, side) if side else (1, channels)
    at = torch.zeros(shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x).flatten(), at).flatten(1)
    return torch.linalg.svdvals(jacobian)


def test_what_no_way_can_draw_is_told():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    before = net[1].weight.clone()
    found = initialise(trace(net), [Orthogonal()], SIZE, 0)
    assert [layer.name for layer in found.layers] == ["0", "3"]
    assert found.others == ["1"]
    assert torch.equal(found.network.get_submodule("1").weight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_draws_every_layer_it_is_for(kind):
    linear = ("@linear",) if kind in ("sao", "orthogonal") else ("re:.*",)
    found = initialise(layers(), [way_of(kind, layers=linear)], SIZE, 0)
    assert [layer.name for layer in found.layers][-3:] == ["fc", "square", "last"]
    assert found.others == (["first", "same", "wider", "narrower", "strided"] if len(linear[0]) > 5 else [])
    assert found.network(torch.randn(2, *SIZE, dtype=torch.float64)).shape == (2, 6)
    for name, parameter in found.network.named_parameters():
        if name.endswith("bias") and not name.startswith(tuple(found.others)):
            assert not parameter.any(), name
        assert parameter.isfinite().all()
    loaded = from_table(to_table(found.network))
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in found.network.named_parameters()
    }


@pytest.mark.parametrize("kind", ISOMETRIC)
def test_all_singular_values_of_convolutions_are_one(kind):
    network = initialise(layers(), [way_of(kind)], SIZE, 0).network
    for name, channels in (("same", 8), ("wider", 8), ("narrower", 16)):
        values = singular_values(network.get_submodule(name), channels)
        assert len(values) == min(channels, 16 if name == "wider" else 8) * 64
        assert (values - 1).abs().max() < 1e-6, name


@pytest.mark.parametrize("kind", ["eco", "soc", "sao-eco"])
def test_all_singular_values_behind_a_stride_are_one(kind):
    network = initialise(layers(), [way_of(kind)], SIZE, 0).network
    two = nn.Sequential(network.get_submodule("strided.0"), network.get_submodule("strided.1"))
    assert isinstance(two[0], nn.PixelUnshuffle)
    values = singular_values(two, 8)
    assert len(values) == min(8 * 64, 16 * 16)
    assert (values - 1).abs().max() < 1e-6


@pytest.mark.parametrize("kind", [*ISOMETRIC, "orthogonal", "sao"])
def test_all_singular_values_of_linear_layers_are_one(kind):
    network = initialise(layers(), [way_of(kind, layers=("@linear",))], SIZE, 0).network
    for name in ("fc", "square", "last"):
        values = torch.linalg.svdvals(network.get_submodule(name).weight)
        assert (values - 1).abs().max() < 1e-12, name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "soc"])
def test_gain_is_a_factor(kind):
    one, other = (
        initialise(layers(), [way_of(kind, gain=gain, layers=("fc", "square"))], SIZE, 0).network for gain in (1.0, 1.5)
    )
    assert one.fc.weight.any()
    torch.testing.assert_close(other.fc.weight, 1.5 * one.fc.weight)


@pytest.mark.parametrize(
    ("way", "variance"),
    [
        (Normal(), 1 / 900),
        (Normal(variance=0.05), 0.05),
        (Uniform(), 1 / 900),
        (Uniform(bound=0.3), 0.03),
        (Kaiming(), 2 / 900),
        (Kaiming(distribution="uniform"), 2 / 900),
        (Xavier(), 2 / (9 * (100 + 80))),
        (Xavier(distribution="normal"), 2 / (9 * (100 + 80))),
    ],
)
def test_variances_of_independent_weights(way, variance):
    weight = way((80, 100, 3, 3), torch.Generator().manual_seed(0))
    assert weight.var() == pytest.approx(variance, rel=0.02)  # of 72,000 weights: 3.8 standard errors or more
    assert abs(weight.mean()) < 4 * (variance / 72000) ** 0.5
    flat = (weight.abs() > 2 * weight.std()).double().mean()
    is_uniform = isinstance(way, Uniform) or getattr(way, "distribution", "") == "uniform"
    assert flat == 0 if is_uniform else flat > 0.03


@pytest.mark.parametrize("kind", ["rg-n", "rg-u"])
def test_regular_masks_with_independent_weights(kind):
    way = INITIALISATIONS[kind](degree=8)
    shape = (256, 256, 3, 3)
    weight = way(shape, torch.Generator().manual_seed(0))
    kept = weight.flatten(2).abs().amax(2) > 0
    assert kept.sum(0).tolist() == kept.sum(1).tolist() == [8] * 256
    values = weight[kept]
    assert values.var() == pytest.approx(1 / 72, rel=0.03)
    assert (kind == "rg-u") == bool(values.abs().max() < (3 / 72) ** 0.5)


def test_given_variances_and_bounds_of_regular_masks():
    generator = torch.Generator().manual_seed(0)
    weight = RamanujanNormal(degree=16, variance=4.0)((256, 256), generator)
    assert weight[weight != 0].std() == pytest.approx(2, rel=0.05)
    assert 1.9 < RamanujanUniform(degree=16, bound=2.0)((256, 256), generator).abs().max() < 2


def test_masks_name_what_is_kept():
    for way in (SAODelta(degree=4), SAOExplicit(degree=4), RamanujanNormal(degree=4)):
        found = initialise(layers(), [way], SIZE, 0)
        strided = "strided.1.weight" if isinstance(way, SAOExplicit) else "strided.weight"
        assert set(found.masks) == {f"{n}.weight" for n in ("same", "wider", "narrower", "fc", "square")} | {strided}
        for name, mask in found.masks.items():
            weight = found.network.get_parameter(name)
            assert weight.shape == mask.shape
            assert not weight[~mask].any()
            kernels = mask.flatten(2) if mask.ndim > 2 else mask[..., None]
            assert kernels.all(2).equal(kernels.any(2))
            assert max(kernels[..., 0].sum(0).max(), kernels[..., 0].sum(1).max()) == 4


def test_kernels_of_sao_delta_may_be_learned_whole():
    found = initialise(layers(), [SAODelta(degree=4)], SIZE, 0)
    weight, mask = found.network.same.weight, found.masks["same.weight"]
    assert int(mask.sum()) == 8 * 4 * 9
    assert int((weight != 0).sum()) == 8 * 4  # the middle taps


def test_ends_stay_dense_unless_others_are_named():
    whole = {layer.name: layer for layer in initialise(layers(), [SAODelta(degree=4)], SIZE, 0).layers}
    assert [name for name, layer in whole.items() if not layer.degrees] == ["first", "last"]
    assert whole["first"].kind == "delta-orthogonal"
    named = initialise(layers(), [SAODelta(degree=4, dense=("first", "last", "fc"))], SIZE, 0)
    assert [layer.name for layer in named.layers if not layer.degrees] == ["first", "fc", "last"]
    only = initialise(layers(), [SAODelta(degree=4, dense=(), layers=("same",))], SIZE, 0)
    assert [(layer.name, layer.degrees) for layer in only.layers] == [("same", (4, 4))]


def test_graphs_are_described():
    found = initialise(layers(), [SAODelta(degree=4)], SIZE, 0)
    wider = next(layer for layer in found.layers if layer.name == "wider")
    assert (wider.degrees, wider.shape) == ((4, 2), (16, 8, 3, 3))
    assert wider.expansion.first == pytest.approx(8**0.5)
    assert (wider.expansion.components, wider.expansion.second) == (4, pytest.approx(0, abs=1e-9))


def test_the_last_way_that_names_a_layer_counts():
    ways = [Normal(variance=1e-6), Orthogonal(layers=("@linear",)), Uniform(layers=("last",), bound=5.0)]
    network = initialise(layers(), ways, SIZE, 0).network
    assert network.same.weight.abs().max() < 0.01
    assert (torch.linalg.svdvals(network.fc.weight) - 1).abs().max() < 1e-12
    assert network.last.weight.abs().max() > 2


def test_seeds():
    first, again, other = (initialise(layers(), [Explicit()], SIZE, seed).network for seed in (1, 1, 2))
    assert first.same.weight.equal(again.same.weight)
    assert not first.same.weight.equal(other.same.weight)


def test_draws_do_not_depend_on_the_number_of_threads():
    network, before = trace(nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(initialise(network, [Orthogonal()], (512,), 0).network.state_dict())
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


def test_the_given_network_stays_as_it_is():
    network = layers()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialise(network, [SAOExplicit(degree=4)], SIZE, 0)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert network.same.padding_mode == "zeros"


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", ["delta-orthogonal", "eco", "sao-delta", "sao-eco"])
def test_relu_form_keeps_lengths_through_the_network(kind):
    """The first layer is the entry; then linear maps on differences of halves lose nothing, whatever the depth."""
    modules = [nn.Conv2d(4, 8, 2, padding="same"), nn.ReLU()]
    modules += [m for _ in range(3) for m in (nn.Conv2d(8, 8, 2, padding="same"), nn.ReLU())]
    network = trace(nn.Sequential(*modules, nn.Conv2d(8, 4, 1))).double()
    way = way_of(kind, relu=True, **({"dense": ("8",)} if kind.startswith("sao") else {}))
    network = initialise(network, [way], (4, 4, 4), 0).network
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    value = x
    for name in "01234567":
        value = network.get_submodule(name)(value)
    np.testing.assert_allclose(value.flatten(1).norm(dim=1).detach(), x.flatten(1).norm(dim=1), atol=1e-12)


def test_relu_form_of_odd_inputs_is_the_entry():
    weight = DeltaOrthogonal(relu=True)((6, 3, 3, 3), torch.Generator().manual_seed(0))
    assert weight[:3].equal(-weight[3:])


def test_relu_form_is_not_for_the_last_layer():
    layers = [m for _ in range(2) for m in (nn.Linear(8, 8), nn.ReLU())]
    network = trace(nn.Sequential(*layers, nn.Linear(8, 8))).double()
    found = initialise(network, [Orthogonal(relu=True)], (8,), 0).network
    first, middle, last = (found.get_submodule(name).weight for name in "024")
    assert first[:4].equal(-first[4:])
    assert not first[:, :4].equal(-first[:, 4:])
    assert middle[:, :4].equal(-middle[:, 4:])
    assert torch.linalg.matrix_rank(last) == 8


def test_sparse_relu_form_has_the_degree_that_was_asked_for():
    for form in (True, "entry"):
        mask = SAO(degree=4, relu=form).blocks_for((32, 32), torch.Generator()).mask()
        assert mask.sum(1).tolist() == [4] * 32
        assert mask.sum(0).tolist() == [4] * 32


def test_explicit_convolutions():
    network = initialise(layers(), [Explicit()], SIZE, 0).network
    same, behind = network.get_submodule("same"), network.get_submodule("strided.1")
    assert (same.kernel_size, same.dilation, same.padding_mode) == ((2, 2), (8, 8), "circular")  # 3 does not divide 16
    assert same.bias is None
    assert (behind.in_channels, behind.kernel_size, behind.dilation) == (32, (2, 2), (4, 4))
    larger = initialise(layers(), [Explicit(kernel=4, layers=("same",))], SIZE, 0).network
    assert (larger.same.kernel_size, larger.same.dilation) == ((4, 4), (4, 4))


def test_skew_convolutions_stay_orthogonal_in_training():
    network = initialise(layers(), [Skew()], SIZE, 0).network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.same.weight.clone()
    for _ in range(5):
        loss = network(torch.randn(4, *SIZE, dtype=torch.float64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network.same.weight - before).abs().max() > 1e-3
    assert (singular_values(network.same, 8) - 1).abs().max() < 1e-6


def test_grouped_convolutions_are_drawn_group_by_group():
    network = trace(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(128, 3))).double()
    found = initialise(network, [DeltaOrthogonal(layers=("0",))], (8, 4, 4), 0).network
    assert (singular_values(found.get_submodule("0"), 8, 4) - 1).abs().max() < 1e-12
    middle = found.get_submodule("0").weight[..., 1, 1]
    assert not middle[:4].equal(middle[4:])


def test_one_dimension():
    network = trace(nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.Flatten(), nn.Linear(72, 3))).double()
    found = initialise(network, [Explicit(layers=("0",))], (4, 12), 0).network.get_submodule("0")
    assert (found.kernel_size, found.dilation) == ((3,), (4,))
    jacobian = torch.autograd.functional.jacobian(found, torch.zeros(1, 4, 12, dtype=torch.float64)).reshape(72, 48)
    assert (torch.linalg.svdvals(jacobian) - 1).abs().max() < 1e-12


def test_strided_layers_one_behind_the_other():
    """Without an activation in between, the second reads what stands in the place of the first."""
    modules = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Flatten(), nn.Linear(64, 2)
    for way in (Explicit(), Skew()):
        found = initialise(trace(nn.Sequential(*modules)).double(), [way], (2, 16, 16), 0)
        assert found.network(torch.randn(1, 2, 16, 16, dtype=torch.float64)).shape == (1, 2)


@pytest.mark.parametrize("kind", ["sao", "sao-delta", "sao-eco"])
def test_layers_that_stay_dense_have_the_form_for_relu_too(kind):
    network = trace(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))).double()
    way = INITIALISATIONS[kind](degree=4, relu=True, dense=("1",))
    network = initialise(network, [way], (8,), 0).network
    for name in "12":
        weight = network.get_submodule(name).weight
        assert weight[:, :4].equal(-weight[:, 4:]), name


def test_convolutions_in_groups_stay_dense_by_default():
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)]
    network = trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3))).double()
    found = initialise(network, [SAODelta(degree=4, relu=True)], (8, 4, 4), 0)
    assert list(found.masks) == ["2.weight"]
    assert list(regular_masks(network, Ramanujan(degree=4), 0)) == ["2.weight"]


def test_the_first_convolution_is_the_first_even_if_it_is_skew():
    network = initialise(layers(), [Skew(layers=("first",))], SIZE, 0).network
    assert "same.weight" in regular_masks(network, Ramanujan(degree=4), 0)


REFUSED = [
    (SAO(degree=4, layers=("last",)), "train.init: every layer that sao names stays dense; set `dense: []`"),
    (SAO(degree=4), "train.init: same: sao is for linear layers; name sao-delta or sao-eco for convolutions; wider:"),
    (Orthogonal(relu=True), "first: relu: is of linear layers; name delta-orthogonal for convolutions"),
    (
        SAODelta(degree=3),
        "same: degree 3 does not divide 8, the longer side; possible are 1, 2, 4, 8 (or take `nearest: true`); wider: ",
    ),
    (SAODelta(sparsity=0.9), "a density of 0.1 (sparsity 0.9) cannot be had; the nearest are 0.125 (sparsity 0.875)"),
    (SAODelta(degree=4, dense=("last",)), "first: with degree 4 a node of the longer side, 8, would have 3 / 2 neigh"),
    (SAODelta(degree=3, relu=True), "same: relu: halves outputs, inputs and degree; 8, 8, 3 are not all even"),
    (Explicit(kernel=3), "kernel 3 does not divide its map of 16; the largest up to it that does is 2"),
    (DeltaOrthogonal(layers=("nothing",)), "layer selector 'nothing': no convolution or linear layer is named so"),
]


@pytest.mark.parametrize(("way", "text"), REFUSED, ids=lambda value: getattr(value, "kind", ""))
def test_refusals(way, text):
    with pytest.raises(RecipeError) as refused:
        initialise(layers(), [way], SIZE, 0)
    assert text in str(refused.value)


def test_all_layers_that_do_not_fit_are_counted():
    network = trace(nn.Sequential(*(nn.Linear(6, 6) for _ in range(9)))).double()
    with pytest.raises(RecipeError) as refused:
        initialise(network, [SAO(degree=4)], (6,), 0)
    assert str(refused.value).count("does not divide 6") == 5
    assert str(refused.value).endswith("; and 3 layers more")


@pytest.mark.parametrize(
    ("layer", "size", "text"),
    [
        (nn.Conv2d(4, 4, 3), (4, 8, 8), "it makes (6, 6) of a map of (8, 8), not the same size"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), (4, 8, 8), "it has 2 groups; draw it by delta-orthogonal"),
        (nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1), (4, 8, 8), "its strides are (2, 1)"),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), (4, 7, 7), "it makes (4, 4) of a map of (7, 7)"),
        (nn.Conv1d(4, 4, 3, stride=2, padding=1), (4, 8), "its strides are (2,)"),
    ],
)
@pytest.mark.parametrize("way", [Explicit(), Skew()])
def test_convolutions_that_cannot_be_remodelled(way, layer, size, text):
    with pytest.raises(RecipeError) as refused:
        initialise(trace(nn.Sequential(layer)).double(), [way], size, 0)
    assert text in str(refused.value)


@pytest.mark.parametrize("options", [{"dilation": 2, "padding": 2}, {"padding_mode": "reflect", "padding": 1}])
def test_skew_convolutions_keep_what_they_can(options):
    with pytest.raises(RecipeError, match="soc takes zeros or circular, and dilation 1"):
        initialise(trace(nn.Sequential(nn.Conv2d(2, 2, 3, **options))), [Skew()], (2, 8, 8), 0)


def test_even_kernels_cannot_be_skew():
    with pytest.raises(RecipeError, match="a skew-symmetric kernel has a middle, so odd taps"):
        initialise(trace(nn.Sequential(nn.Conv2d(2, 2, 2, padding="same"))), [Skew()], (2, 4, 4), 0)


def test_sparse_ways_take_one_setting():
    for options in ({}, {"degree": 4, "density": 0.5}):
        with pytest.raises(ValueError, match="give one of degree, density, sparsity, not"):
            SAO(**options)
    assert SAO(sparsity="75%").blocks(8, 8, torch.Generator()).degrees == (2, 2)
    assert SAO(density="25%").blocks(8, 8, torch.Generator()).degrees == (2, 2)


def test_masks_for_weights_that_are_there():
    network = layers()
    before = network.same.weight.clone()
    masks = regular_masks(network, Ramanujan(degree=4), 0)
    assert masks.keys() == initialise(network, [SAODelta(degree=4)], SIZE, 0).masks.keys()
    assert masks["same.weight"].shape == (8, 8, 3, 3)
    assert int(masks["same.weight"].sum()) == 8 * 4 * 9
    assert network.same.weight.equal(before)
    for options, text in (
        (Ramanujan(degree=3), "train.mask: same: degree 3 does not divide 8"),
        (Ramanujan(degree=2, layers=("last",)), "train.mask: every layer that it names stays dense"),
        (Ramanujan(degree=2, layers=("nope",)), "train.mask: layer selector 'nope'"),
    ):
        with pytest.raises(RecipeError, match=text):
            regular_masks(network, options, 0)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 2)

    def forward(self, x):
        return self.head(torch.flatten(self.conv(torch.tanh(self.conv(x))), 1))


def test_layers_that_are_called_twice():
    for way, text in (
        (SAODelta(degree=2, dense=()), "conv: it is called twice, or its weights are another layer's, too; name it"),
        (Explicit(), "conv: it is called twice, or its weights are another layer's, too; draw it by delta-orth"),
    ):
        with pytest.raises(RecipeError, match=text):
            initialise(trace(Twice()).double(), [way], (4, 4, 4), 0)
    assert initialise(trace(Twice()).double(), [DeltaOrthogonal()], (4, 4, 4), 0).layers[0].name == "conv"


NEAREST = [  # goal, and its share of a layer's weights that stays
    ({"sparsity": "90%"}, lambda m, n: 0.1),
    ({"sparsity": 0.7}, lambda m, n: 0.3),
    ({"density": "40%"}, lambda m, n: 0.4),
    ({"degree": 5}, lambda m, n: 5 / max(m, n)),
    ({"degree": 100}, lambda m, n: 100 / max(m, n)),
]


def nearest_of(kind, goal):
    """The way on layers that it is for; their sides are 8 and 16, the others' 3 and 6."""
    names = {"sao": ("fc", "square", "last")}.get(kind, ("first", "same", "wider", "narrower"))
    return INITIALISATIONS[kind](nearest=True, layers=names, dense=(), **goal)


@pytest.mark.parametrize(("goal", "asked"), NEAREST)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(INITIALISATIONS[kind], Sparse)])
def test_every_layer_has_the_nearest_sparsity_of_a_regular_mask(kind, goal, asked):
    """Of all numbers of blocks; and orthogonal ways are orthogonal on it, as they are where the sides divide."""
    found = initialise(layers(), [nearest_of(kind, goal)], SIZE, 0)
    assert len(found.layers) == (3 if kind == "sao" else 4)
    for layer in found.layers:
        outputs, inputs = layer.shape[:2]
        mask, wanted = found.masks[f"{layer.name}.weight"], asked(outputs, inputs)
        shares = [1 / g for g in range(1, outputs + 1) if outputs % g == 0 and inputs % g == 0]
        assert layer.asked == pytest.approx(wanted)
        assert abs(float(mask.double().mean()) - wanted) == pytest.approx(min(abs(one - wanted) for one in shares))
        assert layer.expansion.is_ramanujan
        module = found.network.get_submodule(layer.name)
        assert not module.weight[~mask].any()
        if kind.startswith("sao"):
            values = singular_values(module, inputs, 0 if kind == "sao" else 8)
            assert (values - 1).abs().max() < 1e-6


def test_nearest_leaves_alone_what_divides():
    for goal in ({"degree": 4}, {"sparsity": "75%"}):
        one, other = (
            initialise(layers(), [SAO(layers=("fc", "square"), nearest=nearest, **goal)], SIZE, 0)
            for nearest in (False, True)
        )
        assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
        assert torch.equal(one.network.fc.weight, other.network.fc.weight)


@pytest.mark.parametrize("relu", [True, "entry"])
def test_nearest_with_the_form_for_relu(relu):
    """The mask of a half is the nearest: of 9 x 12, then of 6 x 9, or 6 x 18 as an entry. A degree may be odd."""
    network = trace(nn.Sequential(nn.Linear(12, 18), nn.ReLU(), nn.Linear(18, 12), nn.ReLU(), nn.Linear(12, 5)))
    way = SAO(degree=3, nearest=True, dense=("4",), relu=relu)
    first, second, _ = initialise(network.double(), [way], (12,), 0).layers
    assert (first.asked, second.asked) == (3 / 12, 3 / 18)  # the first layer has the form of an entry, anyway
    assert first.degrees == (6, 4)
    assert second.degrees == ((4, 6) if relu is True else (2, 3))


def test_nearest_masks_for_weights_that_are_there():
    masks = regular_masks(layers(), Ramanujan(sparsity="90%", nearest=True, layers=("wider", "last"), dense=()), 0)
    shares = {name: float(mask.double().mean()) for name, mask in masks.items()}
    assert shares == {"wider.weight": 1 / 8, "last.weight": 1 / 2}
