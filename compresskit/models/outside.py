"""What models from outside have in common: weights of a file, a classifier for other classes, one value of several."""

import logging
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from compresskit.errors import RecipeError
from compresskit.models.calling import check_fit
from compresskit.models.heads import classifiers, replace_classifiers
from compresskit.models.weights.fitting import load_weights
from compresskit.options import option
from compresskit.shapes import Shape

logger = logging.getLogger(__name__)


@option
class Outside:
    """Options of any model that is not the package's own."""

    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)  # of what makes it; num_classes is filled in from the data
    weights: str | None = None  # state dict to start from: .safetensors, what torch.save wrote, or *.index.json
    head: Literal["keep", "fresh", "drop"] = "keep"  # fresh: a classifier for the data's classes; drop: none
    output: str | int | None = None  # of the dict or tuple that forward returns, the value that is meant
    lossy_training: bool = False  # what forward does in training mode alone may get lost

    def finished(self, model: nn.Module, name: str, shape: Shape, outputs: int) -> nn.Module:
        """The model with its weights and its classifier. Raises RecipeError where it does not fit the data, and
        CheckpointError where the weights do not fit."""
        if self.head == "keep":
            if self.weights is not None:
                load_weights(model, Path(self.weights))
        else:
            self._with_head(model, name, shape, outputs)
        check_fit(model, name, shape, outputs, self.output)
        return model

    def _with_head(self, model: nn.Module, name: str, shape: Shape, outputs: int) -> None:
        """Weights but for the classifier's, which is drawn anew for the data's outputs, or dropped."""
        if outputs == 0:
            raise RecipeError(f"model.head: {self.head} is for data with classes; leave it out")
        if self.weights is None and self.head == "fresh":
            raise RecipeError("model.head: fresh replaces the classifier of trained weights; give model.weights")
        names, made = classifiers(model, shape, self.output)
        if self.weights is not None:
            load_weights(model, Path(self.weights), fresh=names)
        replace_classifiers(model, names, outputs if self.head == "fresh" else None)
        logger.warning("%s: in the place of its %s (model.head)", name, _done(names, outputs, self.head == "fresh"))


def _done(names: list[str], outputs: int, fresh: bool) -> str:
    """What became of the classifiers, in words."""
    if len(names) == 1:
        return f"classifier {names[0]} there is {f'a fresh one with {outputs} outputs' if fresh else 'none'}"
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"classifiers {listed} there are {f'fresh ones with {outputs} outputs each' if fresh else 'none'}"


def check_classes(arguments: Mapping[str, Any], outputs: int) -> None:
    """Raises RecipeError for a number of classes that is not the data's."""
    if arguments["num_classes"] != outputs:
        raise RecipeError(
            f"model.arguments.num_classes: {arguments['num_classes']} was given, the data need {outputs}; leave it out"
        )
