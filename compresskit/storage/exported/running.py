"""An exported file as a module that takes batches of data and gives scores, whatever is inside of it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import CheckpointError, RecipeError, first_line
from compresskit.storage.exported.batches import Batch, Read, arguments_of
from compresskit.storage.exported.metadata import read_metadata
from compresskit.storage.exported.onnx import check_onnx, read_onnx
from compresskit.storage.exported.program import read_program


class Exported(nn.Module):
    """Of normalised inputs. read: what runs the file. told: what it tells of itself."""

    def __init__(self, read: Read, told: dict[str, Any]) -> None:
        super().__init__()
        self.runs, self.told = _Read(read), told

    def forward(self, batch: Batch) -> Any:
        """Scores of classes as logarithms where the file gives probabilities."""
        found = self.runs(self.taken(batch))
        return found.log() if self.told.get("probabilities") else found

    def taken(self, batch: Any) -> Any:
        """What the file takes for a batch of normalised inputs: the stored ones where it normalises inside."""
        if not self.told.get("normalised_inside"):
            return batch
        mean, std = (torch.tensor(self.told[key]).view(-1, *[1] * (batch.ndim - 2)) for key in ("mean", "std"))
        stored: Tensor = (batch * std + mean) / self.told["scale"]
        return stored.round().clamp(0, 255).to(torch.uint8) if self.told["inputs"][0]["type"] == "uint8" else stored


class _Read(nn.Module):
    """The file alone, of what it takes."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read

    def forward(self, batch: Batch) -> Any:
        return self._read(batch)


def open_exported(path: Path) -> Exported:
    """The network of a .pt2 or .onnx file. Raises CheckpointError, or RecipeError for what is not run."""
    if path.suffix == ".py":
        raise RecipeError(f"{path}: it holds code, which is not run here; take the .onnx, the .pt2 or the checkpoint")
    if path.suffix == ".onnx":
        check_onnx(str(path))
    told = read_metadata(path)
    try:
        read = read_onnx(path) if path.suffix == ".onnx" else read_program(path)
    except Exception as error:  # what a damaged file makes of its reader
        raise CheckpointError(f"{path}: it cannot be run ({first_line(error)}); export it again") from error

    def run(batch: Any) -> Any:
        try:
            return read(batch)
        except Exception as error:  # what runs it has errors of its own for inputs of other types and shapes
            given = ", ".join(f"{one.dtype} {tuple(one.shape)}" for one in arguments_of(batch))
            raise CheckpointError(
                f"{path}: it does not run on a batch of the recipe's data, {given} ({first_line(error)}); use the "
                "data that it was made for"
            ) from error

    return Exported(run, told)
