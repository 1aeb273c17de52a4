"""Networks of any outputs, and of others in training mode: one graph gives what the module gives in both."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from compresskit.errors import UnsupportedModelError
from compresskit.graph.format.table import from_table, to_table
from compresskit.graph.layers.outputs import Outputs
from compresskit.graph.shapes import evaluating
from compresskit.graph.trace import trace

SHAPE = (3, 8, 8)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, 2, 1)
        self.heads = nn.ModuleList([nn.Conv2d(4, 5, 1), nn.Conv2d(6, 5, 1)])
        self.aux = nn.Conv2d(4, 2, 1)

    def maps(self, x):
        fine = self.norm(self.conv(x)).relu()
        return fine, [self.heads[0](fine), self.heads[1](self.deep(fine).relu())]


class Detector(Base):
    """Raw maps in training, decoded boxes in eval mode."""

    def forward(self, x):
        _, maps = self.maps(x)
        if self.training:
            return maps
        return torch.cat([one.sigmoid().flatten(2).transpose(1, 2) for one in maps], 1)


class Gridded(Base):
    """Decodes by sizes that torch.fx cannot follow, and by other constants in training."""

    def forward(self, x):
        _, maps = self.maps(x)
        rows = [torch.arange(int(one.shape[3])).float() * (2 if self.training else 3) for one in maps]
        moved = [one + row for one, row in zip(maps, rows, strict=True)]
        return tuple(moved) if self.training else torch.cat([one.flatten(1) for one in moved], 1)


class Named(Base):
    def forward(self, x):
        _, maps = self.maps(x)
        return {"fine": maps[0], "all": [maps[1], (maps[0].mean((2, 3)), None)], 3: maps[1].amax(1)}


class Watched(Base):
    """A head and a dropout that training alone has."""

    def forward(self, x):
        fine, maps = self.maps(x)
        maps = [functional.dropout(one, 0.5, self.training) for one in maps]
        return {"maps": maps, "aux": self.aux(fine)} if self.training else (maps[0], maps[1])


class Cached(Base):
    """Keeps what eval mode computed, as detectors keep their grids."""

    def forward(self, x):
        _, maps = self.maps(x)
        if self.training:
            return maps
        self.grid = maps[0].new_ones(1)
        return [one + self.grid for one in maps]


class Single(Base):
    def forward(self, x):
        return self.maps(x)[1][0]


KINDS = [Detector, Gridded, Named, Watched, Cached]


def same(found, expected) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert one is other is None or torch.equal(one, other)


def batch(count: int = 3) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_gives_what_the_module_gives_in_each_mode(kind):
    module, x = kind(), batch()
    expected = copy.deepcopy(module)
    network = trace(module, SHAPE, whole=True)
    assert network.meta["entry"].door == ("export" if kind is Gridded else "fx")
    same(network.eval()(x), expected.eval()(x))
    torch.manual_seed(2)
    found = network.train()(x)
    torch.manual_seed(2)
    same(found, expected.train()(x))
    for name, buffer in expected.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_come_back_from_a_table(kind):
    network, x = trace(kind(), SHAPE, whole=True), batch()
    read = from_table(to_table(network)).to_empty(device="cpu")
    read.load_state_dict(network.state_dict())
    same(read.eval()(x), network.eval()(x))
    torch.manual_seed(2)
    found = read.train()(x)
    torch.manual_seed(2)
    same(found, network.train()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_in_eval_mode_the_outputs_of_training_can_be_had(kind):
    network, x = trace(kind(), SHAPE, whole=True).train(), batch()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with evaluating(network, training_outputs=True):
        found, again = network(x), network(x)
    same(found, again)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert all(module.training for module in network.modules())
    if kind is Detector:
        _, maps = kind().eval().maps(x)
        same(found, maps)


def test_layers_are_called_once_for_both_forms():
    network = trace(Detector(), SHAPE, whole=True)
    calls = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    assert sorted(calls) == sorted(["conv", "norm", "deep", "heads.0", "heads.1", "outputs"])


def test_one_tensor_in_both_modes_needs_no_layer():
    network = trace(Single(), SHAPE, whole=True)
    assert not any(isinstance(module, Outputs) for module in network.modules())


def test_what_training_returns_may_get_lost_where_that_is_allowed():
    network, x = trace(Detector(), SHAPE, whole=True, lossy_training=True), batch()
    assert network.train()(x).shape == network.eval()(x).shape
    assert any("lossy_training" in told for told in network.meta["entry"].assumed)


def test_a_name_of_the_module_is_not_taken():
    class Taken(Detector):
        def __init__(self):
            super().__init__()
            self.outputs = self.heads[0]

        def maps(self, x):
            fine = self.norm(self.conv(x)).relu()
            return fine, [self.outputs(fine), self.heads[1](self.deep(fine).relu())]

    module, x = Taken(), batch()
    network = trace(module, SHAPE, whole=True)
    same(network.train()(x), module.train()(x))


def test_other_structures_are_refused():
    Pair = namedtuple("Pair", ["fine", "deep"])

    class Tupled(Base):
        def forward(self, x):
            return Pair(*self.maps(x)[1])

    with pytest.raises(UnsupportedModelError, match="forward returns a Pair; return tensors in lists"):
        trace(Tupled(), SHAPE, whole=True)


def test_an_overwritten_map_is_seen():
    class Overwriting(Base):
        def forward(self, x):
            _, maps = self.maps(x)
            if self.training:
                return maps
            return [one.mul_(2) for one in maps]

    with pytest.raises(UnsupportedModelError, match="in training mode forward does what its graph cannot"):
        trace(Overwriting(), SHAPE, whole=True)


def test_a_further_step_of_batch_norm_is_seen():
    class Twice(Base):
        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) if self.training else self.norm(x.relu())

    with pytest.raises(UnsupportedModelError, match="the buffers"):
        trace(Twice(), SHAPE, whole=True)


def test_without_being_asked_one_tensor_is_meant():
    with pytest.raises(UnsupportedModelError, match="choose it with model.output"):
        trace(Named(), SHAPE)
