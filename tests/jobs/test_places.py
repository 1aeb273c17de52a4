"""How many jobs run at a time, and where."""

import pytest
import torch

from compresskit.errors import RecipeError
from compresskit.jobs.places import MOST, Place, described, places, wanted


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def eight_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)


@pytest.mark.parametrize(
    ("asked", "kind", "count"), [("1", "cpu", 1), ("3", "cpu", 3), ("2", "cuda", 2), ("auto", "cuda", 2)]
)
def test_a_number_or_one_a_gpu(gpus, asked, kind, count):
    assert wanted(asked, kind, 1) == count


@pytest.mark.parametrize(("threads", "count"), [(4, 4), (64, MOST)])
def test_auto_is_one_a_thread_and_not_too_many(monkeypatch, threads, count):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert wanted("auto", "cpu", 1) == count


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", ""])
def test_other_numbers_are_refused(asked):
    with pytest.raises(RecipeError, match=r"^--jobs: .* was given; allowed: a number from 1 on, auto, or for a"):
        wanted(asked, "cpu", 1)


def test_more_than_there_are_gpus_is_refused(gpus):
    with pytest.raises(RecipeError, match=r"--jobs 3: there are 2 GPUs, and each job takes one; give --jobs 2 or auto"):
        wanted("3", "cuda", 1)


def test_torchrun_has_its_own_processes():
    with pytest.raises(RecipeError, match=r"--jobs auto: torchrun has started 2 processes that share each job"):
        wanted("auto", "cpu", 2)
    assert wanted("1", "cpu", 2) == 1


def test_threads_are_divided_and_gpus_are_not_shared(eight_threads):
    assert places(3, "cpu") == [Place(2, sharing=3)] * 3
    assert places(16, "cpu") == [Place(1, sharing=16)] * 16
    assert places(2, "cuda") == [Place(4, 0), Place(4, 1)]
    assert described(places(2, "cuda")) == (
        "2 at a time, each in a process with 4 threads and a GPU of its own (cuda:0, cuda:1)"
    )
    assert described(places(8, "cpu")) == "8 at a time, each in a process with 1 thread of the CPU"
