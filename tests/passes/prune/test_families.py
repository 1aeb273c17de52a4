"""Every criterion and budget on every family of nets: what goes, and the repair of what is left."""

import re

import pytest
import torch
from torch import nn

from compresskit.errors import RecipeError
from compresskit.graph.capture import capture
from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.plain import plain_layers
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.graph.weights import weights_of
from compresskit.numerics.pruning.fisher import root_of_squares
from compresskit.passes.moments import gather_from
from compresskit.passes.prune.budgets import BUDGETS
from compresskit.passes.prune.channels import Data, Pruner
from compresskit.passes.prune.criteria import CRITERIA
from compresskit.passes.prune.criteria.gradients import curvatures, mean_gradients
from compresskit.passes.prune.criteria.responses import responses
from compresskit.passes.prune.groups import find_groups
from compresskit.passes.prune.options import Prune, PruneTarget
from compresskit.passes.repair.layers import Repair, repair
from tests.graph.channels.test_families import IMAGES, image

CHOSEN = ["magnitude", "hydra", "taylor", "augprune", "backward", "fisher", "random", "spectral-energy"]


def batches(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.cat([image(name) for _ in range(40)]).float()
    return [(part, torch.arange(len(part)) % 5) for part in x.split(20)]


def network_of(name: str, plain: bool = True):
    torch.manual_seed(0)
    shape = tuple(image(name).shape[1:])
    net = IMAGES[name]().eval()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    network = trace(net, shape)
    return plain_layers(network, shape)[0] if plain else network, shape


def data_of(name: str) -> Data:
    found = batches(name)
    return Data(
        lambda net: mean_gradients(net, found, nn.functional.cross_entropy),
        lambda net, layers, _: responses(net, layers, [(x, x + 0.1 * x.sin()) for x, _ in found]),
        gather_from(found),
        lambda _: (x for x, _ in found),
        lambda one, other: (one - other).square().mean(),
        lambda net, layers: curvatures(net, layers, found, root_of_squares, 0),
    )


@pytest.mark.parametrize("criterion", CHOSEN)
@pytest.mark.parametrize("name", IMAGES)
def test_criteria(name, criterion):
    network, shape = network_of(name)
    pruner = Pruner(network, Prune(target=PruneTarget(macs="70%"), criterion=CRITERIA[criterion]()), shape)
    pruned = pruner.prune(data_of(name), 0)
    small = cut(network, pruned.channels, pruned.alive)
    assert count(small, shape).macs == pytest.approx(pruned.got)
    assert pruned.got <= pruned.asked < pruned.whole
    assert small(image(name).float()).isfinite().all()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", IMAGES)
def test_budgets(name, budget):
    network, shape = network_of(name)
    pruned = Pruner(network, Prune(target=PruneTarget(params="75%"), budget=BUDGETS[budget]()), shape).prune(
        data_of(name), 0
    )
    assert pruned.got <= pruned.asked < pruned.whole


def test_a_layer_that_is_called_again_is_solved_for_all_its_calls():
    """Least squares on what it reads of both maps, stacked."""
    network, shape = network_of("shared")
    data = batches("shared")
    options = Prune(target=PruneTarget(macs="80%"), groups=("channels",), layers=("tower.0",))
    pruned = Pruner(network, options, shape).prune(data_of("shared"), 0)
    found = repair(network, pruned.channels, pruned.alive, gather_from(data), shape, chained=False)
    assert found.unexplained.keys() == {"tower.3"}
    nodes = [node for node in network.graph.nodes if node.target == "tower.3"]
    x, y = ([] for _ in range(2))
    with torch.no_grad():
        for images, _ in data:
            read = capture(network.eval(), [n.name for node in nodes for n in (node.args[0], node)]).eval()(images)
            x += [one.transpose(1, -1).flatten(0, -2) for one in read[::2]]
            y += [one.transpose(1, -1).flatten(0, -2) for one in read[1::2]]
    kept = pruned.alive[pruned.channels.reads["tower.3"]]
    design = torch.cat([torch.cat(x)[:, kept], torch.ones(len(torch.cat(x)), 1)], 1).double()
    expected = torch.linalg.lstsq(design, torch.cat(y).double()).solution.T
    layer = found.network.get_submodule("tower.3")
    assert 0 < kept.sum() < len(kept)
    torch.testing.assert_close(layer.weight[:, kept, 0, 0].double(), expected[:, :-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias.double(), expected[:, -1], rtol=1e-4, atol=1e-5)


def errors(name: str, options: Prune, chained: bool) -> tuple[Repair, torch.Tensor, torch.Tensor]:
    """The repair of a cut net, and the mean square errors of what the net gives as it is cut and repaired."""
    network, shape = network_of(name)
    pruned = Pruner(network, options, shape).prune(data_of(name), 0)
    found = repair(network, pruned.channels, pruned.alive, gather_from(batches(name)), shape, chained=chained)
    x = torch.cat([x for x, _ in batches(name)])
    with torch.no_grad():
        whole = network(x)
        small = [cut(net, pruned.channels, pruned.alive)(x) for net in (network, found.network)]
    bare, repaired = ((y - whole).square().mean() for y in small)
    return found, bare, repaired


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("name", IMAGES)
def test_repair_is_nearer_to_what_the_net_did(name, chained):
    """With biases in what is cut, so that a mean is lost that a repair gives back."""
    options = Prune(target=PruneTarget(macs="60%"), groups=("channels", "hidden", "head-dim"))
    found, bare, repaired = errors(name, options, chained)
    assert repaired < bare
    assert found.unexplained


WIDE = ["vit", "vit with norms of query and key", "windows", "swin", "swin v2", "convnext", "mixer"]


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("name", WIDE)
def test_repair_of_widths_is_nearer_by_far(name, chained):
    """Layers behind norms are solved for what these give over the channels that stay: else they are scaled wrongly."""
    options = Prune(target=PruneTarget(macs="65%"), groups=("width", "hidden", "head-dim"))
    _, bare, repaired = errors(name, options, chained)
    assert repaired < 0.7 * bare


@pytest.mark.parametrize("name", ["vit", "multihead", "llama"])
def test_kinds_are_taken_in_turn(name):
    network, shape = network_of(name)

    def kinds(share: str, groups="auto") -> set[str]:
        return {
            group.kind for group in Pruner(network, Prune(target=PruneTarget(macs=share), groups=groups), shape).groups
        }

    assert "hidden" in kinds("90%")
    assert "width" not in kinds("97%")
    assert kinds("15%") == {"hidden", "head-dim", "width"} | (kinds("15%") & {"channels"})
    assert kinds("90%", ("heads", "hidden")) == {"heads", "hidden"}
    with pytest.raises(RecipeError, match="or name more in prune.groups: .*width"):
        kinds("10%", ("hidden",))


def test_whole_heads_and_positions_are_not_taken_at_once():
    with pytest.raises(ValueError, match="heads and head-dim go one after the other"):
        Prune(target=PruneTarget(macs="50%"), groups=("heads", "head-dim"))


def test_weights_inside_attention_are_layers():
    network = trace(IMAGES["multihead"]().eval(), (3, 6, 6))
    names = [weight.name for weight in weights_of(network)[0]]
    assert any(name.endswith("in_proj") for name in names)
    assert not any("in_proj" in name for name in weights_of(network)[1])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", IMAGES)
def test_what_was_not_solved_is_named(name, plain):
    """Each weight that lost inputs: of a layer, within attention, or an argument of a call."""
    network, shape = network_of(name, plain)
    channels = find_channels(network, shape)
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[[atom for atom in range(channels.n_atoms) if atom not in channels.frozen][::3]] = False
    found = repair(network, channels, alive, gather_from(batches(name)), shape, chained=False)
    read = {}
    for tensor, dim in channels.blinding:
        if network.get_parameter(tensor).ndim > 1 and not bool(alive[channels.slots[tensor, dim]].all()):
            read[tensor.removesuffix("weight").rstrip("._")] = dim
    assert read
    assert read.keys() == found.unexplained.keys() | found.skipped.keys()
    assert not found.unexplained.keys() & found.skipped.keys()


def test_reasons_why_layers_are_not_solved():
    for name, expected in {
        "swin": ("features.1.0.attn.qkv", "its weight is an argument of a call, which has no moments"),
        "unet": ("up1", "moments of ConvTranspose2d are not there yet"),
        "llama": ("matrix", "its weight is an argument of a call, which has no moments"),
        "multihead": ("own.in_proj", "attention as one module has no moments of what is within"),
    }.items():
        network, shape = network_of(name, plain=False)
        channels = find_channels(network, shape)
        alive = torch.ones(channels.n_atoms, dtype=torch.bool)
        alive[[atom for atom in range(channels.n_atoms) if atom not in channels.frozen][::3]] = False
        found = repair(network, channels, alive, gather_from(batches(name)), shape, chained=True)
        assert expected in found.skipped.items()


def reached(message: str) -> dict[tuple[str, ...], float]:
    """By the kinds that go, the share that the message says is left."""
    found = {}
    for sequence in message.split("; or "):
        kinds: tuple[str, ...] = ()
        for names, share in re.findall(
            r"((?:hidden|width|heads|head-dim|channels|and| )+?)(?: reaches)? ([\d.]+)%", sequence
        ):
            kinds += tuple(names.replace(" and ", " ").split())
            found[kinds] = float(share) / 100
    return found


@pytest.mark.parametrize("goal", ["macs", "params"])
@pytest.mark.parametrize("groups", [("hidden",), ("heads",), ("width", "hidden"), "auto"])
def test_a_target_out_of_reach_says_what_kinds_reach(groups, goal):
    """As counted on networks that are cut so far."""
    network, shape = network_of("vit")
    with pytest.raises(RecipeError, match="kinds of groups|name more in prune.groups") as refusal:
        Pruner(network, Prune(target=PruneTarget(**{goal: 1}), groups=groups), shape)
    found = reached(str(refusal.value).partition("lower min_channels and round_to")[2])
    assert len(found) == (
        3 if len(groups) < 3 and groups != ("hidden",) else 5
    )  # what starts two sequences counts once
    for kinds, share in found.items():
        channels = find_channels(network, shape, "whole" if "heads" in kinds else "positions")
        alive = torch.ones(channels.n_atoms, dtype=torch.bool)
        for group in find_groups(network, channels, ["re:.*"], kinds)[0]:
            alive[group.atoms[1:]] = False
        counts = [count(net, shape) for net in (cut(network, channels, alive), network)]
        small, whole = (found.macs if goal == "macs" else found.parameters for found in counts)
        assert share == pytest.approx(small / whole, abs=6e-4)


def test_a_net_of_one_kind_has_no_others_to_name():
    network = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    with pytest.raises(RecipeError, match="lower min_channels and round_to$"):
        Pruner(network, Prune(target=PruneTarget(macs=1)), (3, 8, 8))
