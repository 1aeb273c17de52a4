"""How many threads torch takes, for a while or for good."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads inside the block: one where sums must not depend on their number, or threads would wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def limit(number: int) -> None:
    """So many for the rest of this process: of torch's libraries, and of scipy's and numpy's, which have their own."""
    importlib.import_module("scipy.linalg.lapack")  # what is not loaded cannot be told
    torch.set_num_threads(number)
    threadpool_limits(number)
