"""timm's models by name, with random weights or those of a file: nothing is fetched."""

from typing import Any, Literal

from torch import nn

from compresskit.errors import RecipeError, ResourceError, near_names
from compresskit.models.outside import Outside, check_classes
from compresskit.options import option
from compresskit.shapes import Shape, shapes_of


@option
class Timm(Outside):
    """A model of timm: `kind: timm:convnext_atto` for short. The extra compresskit[timm] brings the library."""

    kind: Literal["timm"] = "timm"
    name: str  # as timm.list_models has it, without the tag of its weights

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        """in_chans and, where the model has it and was made for another size, img_size come from the data.

        Raises RecipeError for unknown names and arguments, and for a model that does not take the data, ResourceError
        where timm is not installed.
        """
        arguments = {"num_classes": outputs} | self.arguments
        check_classes(arguments, outputs)
        if arguments.pop("pretrained", False) or arguments.get("checkpoint_path"):
            raise RecipeError(
                "model.arguments.pretrained: timm would fetch the weights; fetch the file yourself and name it in "
                "model.weights"
            )
        return self.finished(self._make(arguments, input_shape), self.name, input_shape, outputs)

    def _make(self, arguments: dict[str, Any], shape: Shape) -> nn.Module:
        timm = _timm()
        name = self.name.partition(".")[0]  # a tag of weights may follow
        if not timm.is_model(name):
            raise RecipeError(f"model.name: timm has no model {self.name!r}; {near_names(name, timm.list_models())}")
        filled = _from_data(timm.get_pretrained_cfg(name), shape)
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **filled | arguments)
        except TypeError as error:
            if not filled.pop("img_size", None) or "img_size" not in str(error):
                raise RecipeError(f"model.arguments: {self.name} refuses them: {error}") from error
            return self._without_size(timm, name, filled | arguments)
        except (ValueError, AssertionError, RuntimeError, KeyError) as error:
            raise RecipeError(f"model.arguments: {self.name} refuses them: {error}") from error
        return model

    def _without_size(self, timm: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
        """Of models that take any size."""
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
            raise RecipeError(f"model.arguments: {self.name} refuses them: {error}") from error
        return model


def _timm() -> Any:
    try:
        import timm  # seconds, which only recipes that ask for it should wait
    except ModuleNotFoundError as error:
        raise ResourceError("model: timm is not installed; pip install 'compresskit[timm]'") from error
    return timm


def _from_data(config: Any, shape: Shape) -> dict[str, Any]:
    """Arguments that follow from one image of the data: channels, and the size where it is not that of the weights."""
    shapes = shapes_of(shape)
    if len(shapes) != 1 or len(shapes[0]) != 3:
        return {}
    channels, *size = shapes[0]
    made_for = tuple(config.input_size[1:]) if config is not None and config.input_size else ()
    return {"in_chans": channels} | ({"img_size": tuple(size)} if tuple(size) != made_for else {})
