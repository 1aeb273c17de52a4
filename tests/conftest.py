"""One thread for each process where tests run in several: more would wait for each other (three times as long)."""

import os
from collections.abc import Iterator

import pytest

from tests.forked import start

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and numpy are loaded, so before any test


@pytest.fixture(scope="session", autouse=True)
def server_of_programs() -> Iterator[None]:
    """It is started with the first program, and ends with the tests."""
    yield
    start.end()
