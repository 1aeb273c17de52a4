"""Masks of single weights and kernels: which are kept, how many, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention

from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.counting import count
from compresskit.graph.masks import apply_masks, kept
from compresskit.graph.trace import trace
from compresskit.numerics.pruning.masks import units_left
from compresskit.passes.initialise.network import regular_masks
from compresskit.passes.initialise.sparse_options import Ramanujan
from compresskit.passes.prune.budgets import MASK_BUDGETS, Global, Uniform
from compresskit.passes.prune.mask_options import MASK_CRITERIA, Mask, MaskTarget, RandomWeights
from compresskit.passes.prune.masks import Masked, Masker

SHAPE = (3, 8, 8)
LAYERS = ("first.weight", "depth.weight", "last.weight", "head.weight")


class Net(nn.Module):
    """Kernels of several sizes, a depthwise layer, and a linear one; the layers' weights differ in scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.depth, self.last = nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.last(self.depth(x))).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    network = trace(Net())
    with torch.no_grad():
        network.get_parameter("last.weight").mul_(3)
    return network


def options(kind: str = "weights", **changes) -> Mask:
    return Mask(**{"kind": kind, "target": MaskTarget(sparsity="80%"), **changes})


def masked(network, given: Mask, masks=None, seed: int = 0) -> Masked:
    return Masker(network, given, SHAPE, masks or {}, seed).mask()


def test_global_keeps_the_largest_weights_of_all(net):
    found = masked(net, options(budget=Global(), min_units=0))
    weights = {name: net.get_parameter(name).detach() for name in LAYERS}
    every = torch.cat([weight.abs().flatten() for weight in weights.values()]).sort(descending=True).values
    left = round(0.2 * len(every))
    for name, weight in weights.items():
        assert torch.equal(found.masks[name], weight.abs() >= every[left - 1])
    assert sum(int(mask.sum()) for mask in found.masks.values()) == left


def test_uniform_keeps_the_largest_of_each_layer(net):
    found = masked(net, options(budget=Uniform()))
    for name in LAYERS:
        weight, mask = net.get_parameter(name).detach().abs(), found.masks[name]
        assert abs(int(mask.sum()) - 0.2 * mask.numel()) <= 1
        assert float(weight[mask].min()) > float(weight[~mask].max())


@pytest.mark.parametrize("kind", ["weights", "kernels"])
def test_a_degree_leaves_what_a_regular_graph_has(kind):
    """As many as masks of that degree, counted in them; a layer that has fewer stays whole."""
    torch.manual_seed(0)
    network = trace(nn.Sequential(*[nn.Conv2d(*sides, 3, padding=1) for sides in ((3, 8), (8, 16), (16, 8))]))
    regular = regular_masks(network, Ramanujan(degree=4, dense=("0",)), 0)
    given = options(kind, target=MaskTarget(degree=4), dense=("0",), budget=Uniform())
    found = masked(network, given)
    assert sum(int(found.masks[name].sum()) for name in regular) == sum(int(mask.sum()) for mask in regular.values())
    few = masked(network, options(kind, target=MaskTarget(degree=8), budget=Uniform()))
    assert few.asked == 3 * 8 * 9 + 2 * 8 * 8 * 9  # outputs x inputs of the first, and half of the others


def test_kernels_stay_or_go_whole(net):
    found = masked(net, options("kernels"))
    for name in LAYERS[:3]:
        taps = found.masks[name].flatten(2)
        assert torch.equal(taps.any(2), taps.all(2))
    head = found.masks["head.weight"]
    assert 0 < int(head.sum()) < head.numel()
    units = {name: units for name, units, _ in found.layers}
    assert units == {"first": 36, "depth": 12, "last": 120, "head": 50}


@pytest.mark.parametrize("kind", ["weights", "kernels"])
@pytest.mark.parametrize("budget", list(MASK_BUDGETS))
@pytest.mark.parametrize("criterion", list(MASK_CRITERIA))
@pytest.mark.parametrize("goal", ["sparsity", "params", "macs"])
def test_every_budget_and_criterion_meets_its_target(net, kind, budget, criterion, goal):
    amount = {"sparsity": "70%", "params": "40%", "macs": "40%"}[goal]
    given = options(
        kind, target=MaskTarget(**{goal: amount}), budget=MASK_BUDGETS[budget](), criterion=MASK_CRITERIA[criterion]()
    )
    found = masked(net, given)
    counts = count(net, SHAPE)
    parameters, macs = kept(counts, found.masks)
    left = sum(int(mask.sum()) for mask in found.masks.values())
    total = sum(mask.numel() for mask in found.masks.values())
    got, whole = {
        "sparsity": (left, total), "params": (parameters, counts.parameters), "macs": (macs, counts.macs)
    }[goal]  # fmt: skip
    assert found.got == pytest.approx(got, abs=4 if goal == "macs" else 0)  # `kept` rounds each layer down
    assert found.whole == whole
    assert found.asked == pytest.approx((0.3 if goal == "sparsity" else 0.4) * whole)
    # all of it is used, but for less than a unit of each layer: 9 weights at up to 64 places
    room = 4 * (9 if kind == "kernels" else 1) * (64 if goal == "macs" else 1)
    assert found.asked - room <= found.got <= found.asked * (1 + 1e-9)


