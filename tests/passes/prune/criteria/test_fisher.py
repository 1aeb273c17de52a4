"""The second-order criterion against divergences that are measured: by second differences, and by networks cut anew."""

from functools import partial

import pytest
import torch
from torch import nn

import compresskit
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.trace import trace
from compresskit.numerics.distillation import soft_targets
from compresskit.numerics.pruning.fisher import root_of_classes, root_of_squares
from compresskit.passes.moments import gather_from
from compresskit.passes.prune.criteria import Fisher, Scored, atom_scores
from compresskit.passes.prune.criteria.gradients import curvatures

SHAPE = (2, 5, 5)
KL = partial(soft_targets, temperature=1.0)


class Net(nn.Module):
    """A convolution, one of two groups, activations in place, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 2, groups=2)
        self.twice, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.act = nn.SiLU(inplace=True)  # without a kink, which second differences would see

    def forward(self, x):
        x = self.act(self.grouped(self.act(self.first(x))))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return trace(Net()).double().eval()


def images(count=12):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exact(network, layers, x, classes=3):
    """With every column of the root in the place of its product with drawn signs; the targets cannot be read."""

    def column(c, outputs, signs):
        return root_of_classes(outputs, nn.functional.one_hot(torch.full((len(outputs),), c), classes).to(outputs))

    batches = [(part, object()) for part in x.split(5)]
    found = [curvatures(network, layers, batches, partial(column, c), 0) for c in range(classes)]
    return {layer: sum(each[layer] for each in found) for layer in layers}


@pytest.mark.parametrize("layer", ["first", "grouped", "twice", "head"])
def test_curvatures_are_second_differences_of_the_divergence(net, layer):
    """u^T C u, against the divergence of the network from itself with t u added to the output of the layer, at one
    position of one call after another."""
    x, module = images(), net.get_submodule(layer)
    curvature, step = exact(net, [layer], x)[layer], 1e-3
    with torch.no_grad():
        own, shapes = net(x), []
        handle = module.register_forward_hook(lambda m, i, output: shapes.append(output.shape))
        net(x)
        handle.remove()
        for group in range(len(curvature)):
            size = curvature.shape[1]
            u = torch.zeros(shapes[0][1], dtype=torch.float64)
            u[group * size : (group + 1) * size] = torch.randn(size, dtype=torch.float64)
            total = 0.0
            for call, shape in enumerate(shapes):
                for place in range(shape[2:].numel()):
                    for t in (-step, step):
                        seen = []

                        def moved(m, i, output, call=call, place=place, t=t, seen=seen, u=u):
                            seen.append(output)
                            output = output.clone()
                            if len(seen) == call + 1:
                                output.view(*output.shape[:2], -1)[..., place] += t * u
                            return output

                        handle = module.register_forward_hook(moved)
                        total += float(KL(net(x), own)) / step**2
                        handle.remove()
            part = u[group * size : (group + 1) * size]
            assert total == pytest.approx(float(part @ curvature[group] @ part), rel=1e-4)


def test_drawn_signs_come_near_to_all_columns(net):
    x = images(400)
    drawn = curvatures(net, ["first", "head"], [(x, None)], root_of_classes, 0)
    again = curvatures(net, ["first", "head"], [(part, None) for part in x.split(90)], root_of_classes, 0)
    for layer, expected in exact(net, ["first", "head"], x).items():
        assert (drawn[layer] - expected).norm() < 0.25 * expected.norm()
        assert (again[layer] - drawn[layer]).norm() > 0  # others for other batches
    same = curvatures(net, ["head"], [(x, None)], root_of_classes, 0)
    assert torch.equal(same["head"], drawn["head"])
    assert not net.get_submodule("head")._forward_hooks


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


def test_scores_are_the_divergence_of_networks_that_are_fitted_again():
    """Of squares and the last layer, where nothing is left out: in all orders that the criterion could have taken."""
    torch.manual_seed(0)
    network, x = trace(Squares()).double().eval(), images(60)
    batches, channels = [(part, None) for part in x.split(20)], find_channels(network, SHAPE)
    free = torch.tensor([atom not in channels.frozen for atom in range(channels.n_atoms)])

    def curved(net, layers):  # the mean over all signs, for all outputs of a sample count alike
        return {layer: torch.eye(4, dtype=torch.float64)[None] * 2 / 4 for layer in layers}

    def drawn(net, layers):
        return curvatures(net, layers, batches, root_of_squares, 0)

    for which, tolerance in ((curved, 1e-6), (drawn, 0.5)):
        scored = Scored(network, channels, SHAPE, free, torch.Generator(), None, None, gather_from(batches), which)
        scores = atom_scores(Fisher(), scored, "mean")[channels.writes["body"]]
        with torch.no_grad():
            read, own = torch.relu(network.get_submodule("body")(x)).mean((2, 3)), network(x)

        def lost(gone, read=read, own=own):
            kept = [place for place in range(6) if place not in gone]
            design = torch.cat([read[:, kept], torch.ones(len(read), 1, dtype=torch.float64)], 1)
            return float(nn.functional.mse_loss(design @ torch.linalg.lstsq(design, own).solution, own))

        order = scores.argsort().tolist()
        for count in range(1, 7):
            expected = lost(order[:count])
            assert float(scores[order[count - 1]]) == pytest.approx(expected, rel=tolerance, abs=1e-9)
            if which is curved:
                others = [lost([*order[: count - 1], other]) for other in order[count:]]
                assert all(other >= expected - 1e-9 for other in others)


def test_curvature_that_is_not_finite_is_named(net):
    channels = find_channels(net, SHAPE)
    free = torch.tensor([atom not in channels.frozen for atom in range(channels.n_atoms)])
    batches = [(images(), None)]

    def curved(network, layers):
        found = exact(network, layers, images())
        found["twice"][0, 1, 1] = torch.nan
        return found

    scored = Scored(net, channels, SHAPE, free, torch.Generator(), None, None, gather_from(batches), curved)
    with pytest.raises(compresskit.errors.ConvergenceError, match=r"^twice: the gradients of its outputs are not"):
        atom_scores(Fisher(), scored, "mean")


def test_from_python_no_label_is_read(net):
    """Whatever the targets say; class scores where the loss is cross-entropy."""
    x, options = images(40).float(), {"target": {"macs": "70%"}, "criterion": "fisher", "budget": "global"}
    network = net.float()
    loaders = [[(part, torch.full((len(part),), label)) for part in x.split(10)] for label in (0, 2)]
    one, other = (compresskit.prune(network, loader, **options)[0] for loader in loaders)
    assert torch.equal(one(x), other(x))
    squares = compresskit.prune(network, loaders[0], loss=nn.functional.mse_loss, **options)[0]
    assert squares(x).shape == one(x).shape
