"""New weights for the layers whose inputs were thinned, and a network that has them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn

from compresskit.graph.chains import weighted
from compresskit.graph.operations import NORMS, calls_of, value_users
from compresskit.numerics.least_squares.solvers import Samples
from compresskit.numerics.moments.moments import Moments
from compresskit.numerics.selection.refit import refit, squared_error
from compresskit.passes.reconstruct.readers import Reader, Rows, Site, reader_parts
from compresskit.passes.reconstruct.selection import Choice


@dataclass(frozen=True)
class Layer:
    """weight: (out, features), float64, 0 where inputs were dropped. bias: (out,). rank: of the inputs kept, None where
    the weights are the group lasso's own. variance, error: of the outputs that count, E||y - M x - b||^2. ridges: of
    the fits, one for each group of the convolution."""

    weight: Tensor
    bias: Tensor
    rank: int | None
    variance: float
    error: float
    ridges: tuple[float, ...] = ()


def fit(
    site: Site, choice: Choice, moments: Mapping[str, Moments], debias: bool, rows: Rows | None = None,
    ridges: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> dict[str, Layer]:  # fmt: skip
    """The weights of each layer of the site: least squares on the inputs kept, or the shrunken ones of `choice`.

    The bias is E[y] - M E[x]: moments are centred, so it is never shrunk. Outputs that `rows` leaves out become 0.
    ridges: by layer, where they are known from another fit.
    """
    shrunken = iter(choice.weights or [])
    found = {}
    for reader in site.readers:
        own = moments[reader.request.name]
        weights, rank, variance, error = [], 0, 0.0, 0.0
        known, used = iter(ridges.get(reader.layer, ())), list[float]()
        for part, c in reader_parts(reader, own, rows):
            if debias or choice.weights is None:
                kept = choice.kept.to(part.cyx.device)
                weight, part_rank, ridge = refit(part, kept, Samples(own.count, c), next(known, None))
                rank += part_rank
                used.append(ridge)
            else:
                weight = next(shrunken)
            weights.append(weight)
            variance, error = variance + c, error + squared_error(part, c, weight)
        alive = rows[reader.layer] if rows is not None else torch.ones(len(own.mean_y), dtype=torch.bool)
        fitted = debias or choice.weights is None
        layer = _layer(reader, own, torch.cat(weights), alive, rank if fitted else None, variance, error)
        found[reader.layer] = replace(layer, ridges=tuple(used))
    return found


def _layer(
    reader: Reader, moments: Moments, fitted: Tensor, alive: Tensor, rank: int | None, variance: float, error: float
) -> Layer:
    weight = fitted.new_zeros(len(alive), fitted.shape[1])
    weight[alive.to(weight.device)] = fitted
    outputs = len(weight) // reader.request.groups
    mean_x = moments.mean_x.repeat_interleave(outputs, dim=0)
    return Layer(weight, moments.mean_y - (weight * mean_x).sum(1), rank, variance, error)


def with_layers(network: fx.GraphModule, layers: Mapping[str, Layer]) -> fx.GraphModule:
    """A copy of `network`, of the same shapes, with the new weights.

    A layer that has no bias gives its new one to the batch norm behind it, or gets one of its own.
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        for name, layer in layers.items():
            module = weighted(network, name)
            module.weight.copy_(layer.weight.view_as(module.weight))
            if module.bias is not None:
                module.bias.copy_(layer.bias)
            elif bool(layer.bias.any()):
                _give_bias(network, name, layer.bias)
    return network


def _give_bias(network: fx.GraphModule, name: str, bias: Tensor) -> None:
    module, mean = weighted(network, name), mean_behind(network, name)
    if mean is not None:
        mean -= bias.to(mean)
    else:
        module.bias = nn.Parameter(bias.to(module.weight), module.weight.requires_grad)


def mean_behind(network: fx.GraphModule, name: str) -> Tensor | None:
    """The running mean of the batch norm that alone reads what a layer gives, and nothing else; None without one."""
    calls = calls_of(network, name)
    users = {user for node in calls for user in value_users(node)}
    behind = str(next(iter(users)).target) if users else ""
    alone = len(users) == len(calls) and users == set(calls_of(network, behind))
    norm = network.get_submodule(behind) if alone else None
    return norm.running_mean if isinstance(norm, NORMS) else None
