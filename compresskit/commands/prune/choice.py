"""What a step of `prune` takes out, in a file until the step is done: a run that was killed while it repaired does not
choose again, for criteria and budgets that look at images may take longer than the repairs."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compresskit.commands.session import Session
from compresskit.passes.prune.budgets import Alone
from compresskit.passes.prune.channels import Pruned, Pruner
from compresskit.storage.atomic import write_json

CHOSEN = "chosen.json"


@dataclass(frozen=True)
class Choice:
    """seconds: that choosing took."""

    pruned: Pruned
    seconds: float


def chosen(current: Session, plan: Pruner, folder: Path, choose: Callable[[], Pruned]) -> Choice:
    """The choice of the main process, whose sums may differ from others'; that of an interrupted run is read back."""
    group, path = current.group, folder / CHOSEN
    names, size = [found.name for found in plan.groups], plan.channels.n_atoms
    known = group.share(_read(path) if current.arguments.resume else {})
    if (known.get("groups"), known.get("size")) != (names, size):
        began = time.perf_counter()
        found = choose()
        known = {
            "groups": names,
            "size": size,
            "gone": (~found.alive).nonzero()[:, 0].tolist(),
            "kept": found.kept,
            "got": found.got,
            "sensitivity": found.sensitivity,
            "seconds": time.perf_counter() - began,
        }
        known = group.share(known)
        if group.is_main:
            write_json(path, known)
    alive = torch.ones(size, dtype=torch.bool)
    alive[torch.tensor(known["gone"], dtype=torch.int64)] = False
    alone = {name: [Alone(*one) for one in own] for name, own in known["sensitivity"].items()}
    pruned = Pruned(
        plan.channels, alive, plan.groups, known["kept"], plan.skipped, plan.asked, known["got"], plan.whole, alone
    )
    return Choice(pruned, known["seconds"])


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is none, or what is there is no choice."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
