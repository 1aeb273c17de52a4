"""Models of the user's own, from a function or class named in the recipe."""

from typing import Literal

from torch import nn

from compresskit import user_code
from compresskit.errors import RecipeError
from compresskit.models.outside import Outside
from compresskit.options import option
from compresskit.shapes import Shape


@option
class Factory(Outside):
    """What a function or class of yours returns: `kind: package.module:factory` for short."""

    kind: Literal["factory"] = "factory"
    target: str  # "package.module:factory", looked for in the current directory too

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        """Raises RecipeError for a target that cannot be found or called, or whose model does not take the data."""
        model = user_code.made(
            self.target, self.arguments, "model", "models", {"num_classes": outputs} if outputs else {}
        )
        if not isinstance(model, nn.Module):
            raise RecipeError(
                f"model.target: {self.target} returned a {type(model).__name__}; it must return a torch.nn.Module"
            )
        return self.finished(model, self.target, input_shape, outputs)
