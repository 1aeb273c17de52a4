"""The matrices of a layer, whose spectra are taken, and which layers are skipped."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from compresskit.graph.weights import Weight
from compresskit.passes.spectra.options import Spectra
from compresskit.passes.spectra.spectrum import Floats


def skipped(weights: Sequence[Weight], options: Spectra) -> dict[str, str]:
    """Layers whose spectra are not taken, and why."""
    return {weight.name: reason for weight in weights if (reason := _unfit(weight, options))}


def matrices(weight: Weight, options: Spectra) -> Floats:
    """The layer's stack (k, m, n): one matrix, or one for each tap, or as many for each group."""
    tensor = weight.tensor.detach().cpu()
    if weight.groups > 1 and options.groups == "separate":
        grouped = tensor.unflatten(0, (weight.groups, -1))
        return np.concatenate([_of_layer(part, options) for part in grouped])
    return _of_layer(tensor, options)


def _of_layer(tensor: torch.Tensor, options: Spectra) -> Floats:
    if tensor.ndim == 2 or options.convolutions == "matrix":
        return np.asarray(tensor.flatten(1)[None].double().numpy())
    return np.asarray(tensor.flatten(2).movedim(2, 0).contiguous().double().numpy())


def pooled(weight: Weight, options: Spectra) -> bool:
    return weight.tensor.ndim > 2 and options.convolutions == "pooled"


def matrices_of(weight: Weight, options: Spectra) -> tuple[int, int, int]:
    """Number of the layer's matrices, their longer side, their shorter side."""
    outputs, inputs, *taps = weight.tensor.shape
    count = math.prod(taps) if pooled(weight, options) else 1
    inputs = inputs * math.prod(taps) // count
    if options.groups == "separate":
        outputs, count = outputs // weight.groups, count * weight.groups
    return count, max(outputs, inputs), min(outputs, inputs)


def _unfit(weight: Weight, options: Spectra) -> str | None:
    count, longer, shorter = matrices_of(weight, options)
    if weight.kind == "embedding" and not options.defined.embeddings:
        return f"an embedding, which the definitions of {options.definitions} leave out"
    if weight.tensor.numel() == 0:
        return "it has no weights"
    if count * shorter < options.min_eigenvalues:
        return f"{count * shorter} eigenvalues, fewer than min_eigenvalues {options.min_eigenvalues}"
    if count * shorter > options.max_eigenvalues:
        return f"{count * shorter} eigenvalues, more than max_eigenvalues {options.max_eigenvalues}"
    if longer > options.max_side:
        return f"a side of {longer}, more than max_side {options.max_side}"
    return None


def cost(weight: Weight, options: Spectra) -> float:
    """Multiplications, about, of Gram matrices and their eigenvalues."""
    count, longer, shorter = matrices_of(weight, options)
    return count * shorter**2 * (longer + 4 / 3 * shorter)
