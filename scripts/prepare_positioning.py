"""data/positioning.h5, which configs/fuse/table5-positioning.yaml reads, from channels measured at known places.

    python scripts/prepare_positioning.py channels.mat
    python scripts/prepare_positioning.py channels.mat --channels H --positions UE/pos --features magnitude
    python scripts/prepare_positioning.py --synthetic            # a made set: data/positioning-synthetic.h5

The file is one of MATLAB (5 to 7.3), HDF5 or NPZ, as sets for channel charting are published: complex channels
(N, antennas) or (N, antennas, subcarriers), or real features (N, ...), which are kept as they are; and positions (N, 2)
or (N, 3). Where samples are another axis than the first, as in (antennas, N), it is found by its length.

    inputs float32 (N, features)    targets float32 (N, 2): metres, the first two coordinates

Complex channels are divided by the root mean square of all, and become features by --features: `angular` (absolute
values in the directions of a row of antennas, which grow with the distance), `magnitude` (absolute values) or
`real-imag` (real and imaginary parts); scripts/prepare/channel_features.py has the formulas.
"""

import argparse
import sys
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from prepare.channel_features import FEATURES
from prepare.program import parser, run
from prepare.variables import named, variables

from compresskit.errors import DataError

CHANNELS = ("channels", "channel", "csi", "h", "features", "inputs", "x")
POSITIONS = ("positions", "position", "pos", "locations", "location", "loc", "coordinates", "xy", "targets", "y")
ANTENNAS = 32


def main(options: argparse.Namespace, file: h5py.File) -> None:
    where = "the made set" if options.synthetic else str(options.source)
    channels, positions = synthetic(options.samples) if options.synthetic else read(options)
    finite(f"{where}: positions", positions)
    file["inputs"] = features(f"{where}: channels", channels, options.features).astype(np.float32)
    file["targets"] = (options.metres * positions[:, :2]).astype(np.float32)


def read(options: argparse.Namespace) -> tuple[NDArray[Any], NDArray[Any]]:
    """Channels (N, ...) and positions (N, 2 or 3). Raises DataError for a name that is missing, or shapes at odds."""
    with variables(options.source) as arrays:
        channels = named(options.source, arrays, "channels", options.channels, CHANNELS)
        positions = named(options.source, arrays, "positions", options.positions, POSITIONS)
    return in_rows(str(options.source), channels, positions)


def in_rows(where: str, channels: NDArray[Any], positions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both with their samples first."""
    said = f"{where}: channels {channels.shape} and positions {positions.shape}"
    if positions.ndim == 2 and positions.shape[1] not in (2, 3):
        positions = positions.T
    if positions.ndim != 2 or positions.shape[1] not in (2, 3) or positions.dtype.kind not in "iuf":
        raise DataError(f"{said}: positions must be real, (N, 2) or (N, 3); name others with --positions")
    axes = [axis for axis, size in enumerate(channels.shape) if size == len(positions)]
    if not axes or (len(axes) > 1 and axes[0] != 0) or channels.dtype.kind not in "iufc":
        raise DataError(f"{said}: channels need numbers, one axis of {len(positions)}; name others with --channels")
    rows = np.moveaxis(channels, axes[0], 0)
    return rows if rows.ndim > 1 else rows[:, None], positions


def features(where: str, channels: NDArray[Any], kind: str | None) -> NDArray[np.float64]:
    """Of channels (N, ...) the rows (N, features). Raises DataError for NaN, a channel of zeros, a kind without use."""
    finite(where, channels)
    if channels.dtype.kind != "c":
        if kind is not None:
            raise DataError(f"{where}: real, and kept as they are; leave --features out, or name complex ones")
        return channels.reshape(len(channels), -1).astype(np.float64)
    empty = ~channels.reshape(len(channels), -1).any(axis=1)
    if empty.any():
        raise DataError(f"{where}: {empty.sum()} samples are all zeros, the first {empty.argmax()}; leave them out")
    gains = channels.astype(np.complex128)
    return FEATURES[kind or "angular"](gains / np.sqrt(np.mean(np.abs(gains) ** 2)))


def finite(where: str, array: NDArray[Any]) -> None:
    if wrong := int((~np.isfinite(array)).sum()):
        raise DataError(f"{where}: {wrong} values are NaN or infinite; leave out the samples that have them")


def synthetic(samples: int) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Channels (N, 32) and positions (N, 2) in a street of 100 by 100 metres, 10 metres off a row of antennas.

    Half a wavelength lies between two antennas. A straight path, two reflections at fixed places, weaker and with a
    phase of chance, and noise: free space loses 1 / distance.
    """
    random = np.random.default_rng(0)
    positions = np.stack([random.uniform(10, 110, samples), random.uniform(-50, 50, samples)], axis=1)
    channels = path(positions, np.hypot(*positions.T))
    for mirror in ((60.0, 70.0), (30.0, -60.0)):
        way = np.hypot(*mirror) + np.hypot(*(positions - mirror).T)
        phases = np.exp(2j * np.pi * random.uniform(size=(samples, 1)))
        channels += 0.3 * phases * path(np.broadcast_to(mirror, positions.shape), way)
    noise = random.normal(size=(2, *channels.shape))
    return channels + 5e-4 * (noise[0] + 1j * noise[1]), positions


def path(source: NDArray[np.float64], way: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Gains (N, 32) of plane waves from (N, 2), after a way (N,) in metres."""
    sine = source[:, 1] / np.hypot(*source.T)
    return np.exp(-1j * np.pi * sine[:, None] * np.arange(ANTENNAS)) / way[:, None]


def metres(text: str) -> float:
    number = float(text)
    if not 0 < number < np.inf:
        raise argparse.ArgumentTypeError(f"must be greater than 0, given {text}")
    return number


def parsed() -> argparse.ArgumentParser:
    found = parser(__doc__, "the file with channels and positions", "positioning", samples=4000)
    found.add_argument("--channels", help=f"name of their array  [{', '.join(CHANNELS)}: the first that there is]")
    found.add_argument("--positions", help=f"name of their array  [{', '.join(POSITIONS)}: the first that there is]")
    found.add_argument("--features", choices=list(FEATURES), help="of complex channels  [angular]")
    found.add_argument("--metres", type=metres, default=1.0, help="of a unit of the positions, 0.001 for mm  [1]")
    return found


if __name__ == "__main__":
    sys.exit(run(parsed(), main))
