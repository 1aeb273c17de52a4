"""Confusion of gradients, and landscapes: against slow ways, with nothing of the run disturbed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from compresskit.distributed import Group
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.training.analyses.gradient_confusion import GradientConfusion, gradient_cosines
from compresskit.training.analyses.landscape import Landscape, directions, landscape
from compresskit.training.loop import check
from compresskit.training.trainer import Trainer

CPU = torch.device("cpu")


def test_cosines_of_gradients_are_those_of_one_long_vector():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(6)]

    def loss(x, y):
        return functional.mse_loss(net(x), y)

    found = gradient_cosines(loss, list(net.parameters()), zip(batches[::2], batches[1::2], strict=True))
    vectors = []
    for x, y in batches:
        net.zero_grad()
        loss(x, y).backward()
        vectors.append(np.concatenate([p.grad.numpy().ravel() for p in net.parameters()]))
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-13)
    same = gradient_cosines(loss, list(net.parameters()), [(batches[0], batches[0])])
    assert same == pytest.approx([1.0], abs=1e-14)


def test_a_gradient_of_zero_has_a_cosine_of_zero():
    weight = torch.ones(2, requires_grad=True)
    pairs = [((torch.zeros(2), torch.zeros(())), (torch.ones(2), torch.zeros(())))]
    assert gradient_cosines(lambda x, y: (weight * x).sum(), [weight], pairs) == [0.0]


def test_a_parameter_that_one_batch_does_not_reach_counts_as_zero():
    used, idle = (torch.ones(1, requires_grad=True) for _ in range(2))

    def loss(x, y):
        return (3 * used + (4 * idle if y else 0)).sum()

    (found,) = gradient_cosines(loss, [used, idle], [((None, torch.tensor(0)), (None, torch.tensor(1)))])
    assert found == pytest.approx(3 / 5, abs=1e-15)


def test_a_gradient_that_is_not_finite_ends_the_measuring():
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(ConvergenceError, match=r"a gradient is not finite; lower optimizer\.lr"):
        gradient_cosines(lambda x, y: weight.sqrt().sum(), [weight], [((None, None), (None, None))])


class Spied:
    """A split that remembers the batches it served."""

    def __init__(self, split):
        self.split, self.served = split, []

    def __len__(self):
        return len(self.split)

    def batches(self, *arguments, **options):
        for batch in self.split.batches(*arguments, **options):
            self.served.append(batch)
            yield batch


@pytest.mark.parametrize("batch_size", [10, 30])  # 30: more than half of the 48 samples
def test_a_trainer_measures_disjoint_batches_with_norms_as_in_training(tiny, batch_size):
    net, data = tiny.network(dropout=0.0), tiny.dataset()
    options = replace(tiny.OPTIONS, batch_size=batch_size)
    trainer = Trainer(net, replace(data, train=(spied := Spied(data.train))), options, 3, CPU, Group())
    found = trainer.gradient_cosines(0, 3)
    slow = copy.deepcopy(net).train()
    vectors = []
    assert len(spied.served) == 6
    for inputs, targets in spied.served:
        slow.zero_grad()
        functional.cross_entropy(slow(inputs), targets).backward()
        vectors.append(torch.cat([p.grad.flatten() for p in slow.parameters()]).double())
    expected = [
        functional.cosine_similarity(*pair, dim=0).item() for pair in zip(vectors[::2], vectors[1::2], strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-5)  # float32
    assert {len(targets) for _, targets in spied.served} == {min(batch_size, 24)}
    for (one, _), (other, _) in zip(spied.served[::2], spied.served[1::2], strict=True):
        assert (one[:, None] != other[None]).any(2).all()


def test_with_float16_it_measures_in_float32(tiny):
    def measured(precision):
        trainer = Trainer(tiny.network(), tiny.dataset(), tiny.OPTIONS, 3, CPU, Group())
        trainer.options = replace(tiny.OPTIONS, precision=precision)  # which a trainer on the CPU would refuse
        return trainer.gradient_cosines(0, 3)

    assert measured("float16") == measured("float32")
    assert measured("bfloat16") != measured("float32")


def test_pairs_need_two_samples(tiny):
    options = replace(tiny.OPTIONS, batch_size=1, gradient_confusion=GradientConfusion())
    with pytest.raises(RecipeError, match="gradient_confusion: a pair of batches needs two training samples"):
        check(tiny.network(), tiny.dataset(train=1), options, CPU)


def test_measuring_leaves_the_run_as_it_was(tiny):
    net, data = tiny.network(), tiny.dataset()
    trainer = Trainer(net, data, tiny.OPTIONS, 3, CPU, Group())
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    one = trainer.gradient_cosines(0, 7)
    assert len(one) == 7  # more than the two pairs that an epoch of 48 samples in batches of 10 holds
    assert len(set(one)) == 7
    assert all(-1 <= cosine <= 1 for cosine in one)
    assert trainer.gradient_cosines(0, 7) == one
    assert trainer.gradient_cosines(1, 7) != one
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert trainer.gradient_cosines(0, 7) == one  # dropout, too, is drawn by the run's seed and the epoch


def test_training_is_the_same_with_it_and_a_resumed_run_keeps_it(tiny, tmp_path):
    plain, _ = tiny.run(tmp_path / "plain", tiny.OPTIONS)
    options = replace(tiny.OPTIONS, gradient_confusion=GradientConfusion(pairs=5))
    net, history = tiny.run(tmp_path / "measured", options)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert len(history.cosines) == 5
    assert history.rows[-1]["gradient_cosine_min"] == min(history.cosines)
    assert "gradient_cosine_mean" in (tmp_path / "measured/metrics.csv").read_text().splitlines()[0]
    _, again = tiny.run(tmp_path / "measured", options, resume=True)
    assert again.cosines == history.cosines


def test_a_run_that_was_stopped_ends_with_the_same_cosines(tiny, tmp_path):
    class Stop:
        def on_step(self, epoch, step, steps):
            pass

        def on_epoch(self, row):
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    options = replace(tiny.OPTIONS, gradient_confusion=GradientConfusion(pairs=5))
    _, whole = tiny.run(tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "stopped", options, progress=Stop())
    _, resumed = tiny.run(tmp_path / "stopped", options, resume=True)
    assert resumed.cosines == whole.cosines
    for column in ("gradient_cosine_min", "gradient_cosine_mean"):
        assert [row[column] for row in resumed.rows] == [row[column] for row in whole.rows]


def test_directions_are_scaled_filter_by_filter():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
    first, second = directions(net, 5)
    for step in (first, second):
        for name, weight in net.named_parameters():
            if weight.ndim == 1:
                assert not step[name].any()
            else:
                norms = [step[name].flatten(1).norm(dim=1), weight.detach().flatten(1).norm(dim=1)]
                torch.testing.assert_close(*norms, rtol=1e-5, atol=1e-6)  # float32
    assert not torch.allclose(first["3.weight"], second["3.weight"])
    assert all(torch.equal(first[name], other) for name, other in directions(net, 5)[0].items())


def test_the_middle_of_the_grid_is_the_trained_net():
    assert Landscape(points=21, extent=0.7).places[10] == 0.0
    np.testing.assert_allclose(Landscape(points=5, extent=0.7).places, [-0.7, -0.35, 0, 0.35, 0.7], atol=1e-15)
    with pytest.raises(ValueError, match=r"points: 4 a side have no middle.*odd"):
        Landscape(points=4)


def test_a_landscape_is_the_loss_at_each_place_and_leaves_the_weights(tiny):
    class Sampled(tiny.Split):
        def sample(self, count):
            return tiny.Split(self.inputs[:count], self.targets[:count])

    net, data = tiny.network(), tiny.dataset()
    data = replace(data, train=Sampled(data.train.inputs, data.train.targets))
    before = copy.deepcopy(net.state_dict())
    options = Landscape(points=5, extent=0.5, samples=20)
    surfaces = landscape(net, data, options, seed=4, device=CPU, batch_size=8)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert surfaces.keys() == {"accuracy", "loss"}
    first, second = directions(net, 4)
    for row, a in enumerate([-0.5, -0.25, 0, 0.25, 0.5]):
        for column, b in enumerate([-0.5, -0.25, 0, 0.25, 0.5]):
            moved = copy.deepcopy(net).eval()
            with torch.no_grad():
                for name, weight in moved.named_parameters():
                    weight += a * first[name] + b * second[name]
                loss = functional.cross_entropy(moved(data.train.inputs[:20]), data.train.targets[:20])
            assert surfaces["loss"][row][column] == pytest.approx(float(loss), rel=1e-5)  # float32
