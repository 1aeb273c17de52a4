"""Running the program: the installed one in a process of its own, or the same app in this one, which is quicker."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from compresskit.cli.app import app
from compresskit.storage.checkpoint import load
from tests.forked.start import commands, environment, torchrun

RECIPE = """\
model: {kind: convnet, channels: [4, 8]}
data: {kind: mnist-mini, limit: 600, validation: 200}
train: {epochs: 2, batch_size: 64, optimizer: {kind: adam, lr: 5e-3}}
finetune: {epochs: 1, batch_size: 64, optimizer: {kind: adam, lr: 1e-3}}
fuse:
  layers: [[conv2, head]]
  held_out: 200
report: {latency_repeats: 2}
"""


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def report(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "report.json").read_text())


def rows(folder: str | Path, title: str) -> list[list]:
    """Of the one table of the report with this title."""
    (found,) = [table for table in report(folder)["tables"] if table["title"] == title]
    return found["rows"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As `environment` has it: sums that are shared out among threads are rounded otherwise, on some processors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def program(*arguments: object, cwd: Path) -> Outcome:
    """The program as a shell starts it, but for the time that this takes."""
    command = [str(commands() / "compresskit"), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment(), timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def beside_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], Path]]:
    """Writes a module of the user's, its name and its code, and a recipe beside it; forgets the module afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = []

    def write(name: str, code: str, recipe: str) -> Path:
        written.append(name)
        (tmp_path / f"{name}.py").write_text(code)
        path = tmp_path / "own.yaml"
        path.write_text(recipe)
        return path

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """The app in this process, started in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.yaml and a finished run of `train` in runs/net-train."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "net.yaml").write_text(RECIPE)
    done = program("train", "net.yaml", cwd=folder)
    assert done.status == 0, done.err
    return folder


def two_processes_do_as_one(cwd: Path, *arguments: str) -> None:
    """Runs the program in two processes and in one, into two/ and one/: the networks differ by rounding alone."""
    done = torchrun("-m", "compresskit", *arguments, "--out", "two", cwd=cwd)
    assert done.returncode == 0, done.stderr
    one = program(*arguments, "--out", "one", cwd=cwd)
    assert one.status == 0, one.err
    first, second = (load(cwd / name / "model.pt").network.state_dict() for name in ("one", "two"))
    for name, tensor in first.items():
        # sums of float64 in another order, behind a solve, rounded to float32
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5)
