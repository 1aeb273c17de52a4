"""Moments for a command: from the cache that the recipe names, within the memory that it allows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

from compresskit.commands.session import Session
from compresskit.data.dataset import Split
from compresskit.numerics.moments import Moments
from compresskit.passes.moments import Request
from compresskit.recipes.schema import FuseAndRetrain
from compresskit.storage.moment_cache import MomentCache

SHARE = 0.3  # of the free memory that moments may take: the factorisation wants room, too


@dataclass(frozen=True)
class Gatherer:
    """Takes the moments that a pass asks for, on the training images."""

    current: Session
    cache: MomentCache
    split: Split

    @property
    def memory(self) -> float:
        return self.cache.memory

    def __call__(self, network: fx.GraphModule, requests: Sequence[Request]) -> dict[str, Moments]:
        self.current.progress.start(f"moments of {len(requests)} chains", len(self.split))
        return self.cache.gather(network, requests, self.split, progress=self.current.progress.update)


def gatherer(current: Session, folder: Path, options: FuseAndRetrain) -> Gatherer:
    """folder: of the cache, where the recipe names none."""
    settings, data = current.recipe.moments, current.data.train
    split = data.sample(options.samples) if options.samples else data
    memory = settings.memory_bytes() or SHARE * free_memory(current.device)
    path = folder
    if settings.cache and current.folder is not None:  # a folder for each trial there, too; a dry run leaves it alone
        path = Path(settings.cache) / folder.parent.relative_to(current.folder.path)
    cache = MomentCache(path, settings.stale, memory, settings.batch_size, current.device, current.group)
    return Gatherer(current, cache, split)


def free_memory(device: torch.device) -> float:
    """Bytes that are free on the device; on the CPU what the system can give without swapping."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return 1024.0 * int(found[1]) if found else 8e9  # not on Linux: a modest machine
