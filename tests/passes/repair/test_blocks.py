"""Blocks: what leaves them comes nearer to the original's, never further, the same when interrupted, within memory."""

import copy

import pytest
import torch
from torch import nn

from compresskit.distributed import Group
from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.walk import find_channels
from compresskit.graph.edit import replace_by_two
from compresskit.graph.trace import trace
from compresskit.numerics.distillation import soft_targets
from compresskit.passes.held_out import loss_of
from compresskit.passes.repair.blocks import Blocks, Blockwise
from compresskit.passes.repair.part import Part
from tests.passes.repair.networks import SHAPE, perturbed, same, teacher_of, weights

ENOUGH = 1e9


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.conv2, self.head = (
            nn.Conv2d(6, 8, 3, padding=1),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.Linear(6, 4),
        )

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return teacher_of(Net())


def batches(number, size=32):
    """Labels are NaN: who looks at them shows it."""
    draws = torch.Generator().manual_seed(number)
    while True:
        yield torch.randn(size, *SHAPE, generator=draws, dtype=torch.float64), torch.full((size,), torch.nan)


def smaller(net):
    channels = find_channels(net, SHAPE)
    alive = torch.ones(channels.n_atoms, dtype=torch.bool)
    alive[channels.writes["stem"][[1, 4]]] = alive[channels.writes["conv1"][[0, 3, 5]]] = False
    return cut(net, channels, alive), channels.places(alive)


def divergence(network, teacher):
    inputs = [next(iter(batches(99, 256)))[0]]
    return loss_of(network, teacher, inputs, lambda a, b: soft_targets(a, b, 1.0))


def made(student, teacher, memory=ENOUGH, places=None, masks=None, **options):
    layers = dict.fromkeys(("stem", "conv1", "conv2", "head"))
    options = Blocks(**{"layers": 1, "images": 32, "iterations": 12, "steps": 2, **options})
    return Blockwise(student, teacher, options, memory, layers if places is None else places, masks)


def factors(layer):
    """Two layers of half as many channels between them: the first half of the outputs, and nothing of the others."""
    rank = len(layer.weight) // 2
    first, second = copy.deepcopy(layer), type(layer)(rank, len(layer.weight), *([1] * (layer.weight.ndim > 2)))
    first.weight, first.bias = nn.Parameter(layer.weight[:rank].clone()), None
    with torch.no_grad():
        second.weight.zero_().flatten(1)[:rank].copy_(torch.eye(rank))
        second.bias.copy_(torch.zeros(1) if layer.bias is None else layer.bias)
    return first, second.double()


@pytest.mark.parametrize("layer", ["stem", "conv1", "head"])
@pytest.mark.parametrize("least", [1, 2])
def test_layers_that_became_two_factors_are_fitted_with_what_is_behind_them(teacher, layer, least):
    student = replace_by_two(teacher, layer, *factors(teacher.get_submodule(layer)))
    work = made(student, teacher, steps=3, layers=least)
    found = work.run(batches, lambda done: None, lambda state: None)
    assert divergence(found, teacher) < 0.5 * divergence(student, teacher)
    assert [name for block in work.blocks for name in block.layers if name.startswith(layer)] == [
        f"{layer}.0",
        f"{layer}.1",
    ]


def test_weights_that_were_disturbed_come_back(teacher):
    student = perturbed(teacher)
    before, known, told = weights(student), weights(teacher), []
    work = made(student, teacher, steps=4)
    assert [block.layers for block in work.blocks] == [("stem",), ("conv1", "conv2"), ("head",)]
    found = work.run(batches, told.append, lambda state: None)
    assert told == [1, 2, 3]
    assert divergence(found, teacher) < 1e-3 * divergence(student, teacher)
    assert all(one.after < 0.1 * one.before for one in work.found)
    assert same(before, student.state_dict())
    assert same(known, teacher.state_dict())
    assert torch.equal(found.norm.running_var, teacher.norm.running_var)


def test_cut_channels_are_made_up_for_by_those_that_stay(teacher):
    student, places = smaller(teacher)
    work = made(student, teacher, places=places)
    found = work.run(batches, lambda done: None, lambda state: None)
    assert sum(one.taken for one in work.found) > 2
    assert divergence(found, teacher) < 0.5 * divergence(student, teacher)
    wrong = {name: torch.arange(len(kept)) for name, kept in places.items()}
    other = made(student, teacher, places=wrong).run(batches, lambda done: None, lambda state: None)
    assert divergence(found, teacher) < divergence(other, teacher)


def test_a_step_that_leads_away_on_other_images_is_not_taken(teacher):
    """Two images tell next to nothing of 192 weights, and none of the teacher's own is wrong."""
    work = made(teacher, teacher, steps=2)
    found = work.run(batches, lambda done: None, lambda state: None)
    assert [one.taken for one in work.found] == [0, 0, 0]
    assert same(weights(teacher), found.state_dict())
    student = perturbed(teacher, 0.02)
    few = made(student, teacher, images=1, steps=1)
    few.run(lambda number: batches(number, 1), lambda done: None, lambda state: None)
    assert all(one.after <= one.before for one in few.found)


