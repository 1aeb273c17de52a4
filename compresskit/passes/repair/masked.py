"""Repair of a masked network: of every output of a layer, the weights that its mask keeps are solved again."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, fx

from compresskit.errors import ConvergenceError, within
from compresskit.graph.chains import weighted
from compresskit.graph.format.table import shared_names
from compresskit.graph.masks import Masks, apply_masks
from compresskit.graph.shapes import node_shapes
from compresskit.numerics.least_squares.rows import solve_rows
from compresskit.numerics.moments.matrix import dense
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.moments import Request, request_of, without_moments
from compresskit.passes.reconstruct.chaining import Gather, cube
from compresskit.passes.reconstruct.refitted import Layer, with_layers
from compresskit.passes.reconstruct.workers import Start, silent
from compresskit.passes.repair.layers import Repair, repaired
from compresskit.shapes import Shape


def repair_masked(
    network: fx.GraphModule, masks: Masks, gather: Gather, input_shape: Shape, *, chained: bool, start: Start = silent
) -> Repair:
    """The weights of `network` that masks keep, by least squares for the outputs that their layers have in it.

    chained: one layer after another, from what the repaired ones before it give to the outputs in `network`; else all
    at once, each as if all others gave their old outputs. Moments are centred, so the constant part of what is masked
    goes into the bias. What changes is w_S = w_old,S + C_SS^-1 E[e x_S^T], where e is the error of the masked row and C
    the covariance of its inputs x; so a ridge holds weights near to what they were, and no row is worse than masked.
    start: see `repair`.
    """
    requests, skipped = _requests(network, masks, input_shape)
    masked = copy.deepcopy(network)
    apply_masks(masked, masks)
    layers: dict[str, Layer] = {}
    known = gather(network, list(requests.values()), None) if requests and not chained else {}
    done = (silent if chained else start)("least squares", [cube(request) for request in requests.values()])
    for name, request in requests.items():
        moments = known
        if chained:
            request = replace(request, name=f"{request.name}--repaired")
            moments = gather(with_layers(masked, layers), [request], network)
        with within(name):
            mask = masks[f"{name}.weight"]
            layers[name] = _solved(network, masked, name, mask, moments[request.name], chained=chained)
        done()
    return repaired(masked, layers, skipped)


def _solved(
    network: fx.GraphModule, masked: fx.GraphModule, name: str, mask: Tensor, moments: Moments, *, chained: bool
) -> Layer:
    """The layer with the weights that are left solved again, group by group of a convolution."""
    if not moments.finite:
        raise ConvergenceError("its moments are not finite; check the checkpoint and the data for NaN")
    groups, features = moments.mean_x.shape
    module = weighted(network, name)
    old, start = (weighted(net, name).weight.detach().double().view(groups, -1, features) for net in (network, masked))
    support, cyy = mask.view(old.shape), moments.cyy.view(groups, -1)
    found, errors = torch.empty_like(old), torch.zeros_like(cyy)
    shifts = []
    for group in range(groups):
        cxx, begun = dense(moments.cxx[group]), start[group]
        if chained:
            whole = moments.cyx[group]
            cross = whole - begun @ cxx
            variance = cyy[group] - ((whole + cross) * begun).sum(1)
        else:
            lost = old[group] - begun
            cross = lost @ cxx
            variance = (cross * lost).sum(1)
        rows = solve_rows(cxx, cross, variance.clamp(min=0), support[group], moments.count)
        found[group], errors[group] = begun + rows.weight, rows.error
        shifts.append(rows.shift)
    if chained:
        bias = moments.mean_y - (found @ moments.mean_x[:, :, None]).flatten()
    else:
        bias = ((old - found) @ moments.mean_x[:, :, None]).flatten()
        bias = bias if module.bias is None else bias + module.bias.detach()
    weight = found.view(-1, features)
    return Layer(weight, bias, None, moments.variance, float(errors.sum()), tuple(shifts))


def _requests(network: fx.GraphModule, masks: Masks, input_shape: Shape) -> tuple[dict[str, Request], dict[str, str]]:
    """Moments for each layer whose mask takes something, in the order of the graph, and why others are not solved."""
    shapes, shared = node_shapes(network, input_shape), shared_names(network)
    read = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    requests, skipped = {}, {}
    for parameter, mask in masks.items():
        name = parameter.removesuffix(".weight")
        if bool(mask.all()):
            continue
        if name == parameter:
            skipped[name] = "attention as one module has no moments of what is within"
        elif parameter in shared or parameter in read:
            skipped[name] = "its weight is read elsewhere, too"
        elif (reason := without_moments(network, name)) is not None:
            skipped[name] = reason
        else:
            requests[name] = request_of(network, name, shapes)
    order = {node.name: place for place, node in enumerate(network.graph.nodes)}
    return dict(sorted(requests.items(), key=lambda found: order[found[1].target])), skipped
