"""Structured pruning: what goes together, which budget takes what, and that a cut net computes what it should."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import fx, nn

import compresskit
from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.models.images.densenet import DenseNet
from compresskit.models.images.mobilenet import MobileNet, MobileNetV2
from compresskit.models.images.resnet import ResNet, WideResNet
from compresskit.models.scenes.unet import UNet
from compresskit.numerics.pruning.fisher import root_of_squares
from compresskit.passes.moments import collect, gather_from
from compresskit.passes.prune.budgets import BUDGETS, Divergence, Global, Spectral, Uniform
from compresskit.passes.prune.channels import Data, Pruner
from compresskit.passes.prune.criteria import (
    CRITERIA,
    AugPrune,
    Backward,
    Hydra,
    Magnitude,
    NormScale,
    Random,
    Scored,
    Taylor,
    atom_scores,
)
from compresskit.passes.prune.criteria.gradients import curvatures
from compresskit.passes.prune.criteria.responses import responses
from compresskit.passes.prune.groups import find_groups
from compresskit.passes.prune.options import Prune, PruneTarget
from compresskit.passes.prune.python import prune_model
from compresskit.passes.prune.sizes import CutSizes
from compresskit.passes.repair.layers import blind, repair
from compresskit.passes.repair.norms import estimate_norms
from tests.graph.channels import families

SHAPE = (3, 16, 16)


class Residual(nn.Module):
    """Two layers that write to one sum, a depthwise one, and one without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.norm1 = nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.depth, self.norm2 = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False), nn.BatchNorm2d(20)
        self.outer, self.norm3 = nn.Conv2d(20, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 16, 3, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm0(self.stem(x)))
        y = torch.relu(self.norm2(self.depth(torch.relu(self.norm1(self.inner(x))))))
        x = torch.relu(x + self.norm3(self.outer(y)))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


def random_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)


def traced(module: nn.Module) -> fx.GraphModule:
    torch.manual_seed(0)
    random_norms(module)
    return trace(module).double().eval()


@pytest.fixture
def net() -> fx.GraphModule:
    torch.manual_seed(0)
    return traced(Residual())


def images(count_: int = 64, shape=SHAPE) -> torch.Tensor:
    return torch.randn(count_, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def batches(x: torch.Tensor):
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(16)]


def gather(student, requests, teacher):
    sums = {request.name: request.zeros("cpu") for request in requests}
    collect(student, requests, batches(images()), sums, teacher=teacher)
    return {name: total.finish() for name, total in sums.items()}


def gradients(network):
    parameters = dict(network.named_parameters())
    loss = network(images(16)).square().sum()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def changed(network, layers, augmix):
    x = images(16)
    return responses(network, layers, [(part, part + 0.1 * part.roll(1, 0)) for part in x.split(8)])


def divergence(found, expected):
    return (found - expected).square().mean()


def curved(network, layers):
    return curvatures(network, layers, batches(images()), root_of_squares, 0)


DATA = Data(gradients, changed, gather, lambda count: images(count).split(8), divergence, curved)


def pruned(network, shape=SHAPE, seed=0, **options):
    options = {"target": PruneTarget(macs="50%"), "min_channels": 2, **options}
    return Pruner(network, Prune(**options), shape).prune(DATA, seed)


