"""Spectra of the layers of a network: eigenvalues once a layer, and every figure from them."""

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import nn

from compresskit.graph.weights import Weight, chosen, weights_of
from compresskit.numerics import marchenko_pastur, power_law
from compresskit.numerics.marchenko_pastur import NoBulk
from compresskit.numerics.power_law import NoTail
from compresskit.numerics.spectra import eigenvalues, gaussian, jensen_shannon, permuted, summary
from compresskit.passes.spectra_options import Spectra

Floats = NDArray[np.float64]
Regime = Literal["over-trained", "well-trained", "under-trained", ""]

METRICS = (  # that layers can be compared by: four of shape, four of scale, two of both, and two bare norms
    *("alpha", "rand_distance", "stable_rank", "entropy"),
    *("norm", "log_norm", "spectral_norm", "log_spectral_norm"),
    *("alpha_weighted", "log_alpha_norm", "frobenius", "spectral"),
)
OVER, UNDER = 2.0, 6.0  # alpha below and above which a layer is over- and under-trained
RELIABLE = 50  # values of a tail, below which its alpha says little (Clauset et al. 2009)
_STEEP = 1e-6  # of the largest eigenvalue: below it a Gram matrix leaves too few digits of where a tail starts
_WIDE = 1024  # columns of a matrix
_NAN = math.nan


@dataclass(frozen=True)
class Spectrum:
    """Of one layer: the columns of WeightWatcher 0.7.7 under its names, with our own beside them.

    N, M: longer and shorter side of its rf matrices, Q = N / M. D, xmin, sigma, num_pl_spikes: of the power law, the
    last its number of values. alpha_weighted: alpha log10(spectral_norm). log_alpha_norm: log10 of sum lambda^alpha.
    norm, spectral_norm: of eigenvalues, so squared; frobenius, spectral and their logarithms: not squared.
    rand_distance: from the spectrum of a random matrix; ww_softrank, ww_maxdist: largest random eigenvalue by the
    largest one, and their difference. bulk_min to num_spikes: of the Marchenko-Pastur law; rand_...: of the random one.
    sv_min: of each matrix the smallest singular value, and of these the largest.
    status: success, or what could not be found, whose figures are NaN.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    N: int
    M: int
    rf: int
    status: str
    regime: Regime = ""
    reliable: bool = False
    alpha: float = _NAN
    D: float = _NAN
    sigma: float = _NAN
    xmin: float = _NAN
    xmax: float = _NAN
    num_pl_spikes: int = 0
    num_evals: int = 0
    alpha_weighted: float = _NAN
    log_alpha_norm: float = _NAN
    norm: float = _NAN
    log_norm: float = _NAN
    spectral_norm: float = _NAN
    log_spectral_norm: float = _NAN
    stable_rank: float = _NAN
    entropy: float = _NAN
    matrix_rank: int = 0
    rank_loss: int = 0
    weak_rank_loss: int = 0
    sv_min: float = _NAN
    sv_max: float = _NAN
    frobenius: float = _NAN
    log_frobenius: float = _NAN
    spectral: float = _NAN
    log_spectral: float = _NAN
    sigma_mp: float = _NAN
    bulk_min: float = _NAN
    bulk_max: float = _NAN
    mp_softrank: float = _NAN
    num_spikes: float = _NAN
    rand_distance: float = _NAN
    max_rand_eval: float = _NAN
    ww_softrank: float = _NAN
    ww_maxdist: float = _NAN
    rand_sigma_mp: float = _NAN
    rand_bulk_min: float = _NAN
    rand_bulk_max: float = _NAN
    rand_mp_softrank: float = _NAN
    rand_num_spikes: float = _NAN
    eigenvalues: Floats = field(default_factory=lambda: np.zeros(0), repr=False)

    @property
    def Q(self) -> float:
        return self.N / self.M


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
    dearest = sorted(weights, key=lambda weight: -_cost(weight, options))
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
    scale = (options.defined.kernel if _pooled(weight, options) else 1.0) / (
        max(sides) if options.defined.averaged else 1
    )
    by_matrix = scale * eigenvalues(stack, device=device)
    law, status = _fit(by_matrix, options, max(sides))
    if law is not None and law.xmin < _STEEP * by_matrix.max():
        by_matrix = scale * eigenvalues(stack, exact=True)
        law, status = _fit(by_matrix, options, max(sides))
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


def skipped(weights: Sequence[Weight], options: Spectra) -> dict[str, str]:
    """Layers whose spectra are not taken, and why."""
    return {weight.name: reason for weight in weights if (reason := _unfit(weight, options))}


def regime_of(alpha: float) -> Regime:
    """Over-trained below 2, under-trained above 6 (Martin and Mahoney 2021; document, section 1.4)."""
    if not math.isfinite(alpha):
        return ""
    return "over-trained" if alpha < OVER else "under-trained" if alpha > UNDER else "well-trained"


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


def _pooled(weight: Weight, options: Spectra) -> bool:
    return weight.tensor.ndim > 2 and options.convolutions == "pooled"


def matrices_of(weight: Weight, options: Spectra) -> tuple[int, int, int]:
    """Number of the layer's matrices, their longer side, their shorter side."""
    outputs, inputs, *taps = weight.tensor.shape
    count = math.prod(taps) if _pooled(weight, options) else 1
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


def _cost(weight: Weight, options: Spectra) -> float:
    """Multiplications, about, of Gram matrices and their eigenvalues."""
    count, longer, shorter = matrices_of(weight, options)
    return count * shorter**2 * (longer + 4 / 3 * shorter)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) >> 1


def _fit(by_matrix: Floats, options: Spectra, longer: int) -> tuple[power_law.PowerLaw | None, str]:
    try:
        return options.fit(by_matrix.ravel(), longer), "success"
    except NoTail as error:
        return None, f"no power law: {error}"


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
