"""Moments of activations, taken in one pass over the data for several layers at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from compresskit.graph.capture import capture
from compresskit.graph.chains import WEIGHTED, Weighted, weighted
from compresskit.graph.operations import calls_of
from compresskit.graph.shapes import evaluating
from compresskit.numerics.moments.moments import Moments, MomentSums
from compresskit.numerics.moments.patches import Patches

Batches = Iterable[tuple[Tensor, Tensor]]
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """Moments of node `target` given node `source`, under a name.

    patches: the windows of the source that a convolution reads; None for features in the last dimension, or flattened
    behind the batch dimension where `flatten`. features: of one group; outputs: of the target, all groups. again: a
    source and a target for each further call of the same layer, whose samples are added.
    """

    name: str
    source: str
    target: str
    patches: Patches | None
    flatten: bool
    features: int
    outputs: int
    again: tuple[tuple[str, str], ...] = ()

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return ((self.source, self.target), *self.again)

    @property
    def groups(self) -> int:
        return self.patches.groups if self.patches else 1

    @property
    def nbytes(self) -> int:
        """Bytes of the sums: 8 for each entry of the second and the cross moments."""
        return 8 * (self.groups * self.features**2 + self.outputs * (self.features + 2))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the moments."""
        groups, features, outputs = self.groups, self.features, self.outputs
        return {
            "mean_x": (groups, features),
            "mean_y": (outputs,),
            "cxx": (groups, features, features),
            "cyx": (groups, outputs // groups, features),
            "cyy": (outputs,),
        }

    def zeros(self, device: torch.device | str) -> MomentSums:
        return MomentSums.zeros(self.features, self.outputs, self.groups, device=device)


def without_moments(network: fx.GraphModule, layer: str) -> str | None:
    """Why there are no moments of what a layer reads; None where there are."""
    module = network.get_submodule(layer)
    if not calls_of(network, layer):
        return "its weight is an argument of a call, which has no moments"
    if not isinstance(module, WEIGHTED):
        return f"moments of {type(module).__name__} are not there yet"
    if isinstance(module, nn.Conv3d):
        return "moments of 3-D convolutions are not there yet"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"its padding_mode is {module.padding_mode}; moments are taken with zeros"
    return None


def request_of(network: fx.GraphModule, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> Request:
    """Moments of a layer's input and its own output, over all of its calls. shapes: of the nodes' results."""
    module = weighted(network, layer)
    node, *others = calls_of(network, layer)
    source, patches = node.all_input_nodes[0], _patches(module)
    return Request(
        f"{source.name}--{node.name}",
        source.name,
        node.name,
        patches,
        False,
        prod(module.weight.shape[1:]),
        shapes[node.name][1 if patches else -1],
        tuple((other.all_input_nodes[0].name, other.name) for other in others),
    )


def _patches(module: Weighted) -> Patches | None:
    if isinstance(module, nn.Linear):
        return None
    padding = module.padding
    if padding == "valid":
        sides = [(0, 0)] * len(module.kernel_size)
    elif padding == "same":  # as torch pads: the odd one behind
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(amount), int(amount)) for amount in padding]
    return Patches(module.kernel_size, module.stride, module.dilation, tuple(sides), module.groups)


def in_passes(wanted: Sequence[T], nbytes: Callable[[T], int], memory: float) -> list[list[T]]:
    """Groups whose moments fit in `memory` together, one for each pass over the data; what fits in none has its own.

    First-fit decreasing: never more than 11/9 of the fewest passes there can be, and 6/9 of a pass.
    """
    groups: list[list[T]] = []
    filled: list[int] = []
    for one in sorted(wanted, key=nbytes, reverse=True):
        size = nbytes(one)
        place = next((n for n, used in enumerate(filled) if used + size <= memory), len(groups))
        if place == len(groups):
            groups.append([])
            filled.append(0)
        groups[place].append(one)
        filled[place] += size
    return groups


def gather_from(
    batches: Batches,
) -> Callable[[fx.GraphModule, Sequence[Request], fx.GraphModule | None], dict[str, Moments]]:
    """What takes moments over all batches, each time that it is called: (student, requests, teacher or None)."""

    def gather(
        student: fx.GraphModule, requests: Sequence[Request], teacher: fx.GraphModule | None
    ) -> dict[str, Moments]:
        device = next(student.parameters()).device
        sums = {request.name: request.zeros(device) for request in requests}
        collect(student, requests, batches, sums, teacher=teacher)
        return {name: total.finish() for name, total in sums.items()}

    return gather


def collect(
    network: fx.GraphModule,
    requests: Sequence[Request],
    batches: Batches,
    sums: dict[str, MomentSums],
    *,
    teacher: fx.GraphModule | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> None:
    """Adds the moments of every batch to `sums`, by name of the request.

    Sources are read off `network` (the student) and targets off `teacher`, where one is given: so a compressed net
    can be fitted to the original's outputs. Both run in eval mode. `after_batch` is called behind each batch.
    """
    read = {source for request in requests for source, _ in request.pairs}
    compared = {target for request in requests for _, target in request.pairs}
    student_reads = sorted(read | (compared if teacher is None else set()))
    teacher_reads = sorted(compared) if teacher is not None else []
    student = capture(network, student_reads)
    original = capture(teacher, teacher_reads) if teacher is not None else None
    with torch.inference_mode(), evaluating(student), evaluating(original or student):
        for inputs, _ in batches:
            sources = dict(zip(student_reads, student(inputs), strict=True))
            targets = dict(zip(teacher_reads, original(inputs), strict=True)) if original is not None else sources
            for request in requests:
                for source, target in request.pairs:
                    x = sources[source].flatten(1) if request.flatten else sources[source]
                    sums[request.name].add(x, targets[target], request.patches)
            after_batch()
