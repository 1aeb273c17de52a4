"""scripts/compare_rivals.py: cells are measured once and hold what the nets give, and the page says what they hold."""

import copy
import importlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import compresskit
from compresskit.graph.trace import trace
from scripts import make_docs_results
from scripts.rivals.group_norm import resnet18
from tests.digits import write_digits
from tests.forked.start import commands, environment, python

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_rivals.py"
RECIPE = """\
description: a small net
model: {kind: convnet, channels: [4, 8], batch_norm: true}
data: {kind: arrays, path: digits.npz, add_channel: true, validation: 100}
train: {epochs: 2, batch_size: 25, optimizer: {kind: adam, lr: 5e-3}}
prune:
  target: {macs: 50%}
  criterion: backward
  budget: {kind: divergence, images: 50}
  repair: top-down
  samples: 60
  match: {steps: 5}
finetune: {epochs: 1, batch_size: 25, optimizer: {kind: adam, lr: 1e-3}}
"""
MODULES = ("bench", "cells", "measure", "methods", "packages", "page", "pictures", "tables")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with recipes/small.yaml and its run in runs/small-train."""
    folder = tmp_path_factory.mktemp("rivals")
    write_digits(folder / "digits.npz", 400, 200)
    (folder / "recipes").mkdir()
    (folder / "recipes/small.yaml").write_text(RECIPE)
    command = [commands() / "compresskit", "train", "recipes/small.yaml", "-q"]
    subprocess.run(command, cwd=folder, env=environment(), check=True)
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "here"))


@pytest.fixture
def rivals(monkeypatch) -> dict[str, ModuleType]:
    """The parts of the script, as it imports them."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    found = {name: importlib.import_module(f"rivals.{name}") for name in MODULES}
    yield found
    for name in [name for name in sys.modules if name.partition(".")[0] == "rivals"]:
        del sys.modules[name]


