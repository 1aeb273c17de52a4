"""Models of the user's own, from a function or class named in the recipe."""

import inspect
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

from torch import nn

from compresskit.errors import RecipeError, near_names
from compresskit.models.calling import Shape
from compresskit.models.outside import Outside
from compresskit.options import option

NO_CODE = "COMPRESSKIT_NO_CODE"  # in the environment: recipes may name no code


@option
class Factory(Outside):
    """What a function or class of yours returns: `kind: package.module:factory` for short."""

    kind: Literal["factory"] = "factory"
    target: str  # "package.module:factory", looked for in the current directory too

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        """Raises RecipeError for a target that cannot be found or called, or whose model does not take the data."""
        factory = _find(self.target)
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
            raise RecipeError(f"model.target: {self.target} raised {_said(error)}") from error


def _find(target: str) -> Callable[..., Any]:
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise RecipeError(f"model.target: {target!r} was given; write 'package.module:factory'")
    _check_allowed(target, module_name)
    if os.getcwd() not in sys.path:  # an installed program, unlike `python -m`, does not look there
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"model.target: there is no module {error.name!r}; run compresskit from the folder that holds it, or "
                "install its package"
            ) from error
        raise RecipeError(f"model.target: {module_name} imports {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # it is the user's code
        raise RecipeError(f"model.target: to import {module_name} raised {_said(error)}") from error
    factory = getattr(module, name, None)
    if factory is None:
        raise RecipeError(f"model.target: {module_name} has no {name!r}; {near_names(name, vars(module))}")
    if not callable(factory):
        raise RecipeError(f"model.target: {target} is a {type(factory).__name__}; it must be a function or a class")
    found: Callable[..., Any] = factory
    return found


def _check_allowed(target: str, module: str) -> None:
    """Before anything is imported. Raises RecipeError for code that makes no models, and for any where none may run."""
    package = module.partition(".")[0]
    own = package in (*sys.stdlib_module_names, "compresskit")
    if own or (package == "torch" and not f"{module}.".startswith("torch.nn.")):
        whose = {"compresskit": "compresskit's own", "torch": "torch's"}.get(package, "Python's own")
        raise RecipeError(f"model.target: {target}: {module} is {whose} and makes no models; name a module of yours")
    if os.environ.get(NO_CODE):
        raise RecipeError(f"model.target: {target} would be imported and run, which --no-code or {NO_CODE}=1 forbids")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['nothing more'])[0]}"
