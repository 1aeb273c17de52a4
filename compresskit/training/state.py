"""What a run needs to go on after it was killed: one file, whole after every epoch, for one set of options."""

import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.data.dataset import DataSet, digest
from compresskit.errors import RunFolderError
from compresskit.graph.masks import Masks
from compresskit.storage.atomic import write_tensors
from compresskit.training.options import Training

VERSION = 1
STATE = "state.pt"
BEST = "best-weights.pt"
EPOCHS = "weights"  # folder of the state dicts of all epochs, where they are kept


@dataclass
class Record:
    """How far a run is. rows: one for each finished epoch; best_epoch: counted from 1, 0 before the first.

    cosines: of gradients, after the last of these epochs.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_metric: float = math.nan
    cosines: list[float] = field(default_factory=list)

    def add(self, row: dict[str, float], column: str, *, higher_is_better: bool) -> bool:
        """Appends the row of an epoch; returns whether it is the best so far by that column."""
        self.rows.append(row)
        metric = row[column]
        is_best = self.best_epoch == 0 or (metric > self.best_metric if higher_is_better else metric < self.best_metric)
        if is_best:
            self.best_epoch, self.best_metric = len(self.rows), metric
        return is_best


def fingerprint(
    network: nn.Module,
    data: DataSet,
    options: Training,
    seed: int,
    device: torch.device,
    world: int,
    teacher: nn.Module | None = None,
    masks: Masks | None = None,
) -> dict[str, Any]:
    """All that the final tensors depend on, as plain values."""
    return {
        **asdict(options),
        "seed": seed,
        "device": device.type,
        "processes": world,
        "data": data.fingerprint,
        "starting weights": weights_digest(network.state_dict()),
        **({"teacher": weights_digest(teacher.state_dict())} if teacher is not None else {}),
        **({"masks": weights_digest(masks)} if masks else {}),
    }


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Of a state dict or of masks, whatever the device."""
    return digest(*((name, *tensor.shape) for name, tensor in tensors.items()), *map(_bytes, tensors.values()))


def save(folder: Path, made_for: Mapping[str, Any], record: Record, trainer: Mapping[str, Any]) -> None:
    """Replaces the state of the run by the present one."""
    write_tensors(
        folder / STATE, {"version": VERSION, "made_for": dict(made_for), **vars(record), "trainer": dict(trainer)}
    )


def save_best(folder: Path, network: nn.Module) -> None:
    """Keeps the weights as the best so far."""
    write_tensors(folder / BEST, _on_cpu(network))


def save_epoch(folder: Path, network: nn.Module, epoch: int) -> None:
    """Keeps the weights as those after epoch `epoch`, counted from 1; 0: before the first."""
    write_tensors(folder / EPOCHS / f"epoch-{epoch:04}.pt", _on_cpu(network))


def epochs_kept(folder: Path) -> dict[int, Path]:
    """The state dicts of a run that kept all, by epoch, in their order."""
    files = sorted((folder / EPOCHS).glob("epoch-*.pt"))
    return {int(file.stem.removeprefix("epoch-")): file for file in files}


def load_best(folder: Path) -> dict[str, Tensor]:
    """The state dict kept last, on the CPU."""
    weights: dict[str, Tensor] = read(folder / BEST)
    return weights


def load(folder: Path, made_for: Mapping[str, Any]) -> tuple[Record, dict[str, Any]] | None:
    """Record and trainer's state of a run that was stopped; None if it did not finish an epoch.

    Raises RunFolderError if the file is damaged, or was made for other options, data, seed or weights.
    """
    path = folder / STATE
    if not path.exists():
        return None
    state = read(path)
    if state.get("version") != VERSION:
        raise RunFolderError(
            f"{path}: format {state.get('version')} is unknown, {VERSION} is read; start anew with --force"
        )
    differences = list(_differences(state["made_for"], made_for))
    if differences:
        raise RunFolderError(
            f"{path}: made for another run: {'; '.join(differences)}; "
            "resume with what it was made for, or start anew with --force"
        )
    record = Record(state["rows"], state["best_epoch"], state["best_metric"], state.get("cosines", []))
    return record, state["trainer"]


def clear(folder: Path) -> None:
    """Forgets an earlier run in the same folder."""
    for path in (folder / STATE, *epochs_kept(folder).values()):
        path.unlink(missing_ok=True)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {_short(old)}, is {_short(new)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 64 else f"{text[:12]}..."  # 64: a hash


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in network.state_dict().items()}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8)


def read(path: Path) -> Any:
    """What a run left to go on from, on the CPU. Raises RunFolderError for a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); start anew with --force") from error