NETS = {
    "residual": lambda: (Residual(), SHAPE),
    "resnet18": lambda: (ResNet(width=0.25).build(SHAPE, 5), SHAPE),
    "wide-resnet": lambda: (WideResNet(depth=10, widen=1).build(SHAPE, 5), SHAPE),
    "densenet": lambda: (DenseNet(depth=13, growth=6).build(SHAPE, 5), SHAPE),
    "mobilenet": lambda: (MobileNet(width=0.25, small_images=True).build(SHAPE, 5), SHAPE),
    "mobilenet-v2": lambda: (MobileNetV2(width=0.25).build(SHAPE, 5), SHAPE),
    "mobilenet-v3": lambda: (torchvision.models.mobilenet_v3_small(), (3, 32, 32)),
    "shufflenet": lambda: (torchvision.models.shufflenet_v2_x0_5(), (3, 32, 32)),
    "efficientnet": lambda: (torchvision.models.efficientnet_b0(), (3, 32, 32)),
    "resnext": lambda: (torchvision.models.resnext50_32x4d(), (3, 32, 32)),
    "googlenet": lambda: (torchvision.models.googlenet(init_weights=False), (3, 64, 64)),
    "unet": lambda: (UNet().build((3, 32, 32), 4), (3, 32, 32)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_cut_net_computes_what_the_whole_one_does_blind_to_what_is_cut(name):
    torch.manual_seed(0)
    module, shape = NETS[name]()
    network = traced(module)
    found = pruned(network, shape)
    smaller, whole = cut(network, found.channels, found.alive), blind(network, found.channels, found.alive)
    x = images(2, shape)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), whole(x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(smaller(x), network(x))
    macs = count(smaller, shape).macs / count(network, shape).macs
    assert found.got / found.whole == pytest.approx(macs)
    assert 0.35 < macs <= 0.5


@pytest.mark.parametrize("goal", ["params", "macs", "channels"])
def test_sizes_are_those_of_the_cut_net(net, goal):
    found = pruned(net, target=PruneTarget(**{goal: "60%"}))
    smaller = cut(net, found.channels, found.alive)
    counted = count(smaller, SHAPE)
    layers = find_channels(smaller, SHAPE).writes
    expected = {"params": counted.parameters, "macs": counted.macs, "channels": sum(map(len, layers.values()))}[goal]
    assert found.got == expected <= found.asked == pytest.approx(0.6 * found.whole)
    assert found.whole == CutSizes(net, found.channels, SHAPE)(goal, torch.ones_like(found.alive))


def test_layers_of_a_residual_sum_are_one_group(net):
    groups, skipped = find_groups(net, find_channels(net, SHAPE), ["re:.*"])
    assert [group.layers for group in groups] == [("stem", "outer"), ("inner",), ("wide",)]
    assert [len(group.atoms) for group in groups] == [12, 20, 16]
    assert skipped["head"] == "it is the network's output"
    assert "depthwise" in skipped["depth"]
    groups, skipped = find_groups(net, find_channels(net, SHAPE), ["stem", "inner"])
    assert [group.layers for group in groups] == [("inner",)]
    assert skipped == {"stem": "its channels are those of outer, which no selector names"}
    with pytest.raises(RecipeError, match="no channel can go"):
        find_groups(net, find_channels(net, SHAPE), ["head"])


@pytest.mark.parametrize("kind", CRITERIA)
@pytest.mark.parametrize("combine", ["mean", "sum", "max"])
def test_every_criterion_ranks_every_net_that_it_can(net, kind, combine):
    layers = ("stem", "outer", "inner") if kind == "norm-scale" else ("re:.*",)
    options = {"criterion": CRITERIA[kind](), "combine": combine, "layers": layers, "target": PruneTarget(macs="70%")}
    if kind == "norm-scale":
        with pytest.raises(RecipeError, match="wide: norm-scale reads norms with a scale, and it has none behind it"):
            pruned(net, **{**options, "layers": ("re:.*",), "groups": ("channels",)})
        found = pruned(net, **{**options, "layers": ("re:.*",)})  # auto
        assert found.skipped["wide"] == "norm-scale reads norms with a scale, and it has none behind it"
        with pytest.raises(RecipeError, match="norm-scale has nothing to score wide by, which stay; take"):
            pruned(net, criterion=NormScale(), target=PruneTarget(macs="5%"))
    one, again = pruned(net, **options), pruned(net, **options)
    assert torch.equal(one.alive, again.alive)
    assert one.got <= one.asked


DAMAGE = {"nan": math.nan, "inf": math.inf}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", [kind for kind in CRITERIA if kind != "random"])
def test_no_criterion_puts_nan_in_order(net, kind, damage):
    with torch.no_grad():
        net.inner.weight[0, 0, 0, 0] = net.norm1.weight[0] = DAMAGE[damage]
    with pytest.raises(ConvergenceError, match=r"NaN or infinity|not finite"):
        pruned(net, criterion=CRITERIA[kind](), layers=("inner", "stem", "outer"))


def test_what_is_not_finite_is_named(net):
    with torch.no_grad():
        net.norm1.weight[3] = math.nan
    with pytest.raises(ConvergenceError, match=r"^inner: criterion norm-scale gives NaN or infinity for 1 of 20 "):
        pruned(net, criterion=NormScale(), layers=("inner", "stem", "outer"))
    with torch.no_grad():
        net.inner.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ConvergenceError, match=r"^inner\.weight: it holds NaN or infinity"):
        pruned(net, criterion=Magnitude())


PLAIN = {"zeros": 0.0, "equal": 0.5, "tiny": 1e-200}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("value", PLAIN)
@pytest.mark.parametrize("kind", CRITERIA)
def test_layers_of_equal_weights_leave_the_target_in_reach(net, kind, value, budget):
    with torch.no_grad():
        net.inner.weight.fill_(PLAIN[value])
    found = pruned(net, criterion=CRITERIA[kind](), budget=BUDGETS[budget](), layers=("inner", "stem", "outer"))
    assert found.got <= found.asked
    assert all(kept >= 2 for kept in found.kept)


def scored(network) -> Scored:
    channels = find_channels(network, SHAPE)
    prunable = torch.tensor([atom not in channels.frozen for atom in range(channels.n_atoms)])
    return Scored(
        network, channels, SHAPE, prunable, torch.Generator().manual_seed(0), gradients, changed, gather, curved
    )


def test_scores_of_an_atom_combine_over_its_places(net):
    context = scored(net)
    stem, outer = (net.get_submodule(name).weight.detach().flatten(1).norm(dim=1) for name in ("stem", "outer"))
    parts = torch.stack([stem / stem.mean(), outer / outer.mean()])
    atoms = context.channels.writes["stem"]
    for combine, expected in (("mean", parts.mean(0)), ("sum", parts.sum(0)), ("max", parts.amax(0))):
        torch.testing.assert_close(atom_scores(Magnitude(), context, combine)[atoms], expected)
    raw = atom_scores(Hydra(), context, "mean")[context.channels.writes["inner"]]
    inner = net.get_submodule("inner").weight.detach().abs()
    torch.testing.assert_close(raw, math.sqrt(6 / 108) * inner.flatten(1).sum(1) / inner.max())


def test_taylor_and_norm_scale_read_what_they_say(net):
    context = scored(net)
    wide = context.channels.writes["wide"]
    g = gradients(net)["wide.weight"]
    expected = (net.get_submodule("wide").weight.detach() * g).flatten(1).sum(1).abs()
    torch.testing.assert_close(atom_scores(Taylor(), context, "mean")[wide], expected)
    torch.manual_seed(0)
    network = traced(ResNet(width=0.25).build(SHAPE, 5))
    context = scored(network)
    norm = "stage2.block1.body.part1.norm"
    slot = context.channels.slots[f"{norm}.weight", 0]
    gamma = network.get_submodule(norm).weight.detach().abs()
    torch.testing.assert_close(atom_scores(NormScale(), context, "mean")[slot], gamma)


def test_augprune_weighs_impact_against_response(net):
    context = scored(net)
    atoms = context.channels.reads["head"]
    captured = []
    handle = net.get_submodule("head").register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    x = images(16)
    with torch.no_grad():
        for piece in x.split(8):
            net(piece)
            net(piece + 0.1 * piece.roll(1, 0))
    handle.remove()
    plain, other = torch.cat(captured[::2]), torch.cat(captured[1::2])
    strength = net.get_submodule("head").weight.detach().square().sum(0)
    impact = strength * plain.var(0, unbiased=False)
    response = strength * (other - plain).square().mean(0)
    expected = impact / impact.mean() - 0.3 * response / response.mean()
    torch.testing.assert_close(atom_scores(AugPrune(weight=0.3), context, "mean")[atoms], expected)
    assert isinstance(AugPrune().augmix, AugMix)


def test_backward_is_what_all_readers_lose_when_they_are_fitted_again(net):
    """Of atoms that two layers read, by least squares on samples in the place of moments."""
    context = scored(net)
    channels = context.channels
    scores = atom_scores(Backward(), context, "mean")
    atoms = channels.writes["stem"]
    readers = [layer for layer, read in channels.reads.items() if bool(torch.isin(read, atoms).any())]
    assert len(readers) > 1
    seen = {}
    handles = [
        net.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.update({layer: (module, inputs[0], output)})
        )
        for layer in readers
    ]
    with torch.no_grad():
        net(images())
    for handle in handles:
        handle.remove()

    def lost(kept: torch.Tensor) -> float:
        total = 0.0
        for layer in readers:
            module, x, y = seen[layer]
            if isinstance(module, nn.Conv2d):
                taps = math.prod(module.kernel_size)
                x = nn.functional.unfold(x, module.kernel_size, 1, module.padding, module.stride)
                x, y = (value.flatten(2).mT.flatten(0, 1) for value in (x, y))
                columns = kept[torch.searchsorted(atoms, channels.reads[layer])].repeat_interleave(taps)
            else:
                columns = kept[torch.searchsorted(atoms, channels.reads[layer])]
            x, y = x[:, columns] - x[:, columns].mean(0), y - y.mean(0)
            fitted = x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
            total += float((y - fitted).square().sum() / y.square().sum())
        return total

    order = scores[atoms].argsort()
    for number in (1, 3, 6):
        kept = torch.ones(len(atoms), dtype=torch.bool)
        kept[order[:number]] = False
        assert float(scores[atoms[order[number - 1]]]) == pytest.approx(lost(kept), rel=1e-4, abs=1e-7)
    first = [lost(torch.arange(len(atoms)) != place) for place in range(len(atoms))]
    assert int(order[0]) == int(torch.tensor(first).argmin())


