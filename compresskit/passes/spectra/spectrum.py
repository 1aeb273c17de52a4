"""What the spectrum of a layer says: its figures, and the metrics that layers are compared by."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


Regime = Literal["over-trained", "well-trained", "under-trained", ""]


METRICS = (  # that layers can be compared by: four of shape, four of scale, two of both, and two bare norms
    *("alpha", "rand_distance", "stable_rank", "entropy"),
    *("norm", "log_norm", "spectral_norm", "log_spectral_norm"),
    *("alpha_weighted", "log_alpha_norm", "frobenius", "spectral"),
)


OVER, UNDER = 2.0, 6.0  # alpha below and above which a layer is over- and under-trained


RELIABLE = 50  # values of a tail, below which its alpha says little (Clauset et al. 2009)


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


def regime_of(alpha: float) -> Regime:
    """Over-trained below 2, under-trained above 6 (Martin and Mahoney 2021; document, section 1.4)."""
    if not math.isfinite(alpha):
        return ""
    return "over-trained" if alpha < OVER else "under-trained" if alpha > UNDER else "well-trained"
