"""metrics.csv of a run, and its TensorBoard files when asked."""

import csv
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from compresskit.errors import RecipeError
from compresskit.storage.atomic import atomic_write


class MetricsLog:
    """Writes the figures of each epoch under `folder`.

    first_epoch: TensorBoard takes back the events of it and later ones, which a run that was killed has left.
    Raises RecipeError if `tensorboard` is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool, first_epoch: int) -> None:
        self._path = folder / "metrics.csv"
        self._board = summary_writer()(str(folder / "tensorboard"), purge_step=first_epoch) if tensorboard else None

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Writes the whole table anew, so that a resumed run leaves each epoch in it once; the last row is new."""
        with atomic_write(self._path) as temporary, temporary.open("w", newline="") as file:
            # a run that an older version began has rows of fewer columns
            names = dict.fromkeys(name for row in rows for name in row)
            table = csv.DictWriter(file, fieldnames=list(names))
            table.writeheader()
            table.writerows(rows)
        if self._board is not None:
            for name, value in rows[-1].items():
                self._board.add_scalar(name, value, global_step=int(rows[-1]["epoch"]))
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def write_board(folder: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """TensorBoard's files of these alone: values by name, at the steps 0, 1, ... What is not finite is left out.

    Raises RecipeError if the package is not installed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with closing(summary_writer()(str(folder))) as board:
        for name, values in curves.items():
            for step, value in enumerate(values):
                if math.isfinite(value):
                    board.add_scalar(name, value, global_step=step)


def summary_writer() -> Any:
    """TensorBoard's class. Raises RecipeError if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            "tensorboard: true was given, but the package is missing; pip install compresskit[tensorboard]"
        ) from error
    return SummaryWriter