class Beside(nn.Module):
    """Two layers side by side, of which the second gives nearly what the first gives at its first channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(12, 6, 1)
        with torch.no_grad():
            self.b.weight.copy_(self.a.weight[:4] + 0.01 * torch.randn(4, 3, 3, 3))
            self.b.bias.copy_(self.a.bias[:4])

    def forward(self, x):
        return self.head(torch.cat([self.b(x), self.a(x)], 1)).mean((2, 3))


def test_backward_counts_on_channels_that_cannot_go():
    """Where only `a` may go, its copies in `b` stay, so the channels that `b` has, too, are worth least."""
    torch.manual_seed(0)
    network = traced(Beside())
    found = pruned(network, criterion=Backward(), layers=("a",), target=PruneTarget(channels="82%"))
    (group,) = found.groups
    assert (~found.alive[group.atoms]).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("repair", ["parallel", "none"])
@pytest.mark.parametrize("least", [{"round_to": 12}, {"min_channels": 12}])
def test_divergence_leaves_groups_alone_that_cannot_shrink(net, least, repair):
    options = Divergence(images=32, shares=(0.5, 0.5, 0.9))
    found = pruned(net, budget=options, repair=repair, target=PruneTarget(macs="80%"), **least)
    assert found.got <= found.asked
    (stem,) = [group for group in found.groups if "stem" in group.layers]
    assert all(point.gone == point.loss == 0 for point in found.sensitivity[stem.name])
    (inner,) = [group for group in found.groups if "inner" in group.layers]
    assert {point.gone for point in found.sensitivity[inner.name]} <= {0.4, 0.5, 0.35, 0.9}


def gone(found) -> dict[str, float]:
    return {group.name: 1 - kept / len(group.atoms) for group, kept in zip(found.groups, found.kept, strict=True)}


def test_budgets_share_the_target_out_as_they_say(net):
    ratios = {
        kind: gone(pruned(net, budget=budget(), target=PruneTarget(macs="60%"))) for kind, budget in BUDGETS.items()
    }
    for found in ratios.values():
        assert 0 < max(found.values()) < 1
    assert max(ratios["uniform"].values()) - min(ratios["uniform"].values()) < 0.09  # a channel of 12
    metrics = Spectral(metric="stable_rank")
    direct = pruned(net, budget=metrics, target=PruneTarget(macs="80%"))
    inverse = pruned(net, budget=replace(metrics, inverse=True), target=PruneTarget(macs="80%"))
    assert np.corrcoef(list(gone(direct).values()), list(gone(inverse).values()))[0, 1] < 0


def test_global_and_lamp_take_the_least_scores_of_all(net):
    context = scored(net)
    found = pruned(net, budget=Global(), criterion=Hydra())
    scores = atom_scores(Hydra(), context, "mean")
    left, lost = (
        torch.cat([group.atoms[found.alive[group.atoms] == alive] for group in found.groups]) for alive in (True, False)
    )
    held = [
        group.atoms[found.alive[group.atoms]] for group, kept in zip(found.groups, found.kept, strict=True) if kept == 2
    ]
    assert scores[lost].max() <= scores[left].min() or held


def test_equal_metrics_mean_uniform():
    torch.manual_seed(0)
    block = nn.Conv2d(8, 8, 3, padding=1)
    layers = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(3):
        layers.append(nn.Conv2d(8, 8, 3, padding=1))
        layers[-1].load_state_dict(block.state_dict())
    network = traced(nn.Sequential(*layers, nn.Conv2d(8, 4, 1)))
    names = ["1", "2", "3"]
    found = pruned(network, budget=Spectral(metric="entropy"), layers=tuple(names), target=PruneTarget(params="70%"))
    assert max(found.kept) - min(found.kept) <= 1  # what was left of the target


@pytest.mark.parametrize("metric", ["log_norm", "log_spectral_norm", "alpha_weighted"])
def test_metrics_of_either_sign_make_budgets(net, metric):
    found = pruned(net, budget=Spectral(metric=metric))
    assert found.got <= found.asked


def test_a_spectral_budget_leaves_the_least_share(net):
    with torch.no_grad():
        net.get_submodule("wide").weight.mul_(30)
    spectral, target = Spectral(metric="spectral_norm"), PruneTarget(params="75%")
    bare = pruned(net, budget=spectral, target=target)
    kept = pruned(net, budget=replace(spectral, least="50%"), target=target)
    assert max(gone(bare).values()) > 0.6
    assert max(gone(kept).values()) <= 0.5
    assert kept.got <= kept.asked
    with pytest.raises(RecipeError, match=r"budget.least: with 90% of every layer left, the target cannot be reached"):
        pruned(net, budget=replace(spectral, least="90%"), target=target)
    with pytest.raises(ValueError, match="least"):
        Spectral(least="110%")


def test_round_to_and_min_channels(net):
    found = pruned(net, round_to=4, target=PruneTarget(macs="60%"))
    assert all(kept % 4 == 0 for kept in found.kept)
    least = Pruner(net, Prune(target=PruneTarget(macs="60%"), min_channels=6), SHAPE)
    assert least.least > Pruner(net, Prune(target=PruneTarget(macs="60%")), SHAPE).least


@pytest.mark.parametrize("amount", ["0.1%", 1.0, 1e12])
def test_targets_out_of_reach_are_refused_with_what_can_be_reached(net, amount):
    with pytest.raises(RecipeError, match=r"prune.target.macs: .* was asked for; what can be reached lies from"):
        Pruner(net, Prune(target=PruneTarget(macs=amount)), SHAPE)


@pytest.mark.parametrize("amount", ["0%", "100%", "50", "half"])
def test_targets_that_are_no_shares(amount):
    with pytest.raises(ValueError, match="is no share between 0% and 100%"):
        PruneTarget(macs=amount)


def test_one_target_is_given():
    with pytest.raises(ValueError, match="give one of params, macs, channels, latency, not 2"):
        PruneTarget(macs="50%", params="50%")


def test_latency_is_measured_on_nets_that_are_cut(net):
    seen = []

    def measure(network: fx.GraphModule) -> float:
        seen.append(count(network, SHAPE).parameters)
        return seen[-1] / 100

    found = Pruner(net, Prune(target=PruneTarget(latency="50%")), SHAPE, measure).prune(DATA, 0)
    assert found.got == count(cut(net, found.channels, found.alive), SHAPE).parameters / 100 <= found.asked


@pytest.mark.parametrize("chained", [False, True])
def test_repair_is_the_least_squares_fit_of_each_layer(net, chained):
    found = pruned(net, criterion=Random(), target=PruneTarget(macs="70%"))
    many, inputs = images(1000), {}  # so many that no ridge is chosen
    fixed = repair(net, found.channels, found.alive, gather_from(batches(many)), SHAPE, chained=chained)
    assert set(fixed.unexplained) == {"inner", "outer", "wide", "head"}
    for network, key in ((net, "net"), (blind(fixed.network, found.channels, found.alive), "fixed")):
        network.get_submodule("head").register_forward_pre_hook(
            lambda module, values, key=key: inputs.setdefault(key, values[0])
        )
        network(many)
        network.get_submodule("head")._forward_pre_hooks.clear()
    head = net.get_submodule("head")
    kept = found.alive[found.channels.reads["head"]]
    x = inputs["fixed" if chained else "net"][:, kept].detach().numpy()
    y = head(inputs["net"]).detach().numpy()
    design = np.concatenate([x, np.ones((len(x), 1))], 1)
    expected, *_ = np.linalg.lstsq(design, y, rcond=None)
    weight = fixed.network.get_submodule("head").weight.detach().numpy()
    np.testing.assert_allclose(weight[:, kept.numpy()], expected[:-1].T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        fixed.network.get_submodule("head").bias.detach().numpy(), expected[-1], rtol=1e-6, atol=1e-8
    )
    assert (weight[:, ~kept.numpy()] == 0).all()
    residual = ((design @ expected - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert fixed.unexplained["head"] == pytest.approx(residual, rel=1e-6)


def test_layers_that_cannot_be_solved_are_blind_while_those_behind_them_are():
    torch.manual_seed(0)
    middle = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(8, 4, 1)]
    network = traced(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 16 * 16, 3)))
    found = pruned(network, criterion=Random(), layers=("0", "2"), target=PruneTarget(channels="70%"))
    fixed = repair(network, found.channels, found.alive, gather, SHAPE, chained=True)
    assert list(fixed.skipped) == ["2"]
    assert list(fixed.unexplained) == ["4"]
    before = blind(network, found.channels, found.alive)
    x, y = images(), images()
    for layer in ("0", "1", "2", "3"):
        x, y = before.get_submodule(layer)(x), network.get_submodule(layer)(y)
    y = network.get_submodule("4")(y)
    kept = found.alive[found.channels.reads["4"]]
    design, target = (value.movedim(1, -1).flatten(0, -2).detach().numpy() for value in (x[:, kept], y))
    expected, *_ = np.linalg.lstsq(np.concatenate([design, np.ones((len(design), 1))], 1), target, rcond=None)
    weight = fixed.network.get_submodule("4").weight.detach()[:, kept, 0, 0].numpy()
    np.testing.assert_allclose(weight, expected[:-1].T, rtol=1e-6, atol=1e-8)


def test_repaired_nets_are_nearer_to_the_original(net):
    found = pruned(net, criterion=Random(), target=PruneTarget(macs="70%"))
    bare = cut(net, found.channels, found.alive)
    x = images(256)[64:]  # other images than those of the moments
    distances = [(bare(x) - net(x)).square().mean().item()]
    for chained in (False, True):
        fixed = repair(net, found.channels, found.alive, gather, SHAPE, chained=chained)
        smaller = cut(fixed.network, found.channels, found.alive)
        distances.append((smaller(x) - net(x)).square().mean().item())
    assert distances[2] < distances[1] < distances[0]


@pytest.mark.parametrize("name", ["densenet", "wide-resnet"])
def test_layers_that_are_given_a_bias_by_their_repair_are_cut(name):
    """Convolutions that are read by a sum or a concatenation have no norm of their own to take it."""
    torch.manual_seed(0)
    module, shape = NETS[name]()
    network = traced(module)
    found = pruned(network, shape)
    fixed = repair(network, found.channels, found.alive, gather, shape, chained=False)
    assert any(
        name.endswith("conv.bias") or name.endswith("conv2.bias") for name, _ in fixed.network.named_parameters()
    )
    smaller = cut(fixed.network, found.channels, found.alive)
    x = images(4)
    torch.testing.assert_close(smaller(x), fixed.network(x), rtol=1e-9, atol=1e-9)


def test_norms_are_estimated_over_all_batches(net):
    x = images()
    expected = net.get_submodule("stem")(x)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    assert estimate_norms(net, batches(x)) == 4
    norm = net.get_submodule("norm0")
    torch.testing.assert_close(norm.running_mean, expected.mean((0, 2, 3)))
    means = torch.stack([part.var((0, 2, 3)) for part in expected.split(16)]).mean(0)
    torch.testing.assert_close(norm.running_var, means)
    assert norm.momentum == 0.1
    assert not norm.training
    assert not torch.equal(net.get_submodule("norm3").running_mean, buffers["norm3.running_mean"])
    assert estimate_norms(traced(nn.Sequential(nn.Linear(3, 2))), []) == 0


class NormedTwice(nn.Module):
    """A norm with two calls."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.second(self.norm(self.first(x)).relu()))


