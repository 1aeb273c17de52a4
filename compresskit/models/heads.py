"""The classifier of a model from outside: found as the last layer whose outputs are the model's, and replaced."""

from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import RecipeError
from compresskit.models.calling import Shape, batch_for, called, picked, types_for

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def classifiers(model: nn.Module, shape: Shape, output: str | int | None) -> tuple[list[str], int]:
    """Names of the layers that make the model's outputs, and how many there are.

    It is the last layer that forward calls, if it has as many outputs as the model; with it layers of the same sizes
    that do not lead to it, as a model has that learns by distillation. Raises RecipeError where there is none.
    """
    training = model.training
    model.eval()
    try:
        batch = batch_for(model, shape, types_for(model, shape), 1)
        value, calls = _run(model, batch)
        value = picked(value, output)
        outputs = value.shape[1] if isinstance(value, Tensor) and value.ndim > 1 else 0
        last = next(reversed(calls), "")
        if not last or _sizes(model, last)[-1] != outputs:
            raise RecipeError(
                f"model.head: no linear layer or convolution at the end of {type(model).__name__} makes its {outputs} "
                "outputs; replace the classifier in a factory of your own"
            )
        same = [name for name in calls if name != last and _sizes(model, name) == _sizes(model, last)]
        beside = [name for name in same if torch.equal(_run(model, batch, changed=name)[1][last], calls[last])]
    finally:
        model.train(training)
    return [*beside, last], outputs


def replace_classifiers(model: nn.Module, names: list[str], outputs: int | None) -> None:
    """New layers like those, drawn by torch, with so many outputs; None: they pass on what they read."""
    for name in names:
        layer: Any = model.get_submodule(name)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, nn.Identity() if outputs is None else _like(layer, outputs))


def _run(model: nn.Module, batch: Any, changed: str = "") -> tuple[Any, dict[str, Tensor]]:
    """What forward returns, and what each layer read, in the order of the calls. changed: a layer whose result is."""
    reads: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def note(layer: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor | None:
            reads.pop(name, None)
            reads[name] = args[0]
            return result + 1 if name == changed else None

        return note

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _LAYERS)}
    hooks = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return called(model, batch), reads
    finally:
        for each in hooks:
            each.remove()


def _sizes(model: nn.Module, name: str) -> tuple[int, ...]:
    """Of a layer: taps, inputs and outputs."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return (*weight.shape[2:], weight.shape[1], weight.shape[0])


def _like(layer: Any, outputs: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias)
    options = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation", "groups")}
    made: nn.Module = type(layer)(layer.in_channels, outputs, **options, bias=bias)
    return made
