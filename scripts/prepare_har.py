"""data/har.h5, which configs/fuse/table3-har.yaml reads, from UCI's Human Activity Recognition Using Smartphones.

    python scripts/prepare_har.py human+activity+recognition+using+smartphones.zip
    python scripts/prepare_har.py --synthetic            # a made set of the same layout: data/har-synthetic.h5

The archive is https://archive.ics.uci.edu/dataset/240, as it is downloaded (a zip in a zip), the inner zip alone, or
the folder that it was extracted to. Written are the nine inertial signals of each window, not the 561 features that
UCI computed of them, in UCI's own division by persons:

    train/inputs float32 (7352, 9, 128)    train/targets int64 (7352,)    test/inputs (2947, 9, 128)    ...

Channels: body acceleration (in g, gravity taken off), angular velocity (rad/s), total acceleration (in g); x, y, z of
each; 128 steps at 50 Hz. Targets are UCI's 1 to 6 less one; the attribute `classes` has their names.
"""

import argparse
import io
import sys
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from numpy.typing import NDArray
from prepare.archives import AGAIN, Read, members
from prepare.program import parser, run

from compresskit.data.reading.regular import reading
from compresskit.errors import DataError

CLASSES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
SIGNALS = tuple(f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
PARTS = ("train", "test")
STEPS = 128
ADVICE = "give UCI's whole archive, or the folder that it was extracted to"


def main(options: argparse.Namespace, file: h5py.File) -> None:
    parts = synthetic(options.samples) if options.synthetic else read(options.source)
    file.attrs["classes"], file.attrs["channels"] = CLASSES, SIGNALS
    for part, (inputs, targets) in parts.items():
        file[f"{part}/inputs"], file[f"{part}/targets"] = inputs, targets


Part = tuple[NDArray[np.float32], NDArray[np.int64]]  # inputs (N, 9, 128), targets (N,)


def read(source: Path) -> dict[str, Part]:
    """Both parts. Raises DataError for a file that is missing, damaged or of another shape than its neighbours."""
    wanted = {name for part in PARTS for name in _files(part)}
    found = {}
    for name, content in members(source):
        base = PurePosixPath(name).name
        if base in wanted:
            found[base] = _table(f"{source}: {name}", content)
    if missing := sorted(wanted - found.keys()):
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise DataError(f"{source}: holds no {missing[0]}{more} of the set; {ADVICE}")
    return {part: _part(source, part, [found[name] for name in _files(part)]) for part in PARTS}


def _files(part: str) -> list[str]:
    """The nine signals, then the labels."""
    return [*(f"{signal}_{part}.txt" for signal in SIGNALS), f"y_{part}.txt"]


def _table(where: str, content: Read) -> NDArray[np.float32]:
    text = content()
    with reading(where, "rows of numbers", AGAIN):
        table = np.loadtxt(io.BytesIO(text), dtype=np.float32, ndmin=2)
    if not np.isfinite(table).all():
        raise DataError(f"{where}: has NaN or infinite values; {AGAIN}")
    return table


def _part(source: Path, part: str, tables: list[NDArray[np.float32]]) -> Part:
    *signals, labels = tables
    count = len(labels)
    for name, table in zip(_files(part), tables, strict=True):
        shape = (count, 1 if table is labels else STEPS)
        if table.shape != shape:
            raise DataError(f"{source}: {name} is of shape {table.shape}, where {shape} fits its labels; {AGAIN}")
    allowed = range(1, len(CLASSES) + 1)
    if wrong := sorted(set(labels[:, 0].tolist()) - set(allowed)):
        raise DataError(f"{source}: y_{part}.txt has the label {wrong[0]:g}, where 1 to 6 are allowed; {AGAIN}")
    return np.stack(signals, axis=1), labels[:, 0].astype(np.int64) - 1


def synthetic(samples: int) -> dict[str, Part]:
    """As many windows in training as asked, a quarter of it in test. A class is the rhythm and the direction of a wave.

    Its strength and noise differ by window, so that classes overlap a little.
    """
    random = np.random.default_rng(0)
    directions = random.normal(size=(len(CLASSES), len(SIGNALS), 1))
    rhythms = 0.15 * 1.3 ** np.arange(len(CLASSES))  # radians a step
    parts = {}
    for part, count in (("train", samples), ("test", max(samples // 4, len(CLASSES)))):
        targets = np.arange(count) % len(CLASSES)
        phases, strengths = random.uniform(0, 2 * np.pi, (count, 1)), random.uniform(0.3, 2, (count, 1, 1))
        waves = np.sin(rhythms[targets, None] * np.arange(STEPS) + phases)
        noise = random.normal(size=(count, len(SIGNALS), STEPS))
        parts[part] = (strengths * directions[targets] * waves[:, None] + noise).astype(np.float32), targets
    return parts


if __name__ == "__main__":
    sys.exit(run(parser(__doc__, "UCI's zip, or its folder", "har", samples=2000), main))