def test_norms_are_estimated_as_torch_takes_plain_means():
    """`momentum = None`, which counts calls: of a norm that is called twice, both count."""
    torch.manual_seed(0)
    network, x = trace(NormedTwice().double()), torch.randn(20, 6, dtype=torch.float64)
    expected = copy.deepcopy(network).train()
    norm = expected.get_submodule("norm")
    norm.reset_running_stats()
    norm.momentum = None
    for part in x.split(5):
        expected(part)
    estimate_norms(network, [(part, None) for part in x.split(5)])
    assert len(network.get_submodule("norm")._forward_pre_hooks) == 0
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-12, atol=1e-12)


def test_a_last_batch_of_one_is_no_estimate():
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double())
    x = torch.randn(9, 6, dtype=torch.float64)
    one, other = copy.deepcopy(network), copy.deepcopy(network)
    estimate_norms(one, [(part, None) for part in x.split(4)])
    estimate_norms(other, [(part, None) for part in x[:8].split(4)])
    for name, tensor in one.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor, other.state_dict()[name])
    with pytest.raises(RecipeError, match=r"^norms: .* batches of one sample; raise moments\.batch_size"):
        estimate_norms(one, [(part, None) for part in x.split(1)])


def test_uniform_prunes_as_little_as_meets_the_target(net):
    options = Prune(target=PruneTarget(macs="60%"), budget=Uniform())
    pruner = Pruner(net, options, SHAPE)
    found = pruner.prune(DATA, 0)
    order = [torch.arange(len(group.atoms)) for group in found.groups]
    sizes = CutSizes(net, found.channels, SHAPE)
    for place, kept in enumerate(found.kept):
        more = [*found.kept[:place], kept + 1, *found.kept[place + 1 :]]
        assert sizes("macs", pruner._alive(order, more)) > found.asked


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("chained", ["parallel", "top-down"])
def test_from_python_as_by_the_parts(net, criterion, chained):
    batches = [(torch.randn(40, *SHAPE, dtype=torch.float64), torch.arange(40) % 5) for _ in range(3)]
    smaller, groups = compresskit.prune(
        net, batches, target={"macs": "60%"}, criterion=criterion, budget="global", repair=chained
    )
    assert count(smaller, SHAPE).macs <= 0.6 * count(net, SHAPE).macs
    for group, kept in groups:
        assert len(smaller.get_submodule(group.layers[0]).weight) == kept

    def gradients(network):
        loss = sum(nn.functional.cross_entropy(network(x), y) for x, y in batches) / len(batches)
        loss.backward()
        return {name: parameter.grad for name, parameter in network.named_parameters()}

    options = Prune(target=PruneTarget(macs="60%"), criterion=CRITERIA[criterion](), budget=Global())
    pruned = Pruner(net, options, SHAPE).prune(replace(DATA, gradients=gradients, responses=None), 0)
    fixed = repair(net, pruned.channels, pruned.alive, gather_from(batches), SHAPE, chained=chained == "top-down")
    wanted = [cut(network, pruned.channels, pruned.alive) for network in (net, fixed.network)]
    wanted += copy.deepcopy(wanted)
    for network in wanted[2:]:
        estimate_norms(network, batches)
    with torch.no_grad():
        expected = [net(x).log_softmax(1) for x, _ in batches]
        losses = [
            sum(nn.functional.kl_div(network(x).log_softmax(1), y, log_target=True, reduction="batchmean")
                for (x, _), y in zip(batches, expected, strict=True))
            for network in wanted
        ]  # fmt: skip
        best = wanted[int(torch.stack(losses).argmin())]
        assert torch.allclose(smaller(batches[0][0]), best(batches[0][0]), atol=1e-10)


