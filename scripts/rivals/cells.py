"""One net by one method at one size: a file of JSON in a folder of its own, beside the smaller net."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compresskit.storage.atomic import write_json

FILE, ORIGINAL, MODEL = "cell.json", "original.json", "model.pt"
Stages = list[dict[str, Any]]


@dataclass
class Cell:
    """What a method came to.

    size: per cent of the MACs that were allowed. macs: the share that is left. stages: in their order, each with
    `stage`, `accuracy` (on the test set), `held_out` (on validation images; not of fine-tuned nets), `candidate` (the
    setting that those chose), `seconds` (of repairs by the clock, else of the processor), and `taken`: false of a
    repair that was no improvement. seconds: of the processor, for all that the method tries. failed: what stopped it,
    and then there is no stage.
    """

    net: str
    method: str
    size: float
    macs: float | None = None
    parameters: int | None = None
    stages: Stages = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    failed: str | None = None

    def folder(self, cells: Path) -> Path:
        return cells / self.net / f"{self.method}-{self.size:g}"

    def write(self, cells: Path) -> None:
        self.folder(cells).mkdir(parents=True, exist_ok=True)
        write_json(self.folder(cells) / FILE, asdict(self))

    def read(self, cells: Path) -> "Cell | None":
        """The one that is kept for the same net, method and size, if there is."""
        path = self.folder(cells) / FILE
        return Cell(**json.loads(path.read_text())) if path.exists() else None

    def stage(self, name: str) -> dict[str, Any] | None:
        return next((stage for stage in self.stages if stage["stage"] == name), None)


def spent() -> float:
    """Seconds of the processor that this process has taken: others on the machine hardly change them."""
    return time.process_time()


def trained(epochs: int) -> str:
    """The name of the stage."""
    return f"{epochs} epoch" + "s" * (epochs > 1)


def every_cell(cells: Path) -> list[Cell]:
    return [Cell(**json.loads(path.read_text())) for path in sorted(cells.glob(f"*/*/{FILE}"))]


def write_original(cells: Path, net: str, told: dict[str, Any]) -> None:
    """told: of the trained net, its `label`, `accuracy`, `parameters`, `macs`, and what cells are made of."""
    (cells / net).mkdir(parents=True, exist_ok=True)
    write_json(cells / net / ORIGINAL, told)


def read_original(cells: Path, net: str) -> dict[str, Any] | None:
    path = cells / net / ORIGINAL
    return dict(json.loads(path.read_text())) if path.exists() else None
