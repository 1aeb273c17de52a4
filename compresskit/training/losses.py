"""Training losses that a recipe can name. Each is called with output and target and returns the mean over the batch."""

from typing import Annotated, Literal

from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn import functional

from compresskit.errors import RecipeError
from compresskit.options import option


@option
class CrossEntropy:
    """Cross-entropy of class scores: -sum_c q_c log softmax(output)_c, q = (1 - e) onehot(target) + e / classes."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0  # e in the formula

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """output: (N, classes) scores before softmax. target: (N,) int64."""
        return functional.cross_entropy(output, target, label_smoothing=self.label_smoothing)


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


Loss = CrossEntropy | MeanSquared | MeanAbsolute

OF_TASK: dict[str, tuple[type[Loss], ...]] = {  # the first is the default
    "classification": (CrossEntropy,),
    "regression": (MeanSquared, MeanAbsolute),
}


def loss_for(task: str, loss: Loss | None) -> Loss:
    """The loss asked for, or the default of the task. Raises RecipeError if it does not fit the task."""
    allowed = OF_TASK[task]
    if loss is None:
        return allowed[0]()
    if not isinstance(loss, allowed):
        kinds = " or ".join(choice.kind for choice in allowed)
        raise RecipeError(f"loss: {loss.kind} was given, but the data set is for {task}; use {kinds}, or leave it out")
    return loss


LOSSES: dict[str, type[CrossEntropy] | type[MeanSquared] | type[MeanAbsolute]] = {
    "cross-entropy": CrossEntropy,
    "mse": MeanSquared,
    "mae": MeanAbsolute,
}
