"""Training losses that a recipe can name. Each is called with output and target and returns the mean over the batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional

from compresskit.data.own.targets import OWN
from compresskit.errors import RecipeError
from compresskit.options import option
from compresskit.training.tasks.detection import Yolo
from compresskit.training.tasks.own import OwnLoss
from compresskit.training.tasks.segmentation import IGNORED


@option
class CrossEntropy:
    """Cross-entropy of class scores: -sum_c q_c log softmax(output)_c, q = (1 - e) onehot(target) + e / classes."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0  # e in the formula

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """output: (N, classes) scores before softmax, target: (N,) int64; or (N, classes, ...) and (N, ...) of pixels.

        Of pixels, the mean is over those of the batch whose target is not IGNORED, 0 where there are none.
        """
        if target.ndim == 1:
            return functional.cross_entropy(output, target, label_smoothing=self.label_smoothing)
        rows = output.movedim(1, -1).flatten(0, -2)  # of maps, CUDA has no deterministic sum
        total = functional.cross_entropy(
            rows, target.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / (target != IGNORED).sum().clamp_min(1)


@option
class MeanSquared:
    """Mean squared error over samples and outputs."""

    kind: Literal["mse"] = "mse"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """output, target: (N, outputs)."""
        return functional.mse_loss(output, target)


@option
class MeanAbsolute:
    """Mean absolute error over samples and outputs."""

    kind: Literal["mae"] = "mae"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """output, target: (N, outputs)."""
        return functional.l1_loss(output, target)


Loss = CrossEntropy | MeanSquared | MeanAbsolute | Yolo | OwnLoss

CLASSES = ("classification", "segmentation")  # tasks whose outputs are scores of classes

OF_TASK: dict[
    str, tuple[type[CrossEntropy] | type[MeanSquared] | type[MeanAbsolute] | type[Yolo], ...]
] = {  # the first is the default
    "classification": (CrossEntropy,),
    "regression": (MeanSquared, MeanAbsolute),
    "segmentation": (CrossEntropy,),
    "detection": (Yolo,),
    OWN: (),
}


def loss_for(
    task: str, loss: Loss | None, anchors: Sequence[tuple[float, float]] = ()
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss asked for, or the default of the task, as a function of output and target. anchors: the data's.

    One of the user's own is for any task.

    Raises RecipeError if it does not fit the task.
    """
    if isinstance(loss, OwnLoss):
        return loss.made()
    allowed = OF_TASK[task]
    if not allowed:
        raise RecipeError(
            "loss: only a function of yours knows what targets of any structure mean; name it as loss: "
            "package.module:name, in each section that trains"
        )
    loss = allowed[0]() if loss is None else loss
    if not isinstance(loss, allowed):
        kinds = " or ".join(choice.kind for choice in allowed)
        raise RecipeError(f"loss: {loss.kind} was given, but the data set is for {task}; use {kinds}, or leave it out")
    return partial(loss, anchors=anchors) if isinstance(loss, Yolo) else loss


def first_view(output: Any, targets: Any) -> Any:
    """Of outputs for several views of the samples, one behind the other, those for the first."""
    return output[: len(targets)] if isinstance(output, Tensor) and isinstance(targets, Tensor) else output


LOSSES: dict[str, type[CrossEntropy] | type[MeanSquared] | type[MeanAbsolute] | type[Yolo]] = {
    "cross-entropy": CrossEntropy,
    "mse": MeanSquared,
    "mae": MeanAbsolute,
    "yolo": Yolo,
}