@pytest.fixture
def bench(rivals, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return rivals["bench"].Bench(Path("recipes/small.yaml"), Path("runs/small-train/model.pt"))


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return python(SCRIPT, "--recipes", "recipes", "--cells", "cells", *options, cwd=folder)


def cell(folder: Path, method: str, size: int = 50) -> dict:
    return json.loads((folder / f"cells/small/{method}-{size}/cell.json").read_text())


def test_ours_is_measured_once_and_then_what_is_missing_alone(folder):
    asked = ("--methods", "ours", "magnitude-repaired", "--sizes", "50")
    done = run(folder, *asked, "--epochs")
    assert done.returncode == 0, done.stderr
    ours, other = cell(folder, "ours"), cell(folder, "magnitude-repaired")
    assert [stage["stage"] for stage in ours["stages"]] == [
        "cut",
        "norms",
        "top-down",
        "norms behind top-down",
        "match",
    ]
    assert "match" not in {stage["stage"] for stage in other["stages"]}
    assert {stage["candidate"] for stage in other["stages"]} <= {"local", "global"}
    assert 0.2 < ours["macs"] <= 0.5
    original = json.loads((folder / "cells/small/original.json").read_text())
    report = json.loads((folder / "runs/small-train/report.json").read_text())
    assert original["accuracy"] == report["figures"][0]["after"][0]
    assert sorted(path.name for path in (folder / "cells/small/ours-50").iterdir()) == ["cell.json", "model.pt"]

    again = run(folder, *asked, "--epochs", "2")
    assert again.returncode == 0, again.stderr
    more = cell(folder, "ours")
    assert more["stages"][:-1] == ours["stages"]
    assert (more["stages"][-1]["stage"], more["seconds"]) == ("2 epochs", ours["seconds"])
    other = run(folder, "prune.samples=50", *asked, "--epochs")
    assert other.returncode == 1
    assert "its cells are of other weights, data or settings of prune and finetune" in other.stderr
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*-50/*")}
    assert run(folder, *asked, "--epochs", "2").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*-50/*")} == before


def test_the_net_that_is_kept_is_the_one_that_was_told_of(bench, rivals, folder):
    found = rivals["measure"].measure(bench, "ours", 50, [], folder / "cells")
    network = compresskit.load(folder / "cells/small/ours-50/model.pt")
    told = [stage for stage in found.stages if stage["taken"]][-1]
    assert bench.accuracy(network) == told["accuracy"]
    assert bench.held_out(network) == told["held_out"]
    assert bench.macs(network) == pytest.approx(found.macs)
    assert sum(p.numel() for p in network.parameters()) == found.parameters


def half(bench, ratio: float, whole: bool) -> nn.Module:
    """A package that keeps the first channels of conv1; with new weights where it is `whole`."""
    model, kept = bench.module(), max(1, round(4 * (1 - ratio)))
    old, norm, behind = model.conv1, model.norm1, model.conv2
    model.conv1 = nn.Conv2d(1, kept, 3, padding=1)
    model.norm1 = nn.BatchNorm2d(kept)
    model.conv2 = nn.Conv2d(kept, 8, 3, padding=1)
    with torch.no_grad():
        model.conv2.weight.copy_(behind.weight[:, :kept])
        model.conv2.bias.copy_(behind.bias)
        if not whole:
            model.conv1.weight.copy_(old.weight[:kept])
            model.conv1.bias.copy_(old.bias[:kept])
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(model.norm1, name).copy_(getattr(norm, name)[:kept])
    return model.eval()


def test_of_a_packages_settings_validation_images_choose(bench, rivals, folder, monkeypatch):
    package = rivals["methods"].Package("half", half, ())
    monkeypatch.setitem(rivals["methods"].METHODS, "half", package)
    found = rivals["measure"].measure(bench, "half", 60, [1], folder / "cells")
    assert [(stage["stage"], stage["candidate"]) for stage in found.stages[:-1]] == [
        ("cut", "local"),
        ("norms", "local"),
    ]
    assert found.stages[-1]["stage"] == "1 epoch"
    kept = rivals["packages"].at_size(bench, 0.6, lambda ratio: half(bench, ratio, False))
    assert kept.conv1.out_channels == 2  # 3 leave more than 60 % of the MACs
    assert bench.macs(kept) == pytest.approx(found.macs)
    assert bench.held_out(trace(kept)) == found.stages[0]["held_out"]
    assert found.stages[1]["accuracy"] != found.stages[0]["accuracy"]
    network = compresskit.load(folder / "cells/small/half-60/model.pt")  # with the norms, before fine-tuning
    assert bench.accuracy(network) == found.stages[1]["accuracy"]


def test_what_stops_a_package_is_a_result(bench, rivals, folder, monkeypatch):
    def broken(bench, ratio, whole):
        raise IndexError("out of\nrange")

    methods = rivals["methods"]
    monkeypatch.setitem(methods.METHODS, "broken", methods.Package("broken", broken, ()))
    monkeypatch.setitem(methods.METHODS, "idle", methods.Package("idle", lambda bench, *_: bench.module(), ()))
    measure = rivals["measure"].measure
    assert measure(bench, "broken", 50, [1], folder / "cells").failed == "IndexError: out of"
    refused = measure(bench, "idle", 50, [1], folder / "cells").failed
    assert refused == (
        "Refused: local: no ratio up to 0.99 leaves 50% of the MACs or less; "
        "global: no ratio up to 0.99 leaves 50% of the MACs or less"
    )
    assert cell(folder, "broken")["stages"] == []


def test_a_size_out_of_reach_is_a_result_of_ours_too(bench, rivals, folder, capfd):
    found = rivals["measure"].measure(bench, "ours", 0.01, [1], folder / "cells")
    assert found.failed == "Refused: divergence: compresskit prune refused; it says why above"
    assert "what can be reached lies from" in capfd.readouterr().err


def test_a_candidate_of_ours_that_is_refused_leaves_the_others(bench, rivals, folder, monkeypatch):
    plain = ("prune.criterion=magnitude", "prune.budget=uniform", "prune.repair=none", "~prune.match")
    verb = rivals["methods"].Verb("two", {"never": (*plain, "prune.min_channels=1000"), "well": plain})
    monkeypatch.setitem(rivals["methods"].METHODS, "two", verb)
    found = rivals["measure"].measure(bench, "two", 60, [], folder / "cells")
    assert found.failed is None
    assert {stage["candidate"] for stage in found.stages} == {"well"}


def test_a_fault_of_ours_is_no_result(bench, rivals, folder, monkeypatch):
    def broken(*_):
        raise IndexError("out of range")

    monkeypatch.setattr(type(bench), "run", broken)
    with pytest.raises(IndexError):
        rivals["measure"].measure(bench, "ours", 50, [], folder / "cells")
    assert not list((folder / "cells/small/ours-50").glob("cell.json"))


def test_ratios_are_searched_where_more_of_them_does_not_leave_less(bench, rivals):
    def make(ratio: float) -> nn.Module:  # from 0.7 on everything is left whole
        return half(bench, ratio if ratio < 0.7 else 0.0, False)

    assert rivals["packages"].at_size(bench, 0.6, make).conv1.out_channels == 2


def test_squares_of_single_images_gradients(bench):
    network = copy.deepcopy(bench.network).double().eval()
    sums = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    means = copy.deepcopy(sums)
    for image, label in bench.images.batches(1, torch.device("cpu")):
        network.zero_grad()
        cross_entropy(network(image.double()), label).backward()
        for name, p in network.named_parameters():
            sums[name] += p.grad**2 / 60
            means[name] += p.grad / 60
    assert len(bench.images) == 60
    for name in sums:  # float32 against float64
        torch.testing.assert_close(bench.squared_gradients[name].double(), sums[name], rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(bench.gradients[name].double(), means[name], rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # packages warn of their own affairs
@pytest.mark.parametrize("method", ["tp-magnitude", "tp-taylor", "tp-hessian", "fasterai"])
def test_packages(bench, rivals, folder, method):
    if missing := rivals["methods"].lacking(rivals["methods"].METHODS[method]):
        pytest.skip(f"{', '.join(missing)} cannot be imported")
    found = rivals["measure"].measure(bench, method, 50, [], folder / "cells")
    assert found.failed is None
    assert found.macs <= 0.5
    assert [stage["stage"] for stage in found.stages] == ["cut", "norms"]


def test_what_cannot_be_imported_or_is_not_trained_is_said(folder, rivals, monkeypatch, capsys):
    compare = importlib.import_module("compare_rivals")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("rivals.methods.find_spec", lambda name: None if name == "fastai" else find_spec("json"))
    assert compare.importable(["ours", "fasterai"]) == ["ours"]
    assert "fasterai: left out: fastai cannot be imported" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["compare_rivals.py", "--recipes", "recipes", "--runs", "elsewhere"])
    threads = torch.get_num_threads()
    assert compare.main() == 1
    torch.set_num_threads(threads)
    assert "small: no elsewhere/small-train/model.pt; compresskit train recipes/small.yaml makes it" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(sys, "argv", ["compare_rivals.py", "--recipes", "recipes", "--nets", "other"])
    with pytest.raises(SystemExit, match="other: no recipe in recipes, which has small"):
        compare.main()


def stage(name: str, accuracy: float, **more: object) -> dict:
    return {"stage": name, "accuracy": accuracy, "seconds": 1.0, "taken": True} | more


@pytest.fixture
def page(rivals, tmp_path, monkeypatch) -> Path:
    """The folder of the documentation that is made of a few cells."""
    cells = rivals["cells"]
    cells.write_original(tmp_path, "small", {"label": "Small", "accuracy": 0.9, "parameters": 10, "macs": 1000})
    ours = [stage("cut", 0.3), stage("norms", 0.5), stage("top-down", 0.8), stage("match", 0.7, taken=False)]
    matched = [*ours[:-1], stage("match", 0.83)]
    taylor = [stage("cut", 0.2), stage("norms", 0.85), stage("1 epoch", 0.86)]
    given = [
        cells.Cell("small", "ours", 50, 0.49, 5, [*matched, stage("1 epoch", 0.88)], seconds=12.0),
        cells.Cell("small", "ours", 30, 0.25, 3, ours),
        cells.Cell("small", "tp-taylor", 50, 0.48, 5, taylor, {"torch": "2.1", "torch-pruning": "1.6"}, 3.0),
        cells.Cell("small", "tp-taylor", 30, 0.25, 5, [], {"torch": "2.0", "torch-pruning": "1.6"}),
        cells.Cell("small", "tp-hessian", 50, failed="IndexError: a|b"),
        cells.Cell("small", "ours", 10, 0.1, 1, ours),  # no size of the page
        cells.Cell("other", "ours", 50, 0.49, 5, ours),  # no recipe of this page
    ]
    for one in given:
        one.write(tmp_path)
    recipes = {"small": Path("small.yaml"), "unmeasured": Path("unmeasured.yaml")}
    written = list(rivals["page"].write_page(tmp_path, recipes, tmp_path / "docs"))
    assert [path.relative_to(tmp_path / "docs") for path in written] == [
        Path("results/raw/rivals.json"), Path("pictures/rivals-small.png"),
    ]  # fmt: skip
    assert written[1].read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(make_docs_results, "PAGES", tmp_path / "docs/results")
    return tmp_path / "docs"


def rows_of(title: str, columns: str) -> list[str]:
    text = f"<!-- table\nraw: rivals\ntitle: {title}\ncolumns: {{{columns}}}\n-->\n<!-- end of table -->\n"
    return [line for line in make_docs_results.with_tables(text).splitlines() if line.startswith("| ")][2:]


def test_a_nets_table_has_its_cells_and_says_what_is_missing(page):
    rows = rows_of("Small", "method: method, stage: stage, 70 %: large, 50 %: half, 30 %: small")
    assert "| compresskit | top-down | – | 0.8000 | **0.8000** |" in rows
    assert "| compresskit | match | – | 0.8300 | 0.7000 (not taken) |" in rows
    assert "| compresskit | parallel | – | – | – |" in rows
    assert "| compresskit | 1 epoch | – | **0.8800** | – |" in rows
    assert "| Torch-Pruning, Taylor | norms | – | **0.8500** | – |" in rows
    assert "| Torch-Pruning, Taylor | 1 epoch | – | 0.8600 | – |" in rows
    assert "| Torch-Pruning, Hessian | norms | – | fails | – |" in rows


def test_the_other_tables(page):
    assert rows_of("ahead", "ours: ours, packages: theirs, 50 %: half, 30 %: small") == [
        "| before match | none | -5.00 (Torch-Pruning, Taylor) | – |",
        "| match | none | -2.00 (Torch-Pruning, Taylor) | – |",
        "| match | 1 epoch | -3.00 (Torch-Pruning, Taylor) | – |",
        "| 1 epoch | 1 epoch | +2.00 (Torch-Pruning, Taylor) | – |",
        "| 3 epochs | 3 epochs | – | – |",
    ]
    assert rows_of("nets", "net: net, test accuracy: accuracy, cells: cells") == ["| Small | 0.9000 | 5 of 28 |"]
    assert rows_of("failed", "net: net, method: method, MACs: MACs, what it said: said") == [
        "| Small | Torch-Pruning, Hessian | 50 % | IndexError: a/b |"
    ]
    assert rows_of("versions", "package: package, version: version") == [
        "| torch | 2.0, 2.1 |", "| torch-pruning | 1.6 |",
    ]  # fmt: skip
    raw = json.loads((page / "results/raw/rivals.json").read_text())
    assert [(one["method"], one["size"]) for one in raw["cells"]] == [
        ("ours", 30), ("ours", 50), ("tp-hessian", 50), ("tp-taylor", 30), ("tp-taylor", 50),
    ]  # fmt: skip


def test_points_of_a_picture(page, rivals):
    cells = {(one.method, one.size): one for one in rivals["cells"].every_cell(page.parent) if one.net == "small"}
    assert rivals["pictures"].points(cells, "none") == {
        "ours": [(10.0, 0.8), (25.0, 0.8), (49.0, 0.83)], "tp-taylor": [(48.0, 0.85)],
    }  # fmt: skip
    assert rivals["pictures"].points(cells, "1 epoch") == {"ours": [(49.0, 0.88)], "tp-taylor": [(48.0, 0.86)]}


def test_the_net_with_group_norm():
    network = resnet18(0.25, 10)
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert (len(norms), {norm.num_channels // norm.num_groups for norm in norms}) == (20, {8})
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
