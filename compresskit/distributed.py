"""Several processes as one: who am I, and sums over all. Started by torchrun, or alone."""

import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from compresskit.errors import CompresskitError, RecipeError, ResourceError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that share a run. The default is one process alone, for which every method does nothing."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and reports."""
        return self.rank == 0

    def device(self, kind: str) -> torch.device:
        """Device of this process, one GPU each. kind: cpu or cuda."""
        return torch.device(kind, self.local_rank) if kind == "cuda" else torch.device(kind)

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by that of the main process, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def share(self, value: T) -> T:
        """The main process' value, in every process. It must be picklable."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of their ranks, in every process. They must be picklable."""
        if self.world == 1:
            return items
        boxes: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(boxes, items)
        return [item for box in boxes for item in box]

    def in_main(self, work: Callable[[], T]) -> T:
        """Runs `work` in the main process alone; all get what it gives, which must be picklable, or refuses."""
        found: list[T] = []
        refusal: CompresskitError | None = None
        if self.is_main:
            try:
                found.append(work())
            except CompresskitError as error:
                refusal = error
        found, refusal = self.share((found, refusal))
        if refusal is not None:
            raise refusal
        return found[0]

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Ends the connection; to be called once by who called `connect`, as `contextlib.closing` does."""
        if self.world > 1:
            dist.destroy_process_group()


def connect(kind: str) -> Group:
    """Joins the processes that torchrun started; a process alone is a group of one.

    kind: cpu (gloo) or cuda (NCCL, one GPU a process). Raises ResourceError if there are more processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Group()
    group = Group(int(os.environ["RANK"]), world, int(os.environ["LOCAL_RANK"]))
    if kind == "cuda":
        if group.local_rank >= torch.cuda.device_count():
            raise ResourceError(
                f"torchrun: process {group.local_rank} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; start fewer with --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(group.local_rank)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    _peers.extend(group.gather([Peer(group.rank, platform.node(), os.getpid())]))
    return group


@dataclass(frozen=True)
class Peer:
    """A process of the run, as the others know it."""

    rank: int
    host: str
    pid: int

    @property
    def has_ended(self) -> bool:
        """Whether it is known to be gone, or dead and not buried yet; of another machine nothing is known."""
        if self.host != platform.node():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's: it lives
            return False
        try:
            return ") Z " in Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # gone meanwhile, or a system without /proc
            return Path("/proc/self/stat").exists()


_peers: list[Peer] = []


def ended_peers(patience: float = 0.0) -> list[Peer]:
    """Processes of this run on this machine that are no more.

    patience: seconds to wait for a first one. One that was killed closes its connections, which the others notice,
    a while before the system calls it dead.
    """
    deadline = time.monotonic() + patience
    while not (ended := [peer for peer in _peers if peer.has_ended]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return ended


def speaker() -> Peer | None:
    """The process that tells the user: the first one that lives; None before the processes have met."""
    return next((peer for peer in _peers if not peer.has_ended), None)


def device_name(device: torch.device) -> str:
    """The device as reports name it, with the model of a GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def device_kind(asked: str) -> str:
    """cpu or cuda. Raises RecipeError or ResourceError for what is not there."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda"):
        raise RecipeError(f"--device: {asked!r} was given; allowed: auto, cpu, cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise ResourceError("--device cuda: torch finds no GPU here; use --device cpu or auto")
    return asked