def test_a_thousandth_is_met_as_well_as_a_half():
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 500), nn.ReLU(), nn.Linear(500, 5)))
    for budget in (Uniform(), Global()):
        found = masked(network, options(target=MaskTarget(sparsity=0.9991), budget=budget))
        assert 0 <= found.asked - found.got <= 2


def test_random_masks_follow_the_seed_and_no_weight(net):
    given = options(criterion=RandomWeights(), budget=Uniform())
    one, same, other = (masked(net, given, seed=seed).masks for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in LAYERS)
    assert not torch.equal(one["first.weight"], other["first.weight"])
    with torch.no_grad():
        net.get_parameter("first.weight").neg_().add_(1)
    assert torch.equal(masked(net, given, seed=1).masks["first.weight"], one["first.weight"])


@pytest.mark.parametrize("criterion", list(MASK_CRITERIA))
@pytest.mark.parametrize("second", ["weights", "kernels"])
def test_what_is_masked_stays_so(net, second, criterion):
    first = masked(net, options(target=MaskTarget(sparsity="50%"), criterion=RandomWeights()), seed=1).masks
    apply_masks(net, first)
    given = options(second, target=MaskTarget(sparsity="90%"), criterion=MASK_CRITERIA[criterion]())
    found = masked(net, given, first)
    left = sum(int(mask.sum()) for mask in found.masks.values())
    assert left == found.got <= found.asked
    assert found.asked - found.got < (1 if second == "weights" else 9)
    assert all(not bool((found.masks[name] & ~first[name]).any()) for name in LAYERS)
    assert found.whole == sum(mask.numel() for mask in first.values())
    for name, _, units in found.layers:
        assert units == int(units_left(found.masks[f"{name}.weight"], kernels=second == "kernels").count_nonzero())


def test_masks_of_other_layers_stay(net):
    first = masked(net, options(layers=("head",))).masks
    apply_masks(net, first)
    found = masked(net, options(layers=("first",), target=MaskTarget(params="70%")), first)
    assert torch.equal(found.masks["head.weight"], first["head.weight"])
    parameters, _ = kept(count(net, SHAPE), found.masks)
    assert found.got == parameters <= 0.7 * found.whole


def test_dense_layers_are_left_and_said_to_be(net):
    found = masked(net, options(dense=("first", "@linear")))
    assert list(found.masks) == ["depth.weight", "last.weight"]
    assert found.skipped == {"first": "prune.dense names it", "head": "prune.dense names it"}


def test_tied_weights_are_left_and_said_to_be():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 5))
    network[2].weight = network[1].weight
    found = masked(trace(network), options())
    assert list(found.masks) == ["3.weight"]
    assert list(found.skipped) == ["1", "2"]
    assert "those of another layer" in found.skipped["1"]


def test_no_layer_dies_unless_that_is_allowed(net):
    with torch.no_grad():
        net.get_parameter("depth.weight").mul_(1e-6)
    kept_units = {name: left for name, _, left in masked(net, options(min_units=2)).layers}
    assert kept_units["depth"] == 2
    assert {name: left for name, _, left in masked(net, options(min_units=0)).layers}["depth"] == 0


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"sparsity": 0.999}, "can be reached lies from 4 "),
        ({"params": 10}, "would be left"),
        ({"macs": 10**9}, "would be left"),
        ({"params": 1000}, "to 665"),
    ],
)
def test_targets_out_of_reach_are_refused(net, target, words):
    with pytest.raises(RecipeError, match=words):
        Masker(net, options(target=MaskTarget(**target)), SHAPE, {}, 0)


def test_nothing_to_mask_is_refused(net):
    with pytest.raises(RecipeError, match="every layer that they name stays dense"):
        Masker(net, options(layers=("first",), dense=("first",)), SHAPE, {}, 0)
    with pytest.raises(RecipeError, match="layer selector 'fist'"):
        Masker(net, options(layers=("fist",)), SHAPE, {}, 0)


