"""What the campaigns share: a seed and a size from the command line, and a folder with a trained net."""

from pathlib import Path

import pytest
import torch

from tests.campaigns.harness import run
from tests.campaigns.verbs import RECIPE, SOURCE, write_digits
from tests.forked.server import preload


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="of the campaigns' random choices")
    parser.addoption("--share", type=float, default=1.0, help="of the campaigns' size")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--seed", 0))


@pytest.fixture(scope="session")
def share(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--share", 1.0))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with net.yaml, its data, and a run of `train` to start from."""
    torch.set_num_threads(1)
    preload()
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "net.yaml").write_text(RECIPE)
    write_digits(folder)
    outcome = run(folder, ["train", "net.yaml", "--out", SOURCE, "-q"])
    assert outcome.status == 0, outcome.err
    return folder
