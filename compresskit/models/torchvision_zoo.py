"""Torchvision's classifiers by name, with random weights or those of a file: nothing is fetched."""

from typing import Any, Literal

from torch import nn

from compresskit.errors import RecipeError, near_names
from compresskit.models.outside import Outside, check_classes
from compresskit.options import option
from compresskit.shapes import Shape


@option
class Torchvision(Outside):
    """A classifier of torchvision: `kind: torchvision:resnet18` for short."""

    kind: Literal["torchvision"] = "torchvision"
    name: str  # as torchvision.models has it

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        """Raises RecipeError for unknown names and arguments, and for a model that does not take the data."""
        arguments = {"num_classes": outputs} | self.arguments
        check_classes(arguments, outputs)
        if arguments.pop("weights", None) is not None:
            raise RecipeError(
                "model.arguments.weights: torchvision would fetch them; fetch the file yourself and name it in "
                "model.weights"
            )
        return self.finished(self._make(arguments), self.name, input_shape, outputs)

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
