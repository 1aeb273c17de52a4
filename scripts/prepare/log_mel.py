"""Log-mel spectrograms: how much sound there is in each band of frequencies, through time, as ears have it."""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import rfft
from scipy.signal.windows import hann

from compresskit.errors import DataError

LOWEST = 20.0  # Hz, where the first band begins; the last one ends at half of the rate
FLOOR = 1e-6  # energy that is added before the logarithm; full scale has about (samples of the window / 4)²


class LogMel:
    """Of sound in [-1, 1] at `rate` Hz. window, hop: of the frames, in ms.

    Raises DataError where a band is so narrow that no frequency of a frame's transform lies in it.
    """

    def __init__(self, bands: int = 40, window: float = 25.0, hop: float = 10.0, rate: int = 16000) -> None:
        self.bands = bands
        self.size, self.step = round(window * rate / 1000), round(hop * rate / 1000)  # in samples
        self.length = 1 << (self.size - 1).bit_length()  # of the transform: a power of two, zeros behind the frame
        self.filters = filters(bands, self.length, rate)
        if empty := int((~self.filters.any(axis=1)).sum()):
            raise DataError(
                f"--bands {bands}: {empty} of them lie between two frequencies of a frame of {window:g} ms, which are "
                f"{rate / self.length:g} Hz apart; take fewer bands or a longer --window"
            )

    def frames(self, samples: int) -> int:
        """That lie wholly in so many samples."""
        return 1 + (samples - self.size) // self.step

    def __call__(self, sound: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sound (N, samples) to (N, bands, frames): log(FLOOR + sum over k of filters[band, k] |X[frame, k]|²).

        X is the discrete Fourier transform of a frame times the periodic Hann window.
        """
        framed = np.lib.stride_tricks.sliding_window_view(sound, self.size, axis=1)[:, :: self.step]
        power = np.abs(rfft(framed * hann(self.size, sym=False), self.length)) ** 2
        return np.log(FLOOR + power @ self.filters.T).swapaxes(1, 2)


def filters(bands: int, length: int, rate: int) -> NDArray[np.float64]:
    """Triangles (bands, length // 2 + 1), each from its neighbours' peaks to its own, which is 1.

    Peaks are equally far apart in mel, m = 2595 log10(1 + f / 700) (O'Shaughnessy, Speech Communication, 1987, p. 150),
    from LOWEST to half of the rate; the sides are straight in Hz (Davis and Mermelstein 1980). length: of the transform
    whose frequencies they weigh.
    """
    edges = hertz(np.linspace(*mel(np.array([LOWEST, rate / 2])), bands + 2))
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    found = np.arange(length // 2 + 1) * rate / length
    return np.clip(np.minimum((found - low) / (peak - low), (high - found) / (high - peak)), 0, None)


def mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2595 * np.log10(1 + hertz / 700)


def hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700 * (10 ** (mel / 2595) - 1)