def test_a_stopped_one_goes_on_to_the_same_weights(teacher):
    student = perturbed(teacher)
    kept, asked = [], []
    first = made(student, teacher)
    whole = first.run(batches, lambda done: None, lambda state: kept.append(copy.deepcopy(state)))
    again = made(student, teacher, memory=1)  # less is free than it was
    again.load(kept[1])

    def counted(number):
        asked.append(number)
        return batches(number)

    resumed = again.run(counted, lambda done: None, lambda state: None)
    assert asked == list(range(3, 9))  # three sets a block, none twice
    assert same(weights(whole), resumed.state_dict())
    assert again.found == first.found


def test_zeros_of_masks_stay(teacher):
    student, mask = perturbed(teacher), torch.rand(8, 6, 3, 3) > 0.5
    with torch.no_grad():
        student.conv1.weight *= mask
    found = made(student, teacher, masks={"conv1.weight": mask}).run(batches, lambda done: None, lambda state: None)
    assert not found.conv1.weight[~mask].any()
    assert not torch.equal(found.conv1.weight, student.conv1.weight)


def test_fewer_images_are_taken_where_memory_is_short(teacher):
    """Two sets are held at a time: of 32 images, with 3 and then 6 maps of 8 x 8 numbers, in 8 bytes."""
    largest = 32 * (6 + 6) * 64 * 8
    work = made(perturbed(teacher), teacher, memory=2 * 2 * 2 * largest, steps=1, images=128)
    work.run(batches, lambda done: None, lambda state: None)
    assert [one.images for one in work.found] == [64, 64, 96]
    least = made(perturbed(teacher), teacher, memory=1, steps=1, images=128)
    least.run(batches, lambda done: None, lambda state: None)
    assert [one.images for one in least.found] == [32, 32, 32]


def test_a_graph_keeps_what_backward_reads(teacher):
    """Of a mean and a linear layer: its inputs, 6 numbers of 8 bytes; its weights are there anyway."""
    block = made(teacher, teacher).blocks[-1]
    part = Part(teacher, block, {}, Group())
    assert [part.graph_bytes(torch.randn(n, 6, 8, 8, dtype=torch.float64)) for n in (1, 5)] == [48, 240]


def test_graphs_take_as_many_images_at_a_time_as_memory_has_room_for(teacher, monkeypatch):
    """Images 32 by 32, in parts and one by one give the same weights."""
    student, found, sizes, product = perturbed(teacher), [], set(), Part.product

    def noted(self, sample, change):
        sizes.update((len(x), self.graph_bytes(x)) for x, _ in sample.pairs)
        return product(self, sample, change)

    monkeypatch.setattr(Part, "product", noted)
    for memory in (ENOUGH, 500_000, 1):
        sizes.clear()
        found.append(made(student, teacher, memory=memory).run(batches, lambda done: None, lambda state: None))
        assert all(bytes_ <= memory / 2 / 4 or images == 1 for images, bytes_ in sizes)
        assert max(images for images, _ in sizes) == (1 if memory == 1 else 32)
    for other in found[1:]:
        torch.testing.assert_close(weights(other), weights(found[0]), rtol=1e-6, atol=1e-8)  # sums in another order


def test_what_is_not_finite_is_not_taken(teacher):
    student = perturbed(teacher)
    with torch.no_grad():
        student.conv1.weight[0, 0, 0, 0] = torch.nan
    work = made(student, teacher, steps=1)
    found = work.run(batches, lambda done: None, lambda state: None)
    assert [one.taken for one in work.found] == [1, 0, 0]
    torch.testing.assert_close(weights(found)["conv2.weight"], weights(student)["conv2.weight"])


def test_attention_has_products_too():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.out(x + nn.functional.scaled_dot_product_attention(q, k, v)).mean(1)

    torch.manual_seed(0)
    teacher = trace(Attending().double().eval(), SHAPE)
    student = perturbed(teacher)
    layers = {"embed": None, "qkv": None, "out": None}
    work = made(student, teacher, places=layers, steps=3)
    found = work.run(batches, lambda done: None, lambda state: None)
    assert divergence(found, teacher) < 0.1 * divergence(student, teacher)


def test_what_has_no_second_derivatives_is_left_alone_and_said():
    class Hard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.gate, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

        def forward(self, x):
            x = torch.relu(self.one(x))
            return self.head((x * nn.functional.hardsigmoid(self.gate(x))).mean((2, 3)))

    torch.manual_seed(0)
    teacher = trace(Hard().double().eval(), SHAPE)
    student = perturbed(teacher)
    work = made(student, teacher, places={"one": None, "gate": None, "head": None}, steps=1)
    found = work.run(batches, lambda done: None, lambda state: None)
    assert [one.left.rpartition("::")[2] for one in work.found] == ["", "hardsigmoid_backward is not implemented", ""]
    assert [bool(one.taken) for one in work.found] == [True, False, True]
    assert torch.equal(found.gate.weight, student.gate.weight)
