"""Models of the user's own, from a function or class named in the recipe."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from compresskit.code import find, said
from compresskit.errors import RecipeError
from compresskit.models.calling import Shape
from compresskit.models.outside import Outside
from compresskit.options import option


@option
class Factory(Outside):
    """What a function or class of yours returns: `kind: package.module:factory` for short."""

    kind: Literal["factory"] = "factory"
    target: str  # "package.module:factory", looked for in the current directory too

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        """Raises RecipeError for a target that cannot be found or called, or whose model does not take the data."""
        factory = find(self.target, "model.target", "models")
        model = self._call(factory, outputs)
        if not isinstance(model, nn.Module):
            raise RecipeError(
                f"model.target: {self.target} returned a {type(model).__name__}; it must return a torch.nn.Module"
            )
        return self.finished(model, self.target, input_shape, outputs)

    def _call(self, factory: Callable[..., Any], outputs: int) -> Any:
        signature = inspect.signature(factory)
        filled = {"num_classes": outputs} if "num_classes" in signature.parameters else {}
        arguments = filled | self.arguments
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise RecipeError(f"model.arguments: {self.target}{signature} does not take them: {error}") from error
        try:
            return factory(**arguments)
        except (Exception, SystemExit) as error:  # it is the user's code
            raise RecipeError(f"model.target: {self.target} raised {said(error)}") from error
