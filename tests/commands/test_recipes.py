"""Each recipe of the document's tables runs, from training to its row of the report, on tiny data of its layout."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from tests.forked.start import python
from tests.scenes import draw, write_cityscapes, write_voc_detection

CONFIGS = Path(__file__).parents[2] / "configs"
SCRIPTS = Path(__file__).parents[2] / "scripts"
RANDOM = np.random.default_rng(0)


def classes(path: Path, shape: tuple[int, ...], count: int) -> None:
    with h5py.File(path, "w") as file:
        for group, images in (("train", 96), ("test", 32)):
            file[f"{group}/inputs"] = RANDOM.normal(size=(images, *shape)).astype(np.float32)
            file[f"{group}/targets"] = np.arange(images) % count


def made(script: str) -> Callable[[Path], None]:
    """The made set of a script that prepares data."""

    def write(path: Path) -> None:
        done = python(SCRIPTS / script, "--synthetic", "--samples", "96", "--out", path)
        assert done.returncode == 0, done.stderr

    return write


TABLES = {  # recipe: (how its data are made, override that reads them, steps of its fusing)
    "table1-cifar10": (lambda path: classes(path, (3, 32, 32), 10), "data={kind: arrays, path: data.h5}", 2),
    "table2-fashion-mnist": (lambda path: classes(path, (1, 28, 28), 10), "data={kind: arrays, path: data.h5}", 3),
    "table3-har": (made("prepare_har.py"), "data.path=data.h5", 1),
    "table4-speech-commands": (made("prepare_speech_commands.py"), "data.path=data.h5", 1),
    "table5-positioning": (made("prepare_positioning.py"), "data.path=data.h5", 2),
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


RECONSTRUCTIONS = {  # recipe: changes that make it small
    "table1-lenet-300-100": ("reconstruct.compare={at: [60%]}",),
    "table1-lenet-5": ("reconstruct.target={size: 50%}", "~reconstruct.compare"),
    "figure5-lenet-5": ("reconstruct.compare={at: [30, 10], debias: [true, false]}", "~reconstruct.samples"),
    "figure6-lenet-5": ("reconstruct.compare.grid={conv2: [9], fc1: [20, 30], head: [120]}", "~reconstruct.samples"),
}


def test_every_reconstruction_is_here():
    found = sorted(path.stem for path in (CONFIGS / "reconstruct").glob("*.yaml"))
    assert found == sorted([*RECONSTRUCTIONS, "table1-alexnet"])


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
def test_a_reconstruction_gives_its_tables(call, tmp_path, name):
    classes(tmp_path / "data.h5", (1, 28, 28), 10)
    recipe = CONFIGS / "reconstruct" / f"{name}.yaml"
    trainer = CONFIGS / "reconstruct" / f"table1-{'lenet-300-100' if '300' in name else 'lenet-5'}.yaml"
    small = ("data={kind: arrays, path: data.h5, validation: 20}", "report.latency_repeats=1")
    trained = call("train", trainer, *small, "train.epochs=1", "train.optimizer.lr=1e-2", "--out", "train")
    assert trained.status == 0, trained.err
    done = call("reconstruct", recipe, *small, *RECONSTRUCTIONS[name], "-c", "train", "--out", "smaller")
    assert done.status == 0, done.err
    assert "reconstructed" in done.out
    assert (tmp_path / "smaller/trade-off.png").exists()
    assert (tmp_path / "smaller/comparison.png").exists() == ("~reconstruct.compare" not in RECONSTRUCTIONS[name])


def test_alexnet_is_planned(call, tmp_path):
    """Its moments take more than a gigabyte, so it is only rehearsed, with two classes of one image each."""
    for part, label in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / "data/imagenet" / part / label).mkdir(parents=True)
        Image.new("RGB", (300, 260)).save(tmp_path / "data/imagenet" / part / label / "1.jpeg")
    torch.save(torchvision.models.alexnet(num_classes=2).state_dict(), tmp_path / "alexnet.pth")
    planned = call("reconstruct", CONFIGS / "reconstruct/table1-alexnet.yaml", "data.workers=0", "--dry-run")
    assert planned.status == 0, planned.err
    assert "4096×9216" in planned.out
    # two classes: 61,100,840 parameters less 998 rows of 4,096 weights and a bias
    whole = 4 * (61_100_840 - 998 * 4097)
    assert f"the network takes {whole:,} bytes at 32 bits a number; 39% of it are {int(0.39 * whole):,}" in planned.out
    assert "256" in planned.out  # the maps that the first linear layer reads


SHORT = ("trials=1", "train.epochs=1", "~train.schedule", "report.latency_repeats=1")
CIFAR = ("data={kind: arrays, path: data.h5}",)


def equal_time(name):
    return f"expand.compare.{name}, equal time.train.epochs=2", f"~expand.compare.{name}, equal time.train.schedule"


EXPANSIONS = {  # recipe: (changes that make it small, networks in its table)
    "table1-smallnet": (("expand.rate=1",), 13),
    "table2-mobilenet": (("model.width=0.1", "expand.rate=1", *equal_time("MobileNet")), 3),
    "table2-mobilenet-v2": (("model.width=0.1", "expand.rate=1", *equal_time("MobileNetV2")), 3),
    "table3-mobilenet": (("model.width=0.1", "train.precision=float32", "expand.rate=1"), 5),
    "table3-shufflenet": (("train.precision=float32", "train.batch_size=32", "expand.rate=1"), 5),
    "table6-complexity": ((), 10),
    "figure3-training": (("train.gradient_confusion.pairs=2",), 4),
    "figure4-landscapes": (("train.landscape={points: 3, samples: 20, drawn: error}",), 4),
    "table7-memorisation": ((), 4),
    "table8-initialisation": ((), 8),
    "table9-rates": ((), 7),
}

PRINTED = {  # parameters in training, in the order of the table; see tests/passes/expand/test_tables.py
    "table6-complexity": [
        *(653250, 150346, 339402, 675914, 1742154),
        *(562954, 2171554, 8578066, 237722, 2070098),
    ],
    "table9-rates": [186982, 66186, 37912, 42810, 48428, 54766, 87318],
}


def test_every_expansion_is_here():
    found = sorted(path.stem for path in (CONFIGS / "expand").glob("*.yaml"))
    assert found == sorted([*EXPANSIONS, "table1-teacher", "table3-teacher", "table4-yolo-lite", "table5-unet"])


@pytest.mark.parametrize("name", EXPANSIONS)
def test_an_expansion_gives_its_table(call, tmp_path, name):
    classes(tmp_path / "data.h5", (3, 32, 32), 10)
    if name.startswith(("table1", "table3")):
        teacher = CONFIGS / "expand/table1-teacher.yaml"
        trained = call("train", teacher, *CIFAR, *SHORT, "--out", f"runs/{name[:6]}-teacher")
        assert trained.status == 0, trained.err
    changes, networks = EXPANSIONS[name]
    done = call("expand", CONFIGS / "expand" / f"{name}.yaml", *CIFAR, *SHORT, *changes, "--out", "expanded")
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "expanded/report.json").read_text())["details"]["networks"]
    assert len(found) == networks
    if name in PRINTED:
        assert [trials[0]["trained"]["parameters"] for trials in found.values()] == PRINTED[name]
    assert all(trial["differing predictions"] in (0, None) for trials in found.values() for trial in trials)
    assert (tmp_path / "expanded/training-curves.png").exists()


def test_the_detector_is_trained(call, tmp_path):
    for year in (2007, 2012):
        write_voc_detection(tmp_path / "data", draw(8, 64, year), "trainval", year=year)
    write_voc_detection(tmp_path / "data", draw(8, 64, 0), "test")
    small = ("data.workers=0", "data.size=64", "train.batch_size=4", "expand.rate=1")
    recipe = CONFIGS / "expand/table4-yolo-lite.yaml"
    done = call("expand", recipe, "data.classes=['0','1','2','3','4','5','6','7','8','9']", *small, *SHORT)
    assert done.status == 0, done.err
    assert "test map" in done.out


def test_the_segmenter_is_trained(call, tmp_path):
    for part in ("train", "val"):
        write_cityscapes(tmp_path / "data/cityscapes", draw(6, 32, 0), part)
    small = ("data.workers=0", "data.size=[32, 32]", "train.batch_size=3", "model.width=4", "expand.rate=1")
    done = call("expand", CONFIGS / "expand/table5-unet.yaml", *small, *SHORT)
    assert done.status == 0, done.err
    assert "test miou" in done.out
    assert "bottom.conv2" in done.out
    assert "0 predictions on the test set differ" in done.out


FEWER = "prune.compare.budget=[uniform, {kind: spectral, metric: entropy}]"
PRUNINGS = {  # recipe: (what makes it small, settings in its table at one size)
    "figure3.1-ratios": (("model.depth=10",), 3),
    "figure3.3-densenet-40": (("model.depth=10",), 21),
    "figure3.10-mobilenet-v2": (("model.width=0.1", FEWER), 2),
    "figure3.16-wide-resnet": (("model={kind: wide-resnet, depth: 10, widen: 1}", FEWER), 2),
    "figure3.25-vgg-19": (("model.width=0.1",), 2),
    "figure3.26-densenet-40": (("model.depth=10",), 4),
    "masks": (("model.width=0.1",), 4),
}


def test_every_study_of_pruning_is_here():
    assert sorted([*PRUNINGS, "one-shot"]) == sorted(path.stem for path in (CONFIGS / "prune").glob("*.yaml"))


def test_one_shot_without_labels(call, tmp_path):
    images(tmp_path / "data.h5", side=16)
    recipe, small = CONFIGS / "prune/one-shot.yaml", ("model.width=0.1", "report.latency_repeats=1")
    small = (*small, "data={kind: arrays, path: data.h5, validation: 32}", "train.schedule=cosine")
    assert call("train", recipe, *small, "train.epochs=1", "train.batch_size=32", "--out", "train").status == 0
    fewer = ("prune.samples=32", "prune.match={steps: 4, batch_size: 16}")
    pruned = call("prune", recipe, *small, *fewer, "-c", "train", "--out", "pruned")
    assert pruned.status == 0, pruned.err
    found = json.loads(Path("pruned/report.json").read_text())
    assert found["targets"][0]["met"]
    (repairs,) = [table for table in found["tables"] if table["title"] == "repairs"]
    assert {"cut", "norms", "parallel", "match"} <= {row[0] for row in repairs["rows"]}
    assert Path("pruned/sensitivity.png").exists()


@pytest.mark.parametrize("name", PRUNINGS)
def test_a_study_of_pruning_runs(call, tmp_path, name):
    images(tmp_path / "data.h5", side=32 if "vgg" in name else 16)
    recipe = CONFIGS / "prune" / f"{name}.yaml"
    changes, settings = PRUNINGS[name]
    small = (*changes, "data={kind: arrays, path: data.h5, augment: {flip: true, crop: 4, augmix: {}}}",
             "report.latency_repeats=1", "train.epochs=1", "train.batch_size=32")  # fmt: skip
    trained = call("train", recipe, *small, "--out", "train")
    assert trained.status == 0, trained.err
    fewer = ["prune.samples=32", "prune.compare.at=[60%]"]
    if name not in ("masks", "figure3.1-ratios"):
        fewer += ["prune.retrain.epochs=1", "prune.retrain.batch_size=32"]
    pruned = call("prune", recipe, *small, *fewer, "-c", "train", "--out", "pruned")
    assert pruned.status == 0, pruned.err
    found = json.loads(Path("pruned/report.json").read_text())
    assert found["targets"][0]["met"]
    assert len(found["details"]["comparison"][0]) == settings
    assert Path("pruned/comparison.png").exists()
    assert Path("pruned/comparison-alpha.png").exists() == ("3.25" in name)


TINY = {  # recipe: what makes each of its networks small, and the pictures that are its figures
    "figure2.1-widths": ({"model.width": 0.1}, ("comparison-gains.png",)),
    "figure2.3-maps": ({"model.width": 0.1}, ("comparison-rates.png", "layer-metrics.png")),
    "figure3.2-augmix": ({"model": {"kind": "convnet", "channels": [4, 4]}}, ("comparison-metrics.png",)),
}


def test_every_study_of_rates_is_here():
    found = sorted(path.stem for path in (CONFIGS / "rates").glob("*.yaml"))
    assert found == sorted([*TINY, "figure2.1-resnet"])


@pytest.mark.parametrize("name", TINY)
def test_a_study_of_rates_draws_its_figures(call, tmp_path, name):
    images(tmp_path / "data.h5", side=16)
    recipe = yaml.safe_load((CONFIGS / "rates" / f"{name}.yaml").read_text())
    changes, pictures = TINY[name]
    compare = recipe["train"]["compare"]
    networks = [*compare["rows"].values(), *compare.get("columns", {}).values()]
    for network in networks:  # of several sizes, one that is quick
        network |= {key: value for key, value in changes.items() if key in network}
    recipe["data"] = {"kind": "arrays", "path": "data.h5"}
    recipe["train"] |= {"epochs": 1, "batch_size": 32}
    recipe["model"] = changes.get("model", recipe["model"] | {"width": 0.1})
    Path("small.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    done = call("train", "small.yaml", "--quiet")
    assert done.status == 0, done.err
    found = json.loads(Path("runs/small-train/report.json").read_text())["details"]["compare"]
    assert len(found) == len(compare["rows"]) * len(compare.get("columns", [""]))
    for picture in pictures:
        assert (Path("runs/small-train") / picture).exists()


def test_the_recipes_of_rates_and_of_spectra_run(call, tmp_path):
    images(tmp_path / "data.h5")
    for name, shrink in (
        ("rates/figure2.1-resnet", "model.width=0.1"),
        ("spectra/through-training", "model.channels=[8, 8]"),
    ):
        recipe = CONFIGS / f"{name}.yaml"
        small = (shrink, "data={kind: arrays, path: data.h5}", "report.latency_repeats=1", "train.epochs=1",
                 "train.batch_size=32", "spectra.cka.batch_size=8")  # fmt: skip
        assert call("train", recipe, *small, "--out", f"{name}/train").status == 0
        found = call("spectra", recipe, *small, "-c", f"{name}/train", "--out", f"{name}/spectra")
        assert found.status == 0, found.err
        assert (Path(name) / "spectra/alpha-through-training.png").exists()
        assert (Path(name) / "spectra/cka.png").exists()


def images(path: Path, side: int = 32) -> None:
    """Bytes, as AugMix takes them."""
    with h5py.File(path, "w") as file:
        for group, count in (("train", 64), ("test", 32)):
            file[f"{group}/inputs"] = RANDOM.integers(0, 256, (count, 3, side, side), np.uint8)
            file[f"{group}/targets"] = np.arange(count) % 10