@pytest.mark.parametrize("budget", list(MASK_BUDGETS))
def test_dead_layers_are_left_out_of_the_next_masks(net, budget):
    with torch.no_grad():
        net.get_parameter("depth.weight").mul_(1e-6)
    first = masked(net, options(min_units=0)).masks
    assert not bool(first["depth.weight"].any())
    apply_masks(net, first)
    given = options(min_units=0, target=MaskTarget(sparsity="90%"), budget=MASK_BUDGETS[budget]())
    found = masked(net, given, first)
    assert found.asked - 5 <= found.got <= found.asked
    assert ("depth", 108, 0) in found.layers


@pytest.mark.parametrize("budget", ["global", "lamp", "uniform", "erk"])
def test_masks_in_steps_are_those_of_one(net, budget):
    """By magnitude; LAMP's scores of what is left change their scale in each layer alone."""
    whole = masked(net, options(budget=MASK_BUDGETS[budget]()))
    masks: dict[str, torch.Tensor] = {}
    for sparsity in (0.3, 0.55, 0.8):
        masks = masked(net, options(budget=MASK_BUDGETS[budget](), target=MaskTarget(sparsity=sparsity)), masks).masks
    for name, mask in whole.masks.items():
        assert abs(int(mask.sum()) - int(masks[name].sum())) <= 2  # each step rounds


@pytest.mark.parametrize("criterion", MASK_CRITERIA)
def test_weights_that_are_not_finite_are_named(net, criterion):
    with torch.no_grad():
        net.last.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConvergenceError, match=r"^last\.weight: it holds NaN or infinity"):
        masked(net, options("kernels", criterion=MASK_CRITERIA[criterion]()))


class Others(nn.Module):
    """Weights of every kind that products read: of a transposed convolution, of attention as one module, in windows and
    as an argument, of a layer that is called twice; and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.table = nn.ConvTranspose2d(3, 8, 2, 2), nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.windows = ShiftedWindowAttention(8, [4, 4], [2, 2], 2)
        self.twice, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.register_buffer("rows", torch.arange(4))

    def forward(self, x):
        x = self.windows(self.up(x).permute(0, 2, 3, 1)).flatten(1, 2)
        y = x[:, :4] + self.table(self.rows)
        x = x + self.attention(x, y, y)[0]
        x = F.linear(F.relu(F.linear(x, self.twice.weight)), self.twice.weight, self.twice.bias)
        return self.head(x.mean(1))


@pytest.fixture
def others():
    torch.manual_seed(0)
    return trace(Others())


@pytest.mark.parametrize("kind", ["weights", "kernels"])
@pytest.mark.parametrize("budget", list(MASK_BUDGETS))
@pytest.mark.parametrize("goal", ["sparsity", "params", "macs"])
def test_weights_of_other_layers_meet_targets_by_what_products_read(others, kind, budget, goal):
    counts = count(others, SHAPE)
    found = masked(others, options(kind, target=MaskTarget(**{goal: "50%"}), budget=MASK_BUDGETS[budget]()))
    assert {"up", "windows.qkv", "windows.proj", "attention.in_proj", "attention.out_proj", "twice", "head"} <= {
        name for name, *_ in found.layers
    }
    parameters, macs = kept(counts, found.masks)
    left = sum(int(mask.sum()) for mask in found.masks.values())
    assert found.got == {"sparsity": left, "params": parameters, "macs": macs}[goal]
    assert 0.9 * found.asked < found.got <= found.asked * (1 + 1e-9)
    if goal == "macs":
        assert "table.weight" not in found.masks
        assert found.skipped == {"table": "its weights cost no MACs"}


def test_weights_that_nothing_multiplies_by_are_left_and_said_to_be():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.standard, self.inner, self.head = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 5)

        def forward(self, x):
            weight = self.standard.weight / self.standard.weight.norm()
            return self.head(F.linear(F.linear(x.flatten(1)[:, :8], weight), self.inner))

    found = masked(trace(Net()), options())
    assert list(found.masks) == ["head.weight"]
    assert found.skipped == {
        "standard": "no product reads its weights as they are",
        "inner": "a parameter that is no layer's weight, which masks are not for",
    }


def test_kinds_of_weights_have_selectors_of_their_own(others):
    found = masked(others, options(layers=("@transposed", "@embedding")))
    assert list(found.masks) == ["up.weight", "table.weight"]
    found = masked(others, options(layers=("@linear",), dense=("attention.in_proj",)))
    layers = ("attention.out_proj", "windows.qkv", "windows.proj", "twice", "head")
    assert set(found.masks) == {f"{layer}.weight" for layer in layers}
