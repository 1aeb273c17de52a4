"""Whether a graph computes what the module does that it was made from: in eval mode, and in training mode."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compresskit.errors import UnsupportedModelError, first_line
from compresskit.graph.layers.stochastic_depth import StochasticDepth
from compresskit.models.calling import picked
from compresskit.numerics.outputs import mapped, tensors_of

TOLERANCE = 1e-5  # largest difference, relative to the largest value, at which two results count as equal
_SEED = 0
_DROPOUTS = (nn.modules.dropout._DropoutNd, StochasticDepth)


@dataclass(frozen=True)
class _Pass:
    """One pass in training mode. gradients: of parameters, changed: buffers that it changed; by the tensor's id, since
    a module and its graph share their tensors, not their names."""

    output: Any
    gradients: dict[int, Tensor]
    changed: dict[int, Tensor]
    has_more: bool


def check_eval(module: nn.Module, network: fx.GraphModule, batches: list[Any], whole: bool = False) -> list[str]:
    """What to say of the outputs in eval mode: nothing where all of them are equal bit for bit.

    whole: all of what forward returns counts, else the first. Raises UnsupportedModelError where they differ by more
    than `TOLERANCE`.
    """
    worst = 0.0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for batch in batches:
            torch.manual_seed(_SEED)
            expected = module(batch) if whole else picked(module(batch), None)
            torch.manual_seed(_SEED)
            worst = max(worst, _difference(network(batch), expected))
    if worst > TOLERANCE:
        raise UnsupportedModelError(
            f"{type(module).__name__}: its graph computes something else, the outputs differ by {worst:.1e} of the "
            "largest; forward keeps a state, or counts the samples of a batch in Python"
        )
    return [f"outputs differ from forward's by {worst:.1e} of the largest, in eval mode"] if worst else []


def check_training(module: nn.Module, network: fx.GraphModule, batch: Any, whole: bool = False) -> list[str]:
    """What to say of one forward and backward pass in training mode under one seed; the tensors stay as they were.

    Outputs, gradients of parameters and buffers are compared; of several outputs in training the first counts, or all
    (whole).
    Raises UnsupportedModelError, with what differs, where that is more than `TOLERANCE`.
    """
    try:
        expected = _trained(module, batch, whole)
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        return [f"training mode was not compared: forward cannot run there on its own ({first_line(error)})"]
    if expected.has_more:  # what makes them draws from the same generator: compared is what remains without draws
        expected = _without(_trained(module, batch, whole, dropout=False), network)
    found = _trained(network, batch, whole, dropout=not expected.has_more)
    worst = {
        "the outputs": _difference(found.output, expected.output),
        "the gradients": _largest(found.gradients, expected.gradients),
        "the buffers": _largest(found.changed, expected.changed),
    }
    if wrong := {what: size for what, size in worst.items() if not size <= TOLERANCE}:
        told = ", ".join(f"{what} by {size:.1e}" for what, size in wrong.items())
        raise UnsupportedModelError(
            f"{type(module).__name__}: in training mode forward does what its graph cannot ({told} of the largest); "
            "make it modules of torch.nn (Dropout, ...), or accept that it trains as in eval mode: lossy_training"
        )
    notes = ["outputs that forward gives in training mode alone are left out"] if expected.has_more else []
    size = max(worst.values())
    return notes + ([f"one step in training mode differs by {size:.1e} of the largest"] if size else [])


def _without(done: _Pass, network: fx.GraphModule) -> _Pass:
    """The pass without the buffers that the network has not: those of what makes further outputs."""
    own = {id(buffer) for buffer in network.buffers()}
    return replace(done, changed={key: buffer for key, buffer in done.changed.items() if key in own})


def _trained(module: nn.Module, batch: Any, whole: bool, dropout: bool = True) -> _Pass:
    parameters = [p for p in module.parameters() if p.requires_grad]
    with _kept(module, dropout) as before, torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(_SEED)
        value = module(batch)
        output = value if whole else picked(value, None)
        total = torch.stack([_weighted(one) for one in tensors_of(output)]).sum()
        made = torch.autograd.grad(total, parameters, allow_unused=True) if parameters else ()
        gradients = {id(p): found for p, found in zip(parameters, made, strict=True) if found is not None}
        after = [(id(buffer), parent._buffers[name], kept) for parent, name, buffer, kept in before]
        changed = {key: now.clone() for key, now, kept in after if now is not None and not torch.equal(now, kept)}
    return _Pass(mapped(Tensor.detach, output), gradients, changed, value is not output)


def _weighted(output: Tensor) -> Tensor:
    return (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum()


@contextmanager
def _kept(module: nn.Module, dropout: bool) -> Iterator[list[tuple[nn.Module, str, Tensor, Tensor]]]:
    """Training mode inside the block, of dropout if asked; modes and buffers are as before it afterwards.

    Gives (module, name, buffer, copy of it) of each buffer.
    """
    held = [(each, name, b) for each in module.modules() for name, b in each._buffers.items() if b is not None]
    buffers = [(each, name, buffer, buffer.clone()) for each, name, buffer in held]
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.train()
        for each in module.modules():
            each.training &= dropout or not isinstance(each, _DROPOUTS)
        yield buffers
    finally:
        for each, mode in modes:
            each.training = mode
        with torch.no_grad():
            for each, name, buffer, before in buffers:
                buffer.copy_(before)
                each._buffers[name] = buffer


def _largest(found: dict[int, Tensor], expected: dict[int, Tensor]) -> float:
    """Over the tensors of both; one that only one of them has differs wholly, if it is not zero."""
    sizes = [_difference(found[key], expected[key]) for key in expected.keys() & found.keys()]
    alone = [found.get(key, expected.get(key)) for key in expected.keys() ^ found.keys()]
    return max([0.0, *sizes, *(1.0 for tensor in alone if tensor is not None and bool(tensor.any()))])


def _difference(found: Any, expected: Any) -> float:
    """Largest difference in units of a tensor's largest value; NaN where there are NaN on one side alone, inf in shape
    and in number."""
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    if len(ours) != len(theirs):
        return float("inf")
    sizes = [_of_leaf(one, other) for one, other in zip(ours, theirs, strict=True)]
    return float("nan") if any(map(math.isnan, sizes)) else max(sizes, default=0.0)


def _of_leaf(found: Any, expected: Any) -> float:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return 0.0 if type(found) is type(expected) and found == expected else float("inf")
    if found.shape != expected.shape:
        return float("inf")
    if torch.equal(found, expected):
        return 0.0
    scale = expected.detach().double().abs().max().clamp(min=1e-30)
    return float((found.detach().double() - expected.detach().double()).abs().max() / scale)
