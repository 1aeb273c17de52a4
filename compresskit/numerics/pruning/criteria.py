"""What a channel is worth, from the weights that make it: scores of the outputs of one layer.

weight: (out, in / groups, *taps). Every score is (out,), float64, and larger for what should stay.
"""

import math

import torch
from torch import Tensor

from compresskit.numerics.spectra.power_law import NoTail, search


def magnitude(weight: Tensor, order: float) -> Tensor:
    """The l1 or l2 norm of each filter."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1).double(), order, dim=1)
    return norms


def hydra(weight: Tensor) -> Tensor:
    """The l1 norm of HYDRA's scores s = sqrt(6 / fan_in) w / max |w| (layerwise training, equation 3.1).

    Within a layer it orders channels as their l1 norm does; what it changes is how layers compare with one another.
    """
    flat = weight.flatten(1).double()
    largest = flat.abs().max()
    return math.sqrt(6 / flat.shape[1]) * flat.abs().sum(1) / largest if largest > 0 else flat.abs().sum(1)


def first_order(weight: Tensor, gradient: Tensor) -> Tensor:
    """|sum of w g| of each filter: the change of the loss when it goes, to first order (Molchanov et al. 2019)."""
    return (weight.double() * gradient.double()).flatten(1).sum(1).abs()


def spectral_energy(weight: Tensor) -> Tensor:
    """Each filter's share in the heavy tail of the layer's spectrum: sum over lambda_r >= xmin of lambda_r u_ir^2.

    lambda_r, u_r: of W W^T, W the filters as rows; xmin: of the power law fitted to them. With all eigenvalues it would
    be the squared l2 norm; where there is no power law it is.
    """
    flat = weight.flatten(1).double()
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    values = values.clamp(min=0)
    try:
        start = search(values.cpu().numpy()).xmin
    except NoTail:
        start = 0.0
    energies: Tensor = vectors.square() @ torch.where(values >= start, values, 0.0)
    return energies
