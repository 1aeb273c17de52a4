"""Random numbers of the user's code: as its seed has them, and nobody else's are touched."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Draws:
    """The states of the global generators of Python, numpy and torch (of the CPU), for code that draws from them."""

    def __init__(self, seed: int) -> None:
        with apart():
            begin(seed)
            self._states = _states()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside the block they go on where the last block ended; those of everybody else are put back after it."""
        with apart():
            _set(self._states)
            try:
                yield
            finally:
                self._states = _states()


@contextmanager
def apart() -> Iterator[None]:
    """Puts the states back behind the block."""
    states = _states()
    try:
        yield
    finally:
        _set(states)


def begin(seed: int) -> None:
    """Sets all three to the beginning of a seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def _states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()


def _set(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.default_generator.set_state(states[2])
