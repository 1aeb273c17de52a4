"""Processes that choose the inputs of sites, and fit their layers, beside each other."""

import importlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from threadpoolctl import threadpool_limits

from compresskit.numerics.moments.moments import Moments

WORTH = 1e11  # of work: some ten seconds of a core, where a process takes three to start
MOST = 8  # processes by default; each takes a gigabyte for layers of some 5,000 inputs

Result_co = TypeVar("Result_co", covariant=True)
# (label, the work of each step in any unit) -> what is called behind each step
Start = Callable[[str, Sequence[float]], Callable[[], None]]


class Job(Protocol[Result_co]):
    """What a process can do alone. work: cubes of inputs, by which progress is told."""

    @property
    def moments(self) -> dict[str, Moments]: ...
    @property
    def work(self) -> float: ...
    def __call__(self) -> Result_co: ...


class Workers:
    """Runs jobs, in processes where that is worth it, which start with the first such jobs and end with the context.

    count: of processes, which share the threads out among them; auto: one a thread, MOST at most. Moments that lie on a
    GPU stay in this process, which is not the one to share it.
    """

    def __init__(self, count: int | Literal["auto"]) -> None:
        self._count = count
        self._pool: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()

    def run(self, label: str, jobs: Sequence[Job[Result_co]], start: Start) -> list[Result_co]:
        """The results in the order of the jobs."""
        if not jobs:
            return []
        done = start(label, [job.work for job in jobs])
        results = []
        for result in self._results(jobs):
            done()
            results.append(result)
        return results

    def _results(self, jobs: Sequence[Job[Result_co]]) -> Iterator[Result_co]:
        count = self._processes(jobs)
        if count < 2:
            return (job() for job in jobs)
        if self._pool is None:
            threads = max(1, torch.get_num_threads() // count)
            self._pool = torch.multiprocessing.get_context("spawn").Pool(count, _begin, (threads,))
        # by value, since each tensor that is shared holds a file open
        return map(pickle.loads, self._pool.imap(_run, (pickle.dumps(job) for job in jobs)))

    def _processes(self, jobs: Sequence[Job[Any]]) -> int:
        if len(jobs) < 2 or any(m.cyx.device.type != "cpu" for job in jobs for m in job.moments.values()):
            return 1
        if self._count != "auto":
            return self._count
        worth = self._pool is not None or sum(job.work for job in jobs) > WORTH
        return min(torch.get_num_threads(), MOST) if worth else 1


def _begin(threads: int) -> None:
    """Of torch's libraries and of scipy's, which reads the same variables: with more, processes wait for each other."""
    importlib.import_module("scipy.linalg.lapack")  # what is not loaded cannot be told
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def _run(job: bytes) -> bytes:
    return pickle.dumps(pickle.loads(job)())


def silent(label: str, work: Sequence[float]) -> Callable[[], None]:
    """A Start that tells nobody."""
    return lambda: None
