"""Spectra of the layers of a network: eigenvalues once a layer, and every figure from them."""

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from compresskit.errors import within
from compresskit.graph.weights import Weight, chosen, weights_of
from compresskit.numerics.spectra import marchenko_pastur, power_law
from compresskit.numerics.spectra.eigenvalues import (
    eigenvalues,
    gaussian,
    jensen_shannon,
    permuted,
    summary,
)
from compresskit.numerics.spectra.marchenko_pastur import NoBulk
from compresskit.numerics.spectra.power_law import NoTail
from compresskit.passes.spectra.matrices import cost, matrices, matrices_of, pooled, skipped
from compresskit.passes.spectra.options import Spectra
from compresskit.passes.spectra.spectrum import RELIABLE, Floats, Spectrum, regime_of

_STEEP = 1e-6  # of the largest eigenvalue: below it a Gram matrix leaves too few digits of where a tail starts


_WIDE = 1024  # columns of a matrix


def spectra(
    weights: Sequence[Weight],
    options: Spectra,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    on_layer: Callable[[], None] = lambda: None,
) -> tuple[list[Spectrum], dict[str, str]]:
    """Of each layer, in their order, and why others were skipped.

    Layers run in `threads` threads (default: as many as torch may use), the dearest first; `on_layer` is told of each.
    A layer's random matrix follows `seed` and its name alone, so that it does not depend on the other layers.
    """
    reasons = skipped(weights, options)
    kept = [weight for weight in weights if weight.name not in reasons]
    found: dict[str, Spectrum] = {}

    def take(weight: Weight) -> None:
        with within(weight.name):
            found[weight.name] = spectrum(weight, options, _seed_of(seed, weight.name), device)
        on_layer()

    in_threads(take, kept, options, threads)
    return [found[weight.name] for weight in kept], reasons


def spectra_of_model(network: nn.Module, *, seed: int = 0, **options: Any) -> list[Spectrum]:
    """Spectra of a network's layers, without those that are skipped. options: keys of a recipe's `spectra` section."""
    given = Spectra(**options)
    weights, _ = weights_of(network)
    if given.layers is not None:
        weights = chosen(weights, given.layers)
    return spectra(weights, given, seed=seed)[0]


def in_threads(
    take: Callable[[Weight], None], weights: Sequence[Weight], options: Spectra, threads: int | None = None
) -> None:
    """Calls `take` for each layer, the dearest first: a thread for each, but for matrices of more than 1024 columns.

    A thread for each layer is faster than several for one, whose eigenvalues are mostly found one after another; but a
    wide layer would be waited for at the end.
    """
    threads = threads or torch.get_num_threads()
    dearest = sorted(weights, key=lambda weight: -cost(weight, options))
    wide = {weight.name for weight in weights if matrices_of(weight, options)[2] > _WIDE}
    with threadpool_limits(threads):
        for weight in dearest:
            if weight.name in wide:
                take(weight)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(take, weight) for weight in dearest if weight.name not in wide]:
            done.result()


def spectrum(weight: Weight, options: Spectra, seed: int, device: torch.device | str = "cpu") -> Spectrum:
    """Of one layer. What cannot be found is NaN, and `status` says why."""
    stack = matrices(weight, options)
    rf, *sides = stack.shape
    described = (weight.name, weight.kind, tuple(weight.tensor.shape), max(sides), min(sides), rf)
    if not np.isfinite(stack).all():
        return Spectrum(*described, status="weights are not finite")
    scale = (options.defined.kernel if pooled(weight, options) else 1.0) / (
        max(sides) if options.defined.averaged else 1
    )
    by_matrix = scale * eigenvalues(stack, device=device)
    law, status = _fit(by_matrix, options, max(sides), equal := _rounding(weight, min(sides)))
    if law is not None and law.xmin < _STEEP * by_matrix.max():
        by_matrix = scale * eigenvalues(stack, exact=True)
        law, status = _fit(by_matrix, options, max(sides), equal)
    values = np.sort(by_matrix, axis=None)
    figures = _figures(values, max(sides)) | {"sv_min": math.sqrt(by_matrix.min(1).max())}
    if law is not None:
        figures |= _of_tail(values, law.alpha) | {
            "D": law.distance,
            "sigma": law.sigma,
            "xmin": law.xmin,
            "xmax": float(values[-1]),
            "num_pl_spikes": law.tail,
            "reliable": law.tail >= RELIABLE,
        }
    if values[-1] > 0 and options.marchenko_pastur:
        bulk, failure = _bulk(values, min(sides), max(sides))
        figures |= bulk
        status = status if failure is None else f"{status}; {failure}" if status != "success" else failure
    if values[-1] > 0 and options.random != "none":
        figures |= _against_random(stack, values, scale, options, seed, device)
    return Spectrum(*described, status=status, eigenvalues=values, **figures)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) >> 1


