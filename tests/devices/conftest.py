"""Verbs run in this process on the pretended GPU, on small nets that were trained on the CPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from typer.testing import CliRunner

from compresskit.cli.app import app
from tests.digits import write_digits
from tests.pretended_gpu import FREE, pretended_gpu
from tests.pretended_tensor import Transfers

TRAINED_ON, HELD_OUT, TESTED_ON = 200, 100, 100  # images
TRAIN: dict[str, Any] = {"epochs": 1, "batch_size": 50, "optimizer": {"kind": "adam", "lr": 5e-3}}
NETS: dict[str, dict[str, Any]] = {
    "cnn": {"kind": "convnet", "channels": [4, 8], "batch_norm": True, "pool_size": 4},
    "mlp": {"kind": "mlp", "widths": [16, 16, 16]},
    "even": {"kind": "convnet", "channels": [8, 8, 8], "pool_every": [1, 3], "padding": "same"},  # maps of 14, kept
}
COMMON: dict[str, Any] = {"moments": {"batch_size": 100}, "report": {"latency_repeats": 1, "plots": False}}
WITHOUT_PARENT = ("train", "expand")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def invoked(verb: str, folder: Path, recipe: dict[str, Any], device: str, *options: object) -> Result:
    """`verb` by this recipe."""
    path = folder / f"{verb}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    words = [verb, path, "--device", device, *options]
    return CliRunner().invoke(app, [*map(str, words), "--debug"])


def digits(path: Path) -> dict[str, Any]:
    """A few images of mnist-mini, in a file, as a recipe's `data` names it."""
    write_digits(path, TRAINED_ON + HELD_OUT, TESTED_ON)
    return {"kind": "arrays", "path": str(path), "add_channel": True, "validation": HELD_OUT}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return digits(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture(scope="session")
def parents(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> Path:
    """A folder for each net, trained on the CPU."""
    folder = tmp_path_factory.mktemp("parents")
    for name, model in NETS.items():
        recipe = {"model": model, "data": data, "train": TRAIN} | COMMON
        done = invoked("train", folder, recipe, "cpu", "--out", folder / name)
        assert done.exit_code == 0, done.stderr
    return folder


class Runs:
    """Verbs on the pretended GPU, in one folder."""

    def __init__(self, folder: Path, parents: Path, data: dict[str, Any]) -> None:
        self.folder, self._parents, self._data = folder, parents, data
        self.free = FREE

    def __call__(self, verb: str, sections: dict[str, Any], *options: object, net: str = "cnn") -> Transfers:
        """What a run copied that came to its end. sections: of the recipe; the rest is the net's, and of all."""
        done, transfers = self.tried(verb, sections, *options, net=net)
        assert done.exit_code == 0, f"{verb}: {done.stderr[-2000:]}"
        return transfers

    def tried(
        self, verb: str, sections: dict[str, Any], *options: object, net: str = "cnn"
    ) -> tuple[Result, Transfers]:
        recipe = {"model": NETS[net], "data": self._data} | COMMON | sections
        parent = [] if verb in WITHOUT_PARENT or "-c" in options else ["-c", self._parents / net]
        out = [] if verb == "evaluate" or "--out" in options else ["--out", self.folder / "out"]
        with pretended_gpu(self.free) as transfers:
            return invoked(verb, self.folder, recipe, "cuda", *parent, *out, *options), transfers


@pytest.fixture
def on_gpu(parents: Path, data: dict[str, Any], tmp_path: Path) -> Runs:
    return Runs(tmp_path, parents, data)
