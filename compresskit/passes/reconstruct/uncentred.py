"""Moments about zero in the place of moments about the mean: what the document's problem is written in."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from compresskit.graph.chains import weighted
from compresskit.numerics.moments.matrix import dense
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.moments import Request
from compresskit.passes.reconstruct.chaining import Gather
from compresskit.passes.reconstruct.readers import Plan


def uncentred(network: fx.GraphModule, plan: Plan, gather: Gather) -> Gather:
    """`gather` with moments about zero of inputs x, and of outputs y about the layer's bias b, which stays as it is.

    What is solved then is min 1/2 E||(y - b) - M x||^2 (document, Problem 5, with R = E[x x^T]), where centred moments
    fit the bias, too: their error is never larger.
    """
    biases = {reader.request.target: _bias(network, reader.layer) for reader in plan.readers}

    def about_zero(
        student: fx.GraphModule, requests: Sequence[Request], teacher: fx.GraphModule | None
    ) -> dict[str, Moments]:
        found = gather(student, requests, teacher)
        return {request.name: _about(found[request.name], biases[request.target]) for request in requests}

    return about_zero


def _bias(network: fx.GraphModule, layer: str) -> Tensor:
    module = weighted(network, layer)
    bias = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias.detach()
    return bias.double()


def _about(moments: Moments, bias: Tensor) -> Moments:
    """E[x x^T], E[(y - b) x^T] and E[(y - b)^2], with b as the mean of y, so that it is the bias that is found."""
    mean_x, off = moments.mean_x, moments.mean_y - bias.to(moments.mean_y)
    groups = len(moments.cyx)
    cxx = torch.stack([dense(one) for one in moments.cxx]) + mean_x[:, :, None] * mean_x[:, None, :]
    cyx = moments.cyx + off.view(groups, -1, 1) * mean_x[:, None, :]
    zeros = torch.zeros_like(mean_x)
    return Moments(moments.count, zeros, moments.mean_y - off, cxx, cyx, moments.cyy + off.square())