@pytest.mark.parametrize(
    ("key", "kind", "words"),
    [
        ("criterion", "taylor", "gradients"),
        ("criterion", "augprune", "augmented images"),
        ("criterion", "backward", "moments"),
        ("budget", "divergence", "held-out images"),
    ],
)
def test_what_is_needed_and_was_not_given_is_named(net, key, kind, words):
    chosen = {"criterion": CRITERIA, "budget": BUDGETS}[key][kind]()
    pruner = Pruner(net, Prune(target=PruneTarget(macs="60%"), **{key: chosen}), SHAPE)
    with pytest.raises(ValueError, match=f"takes {words}, and none were given"):
        pruner.prune(Data(), 0)


def test_from_python_repairs_of_regression_are_judged_by_squares():
    """A network of one output: its softmax says nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 1)
    )
    loader = [(torch.randn(32, 3, 14, 14), torch.randn(32, 1)) for _ in range(4)]

    def error(network) -> float:
        with torch.no_grad():
            return sum(float((network(x) - model(x)).square().mean()) for x, _ in loader)

    given = {"target": {"macs": "50%"}, "loss": nn.functional.mse_loss}
    repaired, bare = (compresskit.prune(model, loader, **given, repair=repair)[0] for repair in ("parallel", "none"))
    assert error(repaired) < 0.5 * error(bare)


def test_from_python_without_repair_the_net_is_cut_alone(net):
    batches = [(torch.randn(8, *SHAPE, dtype=torch.float64), torch.arange(8) % 5)]
    smaller, _ = compresskit.prune(net, batches, target={"params": "50%"}, repair="none", norms=False)
    options = Prune(target=PruneTarget(params="50%"))
    pruned = Pruner(net, options, SHAPE).prune(Data(), 0)
    assert torch.equal(smaller(batches[0][0]), cut(net, pruned.channels, pruned.alive)(batches[0][0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": {"latency": 1.0}}, "latency is measured by the command line"),
        ({"target": {"macs": "50%"}, "criterion": "augprune"}, "augprune augments the bytes of images"),
        ({"target": {"macs": "100%"}}, "is no share"),
        ({"target": {"macs": "50%"}, "criterion": "magnitud"}, "'magnitud' was given; did you mean 'magnitude'"),
        ({"target": {"macs": "50%"}, "budgets": "lamp"}, "no option 'budgets'; did you mean 'budget'"),
    ],
)
def test_from_python_refusals(net, options, words):
    batches = [(torch.randn(8, *SHAPE, dtype=torch.float64), torch.arange(8) % 5)]
    with pytest.raises((ValueError, RecipeError), match=words):
        compresskit.prune(net, batches, **options)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(7, 6), nn.Linear(6, 20)
        self.more, self.head = nn.Linear(20, 20), nn.Linear(20, 3)

    def forward(self, x):
        return self.head(torch.relu(self.more(torch.relu(self.hidden(self.table(x))))).mean(1))


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_networks_of_tokens_lose_hidden_channels(criterion):
    x = torch.randint(7, (40, 5), generator=torch.Generator().manual_seed(0))
    loader = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(10)]
    smaller, groups = prune_model(Words(), loader, target={"macs": "60%"}, criterion=criterion)
    assert [group.layers for group, _ in groups] == [("hidden",), ("more",)]
    assert all(kept < 20 for _, kept in groups)
    assert smaller(x).shape == (40, 3)


def test_transposed_convolutions_are_no_linear_layers():
    network = trace(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1))
    )
    channels = find_channels(network, SHAPE)
    groups, skipped = find_groups(network, channels, ["@transposed"])
    assert [group.layers for group in groups] == [("1",)]
    groups, _ = find_groups(network, channels, ["@conv"])
    assert [group.layers for group in groups] == [("0",), ("2",)]
    with pytest.raises(RecipeError, match="@linear"):
        find_groups(network, channels, ["@linear"])
    with pytest.raises(RecipeError, match="allowed are @conv, @linear, @transposed, @conv3x3"):
        find_groups(network, channels, ["@lines"])


class Norms(nn.Module):
    """A norm of each kind behind a layer of its own; two whose scales are arguments of calls, one without a scale."""

    def __init__(self, lacking: bool) -> None:
        super().__init__()
        norms = {
            "batch": nn.BatchNorm2d(8),
            "instance": nn.InstanceNorm2d(8, affine=True),
            "group": nn.GroupNorm(8, 8),
            "map": nn.LayerNorm([8, 8, 8]),
        }
        self.layers = nn.ModuleDict({name: nn.Conv2d(3 if name == "batch" else 8, 8, 1) for name in norms})
        self.norms = nn.ModuleDict(norms)
        self.token, self.token_norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.root, self.root_norm = nn.Linear(8, 8), nn.RMSNorm(8)
        self.call, self.call_weight = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.root_call, self.root_weight = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.plain, self.bare = nn.Linear(8, 8), nn.LayerNorm(8, elementwise_affine=not lacking)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        for name, layer in self.layers.items():
            x = torch.relu(self.norms[name](layer(x)))
        x = x.flatten(2).transpose(1, 2)
        x = torch.relu(self.root_norm(self.root(torch.relu(self.token_norm(self.token(x))))))
        x = torch.relu(nn.functional.layer_norm(self.call(x), (8,), self.call_weight))
        x = torch.relu(nn.functional.rms_norm(self.root_call(x), (8,), weight=self.root_weight))
        return self.head(self.bare(self.plain(x)).mean(1))


def test_norm_scale_reads_every_norm():
    torch.manual_seed(0)
    network = trace(Norms(lacking=False)).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name in ("call_weight", "root_weight", "bare.weight"):
                parameter.normal_()
    channels = find_channels(network, (3, 8, 8))
    free = torch.ones(channels.n_atoms, dtype=torch.bool)
    seen = Scored(network, channels, SHAPE, free, torch.Generator(), gradients, changed, gather, curved)
    scores = atom_scores(NormScale(), seen, "mean")
    scales = {f"layers.{name}": f"norms.{name}.weight" for name in ("batch", "instance", "group", "map")}
    scales |= {"token": "token_norm.weight", "root": "root_norm.weight", "plain": "bare.weight"}
    scales |= {"call": "call_weight", "root_call": "root_weight"}
    for layer, scale in scales.items():
        gamma = network.get_parameter(scale).detach().abs()
        torch.testing.assert_close(
            scores[channels.writes[layer]], gamma.flatten(1).mean(1) if gamma.ndim > 1 else gamma
        )
    found = pruned(network, (3, 8, 8), criterion=NormScale(), groups=("width", "channels"))
    for group, kept in zip(found.groups, found.kept, strict=True):
        assert scores[group.atoms[found.alive[group.atoms]]].min() >= scores[group.atoms].sort().values[-kept]


def test_channels_that_no_norm_scales_are_said():
    network = trace(Norms(lacking=True)).double()
    with pytest.raises(
        RecipeError, match=r"plain \(width\): .* it has none behind it; leave it out of prune.layers, or"
    ):
        pruned(network, (3, 8, 8), criterion=NormScale(), groups=("width",))
    network = trace(families.ViT()).double()
    with pytest.raises(RecipeError, match=r"mlp.fc1 \(hidden\): .* none behind it; .* prune.groups: \[width\], or"):
        pruned(network, (3, 8, 8), criterion=NormScale(), groups=("width", "hidden"))


def test_augprune_says_what_no_layer_reads():
    network = trace(families.Llama()).double()
    with pytest.raises(RecipeError, match=r"\(head-dim\).*: augprune reads inputs of layers, and it has none"):
        pruned(network, (3, 8, 8), criterion=AugPrune(), groups=("hidden", "head-dim"))
    found = pruned(network, (3, 8, 8), criterion=AugPrune(), target=PruneTarget(macs="70%"))
    assert {"hidden", "width"} & {group.kind for group in found.groups}
    assert all("augprune" in found.skipped[name] for name in found.skipped if "(head-dim)" in name)


def test_responses_stay_on_the_networks_device():
    """Criteria multiply them by weights, which lie there. torch's meta device refuses every copy to the CPU."""
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))).to("meta")
    images = torch.zeros(5, 3, 8, 8, device="meta")
    ((variance, change),) = responses(network, ["2"], [(images, images), (images, images)]).values()
    assert variance.device == change.device == torch.device("meta")
    assert variance.shape == change.shape == (4,)


