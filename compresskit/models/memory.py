"""Whether a model that is being made fits into memory: said while it is made, before the machine runs out of it."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from compresskit.errors import RecipeError
from compresskit.numerics.machine import total_memory

SHARE = 0.75  # of the machine's memory that weights may take: data, gradients and the system need the rest


@contextmanager
def within_memory() -> Iterator[None]:
    """Stops the making of modules whose parameters this machine could not hold.

    Memory is taken where numbers are first written, and layers register a parameter before they draw it: so this comes
    in time, without the model being made twice. Raises RecipeError from within the module that was too much.
    """
    memory = SHARE * total_memory()
    made: list[weakref.ref[nn.Parameter]] = []
    counted = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal counted
        if nn.parameter.is_lazy(parameter) or parameter.device.type != "cpu":
            return
        made.append(weakref.ref(parameter))
        counted += parameter.nbytes
        if counted > memory:  # some may be gone again, or be there twice
            alive = {id(found): found for found in (each() for each in made) if found is not None}
            counted = sum(found.nbytes for found in alive.values())
        if counted > memory:
            raise RecipeError(
                f"model: it has {sum(found.numel() for found in alive.values()):,} parameters so far, "
                f"{counted / 1e9:,.1f} GB, and weights may take {memory / 1e9:,.1f} GB on this machine; lower its sizes"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
