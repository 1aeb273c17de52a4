"""Networks whose layers are products of factors, and back."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import RecipeError
from compresskit.graph.layers.expanded import Branch, Expanded, Layer
from compresskit.graph.operations import NORMS, calls_of
from compresskit.graph.trace import trace
from compresskit.models.parts.initialisation import seeded
from compresskit.numerics.expansion.balance import balanced
from compresskit.numerics.expansion.composition import cost, to_kernel
from compresskit.numerics.expansion.fit import fit_factors
from compresskit.numerics.expansion.solve import carrier, orthonormal, solve_factors
from compresskit.numerics.machine import total_memory
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.rates import StepCost
from compresskit.passes.expand.sites import by_name, fitting, layer_shape, selected, unfit
from compresskit.passes.expand.strategies import STRATEGIES, LayerShape, Unfit

EXACT = 1e-5  # relative error of a product, beyond which factors do not start from the trained layer


@dataclass(frozen=True)
class ExpandedLayer:
    """A layer that was expanded. factors: weight shapes of each branch's factors. parameters: compact, expanded.

    rate: that was asked for. product_macs: multiply-adds of the product of its factors, once a step. residual: relative
    error of the product where it starts from a trained layer, else None.
    """

    name: str
    strategy: str
    rate: float
    weight_shape: tuple[int, ...]
    factors: tuple[tuple[tuple[int, ...], ...], ...]
    parameters: tuple[int, int]
    product_macs: int
    residual: float | None = None


@dataclass(frozen=True)
class Expansion:
    """skipped: by layer, why it was left as it was. cost: of a training step, where one was asked for."""

    network: fx.GraphModule
    layers: list[ExpandedLayer]
    skipped: dict[str, str] = field(default_factory=dict)
    cost: StepCost | None = None


def expand(
    network: fx.GraphModule,
    options: Expand,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Expansion:
    """A copy of `network` with expanded layers, of the same function where `init` is from_checkpoint.

    Factors are drawn from `seed`; other layers keep their weights; where branches have batch norms of their own, the
    one behind the layer becomes an identity. A layer that was named exactly and cannot be expanded raises RecipeError;
    one that a pattern found is skipped, with the reason. Raises RecipeError if none is left. progress: told how many
    layers of how many are done, since factors of trained ones can take a while to find.
    """
    network, options = copy.deepcopy(network), by_name(network, options)
    if not isinstance(options.rate, dict):
        raise RecipeError("expand.rate: auto weighs the steps of a training; choose rates with passes.expand.rates")
    rows, skipped = [], {}
    with seeded(seed, network):
        names = selected(network, options.layers, "layers")
        for done, name in enumerate(names):
            progress(done, len(names))
            try:
                if name not in options.rate:
                    raise Unfit("no selector of `rate` names it")
                expanded, row = _expanded(network, name, options, options.rate[name])
            except Unfit as reason:
                if name in options.layers:
                    raise RecipeError(f"expand: {name}: {reason}") from reason
                skipped[name] = str(reason)
            else:
                network.add_submodule(name, expanded)
                if expanded.norms and (norm := _norm_behind(network, name)) is not None:
                    network.add_submodule(norm, nn.Identity())
                rows.append(row)
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise RecipeError(f"expand: no layer can be expanded by {options.strategy} ({reasons}); see `show layers`")
    network.recompile()
    return Expansion(network, rows, skipped)


def contract(network: fx.GraphModule) -> fx.GraphModule:
    """A copy of `network` with each expanded layer multiplied into the compact one, under its old name.

    Batch norms of branches are folded in as they are in eval mode, and the compact layer has a bias. Raises
    RecipeError for a network without expanded layers, and for factors with activations between them.
    """
    network = copy.deepcopy(network)
    found = expanded_layers(network)
    if not found:
        raise RecipeError("contract: this net has no expanded layers; name the checkpoint that `expand` trained")
    for name, layer in found.items():
        if layer.nonlinear:
            raise RecipeError(
                f"contract: {name} was trained with nonlinear factors, which have no product; train linear ones that "
                "start from it with expand.init: nonlinear"
            )
        network.add_submodule(name, layer.compact())
    network.recompile()
    return network


def expanded_layers(network: nn.Module) -> dict[str, Expanded]:
    """The expanded layers by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Expanded)}


def set_factors(network: nn.Module, *, mode: str, nonlinear: bool = False) -> None:
    """How every expanded layer of `network` runs, in place; see Expanded."""
    for layer in expanded_layers(network).values():
        layer.mode, layer.nonlinear = mode, nonlinear
        layer.check()


def expand_model(
    model: nn.Module, *, seed: int = 0, init: str = "from_checkpoint", **options: object
) -> tuple[nn.Module, list[ExpandedLayer]]:
    """`model` traced and expanded: what a notebook calls. options: those of Expand, as a recipe gives them.

    It stays the same function; init="standard" draws its factors afresh, for training from scratch.
    """
    expansion = expand(trace(model), Expand(init=init, **options), seed)  # type: ignore[arg-type]
    return expansion.network, expansion.layers


def contract_model(model: nn.Module) -> nn.Module:
    """The compact net of an expanded one: what a notebook calls."""
    return contract(model if isinstance(model, fx.GraphModule) else trace(model))


