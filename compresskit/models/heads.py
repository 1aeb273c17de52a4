"""The classifiers of a model from outside: layers whose outputs are the model's, found by running it, and replaced."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from compresskit.errors import RecipeError
from compresskit.models.calling import batch_for, called, picked, types_for
from compresskit.shapes import Shape
from compresskit.user_code import said

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_READERS = (*_LAYERS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.MultiheadAttention, nn.RNNBase, nn.Bilinear)


def classifiers(model: nn.Module, shape: Shape, output: str | int | None) -> tuple[list[str], int]:
    """Names of the layers that make the model's outputs, and how many there are.

    They have as many outputs as the model, and what they give goes through no other layer into the value that is meant;
    or into another value that forward returns, in eval or in training mode, and into no layer at all. A layer under two
    names is there with both.
    Raises RecipeError where there is none, and where one makes a part of the outputs alone and a part through others.
    """
    with _unchanged(model):
        types = types_for(model.eval(), shape)
        batch = batch_for(model, shape, types, 1)
        value = picked(_run(model, batch).value, output)
        outputs = value.shape[1] if isinstance(value, Tensor) and value.ndim > 1 else 0
        fitting = [name for name, layer in model.named_modules() if _outputs(layer) == outputs]
        marked = {name: _run(model, batch, name) for name in fitting}
        makers = [name for name, run in marked.items() if run.called and _is_spoiled(picked(run.value, output))]
        twice = [
            name
            for name in makers
            if any(_is_spoiled(picked(_run(model, batch, fed, stop=False).value, output)) for fed in marked[name].feeds)
        ]
        _check_makers(type(model).__name__, outputs, makers, twice)
        ends = {*makers, *(name for name, run in marked.items() if run.is_end)}
        if others := [name for name in fitting if name not in ends and not marked[name].feeds]:
            idle = {name for name in others if not marked[name].called}
            ends |= _ends_in_training(model, batch_for(model, shape, types, 2), others, idle)
    layers = [model.get_submodule(name) for name in fitting if name in ends]
    found = model.named_modules(remove_duplicate=False)
    return [name for name, layer in found if any(layer is each for each in layers)], outputs


def replace_classifiers(model: nn.Module, names: list[str], outputs: int | None) -> None:
    """New layers like those, drawn by torch, with so many outputs; None: they pass on what they read."""
    made: dict[nn.Module, nn.Module] = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        parent, _, own = name.rpartition(".")
        if layer not in made:
            made[layer] = nn.Identity() if outputs is None else _like(layer, outputs)
        setattr(model.get_submodule(parent), own, made[layer])


@dataclass
class _Run:
    """What forward returned when one layer gave NaN.

    called: whether forward called that layer. feeds: layers that would have read the NaN, and read 0 in its place.
    """

    value: Any = None
    called: bool = False
    feeds: set[str] = field(default_factory=set)

    @property
    def is_end(self) -> bool:
        """Whether the layer makes something that is returned, and nothing else."""
        return self.called and not self.feeds and any(map(_is_spoiled, pytree.tree_leaves(self.value)))


def _run(model: nn.Module, batch: Any, marked: str = "", *, stop: bool = True) -> _Run:
    """marked: the layer that gives NaN; none if it is empty. stop: whether other layers read 0 in the place of NaN."""
    run = _Run()

    def cleaned(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> Any:
            if name == marked or not any(map(_is_spoiled, pytree.tree_leaves((args, kwargs)))):
                return None
            run.feeds.add(name)
            return pytree.tree_map_only(Tensor, torch.nan_to_num, (args, kwargs))

        return hook

    def mark(layer: nn.Module, args: Any, result: Any) -> Any:
        run.called = True
        return pytree.tree_map_only(Tensor, lambda tensor: torch.full_like(tensor, torch.nan), result)

    readers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _READERS)]
    hooks = [
        layer.register_forward_pre_hook(cleaned(name), with_kwargs=True) for name, layer in readers if marked and stop
    ]
    hooks += [model.get_submodule(marked).register_forward_hook(mark)] if marked else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            run.value = called(model, batch)
    except Exception as error:  # it is the user's code
        raise RecipeError(
            f"model.head: {type(model).__name__} does not run where {marked or 'nothing'} gives NaN, by which its "
            f"classifiers are found: {said(error)}; replace the classifier in a factory of your own"
        ) from error
    finally:
        for each in hooks:
            each.remove()
    return run


def _ends_in_training(model: nn.Module, batch: Any, names: list[str], idle: set[str]) -> set[str]:
    """Those of the layers that make what forward returns in training mode alone.

    Where training mode does not run on such samples, `idle`, which eval mode does not call: no more is known of them.
    """
    model.train()
    try:
        return {name for name in names if _run(model, batch, name).is_end}
    except RecipeError:
        return idle


def _check_makers(model: str, outputs: int, makers: list[str], twice: list[str]) -> None:
    if not makers:
        raise RecipeError(
            f"model.head: no linear layer or convolution at the end of {model} makes its {outputs} outputs; replace "
            "the classifier in a factory of your own"
        )
    if twice:
        raise RecipeError(
            f"model.head: {' and '.join(twice)} of {model} makes a part of its {outputs} outputs by itself and a part "
            "through other layers; replace the classifier in a factory of your own"
        )


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Puts modes and buffers back as they were: a run in training mode writes statistics."""
    modes = [(each, each.training) for each in model.modules()]
    buffers = [
        (each, name, buffer, buffer.clone())
        for each in model.modules()
        for name, buffer in each._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training
        for each, name, buffer, content in buffers:
            each._buffers[name] = buffer.copy_(content)


def _is_spoiled(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.isnan().any())


def _outputs(layer: nn.Module) -> int | None:
    """How many a linear layer or a convolution has; None of others."""
    return layer.weight.shape[0] if isinstance(layer, _LAYERS) else None


def _like(layer: Any, outputs: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias)
    options = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation", "groups")}
    kind: Any = type(layer).__base__ if parametrize.is_parametrized(layer) else type(layer)
    made: nn.Module = kind(layer.in_channels, outputs, **options, bias=bias)
    return made
