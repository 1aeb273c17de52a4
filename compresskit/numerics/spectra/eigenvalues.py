"""Spectra of weights: squared singular values, and the figures that sum them up.

A layer is a stack of matrices (k, m, n): a linear layer is one, a convolution of k taps one for each tap. The spectra
of a stack are pooled. WeightWatcher's `norm` and `spectral_norm` are those below: of eigenvalues, so squared.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WEAK = 1e-6  # below it an eigenvalue counts as lost, absolute
_NUMPY = 1024  # columns up to which OpenBLAS finds eigenvalues faster than MKL
_GUARD = 4  # smallest eigenvalue in units of n eps, below which a Gram matrix has lost it
_UNSURE = 1e-5  # smallest eigenvalue in units of the largest, below which a Gram matrix leaves it ten digits or fewer
_SMALLEST = 4  # eigenvalues that are found again then
_BASIS = 16  # vectors of the subspace
_ROUNDS = 6  # of inverse iteration: (lambda_4 / lambda_17)^6 of a square random matrix is 3e-8, and counts squared
_ROUNDING = 1e-15  # of a divergence
_CACHED = 1 << 16  # entries that a core's cache holds with their order
_LARGE = 1 << 20  # entries, above which two orders of blocks take less time than one of all
_ENTROPY = 1e-10  # added to shares and rank, as WeightWatcher does


@dataclass(frozen=True)
class Summary:
    """Figures of a spectrum, logarithms to the base 10.

    norm: sum of the eigenvalues, ||W||_F^2; spectral_norm: the largest, ||W||_2^2. stable_rank: norm / spectral_norm.
    entropy: -sum p ln p / ln rank of p = lambda / norm, from 0 to 1. rank: singular values above the largest one's
    N eps, N the longer side; rank_loss: the others; weak_rank_loss: eigenvalues below 1e-6.
    A spectrum of zeros has a rank of 0 and NaN for all that is no sum.
    Source: Martin and Mahoney 2021, as WeightWatcher 0.7.7 computes them.
    """

    norm: float
    log_norm: float
    spectral_norm: float
    log_spectral_norm: float
    stable_rank: float
    entropy: float
    rank: int
    rank_loss: int
    weak_rank_loss: int


def eigenvalues(stack: Floats, *, exact: bool = False, device: torch.device | str = "cpu") -> Floats:
    """Squared singular values of each matrix of a stack (k, m, n), ascending: (k, min(m, n)), float64.

    They are the eigenvalues of the Gram matrix of the shorter side, which costs a fifth of a decomposition, with an
    error of eps times the largest one. Where the smallest is no more than that, rows and columns of zeros (of pruned
    channels) are taken out, and what is still singular is decomposed itself; `exact` decomposes all. Of wide matrices
    that are nearly square, whose smallest eigenvalues it leaves nine digits, these are found again. Another device than
    the CPU multiplies and finds the eigenvalues of all matrices together, in float64 too.
    Raises ValueError for weights that are not finite.
    """
    if not np.isfinite(stack).all():
        raise ValueError("some weights are not finite")
    tall = np.ascontiguousarray(stack if stack.shape[1] >= stack.shape[2] else stack.swapaxes(1, 2), np.float64)
    count, _, columns = tall.shape
    if columns == 1:
        return np.asarray(np.square(tall).sum(1))
    if exact:
        return np.stack([_decomposed(matrix) for matrix in tall])
    if torch.device(device).type != "cpu":
        found = _elsewhere(tall, device)
    else:
        grams = tall.swapaxes(1, 2) @ tall
        found = _of_grams(grams)
        if columns > _NUMPY:
            for number in np.flatnonzero(found[:, 0] < _UNSURE * found[:, -1]):
                _refine(tall[number], grams[number], found[number])
    for number in np.flatnonzero(found[:, 0] < _GUARD * columns * np.finfo(np.float64).eps * found[:, -1]):
        found[number] = _singular(tall[number])
    return found


def summary(values: Floats, longer: int) -> Summary:
    """values: eigenvalues of all matrices of a layer. longer: side of its matrices."""
    norm, largest = float(values.sum()), float(values.max())
    rank = int((np.sqrt(values) > np.sqrt(largest) * longer * np.finfo(np.float64).eps).sum())
    lost = int((values < WEAK).sum())
    if largest == 0:
        return Summary(norm, np.nan, largest, np.nan, np.nan, np.nan, 0, len(values), lost)
    shares = values / norm + _ENTROPY
    entropy = float(-(shares * np.log(shares)).sum() / np.log(rank + _ENTROPY)) if rank > 1 else 0.0
    return Summary(
        norm,
        float(np.log10(norm)),
        largest,
        float(np.log10(largest)),
        norm / largest,
        entropy,
        rank,
        len(values) - rank,
        lost,
    )


def permuted(stack: Floats, seed: int) -> Floats:
    """The stack with the entries of each matrix in a random order: what is left when nothing was learnt.

    An order of more than a cache holds waits for memory at each entry. So a large matrix is permuted block by block,
    dealt out to new blocks like cards, and permuted again: every entry comes to every place with the same probability,
    only that the entries of a block are spread evenly over the new ones.
    """
    draws = torch.Generator().manual_seed(seed)
    source = torch.from_numpy(np.ascontiguousarray(stack)).view(len(stack), -1)
    mixed = torch.empty_like(source)
    count = _blocks(source.shape[1])
    for entries, target in zip(source, mixed, strict=True):
        blocks = target.view(count, -1)
        _shuffle(entries.view(count, -1), blocks, draws)
        if count > 1:
            _shuffle(blocks.T.reshape(count, -1), blocks, draws)
    return np.asarray(mixed.view(stack.shape).numpy())


def _blocks(entries: int) -> int:
    """Of equal size, as near to what a cache holds as the number of entries can be divided."""
    if entries <= _LARGE:
        return 1
    return next(count for count in range(entries // _CACHED, 0, -1) if entries % count == 0)


def _shuffle(rows: torch.Tensor, targets: torch.Tensor, draws: torch.Generator) -> None:
    """Puts each row into its target, (count, entries) both, in a random order of its own."""
    for entries, target in zip(rows, targets, strict=True):
        order = torch.randperm(len(entries), generator=draws, dtype=torch.int32)  # a quarter of the time of int64
        torch.index_select(entries, 0, order, out=target)


def gaussian(stack: Floats, seed: int) -> Floats:
    """Independent normal entries, in each matrix with the mean and the deviation of the stack's."""
    drawn = np.random.default_rng(seed).standard_normal(stack.shape)
    axes = (1, 2)
    return np.asarray(drawn * stack.std(axes, keepdims=True) + stack.mean(axes, keepdims=True))


