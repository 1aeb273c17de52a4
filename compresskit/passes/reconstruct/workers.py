"""Processes that choose the inputs of sites, and fit their layers, beside each other."""

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import torch

from compresskit import process
from compresskit.errors import ResourceError
from compresskit.numerics.moments.moments import Moments
from compresskit.numerics.threads import limit

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
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

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
            self._pool = ProcessPoolExecutor(count, get_context("spawn"), _begin, (threads,))
        return self._spread(self._pool, jobs, 2 * count)

    def _spread(self, pool: ProcessPoolExecutor, jobs: Sequence[Job[Result_co]], ahead: int) -> Iterator[Result_co]:
        """Jobs travel by value, since each tensor that is shared holds a file open; so not all of them at once."""
        sent = deque[Future[bytes]]()
        try:
            for job in jobs:
                sent.append(pool.submit(_run, pickle.dumps(job)))
                if len(sent) > ahead:
                    yield pickle.loads(sent.popleft().result())
            while sent:
                yield pickle.loads(sent.popleft().result())
        except BrokenProcessPool:
            raise ResourceError(
                "reconstruct: a process that chose inputs was killed, as Linux does where memory runs out; set "
                "reconstruct.workers: 1, or fewer than there are"
            ) from None

    def _processes(self, jobs: Sequence[Job[Any]]) -> int:
        if len(jobs) < 2 or any(m.cyx.device.type != "cpu" for job in jobs for m in job.moments.values()):
            return 1
        if self._count != "auto":
            return self._count
        worth = self._pool is not None or sum(job.work for job in jobs) > WORTH
        return min(torch.get_num_threads(), MOST) if worth else 1


def _begin(threads: int) -> None:
    """With more threads, processes would wait for each other."""
    process.end_with_parent()
    limit(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the process that has started this one


def _run(job: bytes) -> bytes:
    return pickle.dumps(pickle.loads(job)())


def silent(label: str, work: Sequence[float]) -> Callable[[], None]:
    """A Start that tells nobody."""
    return lambda: None
