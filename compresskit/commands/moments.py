"""Moments for a command: from the cache that the recipe names, within the memory that it allows."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import fx

from compresskit.commands.cached_moments import CachedMoments
from compresskit.commands.result import counted
from compresskit.commands.session import Session
from compresskit.data.dataset import Split
from compresskit.distributed import Group
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.moments import Request, in_passes
from compresskit.storage.moment_cache import MomentCache

SHARE = 0.3  # of the free memory that moments may take: the factorisation wants room, too


@dataclass(frozen=True)
class Gatherer:
    """Takes the moments that a pass asks for, on the training images."""

    current: Session
    moments: CachedMoments
    split: Split

    @property
    def memory(self) -> float:
        return self.moments.memory

    def __call__(
        self, network: fx.GraphModule, requests: Sequence[Request], teacher: fx.GraphModule | None = None
    ) -> dict[str, Moments]:
        progress = self.current.progress
        if len(requests) > 1:
            progress.log(self.plan(requests))
        label = f"moments of {requests[0].target}" if len(requests) == 1 else f"moments of {len(requests)} layers"
        start = partial(progress.start, label)
        found = self.moments.gather(network, requests, self.split, progress.update, teacher, start)
        for request in requests:
            samples, inputs = found[request.name].count, request.features
            if samples <= inputs:
                self.current.progress.note(
                    f"{request.target}: least squares on {inputs:,} inputs of {samples:,} samples can follow these "
                    "alone; take more (`samples`)"
                )
        return found

    def plan(self, requests: Sequence[Request]) -> str:
        """What taking them costs, as far as no cache holds them."""
        groups = in_passes(requests, lambda request: request.nbytes, self.memory)
        return f"moments of {counted(len(requests), 'layer')}: {self.cost(groups)}"

    def cost(self, groups: Sequence[Sequence[Request]]) -> str:
        """Of as many passes over the data."""
        largest = max((sum(request.nbytes for request in group) for group in groups), default=0)
        passes = "1 pass" if len(groups) == 1 else f"{len(groups)} passes"
        return f"{passes} over {len(self.split):,} images, {largest / 1e6:.1f} MB at most at a time"

    def at(self, step: int) -> "Gatherer":
        """The same with a folder of its own, since the weights are others after each step."""
        cache = self.moments.cache
        cache = replace(cache, folder=cache.folder / f"step-{step}")
        return replace(self, moments=replace(self.moments, cache=cache))


def gatherer(current: Session, folder: Path, samples: int | None) -> Gatherer:
    """folder: of the cache, where the recipe names none. samples: training images; None for all."""
    settings, data = current.recipe.moments, current.data.train
    split = data.sample(samples) if samples else data
    path = folder
    if settings.cache and current.folder is not None:  # a folder for each trial there, too; a dry run leaves it alone
        path = Path(settings.cache) / folder.parent.relative_to(current.folder.path)
    cache = MomentCache(path, settings.stale, current.device)
    moments = CachedMoments(cache, allowed_memory(current), settings.batch_size, current.device, current.group)
    return Gatherer(current, moments, split)


def allowed_memory(current: Session) -> float:
    """Bytes that one process may take for moments: as the recipe says, or a share of what is free."""
    settings, group = current.recipe.moments, current.group
    sharing = current.arguments.task.place.sharing if current.arguments.task else group.world
    return settings.memory_bytes() or group.share(SHARE * free_memory(current.device, sharing))


@contextmanager
def temporary_folder(group: Group) -> Iterator[Path]:
    """A folder that all processes share and that is gone afterwards."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(group.share(own))
        group.barrier()


def free_memory(device: torch.device, processes: int) -> float:
    """Bytes that one process can have on the device; on the CPU its share of what is free without swapping."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    try:
        found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return (1024.0 * int(found[1]) if found else 8e9) / processes  # 8e9: not on Linux, so a modest machine
