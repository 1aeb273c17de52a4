"""All weights of one block together, by Gauss-Newton steps towards what the original gives behind that block."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from compresskit.distributed import Group
from compresskit.graph.capture import capture, output_name
from compresskit.graph.layers.outputs import Outputs
from compresskit.graph.masks import Masks
from compresskit.graph.segments import Block, Place, find_blocks, node_places
from compresskit.graph.shapes import evaluating
from compresskit.numerics.least_squares.gauss_newton import START, conjugate_gradients, damped
from compresskit.options import option
from compresskit.passes.repair.part import Part, Sample, sample_of

Batches = Callable[[int], Iterable[tuple[Any, Tensor]]]  # number, counted from 0 -> shuffled batches under it
Saved = dict[str, Any]
_GRAPHS = 4  # of what a graph keeps: a product takes its derivative as a graph, and both have gradients of their own


@option
class Blocks:
    """Fit all weights of one block after another to what the original gives behind it, by Gauss-Newton steps."""

    layers: Annotated[int, Ge(1)] = 2  # weighted layers of a block at least; it ends where only one value leaves it
    images: Annotated[int, Gt(0)] = 1024  # of each step, without labels; fewer where memory is short
    steps: Annotated[int, Gt(0)] = 3  # of each block; each is judged on the images of the next
    iterations: Annotated[int, Gt(0)] = 10  # of conjugate gradients in each step


@dataclass(frozen=True)
class Fitted:
    """block: its last node. before, after: error of what leaves it, as a share of the variance, on images that no step
    was made of. taken: how many steps were. images: of a step. left: why it was left alone."""

    block: str
    before: float
    after: float
    taken: int
    images: int
    left: str = ""


class Blockwise:
    """Fits a copy of `student`; every process of `group` holds one.

    For one block after another, f(w, x) with all its weights w, what is lowered is sum |f(w, x) - y|^2 over images: x
    enters the block in the student as it is repaired so far, y leaves it in the teacher, at the channels that the
    student has. Each step solves (S J' J S + damping) u = -S J' r by conjugate gradients and adds S u to w. S is
    diagonal and holds the root mean square of each tensor, so that a damping means the same everywhere. J is never
    formed: a product with it and its transpose costs about six passes over the block. A step is taken if what leaves
    the block comes nearer to y on images that it was not made of. SNOWS (Lucas and Mazumder 2024) does this for masks;
    this is for channels, too. Norms use their running statistics.
    """

    def __init__(
        self, student: fx.GraphModule, teacher: fx.GraphModule, options: Blocks, memory: float,
        places: Mapping[str, Tensor | None] = MappingProxyType({}), masks: Masks | None = None,
        group: Group = Group(),  # noqa: B008
    ) -> None:  # fmt: skip
        """memory: bytes that the values at both ends of a block, and the graphs in it, may take: half each. places: by
        layer, where its outputs lie among the teacher's. masks: of parameters, whose zeros stay zero."""
        self.network = copy.deepcopy(student)
        self._teacher, self._options, self._memory, self._group = teacher, options, memory, group
        self._masks = masks or {}
        self._known = _ends(self.network, teacher, places)
        self.blocks = find_blocks(self.network, options.layers, lambda node: node.name in self._known)
        self.found: list[Fitted] = []

    def run(self, batches: Batches, tell: Callable[[int], None], save: Callable[[Saved], None]) -> fx.GraphModule:
        """The network with fitted blocks. tell: is told the blocks done. save: is given, at the start and behind each
        block, what `load` goes on from."""
        with evaluating(self.network), evaluating(self._teacher):
            if not self.found:
                save(self._state())
            for number in range(len(self.found), len(self.blocks)):
                self.found.append(self._fit(number, batches))
                save(self._state())
                tell(number + 1)
        return self.network

    def _state(self) -> Saved:
        """With the memory, by which images are counted: a resumed run may find less of it free."""
        found = [asdict(one) for one in self.found]
        return {"found": found, "network": self.network.state_dict(), "memory": self._memory}

    def load(self, saved: Saved) -> None:
        self._memory = saved["memory"]
        self.found = [Fitted(**one) for one in saved["found"]]
        self.network.load_state_dict(saved["network"])

    def _fit(self, number: int, batches: Batches) -> Fitted:
        block, taken, errors = self.blocks[number], 0, list[float]()
        part = Part(self.network, block, self._masks, self._group)
        samples = self._samples(part, block, batches, number * (self._options.steps + 1))
        sample = next(samples)
        images = sample.images * self._group.world
        damping, left = _curvature(part, sample)
        if left:
            error = float(part.error(sample))
            return Fitted(block.target, error, error, 0, images, left)
        damping *= START
        for judges in samples:
            error, kept = float(part.error(judges)), part.weights
            ratio, found = self._step(part, sample, damping), float(part.error(judges))
            if found < error:
                taken += 1
            else:
                part.restore(kept)
                ratio, found = -math.inf, error
            errors += [error, found]
            damping, sample = damped(damping, ratio), judges
        return Fitted(block.target, errors[0], errors[-1], taken, images)

    def _step(self, part: Part, sample: Sample, damping: float) -> float:
        """Moves the weights. By how much the error fell, as a share of what was promised.

        Of A x = b, conjugate gradients from 0 give x with x' A x = b' x. So half the error, in the quadratic model
        without the damping, falls by (b' x + damping |x|^2) / 2.
        """
        before, gradient = part.error(sample), part.gradient(sample)
        change = conjugate_gradients(
            lambda u: part.product(sample, u) + damping * u, -gradient, self._options.iterations
        )
        part.move(change)
        return float((before - part.error(sample)) / (damping * change @ change - gradient @ change))

    def _samples(self, part: Part, block: Block, batches: Batches, first: int) -> Iterator[Sample]:
        """Of the images of each step, and of those that judge the last one."""
        place = self._known[block.target]
        kept = None if place is None else place.kept.to(next(self.network.parameters()).device)
        same = output_name(self._teacher) if place is None else block.target  # factors have names of their own
        enters, leaves = capture(self.network, [block.source]), capture(self._teacher, [same])
        for number in range(first, first + self._options.steps + 1):
            served = (
                (enters(inputs)[0], y if place is None else y.index_select(place.dim, kept))
                for inputs, _ in batches(number)
                for y in leaves(inputs)
            )
            with torch.no_grad():
                pairs = [next(served)]
                pairs += itertools.islice(served, self._count(*pairs[0]) - 1)
            pairs = [piece for pair in pairs for piece in self._pieces(part, *pair)]
            yield sample_of(pairs, 1 if place is None else place.dim, self._group)

    def _count(self, x: Any, y: Tensor) -> int:
        """Of batches like this one that make the images of a step, as many as memory has room for: two sets are there
        at a time. The same in all processes."""
        images = sum(self._group.gather([len(y)]))
        room = self._memory // 2 // (2 * sum(value.nbytes for value in tree_leaves((x, y))))
        return self._group.share(max(1, min(-(-self._options.images // images), int(room))))

    def _pieces(self, part: Part, x: Any, y: Tensor) -> list[tuple[Any, Tensor]]:
        """As many images at a time as memory has room for the graphs of; all where a value is not one of each image."""
        leaves, structure = tree_flatten((x, y))
        if not part.size or any(not value.ndim or len(value) != len(y) for value in leaves):
            return [(x, y)]
        one = tree_map(lambda value: value[:1].clone(), x)
        images = max(1, int(self._memory // 2 // (_GRAPHS * max(1, part.graph_bytes(one)))))
        pieces = zip(*(value.split(images) for value in leaves), strict=True)
        return [tree_unflatten(list(piece), structure) for piece in pieces]


def _curvature(part: Part, sample: Sample) -> tuple[float, str]:
    """Along the gradient; else why the part cannot be fitted."""
    if not part.size:
        return 0.0, "all of its weights are read elsewhere, too"
    try:
        return part.curvature(sample), ""
    except RuntimeError as error:  # of an operation without second derivatives
        if "is not implemented" not in str(error):
            raise
        return 0.0, str(error)


def _ends(
    network: fx.GraphModule, teacher: fx.GraphModule, places: Mapping[str, Tensor | None]
) -> dict[str, Place | None]:
    """Nodes of both networks where it is known which channels are left; of their output all are, which is None.

    Outputs of any structure are no end of a block, and neither are factors, of which the first has the layer's name.
    """
    (output,) = network.graph.find_nodes(op="output")
    known, does = node_places(teacher, places), {node.name: node.target for node in teacher.graph.nodes}
    both = [node for node in network.graph.nodes if node.name in known and node.target == does[node.name]]
    found = {node.name: known[node.name] for node in both}
    ends = [node for node in output.all_input_nodes if node is output.args[0] and not _is_structure(network, node)]
    return found | {node.name: None for node in ends}


def _is_structure(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), Outputs)