class Twice(nn.Module):
    """A convolution without a bias that is called twice, before one norm, which another layer may use as well."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.body, self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(3, 4, 3, bias=False)
        self.register_buffer("basis", torch.randn(4, 4))
        self.shared = shared
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        first, second = self.conv(self.body(x)), self.conv(self.body(-x).relu())
        y = self.norm(first) + self.norm(second)
        y = y + self.norm(self.other(x)) if self.shared else y
        return self.head(y.relu().mean((2, 3)) @ self.basis)


@pytest.mark.parametrize("shared", [False, True])
def test_a_bias_goes_to_a_norm_that_sees_nothing_else(shared):
    torch.manual_seed(0)
    network = traced(Twice(shared))
    for module in (network.body, network.norm):
        nn.init.normal_(module.bias, std=2)
    found = pruned(network, layers=("body",), target=PruneTarget(channels="80%"))
    fixed = repair(network, found.channels, found.alive, gather, SHAPE, chained=False)
    assert fixed.unexplained.keys() == {"conv"}
    assert (fixed.network.conv.bias is None) is not shared
    assert torch.equal(fixed.network.norm.running_mean, network.norm.running_mean) is shared
    x = images()
    bare, small = (cut(net, found.channels, found.alive) for net in (network, fixed.network))
    with torch.no_grad():
        assert (small(x) - network(x)).norm() < 0.5 * (bare(x) - network(x)).norm()


def test_responses_of_a_layer_that_is_called_twice_are_of_all_calls():
    torch.manual_seed(0)
    network, x = traced(Twice(False)), images(8)
    ((variance, change),) = responses(network, ["conv"], [(x, 1.1 * x)]).values()
    with torch.no_grad():
        one, other = ([network.body(y), network.body(-y).relu()] for y in (x, 1.1 * x))
    seen, moved = (torch.cat([y.movedim(1, -1).flatten(0, 2) for y in own]) for own in (one, other))
    torch.testing.assert_close(variance, seen.var(0, correction=0))
    torch.testing.assert_close(change, (moved - seen).square().mean(0))


def test_a_target_is_required():
    with pytest.raises(RecipeError, match=r"prune: it needs a target; give target=\{'macs': '50%'\}, for example"):
        prune_model(nn.Linear(3, 3), [])
