"""Knowledge distillation: what a recipe can say of it, and the student that runs beside its teacher."""

import copy
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le, Len
from torch import Tensor, fx, nn
from torch.nn import functional

from compresskit.errors import RecipeError, near_names
from compresskit.graph.capture import capture, output_name
from compresskit.graph.layers.expanded import Expanded
from compresskit.graph.shapes import node_shapes
from compresskit.models.parts.initialisation import seeded
from compresskit.numerics.distillation import hint, probabilistic_transfer, soft_targets
from compresskit.options import option
from compresskit.shapes import Shape

Pair = tuple[str, str]  # a layer of the student, and one of the teacher
ORIGINAL = "original"  # as a teacher: the network that a run starts from, before its first step


@option
class KD:
    """Soft targets (Hinton et al. 2015): (1 - weight) loss + weight T^2 KL(teacher || student) at temperature T."""

    kind: Literal["kd"] = "kd"
    teacher: str = ORIGINAL  # model.pt, or the folder of a run; original: the network that the run starts from
    weight: Annotated[float, Gt(0), Le(1)] = 0.9  # of the teacher; the rest is the loss's
    temperature: Annotated[float, Gt(0)] = 4.0  # T in the formula

    def __call__(self, loss: Tensor, outputs: tuple[Tensor, Tensor], features: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """The loss to train with, and the term in it that the teacher gave, without its weight."""
        term = soft_targets(*outputs, self.temperature)
        return (1 - self.weight) * loss + self.weight * term, term


@option
class Hint:
    """Hints (Romero et al. 2015): loss + weight x half the mean square of teacher's map - r(student's map).

    r is a 1x1 convolution (a linear layer for features) that is trained along, where the channels differ; of maps of
    different size the larger one is averaged to the smaller one's.
    """

    kind: Literal["hint"] = "hint"
    teacher: str = ORIGINAL  # model.pt, or the folder of a run; original: the network that the run starts from
    weight: Annotated[float, Gt(0)] = 1.0  # of the maps' term
    layers: Annotated[tuple[Pair, ...], Len(1)]  # whose outputs are compared: [[student's, teacher's], ...]

    def __call__(self, loss: Tensor, outputs: tuple[Tensor, Tensor], features: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """As KD's; the term is the mean over pairs."""
        terms = [hint(*_same_size(student, teacher)) for student, teacher in features]
        term = torch.stack(terms).mean()
        return loss + self.weight * term, term


@option
class PKT:
    """Probabilistic knowledge transfer (Passalis and Tefas 2018): loss + weight x KL of the samples' similarities.

    The samples are those of a process's share of the batch.
    """

    kind: Literal["pkt"] = "pkt"
    teacher: str = ORIGINAL  # model.pt, or the folder of a run; original: the network that the run starts from
    # the term is some 1e-3; published trainings weigh their mean over pairs by 30000 at 64 samples, ours by 30000 / 64
    weight: Annotated[float, Gt(0)] = 500.0
    layers: tuple[Pair, ...] = ()  # whose outputs are compared; default: what the last linear layer of each reads

    def __call__(self, loss: Tensor, outputs: tuple[Tensor, Tensor], features: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """As Hint's."""
        term = torch.stack([probabilistic_transfer(*pair) for pair in features]).mean()
        return loss + self.weight * term, term


Distill = KD | Hint | PKT


class Student(nn.Module):
    """A network that also returns what is compared with its teacher; it shares the network's layers."""

    def __init__(self, network: fx.GraphModule, names: Sequence[str], regressors: nn.ModuleList) -> None:
        super().__init__()
        self.graph = capture(network, [output_name(network), *names])
        self.regressors = regressors

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        output, *features = self.graph(inputs)
        return output, *(regress(value) for regress, value in zip(self.regressors, features, strict=True))


class Distiller:
    """One training under one teacher, which runs in eval mode without gradients, once a batch."""

    def __init__(
        self,
        student: fx.GraphModule,
        teacher: fx.GraphModule,
        options: Distill,
        input_shape: Shape,
        seed: int,
    ) -> None:
        """Raises RecipeError where a layer that is to be compared does not exist, or cannot be."""
        self.options = options
        pairs = _compared(student, teacher, options)
        self.regressors = nn.ModuleList(nn.Identity() for _ in pairs)
        if isinstance(options, Hint):
            self.regressors = _regressors(student, teacher, pairs, input_shape, seed)
        device = next(student.parameters()).device
        self.student = Student(student, [name for name, _ in pairs], self.regressors.to(device))
        teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        self._teacher = capture(teacher, [output_name(teacher), *(name for _, name in pairs)])

    def loss(self, task_loss: Tensor, outputs: Sequence[Tensor], inputs: Any) -> tuple[Tensor, Tensor]:
        """The loss to train with, and the teacher's term in it. outputs: the student's of this batch.

        The teacher computes as precisely as the student; the term is float32 at least, since it is a small difference
        of near numbers: in bfloat16, similarities lose a third of their gradient near the teacher.
        """
        with torch.no_grad():
            known = self._teacher(inputs)
        with torch.autocast(outputs[0].device.type, enabled=False):
            (ours, theirs), *features = zip(map(_at_least_float32, outputs), map(_at_least_float32, known), strict=True)
            loss, term = self.options(task_loss, (ours, theirs), features)
        return loss, term.detach()


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def distiller_for(
    student: fx.GraphModule,
    teacher: fx.GraphModule | None,
    options: Distill | None,
    input_shape: Shape,
    seed: int,
) -> Distiller | None:
    """The distiller that the options ask for. Raises ValueError for options without a teacher."""
    if options is None:
        return None
    if teacher is None:
        raise ValueError("distill names a teacher, which the caller must load and hand over")
    return Distiller(student, teacher, options, input_shape, seed)


def _compared(student: fx.GraphModule, teacher: fx.GraphModule, options: Distill) -> list[Pair]:
    """Names of the nodes whose values are compared."""
    if isinstance(options, KD):
        return []
    if not options.layers:
        return [(_before_head(student, "student"), _before_head(teacher, "teacher"))]
    return [(_node(student, one, "student"), _node(teacher, other, "teacher")) for one, other in options.layers]


def _node(network: fx.GraphModule, layer: str, whose: str) -> str:
    found = {str(node.target): str(node.name) for node in network.graph.nodes if node.op == "call_module"}
    if layer not in found:
        raise RecipeError(f"distill.layers: the {whose} has no layer {layer!r}; {near_names(layer, found)}")
    return found[layer]


def _before_head(network: fx.GraphModule, whose: str) -> str:
    for node in reversed(network.graph.nodes):
        if node.op == "call_module":
            layer = network.get_submodule(str(node.target))
            if isinstance(layer, nn.Linear) or (isinstance(layer, Expanded) and layer.kind == "Linear"):
                return str(node.args[0].name)
    raise RecipeError(
        f"distill.layers: the {whose} has no linear layer whose inputs could be compared; name the layers"
    )


def _regressors(
    student: fx.GraphModule, teacher: fx.GraphModule, pairs: Sequence[Pair], input_shape: Shape, seed: int
) -> nn.ModuleList:
    """For each pair what maps the student's channels to the teacher's, drawn from the seed."""
    shapes = node_shapes(student, input_shape), node_shapes(teacher, input_shape)
    made: list[nn.Module] = []
    with seeded(seed):
        for names in pairs:
            one, other = (shape[name] for shape, name in zip(shapes, names, strict=True))
            if len(one) != len(other):
                raise RecipeError(
                    f"distill.layers: {names[0]} gives {one[1:]}, the teacher's {names[1]} {other[1:]}; compare maps "
                    "with maps, and features with features"
                )
            kinds: list[Any] = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d]
            kind, size = kinds[len(one) - 2], () if len(one) == 2 else (1,)
            made.append(nn.Identity() if one[1] == other[1] else kind(one[1], other[1], *size))
    return nn.ModuleList(made)


def _same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The larger of two maps averaged to the size of the smaller one, along each side."""
    size = [min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True)]
    pools: list[Any] = [
        None,
        functional.adaptive_avg_pool1d,
        functional.adaptive_avg_pool2d,
        functional.adaptive_avg_pool3d,
    ]
    pool = pools[len(size)]
    return tuple(value if list(value.shape[2:]) == size else pool(value, size) for value in (one, other))  # type: ignore[return-value]


DISTILLATIONS: dict[str, type[KD] | type[Hint] | type[PKT]] = {"kd": KD, "hint": Hint, "pkt": PKT}
