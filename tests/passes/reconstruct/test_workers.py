"""Processes that choose and fit sites: the same results in the same order, and only where they are worth it."""

import os
import signal
from dataclasses import dataclass, field

import pytest
import scipy.linalg
import torch
from threadpoolctl import threadpool_info

from compresskit.errors import ResourceError
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.reconstruct import workers
from compresskit.passes.reconstruct.workers import WORTH, Workers


@dataclass(frozen=True)
class Squared:
    """A job that says in how many threads it ran."""

    number: int
    work: float = 1.0
    moments: dict[str, Moments] = field(default_factory=dict)

    def __call__(self) -> tuple[int, int]:
        if self.number < 0:
            raise ValueError(f"job {self.number}")
        return self.number**2, torch.get_num_threads()


@dataclass(frozen=True)
class Pools(Squared):
    """The threads of every library that has some, scipy's among them."""

    def __call__(self) -> list[int]:
        scipy.linalg.inv([[1.0]])
        return [pool["num_threads"] for pool in threadpool_info()]


@pytest.fixture
def two_threads():
    kept = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(kept)


def run(count, jobs):
    told = []

    def start(label, work):
        told.append((label, work))
        return lambda: told.append("done")

    with Workers(count) as made:
        return made.run("squares", jobs, start), told


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_the_order_of_the_jobs_and_share_the_threads(count, two_threads):
    found, told = run(count, [Squared(number, 2.0 * number) for number in range(5)])
    assert found == [(number**2, 2 // count) for number in range(5)]
    assert told == [("squares", [0.0, 2.0, 4.0, 6.0, 8.0]), *["done"] * 5]


def test_libraries_of_a_process_keep_to_its_share(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # which processes start with
    found, _ = run(2, [Pools(1), Pools(2)])
    assert len(found[0]) > 1
    assert {threads for each in found for threads in each} == {1}


def test_auto_starts_processes_for_long_work_alone(two_threads):
    assert {threads for _, threads in run("auto", [Squared(1, WORTH / 3)] * 2)[0]} == {2}
    assert {threads for _, threads in run("auto", [Squared(1, WORTH)] * 2)[0]} == {1}
    assert {threads for _, threads in run("auto", [Squared(1, WORTH)])[0]} == {2}  # nothing to share out


def test_auto_starts_no_more_than_it_may(two_threads, monkeypatch):
    monkeypatch.setattr(workers, "MOST", 1)
    assert {threads for _, threads in run("auto", [Squared(1, WORTH)] * 2)[0]} == {2}


def test_a_process_that_is_there_takes_short_work_too(two_threads):
    with Workers("auto") as made:
        made.run("long", [Squared(1, WORTH)] * 2, workers.silent)
        assert made.run("short", [Squared(3)] * 2, workers.silent) == [(9, 1), (9, 1)]


def test_no_jobs():
    assert run(2, []) == ([], [])


def test_errors_of_a_job_are_its_own():
    with pytest.raises(ValueError, match="job -1"):
        run(2, [Squared(1), Squared(-1), Squared(2)])


@dataclass(frozen=True)
class Killed(Squared):
    def __call__(self) -> tuple[int, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__()


@pytest.mark.timeout(60)
def test_a_process_that_is_killed_ends_the_run():
    with pytest.raises(ResourceError, match="a process that chose inputs was killed"):
        run(2, [Squared(1), Killed(2), *[Squared(3)] * 8])


def test_more_jobs_than_are_sent_ahead_keep_their_order():
    found, _ = run(2, [Squared(number) for number in range(20)])
    assert [square for square, _ in found] == [number**2 for number in range(20)]
