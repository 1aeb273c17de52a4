"""Each recipe of SAO's tables runs, on tiny data of its layout."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from compresskit.commands.recipe import load_recipe
from tests.commands.prune.test_verb import table

CONFIGS = Path(__file__).parents[3] / "configs" / "sao"
CNN = {  # recipe: columns that are left out, rows of its grid
    "table8-cifar10-tanh": (("0.N = 128", "0.N = 256", "0.N = 512", "0.N = 768", "1.W = 128", "1.W = 256"), 26),
    "table8-cifar10-relu": (("0.N = 128", "0.N = 256", "0.N = 512", "0.N = 768", "1.W = 128", "1.W = 256"), 26),
    "table9-cinic10": (("N = 16", "N = 32", "N = 128"), 9),
    "table10-cifar100": (("N = 16", "N = 32"), 9),
    "table11-lipconvnet": (("N = 10", "N = 15"), 14),
    "table12-cinic10": (("N = 16", "N = 32"), 9),
}
OTHERS = ["figure11-isometry", "table6-singular-values", "table7-mnist", "table7-short"]
METHODS = ("SAO", "LMP-S", "RG-S", "RG-N", "RG-U")  # LMP-T is masked after a training
MINI = ("data={kind: mnist-mini, limit: 300}", "report.latency_repeats=1")


def test_every_recipe_is_here():
    assert sorted([*CNN, *OTHERS]) == sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load(path):
    assert load_recipe(path).description.startswith("SAO ")


@pytest.fixture
def colours(tmp_path):
    generator = np.random.default_rng(0)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for group, images in (("train", 24), ("test", 8)):
            file[f"{group}/inputs"] = generator.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
            file[f"{group}/targets"] = np.arange(images) % 4
    return "data={kind: arrays, path: data.h5, augment: {flip: true, crop: 4, auto: cifar10}}"


def kept_of(listed: str, network: str) -> int:
    """Parameters in its row of the table."""
    (line,) = (line for line in listed.splitlines() if f" {network} " in line)
    return int(line.split("│")[2].replace(",", ""))


@pytest.mark.parametrize("name", CNN)
def test_networks_of_a_column_can_be_trained(call, colours, name):
    """The first column, all rows: masks, layouts and ways of drawing fit the layers."""
    columns, rows = CNN[name]
    drops = [f"~train.compare.columns.{column}" for column in columns]
    outcome = call("train", CONFIGS / f"{name}.yaml", colours, *drops, "train.batch_size=8", "--dry-run")
    assert outcome.status == 0, outcome.err
    _, _, listed = outcome.out.partition("trained beside")
    assert sum(line.startswith("│") for line in listed.splitlines()) == rows
    if name.startswith("table8"):
        for width in (32, 64):
            sparse = {method: kept_of(listed, f"1 - 4/W, {method}, N = 32, W = {width}") for method in METHODS}
            assert len(set(sparse.values())) == 1, sparse  # as many weights, whatever the width
    if name.startswith("table11"):
        assert "soc" in outcome.out
        assert "eco" in outcome.out


def test_the_table_of_mnist(call):
    drops = [f"~train.compare.columns.N = {depth}" for depth in (200, 400, 600, 800, 1000)]
    small = ("model.depth=4", "train.epochs=1", "--out", "out")
    outcome = call("train", CONFIGS / "table7-mnist.yaml", *MINI, *drops, *small)
    assert outcome.status == 0, outcome.err
    rows = table("out", "test accuracy")
    assert list(rows) == ["Dense", "GMP-T", "GMP-S", "RG-U", "RG-N", "SAO"]
    kept = {name: values[0] for name, values in table("out", "parameters not masked").items()}
    assert kept["SAO"] == kept["RG-N"] == kept["RG-U"] < kept["Dense"] / 15
    assert kept["GMP-S"] == kept["GMP-T"] < kept["Dense"] / 20


def test_singular_values_and_reach(call):
    for name in ("table6-singular-values", "figure11-isometry"):
        outcome = call(
            "spectra", CONFIGS / f"{name}.yaml", *MINI, "model.depth=3", "spectra.isometry.images=2", "--out", name
        )
        assert outcome.status == 0, outcome.err
        assert Path(name, "isometry.csv").exists()
