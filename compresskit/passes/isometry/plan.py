"""Which Jacobians of a network are looked at, and how: found out before any of them is."""

import copy
from dataclasses import dataclass
from math import prod

from torch import fx

from compresskit.errors import RecipeError, near_names
from compresskit.graph.layers.grouped import GroupedLinear
from compresskit.graph.layers.skew_convolution import SkewConvolution
from compresskit.graph.segments import behind, segment
from compresskit.graph.selectors import KINDS, select
from compresskit.graph.shapes import node_shapes
from compresskit.numerics.orthogonal.isometry import SMALL
from compresskit.passes.isometry.options import Isometry
from compresskit.shapes import Shape, shapes_of

_MEMORY = 1 << 28  # bytes that Jacobians, or the vectors of an estimate, take at a time
_COPIES = 3  # of them, while they are made and decomposed
_BYTES = 8
_KINDS = {"@conv": (*KINDS["@conv"], SkewConvolution), "@linear": (*KINDS["@linear"], GroupedLinear)}


@dataclass(frozen=True)
class Part:
    """A layer with its norm and activation. sides: outputs and inputs; depth: outputs, and inputs of the start."""

    name: str
    source: fx.Node
    target: fx.Node
    sides: tuple[int, int]
    depth: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What `isometry` will look at. network: float64. end: outputs of the network, and inputs of the start."""

    network: fx.GraphModule
    parts: list[Part]
    start: fx.Node
    output: fx.Node
    end: tuple[int, int]
    options: Isometry

    def forms(self, sides: tuple[int, int]) -> bool:
        """Whether a Jacobian of these sides is formed."""
        return min(sides) <= self.options.exact

    @property
    def at_once(self) -> int:
        """Images that fit into memory together."""
        return max(1, _MEMORY // (_BYTES * max(map(self._entries, self._sides()))))

    @property
    def small(self) -> bool:
        """Whether one thread does it all about as fast as several, which are slow where cores are shared."""
        return all(min(sides) <= SMALL for sides in self._sides())

    def _sides(self) -> list[tuple[int, int]]:
        return [sides for part in self.parts for sides in (part.sides, part.depth)] + [self.end]

    def _entries(self, sides: tuple[int, int]) -> int:
        """Numbers that are kept for one image."""
        return _COPIES * prod(sides) if self.forms(sides) else 2 * self.options.steps * min(sides)


def plan_isometry(network: fx.GraphModule, input_shape: Shape, options: Isometry) -> Plan:
    """Raises RecipeError for several inputs, selectors that mean no layer, and a start that is none or passed by."""
    if (count := len(shapes_of(input_shape))) > 1:
        raise RecipeError(f"isometry: it is known of networks with one input, and this one has {count}; leave it out")
    names = select(network, options.layers, _KINDS)
    network = copy.deepcopy(network).double().requires_grad_(False)
    sizes = {name: prod(shape[1:]) for name, shape in node_shapes(network, input_shape).items()}
    calls: dict[str, fx.Node] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), node)
    output = next(node for node in network.graph.nodes if node.op == "output").all_input_nodes[0]
    if output.name not in sizes:
        raise RecipeError("isometry: it is known of networks that return one tensor, and this one returns more")
    start = _start(network, calls, options.start)
    if segment(network, start, output) is None:
        raise RecipeError(f"start: paths lead past layer {options.start!r}; name one that all go through")
    parts = []
    for name in names:
        source, target = calls[name].all_input_nodes[0], behind(network, calls[name])
        sides = sizes[target.name], sizes[source.name]
        parts.append(Part(name, source, target, sides, (sides[0], sizes[start.name])))
    return Plan(network, parts, start, output, (sizes[output.name], sizes[start.name]), options)


def _start(network: fx.GraphModule, calls: dict[str, fx.Node], name: str | None) -> fx.Node:
    if name is None:
        found: fx.Node = next(node for node in network.graph.nodes if node.op == "placeholder")
        return found
    if name not in calls:
        raise RecipeError(f"start: no layer is named {name!r}; {near_names(name, calls)}")
    return calls[name].all_input_nodes[0]
