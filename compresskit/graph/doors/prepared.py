"""A module as the doors take it: a copy with its tensors, in which what is a plain layer by another name is that."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compresskit.graph.format.allowed import MODULES
from compresskit.graph.layers.stochastic_depth import StochasticDepth
from compresskit.models.calling import TAKES_TUPLE, picked

LEAVES = frozenset(MODULES.values()) - {nn.Module}
# What a subclass may have of its own and still compute what its base does.
_HARMLESS = frozenset({"__init__", "extra_repr", "reset_parameters", "_reset_parameters", "__repr__", "__constants__"})


def prepared(module: nn.Module, inputs: int = 1, output: str | int | None = None) -> nn.Module:
    """A copy of `module` that shares its tensors, in eval mode; what tracing leaves behind stays in the copy.

    Subclasses that change nothing of a listed layer become that layer, and drop paths of any library ours. Of
    `inputs` > 1 forward takes one tuple; `output` picks from the dict or tuple that forward returns.
    """
    made = copy.deepcopy(module, _memo(module))
    made.train().eval()  # empties what modules keep for eval mode alone (attention biases, fused weights)
    _replace_layers(made)
    if inputs > 1 or output is not None:
        _rewrite_forward(made, inputs, output)
    return made


def _memo(module: nn.Module) -> dict[int, Any]:
    """For deepcopy: every tensor of the module is its own copy, those among its plain attributes, too."""
    kept: list[Any] = [*module.parameters(), *module.buffers()]
    for each in module.modules():
        attributes = {name: value for name, value in vars(each).items() if name not in ("_modules", "_parameters")}
        kept += [value for value in pytree.tree_leaves(attributes) if isinstance(value, Tensor | torch.Generator)]
    return {id(value): value for value in kept}


def _replace_layers(module: nn.Module) -> None:
    made: dict[int, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = made.setdefault(id(child), _plain(child))


def _plain(module: nn.Module) -> nn.Module:
    """The layer of the lists that computes what `module` does; the module itself where there is none."""
    kind = type(module)
    if kind in LEAVES:
        return module
    if kind.__name__ == "DropPath" and "drop_prob" in vars(module):
        given: Any = vars(module)
        depth = StochasticDepth(float(given["drop_prob"] or 0), "row", scale=bool(given.get("scale_by_keep", True)))
        return depth.train(module.training)
    base = next((base for base in kind.__mro__ if base in LEAVES), None)
    if base is not None and not _overrides(kind, base) and not hasattr(module, "parametrizations"):
        module.__class__ = base  # it is ours: a copy
    return module


def _overrides(kind: type, base: type) -> bool:
    between = kind.__mro__[: kind.__mro__.index(base)]
    own = {name for cls in between for name, value in vars(cls).items() if callable(value) or hasattr(value, "__get__")}
    return any(hasattr(base, name) for name in own - _HARMLESS if not name.startswith("__"))


def _rewrite_forward(module: nn.Module, inputs: int, output: str | int | None) -> None:
    kind = type(module)

    def forward(self: nn.Module, value: Any) -> Any:
        values = [value[place] for place in range(inputs)] if inputs > 1 else [value]
        found = kind.forward(self, *values)
        return found if output is None else picked(found, output)

    made: dict[str, Any] = {"forward": forward, TAKES_TUPLE: True}
    module.__class__ = type(kind.__name__, (kind,), made)
