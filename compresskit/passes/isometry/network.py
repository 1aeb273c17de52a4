"""How near a network is to dynamical isometry: the singular values of its Jacobians, layer by layer and through it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, fx
from torch.nn import functional

from compresskit.data.dataset import generator
from compresskit.graph.capture import capture
from compresskit.graph.segments import segment
from compresskit.graph.shapes import evaluating
from compresskit.numerics.orthogonal.isometry import SingularValues, decomposed, differ, pooled
from compresskit.passes.isometry.jacobians import estimated, jacobian, push_columns
from compresskit.passes.isometry.orthogonal_layer import orthogonal_layer
from compresskit.passes.isometry.plan import Part, Plan


@dataclass(frozen=True)
class LayerIsometry:
    """Singular values of one layer: of its outputs by its inputs, and (depth) by those of the start.

    sides: outputs and inputs. orthogonal: of the dense orthogonal layer, None where the values are but estimated.
    statistic, p: of the test whether the layer's spectrum differs from that, NaN without one. depth: None for a layer
    that paths lead to past the start.
    """

    name: str
    sides: tuple[int, int]
    own: SingularValues
    orthogonal: SingularValues | None
    statistic: float
    p: float
    depth: SingularValues | None


@dataclass(frozen=True)
class NetworkIsometry:
    """Its layers in the order of the network, and the singular values of its output by the inputs of the start."""

    layers: list[LayerIsometry]
    end: SingularValues


def isometry(plan: Plan, inputs: Tensor, seed: int = 0, on_layer: Callable[[], None] = lambda: None) -> NetworkIsometry:
    """Singular values at the images `inputs`, (images, *shape). seed: of the orthogonal layers and random vectors.

    on_layer is called for each layer of each plan.at_once images.
    """
    draws = generator("probes", seed)
    layers: list[list[_Found]] = []
    ends: list[SingularValues] = []
    for images in inputs.double().split(plan.at_once):
        with evaluating(plan.network), threadpool_limits(1 if plan.small else None):
            walk = _Walk(plan, images, seed, max(1, plan.options.probes // len(inputs)), draws)
            layers.append([])
            for part in plan.parts:
                layers[-1].append(walk.layer(part))
                on_layer()
            end = walk.through(plan.output, plan.end)
            assert end is not None  # else the plan would have been refused
            ends.append(end)
    return NetworkIsometry(
        [_joined(*both) for both in zip(plan.parts, zip(*layers, strict=True), strict=True)], pooled(ends)
    )


@dataclass(frozen=True)
class _Found:
    """Of one layer at some of the images; see LayerIsometry."""

    own: SingularValues
    orthogonal: SingularValues | None
    depth: SingularValues | None


class _Walk:
    """Through one network with some images, from its first layer to its output."""

    def __init__(self, plan: Plan, images: Tensor, seed: int, probes: int, draws: torch.Generator) -> None:
        self._plan, self._seed, self._probes, self._draws = plan, seed, probes, draws
        nodes = list(dict.fromkeys([plan.start, *(node for part in plan.parts for node in (part.source, part.target))]))
        with torch.no_grad():
            values = capture(plan.network, [node.name for node in nodes])(images)
        self._values = dict(zip(nodes, values, strict=True))
        self._at, self._columns = plan.start, torch.empty(0)  # up to where the Jacobian is known, and its columns

    def layer(self, part: Part) -> _Found:
        function, inputs = segment(self._plan.network, part.source, part.target), self._values[part.source]
        assert function is not None  # what is behind a layer reads the layer alone
        own, dense = self._singular(function, inputs, part.sides), None
        if self._plan.forms(part.sides):
            draws = generator(f"orthogonal {part.name}", self._seed)
            function.add_submodule(part.name, orthogonal_layer(function.get_submodule(part.name), draws))
            dense = decomposed(jacobian(function, inputs))
        return _Found(own, dense, self.through(part.target, part.depth))

    def through(self, target: fx.Node, sides: tuple[int, int]) -> SingularValues | None:
        """Of the value of a node by that of the start; nodes come in the order of the network.

        Where everything goes through the last node whose Jacobian was formed, that is multiplied by the part between.
        Its columns can be any matrix with the same J J^T, so a square one stands for a wide one.
        """
        network, start = self._plan.network, self._plan.start
        between = segment(network, self._at, target) if self._columns.numel() else None
        if between is not None:
            self._columns = push_columns(between, self._values[self._at], self._columns)
        else:
            whole = segment(network, start, target)
            if whole is None or target is start:  # which the layer before the start makes
                return None
            if not self._plan.forms(sides):
                return self._singular(whole, self._values[start], sides)
            self._columns = jacobian(whole, self._values[start])
        self._at = target
        if self._columns.shape[2] > self._columns.shape[1]:
            self._columns = torch.linalg.qr(self._columns.mT, mode="r").R.mT
        found = decomposed(self._columns).values
        return SingularValues(functional.pad(found, (min(sides) - found.shape[1], 0)))  # zeros below a bottleneck

    def _singular(self, function: fx.GraphModule, inputs: Tensor, sides: tuple[int, int]) -> SingularValues:
        if self._plan.forms(sides):
            return decomposed(jacobian(function, inputs))
        return estimated(function, inputs, self._probes, self._plan.options.steps, self._draws)


def _joined(part: Part, found: Sequence[_Found]) -> LayerIsometry:
    """One layer at all images, tested."""
    own = pooled([one.own for one in found])
    dense = [one.orthogonal for one in found if one.orthogonal is not None]
    depth = [one.depth for one in found if one.depth is not None]
    orthogonal = pooled(dense) if dense else None
    statistic, p = (math.nan, math.nan) if orthogonal is None else differ(own.spectrum(), orthogonal.spectrum())
    return LayerIsometry(part.name, part.sides, own, orthogonal, statistic, p, pooled(depth) if depth else None)
