"""Each recipe of the document's tables runs, from training to its row of the report, on tiny data of its layout."""

from pathlib import Path

import h5py
import numpy as np
import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
RANDOM = np.random.default_rng(0)


def classes(path: Path, shape: tuple[int, ...], count: int) -> None:
    with h5py.File(path, "w") as file:
        for group, images in (("train", 96), ("test", 32)):
            file[f"{group}/inputs"] = RANDOM.normal(size=(images, *shape)).astype(np.float32)
            file[f"{group}/targets"] = np.arange(images) % count


def positions(path: Path) -> None:
    with h5py.File(path, "w") as file:
        inputs = RANDOM.normal(size=(120, 32)).astype(np.float32)
        file["inputs"], file["targets"] = inputs, inputs[:, :2] * 100


TABLES = {  # recipe: (how its data are made, override that reads them, steps of its fusing)
    "table1-cifar10": (lambda path: classes(path, (3, 32, 32), 10), "data={kind: arrays, path: data.h5}", 2),
    "table2-fashion-mnist": (lambda path: classes(path, (1, 28, 28), 10), "data={kind: arrays, path: data.h5}", 3),
    "table3-har": (lambda path: classes(path, (9, 128), 6), "data.path=data.h5", 1),
    "table4-speech-commands": (lambda path: classes(path, (1, 40, 98), 5), "data.path=data.h5", 1),
    "table5-positioning": (positions, "data.path=data.h5", 2),
}


def test_every_table_is_here():
    assert sorted(TABLES) == sorted(path.stem for path in (CONFIGS / "fuse").glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in TABLES if name != "table1-cifar10"])
def test_a_recipe_gives_its_row(call, tmp_path, name):
    make, data, steps = TABLES[name]
    make(tmp_path / "data.h5")
    recipe = CONFIGS / "fuse" / f"{name}.yaml"
    small = (data, "trials=1", "report.latency_repeats=1")
    trained = call("train", recipe, *small, "train.epochs=1", "--out", "train")
    assert trained.status == 0, trained.err
    fused = call("fuse", recipe, *small, "fuse.retrain.epochs=1", "-c", "train", "--out", "fuse")
    assert fused.status == 0, fused.err
    assert "from random" in fused.out
    assert len(list((tmp_path / "fuse").glob("step-*"))) == steps


def test_the_first_recipe_plans_its_chains(call, tmp_path):
    """Its moments alone take half a gigabyte, so this one is only rehearsed."""
    make, data, _ = TABLES["table1-cifar10"]
    make(tmp_path / "data.h5")
    recipe = CONFIGS / "fuse" / "table1-cifar10.yaml"
    trained = call("train", recipe, data, "trials=1", "train.epochs=1", "~train.schedule", "--out", "train")
    assert trained.status == 0, trained.err
    planned = call("fuse", recipe, data, "trials=1", "-c", "train", "--dry-run")
    assert planned.status == 0, planned.err
    assert "10×8192" in planned.out
