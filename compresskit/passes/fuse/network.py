"""Fusing: a chain of layers becomes the one layer that least squares finds for it (FuseInit)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from compresskit.errors import ConvergenceError, within
from compresskit.graph.capture import capture
from compresskit.graph.chains import weighted
from compresskit.graph.shapes import evaluating
from compresskit.graph.trace import trace
from compresskit.numerics.least_squares.fusion import Fusion, MeanMaps
from compresskit.numerics.least_squares.fusion import fuse as fuse_moments
from compresskit.numerics.least_squares.solvers import SOLVERS
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.fuse.fusible import Fusible, apply, build, find
from compresskit.passes.fuse.means import mean_maps
from compresskit.passes.fuse.options import Fuse
from compresskit.passes.fuse.together import KeptMoments, beside, rehearse
from compresskit.passes.moments import Batches, gather_from


@dataclass(frozen=True)
class FusedLayer:
    """A row of the report: what was fused, into what, and with which error.

    count: positions that the moments were taken from. ridge: in units of the mean variance of an input. error:
    Corollary 1, on these samples. expected_error: its estimate for new samples, and unexplained the share of the
    target's variance that this is. measured_error and
    measured_unexplained: the same on held-out images.
    """

    name: str
    layers: tuple[str, ...]
    weight_shapes: tuple[tuple[int, ...], ...]
    weight_shape: tuple[int, ...]
    features: int
    rank: int | None
    solver: str
    n_iter: int
    converged: bool
    count: int
    variance: float
    error: float
    expected_error: float
    unexplained: float
    saved_params: int
    saved_macs: int
    ridge: float = 0.0
    measured_error: float | None = None
    measured_unexplained: float | None = None


def fuse(
    model: nn.Module, loader: Batches, layers: Sequence[Sequence[str]], **options: Any
) -> tuple[fx.GraphModule, list[FusedLayer]]:
    """New network in which each of `layers`, [first, last] or [block], is one layer; and a row for each.

    model: any module that torch.fx traces; it stays as it was. loader: an iterable of (inputs, targets) that can be
    read once for each pair, twice with `channels="document"`; those whose moments no earlier pair changes share a
    pass. options: the fields of the recipe's `fuse` section (`channels`, `kernel`, `solver` by name or as an object).
    The rows' errors come from the moments; `measure` gives the error on other data.
    Raises UnsupportedModelError where a chain cannot be fused, with the node that stands in the way.
    """
    network = model if isinstance(model, fx.GraphModule) else trace(model)
    if isinstance(solver := options.get("solver"), str):
        options["solver"] = SOLVERS[solver]()
    chosen = Fuse(layers=tuple(tuple(pair) for pair in layers), **options)
    input_shape = tuple(next(iter(loader))[0].shape[1:])
    planned, kept, rows = rehearse(network, input_shape, chosen), KeptMoments(), []
    gather = gather_from(loader)
    for step, pair in enumerate(chosen.layers):
        fusible = find(network, pair, input_shape, chosen.kernel, chosen.channels)
        also = [later.request for later in beside(planned, step)]
        moments = kept.get(network, [fusible.request], lambda net, wanted: gather(net, wanted, None), also)
        means = mean_maps(network, [fusible], loader)
        fusion = solve(fusible, moments[fusible.request.name], chosen, means.get(fusible.request.name))
        rows.append(describe(network, fusible, fusion))
        network = apply(network, fusible, fusion)
    return network, rows


def solve(fusible: Fusible, moments: Moments, options: Fuse, means: MeanMaps | None = None) -> Fusion:
    """Weights and errors of the fused layer, from its moments. Raises ConvergenceError if these are not finite."""
    try:
        with within(str(fusible.chain)):
            return fuse_moments(moments, options.solver, options.channels, fusible.taps, means)
    except ValueError as error:
        raise ConvergenceError(f"{fusible.chain}: {error}; check the checkpoint and the data for NaN") from error


def measure(network: fx.GraphModule, fusible: Fusible, fusion: Fusion, batches: Batches) -> tuple[float, float]:
    """(error, share of the variance) of the fused layer against the chain it stands for, on other data.

    error: E||y - W x - b||^2 over images and positions, summed over outputs. The layer runs in float64. A single row
    has no variance, and its share is NaN: nobody knows it.
    """
    device = next(network.parameters()).device
    layer, bias = build(fusible, fusion).to(device), fusion.bias.to(device) if len(fusible.bias_shape) > 1 else 0.0
    values = capture(network, [fusible.chain.source, fusible.chain.target])
    channel_axis = -1 if fusible.request.patches is None else 1
    count = 0
    total, squares, error = (torch.zeros((), dtype=torch.float64) for _ in range(3))  # of the device, read at the end
    with torch.inference_mode(), evaluating(values):
        for inputs, _ in batches:
            source, target = (value.double() for value in values(inputs))
            if fusible.request.flatten:
                source = source.flatten(1)
            padded = functional.pad(source, fusible.pad) if fusible.pad else source
            rows = target.movedim(channel_axis, -1).flatten(0, -2)
            count, total = count + len(rows), total + rows.sum(0)
            squares, error = squares + rows.square().sum(), error + (target - layer(padded) - bias).square().sum()
    variance = float(squares / count - (total / count).square().sum())
    lost = float(error) / count
    return lost, math.nan if count == 1 else 0.0 if variance == 0 else lost / variance


def describe(network: fx.GraphModule, fusible: Fusible, fusion: Fusion) -> FusedLayer:
    """The row of a fused layer, before it is measured; `network` is the one that still has the chain."""
    return FusedLayer(
        name=fusible.chain.name,
        layers=fusible.chain.layers,
        weight_shapes=tuple(tuple(weighted(network, name).weight.shape) for name in fusible.chain.layers),
        weight_shape=fusible.weight_shape,
        features=fusible.request.features * fusible.request.groups,
        rank=fusion.rank,
        solver=fusion.solutions[0].method,
        n_iter=max(solution.n_iter for solution in fusion.solutions),
        converged=fusion.converged,
        count=fusion.count,
        variance=fusion.variance,
        error=fusion.error,
        expected_error=fusion.expected_error,
        unexplained=fusion.unexplained,
        saved_params=fusible.saved_params,
        saved_macs=fusible.saved_macs,
        ridge=fusion.ridge,
    )
