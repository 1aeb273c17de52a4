"""A block as a function of the weights in it: errors, and products with its Jacobian, of many images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from compresskit.distributed import Group
from compresskit.graph.masks import Masks
from compresskit.graph.segments import Block, segment
from compresskit.numerics.outputs import CONSTANT, channel_totals

_LEAST = 1e-3  # root mean square that a tensor counts as at least: new biases are near 0

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """pairs: what enters a block and what should leave it, some images of this process at a time. energy: (), of what
    should leave it, the sum of the squares less the mean of its channel, over all processes."""

    pairs: Sequence[tuple[Any, Tensor]]
    energy: Tensor

    @property
    def images(self) -> int:
        return sum(len(y) for _, y in self.pairs)


def sample_of(pairs: Iterable[tuple[Any, Tensor]], dim: int, group: Group) -> Sample:
    """dim: of the channels."""
    pairs = list(pairs)
    totals = torch.stack([channel_totals(y, dim) for _, y in pairs]).sum(0)
    group.sum_tensors([totals])
    count, sums, squares = totals
    energy = torch.maximum((squares - sums.square() / count).sum(), CONSTANT * squares.sum())
    return Sample(pairs, energy.clamp(min=torch.finfo(torch.float32).tiny).to(pairs[0][1].dtype))


class Part:
    """f(w + S u, x): w are the weights of a block as they are, u (n,) the change. S is diagonal: the root mean square
    of the tensor that a weight is in, and 0 where a mask has 0.

    Sums run over all processes of the group. Weights that nodes outside of the block read, too, stay as they are.
    """

    def __init__(self, network: fx.GraphModule, block: Block, masks: Masks, group: Group) -> None:
        nodes = {node.name: node for node in network.graph.nodes}
        inner = segment(network, nodes[block.source], nodes[block.target])
        assert inner is not None, block  # all that leaves it has passed its source
        self._module, self._group = inner, group
        outside = _read_by(network, nodes.keys() - {node.name for node in inner.graph.nodes})
        self._weights = {
            name: parameter.detach()
            for name, parameter in inner.named_parameters()
            if parameter.is_floating_point() and id(parameter) not in outside
        }
        scales = [_scale(weight, masks.get(name)) for name, weight in self._weights.items()]
        self._scale = torch.cat(scales) if scales else torch.zeros(0)

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self._scale.numel()

    @property
    def weights(self) -> Weights:
        """A copy."""
        return {name: weight.clone() for name, weight in self._weights.items()}

    def restore(self, weights: Weights) -> None:
        for name, weight in weights.items():
            self._weights[name].copy_(weight)

    def graph_bytes(self, x: Any) -> int:
        """What backward derivatives need of the values inside, kept while they are asked for; weights aside."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        weights, held = {_memory(tensor) for tensor in tensors}, dict[int, int]()

        def keep(tensor: Tensor) -> Tensor:
            if (memory := _memory(tensor)) not in weights:
                held[memory] = max(held.get(memory, 0), tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), sdpa_kernel(SDPBackend.MATH):
            graph = self._graph(x)  # whose storages are not given to others while it is there
        del graph
        return sum(held.values())

    def curvature(self, sample: Sample) -> float:
        """Of half the error along its gradient: g' S J' J S g / g' g / energy, and 0 where there is none."""
        gradient = self.gradient(sample)
        length = gradient @ gradient
        return float(torch.where(length > 0, gradient @ self.product(sample, gradient) / length, 0.0))

    def move(self, change: Tensor) -> None:
        """Adds S u to the weights."""
        for name, value in self._split(change).items():
            self._weights[name] += value

    def error(self, sample: Sample) -> Tensor:
        """|f(w, x) - y|^2 as a share of the energy: ()."""
        with torch.no_grad():
            found = [(self._call({}, x) - y).square().sum() for x, y in sample.pairs]
        return self._summed(torch.stack(found).sum()) / sample.energy

    def gradient(self, sample: Sample) -> Tensor:
        """S J' (f(w, x) - y) / energy: (n,), the gradient of half the error."""
        total = torch.zeros_like(self._scale)
        for x, y in sample.pairs:
            weights, values = self._graph(x)
            total += self._pulled(values, weights, values.detach() - y)
        return self._scale * self._summed(total) / sample.energy

    def product(self, sample: Sample, change: Tensor) -> Tensor:
        """S J' J S u / energy: (n,).

        J v is the gradient, by c, of v' J' c: derivatives backward alone, which more operations have than forward ones.
        """
        total = torch.zeros_like(self._scale)
        direction = torch.cat([piece.flatten() for piece in self._split(change).values()])
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivatives
            for x, _ in sample.pairs:
                weights, values = self._graph(x)
                cotangent = torch.zeros_like(values, requires_grad=True)
                pulled = self._pulled(values, weights, cotangent, again=True)
                (tangent,) = torch.autograd.grad(pulled, cotangent, direction, retain_graph=True)
                total += self._pulled(values, weights, tangent)
        return self._scale * self._summed(total) / sample.energy

    def _graph(self, x: Any) -> tuple[Weights, Tensor]:
        """The weights, and what leaves the block as a function of them."""
        weights = {name: weight.detach().requires_grad_() for name, weight in self._weights.items()}
        with torch.enable_grad():
            return weights, self._call(weights, x)

    def _pulled(self, values: Tensor, weights: Weights, cotangent: Tensor, again: bool = False) -> Tensor:
        """J' c: (n,). again: it will be derived itself."""
        found = torch.autograd.grad(
            values, list(weights.values()), cotangent, create_graph=again, retain_graph=again, allow_unused=True
        )
        filled = (torch.zeros_like(w) if g is None else g for g, w in zip(found, weights.values(), strict=True))
        return torch.cat([gradient.flatten() for gradient in filled])

    def _call(self, weights: Weights, x: Any) -> Tensor:
        found: Tensor = functional_call(self._module, weights, (tree_map(torch.clone, x),))  # some calls work in place
        return found

    def _split(self, change: Tensor) -> Weights:
        """S u, by name."""
        pieces = (self._scale * change).split([weight.numel() for weight in self._weights.values()])
        return {name: piece.view_as(w) for (name, w), piece in zip(self._weights.items(), pieces, strict=True)}

    def _summed(self, tensor: Tensor) -> Tensor:
        self._group.sum_tensors([tensor])
        return tensor


def size_of(weight: Tensor) -> Tensor:
    """The root mean square of a tensor, the unit that its changes are taken in: ()."""
    return weight.detach().square().mean().sqrt().clamp(min=_LEAST)


def _memory(tensor: Tensor) -> int:
    """What tells the memory that a tensor and its views lie in from all other that is there."""
    return int(tensor.untyped_storage()._cdata)


def _scale(weight: Tensor, mask: Tensor | None) -> Tensor:
    return (size_of(weight) * (torch.ones_like(weight) if mask is None else mask.to(weight))).flatten()


def _read_by(network: fx.GraphModule, names: Iterable[str]) -> set[int]:
    """Identities of the parameters that nodes of these names read."""
    found, wanted = set[int](), set(names)
    for node in network.graph.nodes:
        if node.name in wanted and node.op == "call_module":
            found |= {id(parameter) for parameter in network.get_submodule(str(node.target)).parameters()}
        elif node.op == "get_attr" and wanted & {user.name for user in node.users}:
            owner, _, name = str(node.target).rpartition(".")
            found.add(id(getattr(network.get_submodule(owner), name)))
    return found
