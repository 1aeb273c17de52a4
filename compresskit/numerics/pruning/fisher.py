"""The second-order term of the loss of a network that is compared with itself: the Fisher matrix of its own outputs.

A divergence D(f, f0) of outputs f from the original's f0 and its gradient are 0 at f = f0, so that weights moved by d
lose 1/2 d^T J^T H J d, with J the Jacobian of the outputs and H the Hessian of D in them. Nothing in it is a label.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from compresskit.numerics.moments.moments import Moments


def root_of_classes(scores: Tensor, signs: Tensor) -> Tensor:
    """R e with R R^T = diag(p) - p p^T, the Hessian of Kullback and Leibler's divergence in scores whose softmax is p:
    R = diag(s) - p s^T with s = sqrt(p).

    scores: (N, classes, ...) before softmax. signs: e of their shape. Of several positions the divergence is the mean.
    J^T R e has the mean square J^T H J over signs, as the gradient of log p has over classes drawn from p (Fisher's
    matrix), with less variance: drawn classes are those that the network is sure of, whose gradient is next to 0.
    """
    p = scores.softmax(1)
    scaled = p.sqrt() * signs
    found: Tensor = (scaled - p * scaled.sum(1, keepdim=True)) / math.sqrt(scores[0, 0].numel())
    return found


def root_of_squares(outputs: Tensor, signs: Tensor) -> Tensor:
    """R e with R R^T = 2 / k, the Hessian of the mean square over the k outputs of a sample, (N, ...)."""
    return signs * math.sqrt(2 / outputs[0].numel())


def in_units_of_loss(moments: Moments, weight: Tensor, curvature: Tensor) -> Moments:
    """Moments whose least squares have their errors in units of the loss: E e^T (C / 2) e of errors e of the outputs.

    weight: (G, O/G, F) of the layer, of which `moments` are the input and output. curvature: C, (G, O/G, O/G), the mean
    over samples of g g^T summed over positions, g the gradients of J^T R e in the outputs of the layer: as if those of
    different positions were uncorrelated, and independent of the inputs (Grosse and Martens 2016). Outputs become
    L^T y with L L^T = C / 2, which changes no solution and adds no error where the layer is linear: their variance is
    tr(L^T W Cxx W^T L).
    """
    values, vectors = torch.linalg.eigh(curvature.double() / 2)
    root = (vectors * values.clamp(min=0).sqrt()[:, None, :]).mT
    cyx = root @ moments.cyx
    variance = ((cyx @ weight.double().mT) * root).sum(2)
    return replace(moments, cyx=cyx, cyy=variance.flatten().clamp(min=0))
