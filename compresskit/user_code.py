"""Code of the user's own that a recipe names as `package.module:name`: where it may be, how it is found and called."""

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from compresskit.errors import RecipeError, near_names

NO_CODE = "COMPRESSKIT_NO_CODE"  # in the environment: recipes may name no code


def find(target: str, key: str, makes: str) -> Callable[..., Any]:
    """The function or class behind `package.module:name`, looked for in the current directory, too.

    key: of the recipe, which messages begin with. makes: what it is for, in the plural.
    Raises RecipeError for what cannot be found, is no function, or may not run.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise RecipeError(f"{key}: {target!r} was given; write 'package.module:name'")
    _check_allowed(target, module_name, key, makes)
    if os.getcwd() not in sys.path:  # an installed program, unlike `python -m`, does not look there
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"{key}: there is no module {error.name!r}; run compresskit from the folder that holds it, or "
                "install its package"
            ) from error
        raise RecipeError(f"{key}: {module_name} imports {error.name!r}, which is not installed") from error
    except (Exception, SystemExit) as error:  # it is the user's code
        raise RecipeError(f"{key}: to import {module_name} raised {said(error)}") from error
    found = getattr(module, name, None)
    if found is None:
        own = [known for known, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        raise RecipeError(f"{key}: {module_name} has no {name!r}; {near_names(name, own or vars(module))}")
    if not callable(found):
        raise RecipeError(f"{key}: {target} is a {type(found).__name__}; it must be a function or a class")
    function: Callable[..., Any] = found
    return function


def made(
    target: str, arguments: Mapping[str, Any], key: str, makes: str, filled: Mapping[str, Any] | None = None
) -> Any:
    """What the function or class returns to these arguments.

    key: of the section, which has them as `arguments`. filled: by name, values of parameters that the recipe need not
    give. Raises RecipeError as `find` does, for arguments that it does not take, and for whatever it raises.
    """
    factory = find(target, f"{key}.target", makes)
    signature = inspect.signature(factory)
    given = {name: value for name, value in (filled or {}).items() if name in signature.parameters} | dict(arguments)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise RecipeError(f"{key}.arguments: {target}{signature} does not take them: {error}") from error
    try:
        return factory(**given)
    except RecipeError:  # of our own, from within it
        raise
    except (Exception, SystemExit) as error:  # it is the user's code
        raise RecipeError(f"{key}.target: {target} raised {said(error)}") from error


def said(error: BaseException) -> str:
    """The name of an error and the first line of its words."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['nothing more'])[0]}"


def _check_allowed(target: str, module: str, key: str, makes: str) -> None:
    """Before anything is imported. Raises RecipeError for code that is for other things, and where none may run."""
    package = module.partition(".")[0]
    own = package in (*sys.stdlib_module_names, "compresskit")
    if own or (package == "torch" and not f"{module}.".startswith("torch.nn.")):
        whose = {"compresskit": "compresskit's own", "torch": "torch's"}.get(package, "Python's own")
        raise RecipeError(f"{key}: {target}: {module} is {whose} and makes no {makes}; name a module of yours")
    if os.environ.get(NO_CODE):
        raise RecipeError(f"{key}: {target} would be imported and run, which --no-code or {NO_CODE}=1 forbids")
