"""Torchvision's classifiers by name, with random weights or those of a file: nothing is fetched."""

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from compresskit.errors import RecipeError, near_names
from compresskit.models.calling import check_fit
from compresskit.models.weights import load_weights
from compresskit.options import option


@option
class Torchvision:
    """A classifier of torchvision: `kind: torchvision:resnet18` for short."""

    kind: Literal["torchvision"] = "torchvision"
    name: str  # as torchvision.models has it
    arguments: dict[str, Any] = field(default_factory=dict)  # of its builder; num_classes is filled in from the data
    output: str | int | None = None  # of the dict or tuple that forward returns, the value that is meant
    lossy_training: bool = False  # what forward does in training mode alone may get lost
    weights: str | None = None  # file with a state dict to start from: .safetensors, or as torch.save writes it

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Raises RecipeError for unknown names and arguments, and for a model that does not take the data."""
        arguments = {"num_classes": outputs} | self.arguments
        if arguments["num_classes"] != outputs:
            raise RecipeError(
                f"model.arguments.num_classes: {arguments['num_classes']} was given, the data need {outputs}; "
                "leave it out"
            )
        if arguments.pop("weights", None) is not None:
            raise RecipeError(
                "model.arguments.weights: torchvision would fetch them; fetch the file yourself and name it in "
                "model.weights"
            )
        model = self._make(arguments)
        if self.weights is not None:
            load_weights(model, Path(self.weights))
        check_fit(model, self.name, input_shape, outputs, self.output)
        return model

    def _make(self, arguments: dict[str, Any]) -> nn.Module:
        from torchvision import models  # a second or more, which only recipes that ask for it should wait

        names = models.list_models(module=models)
        if self.name not in names:
            raise RecipeError(
                f"model.name: torchvision has no classifier {self.name!r}; {near_names(self.name, names)}"
            )
        try:
            model: nn.Module = models.get_model(self.name, weights=None, **arguments)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"model.arguments: {self.name} refuses them: {error}") from error
        return model
