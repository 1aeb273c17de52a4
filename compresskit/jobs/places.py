"""How many jobs run at a time, and what each has of the machine."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.jobs.cluster import SCHEME, is_cluster

MOST = 8  # processes that `auto` starts on a CPU: each holds the data, and a few hundred megabytes of libraries


@dataclass(frozen=True)
class Place:
    """What one job at a time has of the machine. threads: of the CPU. gpu: its number; None: it runs on the CPU.

    sharing: jobs that share the memory of its device.
    """

    threads: int
    gpu: int | None = None
    sharing: int = 1


@dataclass(frozen=True)
class Task:
    """What a process of its own is to do of a run. folder: of the job, by which the verb knows it."""

    folder: Path
    place: Place


def wanted(asked: str, kind: str, world: int) -> int:
    """Jobs at a time that --jobs asks for. kind: cpu or cuda; world: processes that torchrun has started.

    Raises RecipeError for what is no number of jobs, or cannot be placed.
    """
    if asked != "auto" and not is_cluster(asked) and not (asked.isdecimal() and int(asked) > 0):
        raise RecipeError(
            f"--jobs: {asked!r} was given; allowed: a number from 1 on, auto, or for a cluster ray or {SCHEME}HOST:PORT"
        )
    if asked == "1":
        return 1
    if is_cluster(asked) and world == 1:
        return sys.maxsize  # the cluster has its own queue
    if world > 1:
        raise RecipeError(
            f"--jobs {asked}: torchrun has started {world} processes that share each job; start it without torchrun to "
            "run several jobs beside each other, or leave --jobs out"
        )
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    count = int(asked) if asked != "auto" else gpus or min(MOST, torch.get_num_threads())
    if gpus and count > gpus:
        there = "is 1 GPU" if gpus == 1 else f"are {gpus} GPUs"
        raise RecipeError(
            f"--jobs {asked}: there {there}, and each job takes one; give --jobs {gpus} or auto, or --device cpu"
        )
    return count


def device_of(kind: str, group: Group, task: Task | None) -> torch.device:
    """Of this process: the GPU that its job has, or its part in torchrun's."""
    if task is None or task.place.gpu is None:
        return group.device(kind)
    torch.cuda.set_device(task.place.gpu)
    return torch.device(kind, task.place.gpu)


def places(count: int, kind: str) -> list[Place]:
    """For so many jobs at a time: a GPU each, or none; the threads of this process are divided among them."""
    threads = max(1, torch.get_num_threads() // count)
    if kind == "cuda":
        return [Place(threads, gpu) for gpu in range(count)]
    return [Place(threads, sharing=count)] * count


def place_on_cluster(kind: str) -> Place:
    """On whichever machine: one thread, and the GPU that Ray lets it see."""
    return Place(1, 0 if kind == "cuda" else None)


def described_on_cluster(asked: str, place: Place) -> str:
    """In words, for a dry run."""
    needs = "a CPU" if place.gpu is None else "a CPU and a GPU"
    return f"on the machines of the cluster ({asked}), each with {needs}"


def described(found: list[Place]) -> str:
    """In words, for a dry run."""
    threads = found[0].threads
    each = f"{threads} thread{'s' if threads > 1 else ''}"
    if found[0].gpu is None:
        return f"{len(found)} at a time, each in a process with {each} of the CPU"
    gpus = ", ".join(f"cuda:{place.gpu}" for place in found)
    return f"{len(found)} at a time, each in a process with {each} and a GPU of its own ({gpus})"
