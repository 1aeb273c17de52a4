"""What a network reads of a wireless channel: real features of complex gains, one row for each measurement."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Gains = NDArray[np.complexfloating]


def angular(gains: Gains) -> NDArray[np.float64]:
    """|F h| / ‖h‖²: F, the unitary discrete Fourier transform over the antennas, tells directions apart.

    ‖h‖ is over all of a measurement. Where amplitudes fall as 1 / distance, as in free space, features grow as the
    distance does. Of the kind of Studer et al. (IEEE Access, 2018), who scale the second moments of h so that
    their size follows the distance, transform both sides and take absolute values.
    """
    power = np.sum(np.abs(gains) ** 2, axis=tuple(range(1, gains.ndim)), keepdims=True)
    return _rows(np.abs(np.fft.fft(gains, axis=1, norm="ortho")) / power)


def magnitude(gains: Gains) -> NDArray[np.float64]:
    """|h|, without phases."""
    return _rows(np.abs(gains))


def real_imag(gains: Gains) -> NDArray[np.float64]:
    """Real parts, then imaginary parts."""
    return np.concatenate([_rows(gains.real), _rows(gains.imag)], axis=1)


def _rows(array: NDArray[np.floating]) -> NDArray[np.float64]:
    return array.reshape(len(array), -1).astype(np.float64)


# Of gains (N, antennas, ...), none of them all zeros, to (N, features)
FEATURES: dict[str, Callable[[Gains], NDArray[np.float64]]] = {
    "angular": angular,
    "magnitude": magnitude,
    "real-imag": real_imag,
}
