"""Each recipe of SAO's tables runs, on tiny data of its layout."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from compresskit.commands.recipe import load_recipe
from tests.commands.prune.test_verb import report, table
from tests.commands.test_bad_input import refused

CONFIGS = Path(__file__).parents[3] / "configs" / "sao"
CNN = {  # recipe: columns that are left out, rows of its grid
    "table8-cifar10-tanh": (("0.N = 128", "0.N = 256", "0.N = 512", "0.N = 768", "1.W = 128", "1.W = 256"), 26),
    "table8-cifar10-relu": (("0.N = 128", "0.N = 256", "0.N = 512", "0.N = 768", "1.W = 128", "1.W = 256"), 26),
    "table9-cinic10": (("N = 16", "N = 32", "N = 128"), 9),
    "table10-cifar100": (("N = 16", "N = 32"), 9),
    "table11-lipconvnet": (("N = 10", "N = 15"), 14),
    "table12-cinic10": (("N = 16", "N = 32"), 9),
}
OTHERS = ["figure11-isometry", "figure7-eigenvalues", "table6-singular-values", "table7-mnist", "table7-short"]
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


def test_eigenvalues_are_d_and_0_irrespective_of_the_width(call):
    """Figure 7; masks by magnitude with as many weights are no Ramanujan graphs."""
    recipe = CONFIGS / "figure7-eigenvalues.yaml"
    outcome = call("spectra", recipe, "--out", "out")
    assert outcome.status == 0, outcome.err
    rows = table("out", "graphs of masks")
    assert {name: row[1:3] + row[-1:] for name, row in rows.items()} == {
        f"fc{number}": [f"{width}×{width}", 4, "yes"]
        for number, width in zip((2, 4, 6, 8), (128, 256, 512, 1024), strict=True)
    }
    with np.load("out/graph-eigenvalues.npz") as found:
        for name, width in (("fc2", 128), ("fc8", 1024)):
            values = found[name]
            assert len(values) == 2 * width
            assert (abs(values - 4) < 1e-9).sum() == (abs(values + 4) < 1e-9).sum() == width / 4
            assert (abs(values) < 1e-9).sum() == 2 * (width - width / 4)
    assert Path("out/graph-eigenvalues.png").stat().st_size > 5000
    mask = "train.mask={kind: weights, target: {degree: 4}, budget: uniform, layers: [fc2]}"
    pruned = call("spectra", recipe, "train.init=orthogonal", mask, "spectra.layers=[fc2]", "--out", "pruned")
    assert pruned.status == 0, pruned.err
    (row,) = table("pruned", "graphs of masks").values()
    assert row[-1] == "no"
    assert row[2] == 4  # the mean
    assert any(note.startswith("graphs: c and d are means") for note in report("pruned")["notes"])
    dense = call("spectra", recipe, "train.init=orthogonal", "--out", "dense")
    refused(dense, 2, "spectra.graphs: no layer has a mask or runs in groups", "train.mask")
