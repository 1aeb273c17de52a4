from types import ModuleType

import pytest

from tests.training import tiny_run


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The tiny data, network and run of tests/training/tiny_run.py."""
    return tiny_run