def _fit(by_matrix: Floats, options: Spectra, longer: int, equal: float) -> tuple[power_law.PowerLaw | None, str]:
    """equal: relative difference up to which eigenvalues are one and the same, as those of an orthogonal matrix are."""
    try:
        law = options.fit(by_matrix.ravel(), longer)
    except NoTail as error:
        return None, f"no power law: {error}"
    if by_matrix.max() <= law.xmin * (1 + equal):
        return None, f"no power law: the {law.tail} eigenvalues of its tail are equal but for rounding"
    return law, "success"


def _rounding(weight: Weight, shorter: int) -> float:
    """Relative error of eigenvalues of weights that were rounded to their type, or, somewhere on their way, to float32:
    entries that are off by eps / 2 of themselves move singular values by eps / 2 ||W||_F at most, which is
    sqrt(shorter) times the largest one."""
    kind = weight.tensor.dtype
    eps = max(torch.finfo(torch.float32).eps, torch.finfo(kind).eps if kind.is_floating_point else 0.0)
    return 2 * eps * math.sqrt(shorter)


def _figures(values: Floats, longer: int) -> dict[str, Any]:
    found = summary(values, longer)
    frobenius, spectral = math.sqrt(found.norm), math.sqrt(found.spectral_norm)
    return {
        "num_evals": len(values),
        "norm": found.norm,
        "log_norm": found.log_norm,
        "spectral_norm": found.spectral_norm,
        "log_spectral_norm": found.log_spectral_norm,
        "stable_rank": found.stable_rank,
        "entropy": found.entropy,
        "matrix_rank": found.rank,
        "rank_loss": found.rank_loss,
        "weak_rank_loss": found.weak_rank_loss,
        "sv_max": spectral,
        "frobenius": frobenius,
        "log_frobenius": found.log_norm / 2,
        "spectral": spectral,
        "log_spectral": found.log_spectral_norm / 2,
    }


def _of_tail(values: Floats, alpha: float) -> dict[str, Any]:
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        largest, alpha_norm = float(np.log10(values[-1])), float(np.log10((values**alpha).sum()))
    return {
        "alpha": alpha,
        "alpha_weighted": alpha * largest,
        "log_alpha_norm": alpha_norm,
        "regime": regime_of(alpha),
    }


def _bulk(values: Floats, shorter: int, longer: int) -> tuple[dict[str, Any], str | None]:
    try:
        law = marchenko_pastur.fit(values, shorter, longer / shorter)
    except NoBulk as error:
        return {}, f"no bulk: {error}"
    return {
        "sigma_mp": law.sigma,
        "bulk_min": law.lower,
        "bulk_max": law.upper,
        "mp_softrank": law.soft_rank,
        "num_spikes": law.spikes,
    }, None


def _against_random(
    stack: Floats, values: Floats, scale: float, options: Spectra, seed: int, device: torch.device | str
) -> dict[str, Any]:
    null = permuted if options.random == "permuted" else gaussian
    drawn = np.sort(scale * eigenvalues(null(stack, seed), device=device), axis=None)
    figures = {
        "rand_distance": jensen_shannon(values, drawn, rooted=options.defined.rooted),
        "max_rand_eval": float(drawn[-1]),
        "ww_softrank": float(drawn[-1] / values[-1]),
        "ww_maxdist": float(drawn[-1] - values[-1]),
    }
    if options.marchenko_pastur:
        figures |= {f"rand_{key}": value for key, value in _bulk(drawn, *sorted(stack.shape[1:]))[0].items()}
    return figures