def _expanded(network: fx.GraphModule, name: str, options: Expand, rate: float) -> tuple[Expanded, ExpandedLayer]:
    """By the first strategy that can write the layer. Raises Unfit with the reason of the last that was tried."""
    shape = layer_shape(network, name, options)
    reason = unfit(shape, options)
    for strategy in fitting(shape, options):
        try:
            return _written(network, name, shape, strategy, options, rate)
        except Unfit as found:
            reason = found
    raise reason


def _written(
    network: fx.GraphModule, name: str, shape: LayerShape, strategy: str, options: Expand, rate: float
) -> tuple[Expanded, ExpandedLayer]:
    """The layer as one strategy writes it. Raises Unfit."""
    layer = network.get_submodule(name)
    assert isinstance(layer, Layer)
    norms = STRATEGIES[strategy].norms
    branches = STRATEGIES[strategy].branches(shape, rate)
    _check_memory(name, shape, branches)
    expanded = Expanded(
        type(layer).__name__,
        shape.groups * shape.inputs,
        shape.groups * shape.outputs,
        branches,
        layer.bias is not None and not norms,  # a norm takes a bias away
        norms=norms,
        mode=options.chosen_mode,
        nonlinear=options.nonlinear,
        **({} if isinstance(layer, nn.Linear) else _convolution_options(layer)),
    )
    expanded.to(layer.weight.device, layer.weight.dtype).train(layer.training)
    residual = _start_from(expanded, layer) if options.init == "from_checkpoint" else None
    return expanded, ExpandedLayer(
        name,
        strategy,
        rate,
        tuple(layer.weight.shape),
        tuple(tuple(tuple(factor.weight.shape) for factor in factors) for factors in expanded.by_branch()),
        (sum(p.numel() for p in layer.parameters()), sum(p.numel() for p in expanded.parameters())),
        sum(cost(shapes) for shapes in expanded.kernel_shapes()),
        residual,
    )


def _norm_behind(network: fx.GraphModule, name: str) -> str | None:
    """The batch norm that alone reads what the layer gives and reads nothing else, if there is one."""
    readers = [user for node in calls_of(network, name) for user in node.users]
    if len(readers) != 1 or readers[0].op != "call_module":
        return None
    norm = str(readers[0].target)
    is_norm = isinstance(network.get_submodule(norm), NORMS) and len(calls_of(network, norm)) == 1
    return norm if is_norm and len(calls_of(network, name)) == 1 else None


def _check_memory(name: str, shape: LayerShape, branches: Sequence[Branch]) -> None:
    """Raises RecipeError for factors that this machine could not hold with their gradients."""
    count = 0
    for branch in branches:
        inputs = shape.inputs
        for outputs, taps in branch:
            count += outputs * inputs * prod(taps)
            inputs = outputs // shape.groups
    if (nbytes := 8 * count) > (memory := total_memory()):
        raise RecipeError(
            f"expand.rate: {name} would have {count:,} parameters, {nbytes / 1e9:,.0f} GB with their gradients, and "
            f"this machine has {memory / 1e9:,.0f} GB; lower the rate"
        )


def _convolution_options(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(layer, name) for name in names}


def _factors_of(kernel: Tensor, drawn: list[Tensor]) -> list[Tensor]:
    """Factors near the drawn ones whose product is the kernel, if there are any."""
    if carrier([tuple(factor.shape) for factor in drawn]) is not None:
        return solve_factors(kernel, drawn)
    return fit_factors(kernel, [orthonormal(f) if prod(f.shape[2:-1]) == 1 else f for f in drawn]).kernels


def _start_from(expanded: Expanded, layer: Layer) -> float:
    """Sets the factors so that their product is the layer; returns its relative error, in the weight's own type.

    Raises Unfit where the error is more than rounding.
    """
    (first, *others) = expanded.by_branch()
    kernel = to_kernel(layer.weight.detach(), expanded.groups)
    with torch.no_grad():
        rest: Tensor | float = 0.0
        if others:  # parallel branches: the first one takes what the others leave
            for factor in first:
                factor.weight.zero_()
            rest = to_kernel(expanded.contracted()[0], expanded.groups)
        drawn = [to_kernel(factor.weight, expanded.groups).double().contiguous() for factor in first]
        goal = (kernel - rest).double().contiguous()
        for factor, found in zip(first, balanced(_factors_of(goal, drawn)), strict=True):
            factor.weight.copy_(found.movedim(-1, 2).flatten(0, 1))
            if factor.bias is not None:
                factor.bias.zero_()
        if layer.bias is not None:
            first[-1].bias.copy_(layer.bias)
        scale = float(layer.weight.norm())
        error = float((expanded.contracted()[0] - layer.weight).norm()) / (scale or 1.0)
    if error > max(EXACT, 4 * torch.finfo(layer.weight.dtype).eps):
        remedy = (
            "use cl, or a higher rate, and first: expand if it reads images, whose channels the first factor keeps"
            if carrier(expanded.kernel_shapes()[0]) is None
            else "use a rate of 1 or more"
        )
        raise Unfit(f"no factors found whose product is its trained kernel (relative error {error:.1e}); {remedy}")
    return error