def jensen_shannon(one: Floats, other: Floats, *, rooted: bool = True) -> float:
    """Distance of two spectra of the same length: sqrt of (KL(p || m) + KL(q || m)) / 2 with natural logarithms,

    p and q the sorted eigenvalues as shares of their sums, m their mean before, as shares of its own. From 0, for equal
    ones, to sqrt(ln 2). Source: `rand_distance` of WeightWatcher, which compares the sorted values, no histograms.
    rooted: false leaves the root out, which is the divergence of the document's (3.3). NaN for spectra of zeros.
    """
    one, other = np.sort(one), np.sort(other)
    if not one[-1] * other[-1]:
        return np.nan
    mean = (one + other) / 2
    p, q, m = (values / values.sum() for values in (one, other, mean))
    divergence = (_divergence(p, m) + _divergence(q, m)) / 2
    divergence = divergence if divergence > _ROUNDING else 0.0
    return float(np.sqrt(divergence) if rooted else divergence)


def _divergence(p: Floats, m: Floats) -> float:
    some = p > 0
    return float((p[some] * np.log(p[some] / m[some])).sum())


def _of_grams(grams: Floats) -> Floats:
    """In one call for all: numpy holds Python's lock while it goes from one small matrix to the next."""
    if grams.shape[-1] <= _NUMPY:
        return np.asarray(np.linalg.eigvalsh(grams))
    return np.asarray(torch.linalg.eigvalsh(torch.from_numpy(grams)).numpy())


def _elsewhere(tall: Floats, device: torch.device | str) -> Floats:
    """Products and eigenvalues on another device, of all matrices together."""
    moved = torch.from_numpy(tall).to(device)
    return np.asarray(torch.linalg.eigvalsh(moved.mT @ moved).cpu().numpy())


def _refine(tall: Floats, gram: Floats, found: Floats) -> None:
    """The smallest eigenvalues again, in place: those of the matrix itself in the subspace that inverse iteration with
    its Gram matrix leads to, so that an error of the subspace counts squared. It costs a quarter of the eigenvalues."""
    from scipy.linalg import cho_factor, cho_solve  # a tenth of a second, which other verbs should not wait for

    try:
        factor = cho_factor(gram)
    except np.linalg.LinAlgError:
        return  # singular: see `_singular`
    basis = np.random.default_rng(0).standard_normal((len(gram), _BASIS))
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(cho_solve(factor, basis))[0]
    values = np.linalg.svd(tall @ basis, compute_uv=False)[::-1] ** 2
    unsure = min(_SMALLEST, int((found < _UNSURE * found[-1]).sum()))
    found[:unsure] = values[:unsure]


def _singular(tall: Floats) -> Floats:
    """Of a matrix that is nearly singular: what is left without its zeros, or the decomposition."""
    columns = tall.shape[1]
    core = tall[tall.any(1)][:, tall.any(0)]
    if core.size == 0:
        return np.zeros(columns)
    found = None
    if core.shape[1] < columns and core.shape[0] >= core.shape[1]:
        (found,) = _of_grams((core.T @ core)[None])
        if found[0] < _GUARD * len(found) * np.finfo(np.float64).eps * found[-1]:
            found = None
    found = _decomposed(core) if found is None else found
    return np.concatenate([np.zeros(columns - len(found)), found])


def _decomposed(matrix: Floats) -> Floats:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False)[::-1] ** 2)
