"""`spectra.isometry` on the data of the other commands' tests: tables, files, networks beside, and refusals."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from compresskit.graph.masks import apply_masks
from compresskit.storage.checkpoint import load, save
from tests.commands.conftest import program, report
from tests.commands.test_bad_input import refused


def arrays_of(folder: str) -> dict[str, np.ndarray]:
    with np.load(Path(folder) / "singular-values.npz") as file:
        return dict(file)


NET = """\
model: {kind: mlp, widths: [24, 24, 16], activation: tanh}
data: {kind: mnist-mini, limit: 600, validation: 200}
spectra:
  min_eigenvalues: 4
  isometry:
    images: 4
    compare:
      wide: {model.widths: [32, 32]}
      relu: {model.activation: relu}
report: {latency_repeats: 1}
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(NET)
    return path


def rows(folder: str) -> dict[tuple[str, str], dict[str, str]]:
    with (Path(folder) / "isometry.csv").open() as file:
        return {(row["network"], row["layer"]): row for row in csv.DictReader(file)}


def table(folder: str, title: str) -> list[list]:
    (found,) = (table for table in report(folder)["tables"] if table["title"].startswith(title))
    return found["rows"]


def test_the_installed_program_compares_networks(net, tmp_path):
    done = program("spectra", "net.yaml", "--out", "out", cwd=tmp_path)
    assert done.status == 0, done.err
    out = str(tmp_path / "out")
    names = {path.name for path in Path(out).iterdir()}
    assert names >= {
        *("isometry.csv", "singular-values.npz"),
        *("isometry-depth.png", "isometry-layer.png", "reachability.png"),
    }
    found, arrays = rows(out), arrays_of(out)
    layers = {"net": ["fc1", "fc2", "fc3", "head"], "relu": ["fc1", "fc2", "fc3", "head"]}
    layers["wide"] = ["fc1", "fc2", "head"]
    assert list(found) == [(name, x) for name in ("net", "wide", "relu") for x in (*layers[name], "output")]
    for (name, layer), row in found.items():
        depth = arrays[f"{name}/{layer}/depth"]
        assert float(row["depth mean"]) == pytest.approx(depth.mean())
        assert float(row["depth variance"]) == pytest.approx(depth.var())
        if layer != "output":
            own = arrays[f"{name}/{layer}/own"]
            assert own.shape == (4, min(int(row["outputs"]), int(row["inputs"])))
            assert (float(row["smallest"]), float(row["largest"])) == (
                pytest.approx(own.min()),
                pytest.approx(own.max()),
            )
            assert float(row["p"]) == pytest.approx(
                report(out)["details"]["isometry"][name]["layers"][int(row["number"]) - 1]["p"]
            )
    head = [float(row["depth mean"]) for (name, layer), row in found.items() if (name, layer) == ("net", "head")]
    first, *others = table(out, "isometry: output by input")
    assert first[:2] == ["net", pytest.approx(head[0])]
    assert first[-1] == "1: fc2"
    assert [row[0] for row in others] == ["wide", "relu"]
    assert [row[0] for row in table(out, "isometry: layers of net")] == layers["net"]
    assert "4 test images" in done.out


def test_a_checkpoint_is_looked_at_with_its_masks(call, recipe, trained):
    recipe.write_text(recipe.read_text() + "spectra: {min_eigenvalues: 4, isometry: {images: 3, start: conv2}}\n")
    checkpoint = load(trained / "runs/net-train/model.pt")
    mask = torch.zeros(8, 4, 1, 1, dtype=torch.bool)
    mask[:4, :2] = True
    checkpoint.masks = {"conv2.weight": mask.expand(8, 4, 3, 3).contiguous()}
    apply_masks(checkpoint.network, checkpoint.masks)
    save(checkpoint, Path("masked.pt"))
    outcome = call("spectra", recipe, "-c", "masked.pt", "--out", "out")
    assert outcome.status == 0, outcome.err
    found = rows("out")
    missing = {layer: row["disconnected"] for (_, layer), row in found.items()}
    assert missing == {"conv1": "", "conv2": "24", "head": "20", "output": ""}  # two of four channels go on
    assert found["net", "conv1"]["depth mean"] == ""
    assert table("out", "isometry: output by input")[0][-1] == "never; 20 pairs missing at head"


def test_large_jacobians_are_estimated_and_said_to_be(call, recipe):
    recipe.write_text(
        recipe.read_text() + "spectra: {min_eigenvalues: 4, isometry: {images: 2, exact: 20, probes: 2, steps: 10}}\n"
    )
    outcome = call("spectra", recipe, "--out", "out")
    assert outcome.status == 0, outcome.err
    found = rows("out")
    assert [row["estimated"] for row in found.values()] == ["True", "True", "False", ""]
    assert found["net", "conv2"]["p"] == ""
    assert "~: estimated, since a Jacobian's sides are both above 20" in outcome.out
    assert table("out", "isometry: layers of net")[0][0] == "conv1 ~"
    arrays = arrays_of("out")
    np.testing.assert_allclose(arrays["net/conv2/own/weights"].sum(1), 1)


def test_a_dry_run_shows_the_jacobians_and_writes_nothing(call, net, tmp_path):
    outcome = call("spectra", net, "spectra.isometry.exact=16", "--dry-run", "--json")
    _, planned, beside = json.loads(outcome.out)["tables"]
    assert beside["rows"][0] == ["net", "the recipe"]
    assert beside["rows"][1] == ["wide", 'the recipe with {"model.widths": [32, 32]}']
    assert planned["rows"][0] == ["net", "fc1", "24×784", "estimated", "24×784", "estimated"]
    assert planned["rows"][4] == ["net", "output", "", "", "10×784", "exact"]
    assert [path.name for path in tmp_path.iterdir()] == ["net.yaml"]


def test_reachability_that_is_not_known_ends_no_run(call, net):
    net.write_text("model: {kind: mlp, widths: [24], activation: relu}\n" + NET.split("\n", 1)[1])
    outcome = call("spectra", net, "spectra.isometry.compare={}", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert report("out")["skipped"]["reachability of net"].startswith("no layer has as many outputs as inputs")
    assert not Path("out/reachability.png").exists()


def test_more_images_than_there_are(call, net):
    outcome = call(
        "spectra", net, "spectra.isometry={images: 100000, layers: [head], reachability: false}", "--out", "out"
    )
    assert outcome.status == 0, outcome.err
    count = len(arrays_of("out")["net/head/own"])
    assert 4 < count < 100000
    assert f"singular values at {count} test images" in outcome.out


def test_refusals(call, net, trained, tmp_path):
    key = "spectra.isometry"
    bare = tmp_path / "bare.yaml"
    bare.write_text("model: {kind: mlp, widths: [8]}\nspectra: {isometry: {}}\n")
    refused(call("spectra", bare), 2, key, "Jacobians are taken at images", "`data:`")
    refused(call("spectra", net, f"{key}.start=fc9"), 2, key, "start", "'fc9'", "did you mean")
    refused(call("spectra", net, f"{key}.layers=[hed]"), 2, key, "'hed'", "'head'")
    refused(call("spectra", net, f"{key}.compare={{net: {{seed: 1}}}}"), 2, f"{key}.compare", "'net'", "another name")
    refused(call("spectra", net, f"{key}.compare={{a/b: {{seed: 1}}}}"), 2, f"{key}.compare", "'a/b'", "slash")
    refused(call("spectra", net, f"{key}.compare={{x: {{model.width: 3}}}}"), 2, f"{key}.compare.x", "widths")
    other = f"{key}.compare={{x: {{data.limit: 500}}}}"
    refused(call("spectra", net, other), 2, f"{key}.compare.x", "the same images")
    short = f"{key}.compare={{x: {{model.widths: [4], {key}.layers: [head]}}}}"
    refused(call("spectra", net, f"{key}.layers=[fc3]", short), 2, f"{key}.compare.x", "'fc3'")
    torch.save({"fc.weight": torch.ones(8, 8)}, "bare.pt")
    bare.write_text("data: {kind: mnist-mini, limit: 600, validation: 200}\nspectra: {isometry: {}}\n")
    refused(call("spectra", bare, "-c", "bare.pt"), 2, key, "a state dict has no layers to run")
    np.savez("a.npz", inputs=np.ones((20, 5), np.float32), targets=np.arange(20) % 10)
    bare.write_text("data: {kind: arrays, path: a.npz}\nspectra: {isometry: {}}\n")
    refused(call("spectra", bare, "-c", trained / "runs/net-train"), 2, key, "inputs of shape (5,)")
    assert not (tmp_path / "runs").exists()


SAO = """\
model: {kind: mlp, widths: [32, 16, 16, 16, 16], activation: tanh}
data: {kind: mnist-mini, limit: 600, validation: 200}
train: {init: {kind: sao, degree: 4, layers: ["re:fc[2-5]"]}}
spectra:
  min_eigenvalues: 4
  isometry: {images: 2, compare: {grouped: {train.layout: grouped}}}
report: {plots: false}
"""


def test_layers_of_a_stack_are_looked_at_one_by_one(call, tmp_path):
    """Grouped or masked, it is the same network, with as many layers; by --seed, too."""
    (tmp_path / "sao.yaml").write_text(SAO)
    outcome = call("spectra", "sao.yaml", "--seed", 3, "--out", "out")
    assert outcome.status == 0, outcome.err
    found = rows("out")
    masked, grouped = ([row for (name, _), row in found.items() if name == own] for own in ("sao", "grouped"))
    assert [row["layer"] for row in grouped] == ["fc1", "fc2", "fc3", "fc4.0", "fc4.1", "head", "output"]
    for one, other in zip(masked, grouped, strict=True):
        for figure in ("mean", "variance", "depth mean", "depth variance"):
            if one[figure]:
                assert float(other[figure]) == pytest.approx(float(one[figure]), rel=1e-5, abs=1e-7)  # float32 weights
    tables = {row[0]: row for row in table("out", "isometry: output by input")}
    assert tables["sao"][-1].split(":")[0] == tables["grouped"][-1].split(":")[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.init=expandnet", "expand={strategy: fc}"], ("train.init: expandnet needs the verb `train`",)),
        (
            ["~train.init", "train.mask={kind: ramanujan, degree: 4, layers: [fc3], when: after}"],
            ("train.mask.when: after needs the verb `train`",),
        ),
        (["~data", "~spectra.isometry"], ("spectra: `train` draws or masks layers for the shapes of data",)),
        (
            ["spectra.isometry.compare={odd: {train.init.degree: 3}}"],
            ("spectra.isometry.compare.odd: train.init: fc2: degree 3 does not divide",),
        ),
    ],
)
def test_starts_that_cannot_be_looked_at(call, tmp_path, overrides, words):
    (tmp_path / "sao.yaml").write_text(SAO)
    refused(call("spectra", "sao.yaml", *overrides), 2, *words)


GRID = """\
model: {kind: fnn, depth: 4}
data: {kind: mnist-mini, limit: 200, validation: 50}
train:
  epochs: 1
  batch_size: 50
  init: {kind: sao, degree: 4, gain: 1.1}
  layout: grouped
  compare:
    rows:
      Dense: {train.init: {kind: orthogonal, gain: 1.1}, train.layout: masked}
      GMP-T / all:
        train.init: {kind: orthogonal, gain: 1.1}
        train.mask: {kind: weights, target: {sparsity: 90%}, dense: [head], when: after}
        train.layout: masked
      SAO: {}
    columns: {N = 4: {}, N = 3: {model.depth: 3}}
spectra:
  isometry: {images: 2, start: fc3}
report: {latency_repeats: 1}
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with grid.yaml and the trained networks of its comparison in runs/grid."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "grid.yaml").write_text(GRID)
    done = program("train", "grid.yaml", "--out", "runs/grid", cwd=folder)
    assert done.status == 0, done.err
    return folder


def test_trained_networks_are_compared_by_their_checkpoints(call, grid, tmp_path):
    """Each as if it alone were looked at, with its masks."""
    cells = {"dense": "dense/n-4", "gmp": "gmp-t-all/n-4"}
    compare = {name: str(grid / "runs/grid/compare" / cell) for name, cell in cells.items()}
    compare["file"] = str(grid / "runs/grid/compare/dense/n-4/model.pt")
    recipe = grid / "grid.yaml"
    command = ("spectra", recipe, "-c", grid / "runs/grid", f"spectra.isometry.compare={json.dumps(compare)}")
    planned = call(*command, "--dry-run", "--json")
    assert planned.status == 0, planned.err
    (names,) = (one for one in json.loads(planned.out)["tables"] if one["title"] == "isometry: networks")
    assert names["rows"][1] == ["dense", compare["dense"]]
    outcome = call(*command, "--out", "out")
    assert outcome.status == 0, outcome.err
    arrays = arrays_of("out")
    for name, cell in cells.items():
        alone = call("spectra", recipe, "-c", grid / "runs/grid/compare" / cell, "--out", name)
        assert alone.status == 0, alone.err
        for layer in ("fc4", "output"):
            np.testing.assert_array_equal(arrays[f"{name}/{layer}/depth"], arrays_of(name)[f"grid/{layer}/depth"])
        assert rows("out")[name, "fc4"]["disconnected"] == rows(name)["grid", "fc4"]["disconnected"]
    np.testing.assert_array_equal(arrays["file/output/depth"], arrays["dense/output/depth"])
    assert int(rows("out")["gmp", "fc3"]["disconnected"]) > 0
    assert not any("as training would start" in note for note in report("out")["notes"])
    inside = call(*command, "--out", grid / "runs/grid/compare/dense")
    refused(inside, 1, "it holds the input")


def test_a_grid_of_trained_networks_is_looked_at_by_one_command(call, grid, monkeypatch):
    drawn: list[dict] = []
    monkeypatch.setattr("compresskit.commands.spectra.isometry.by_column", lambda _, cells: drawn.append(cells))
    outcome = call("spectra", grid / "grid.yaml", f"spectra.isometry.grid={grid / 'runs/grid'}", "--out", "out")
    assert outcome.status == 0, outcome.err
    names = [f"{row}, {column}" for row in ("Dense", "GMP-T _ all", "SAO") for column in ("N = 4", "N = 3")]
    assert [row[0] for row in table("out", "isometry: output by input")] == ["grid", *names]
    ends = arrays_of("out")
    (cells,) = drawn
    assert {f"{row}, {column}".replace("/", "_") for row, column in cells} == set(names)
    for (row, column), one in cells.items():
        values = ends[f"{row}, {column}".replace("/", "_") + "/output/depth"]
        np.testing.assert_array_equal(one.end.values.cpu().numpy(), values)
    alone = call("spectra", grid / "grid.yaml", "-c", grid / "runs/grid/compare/dense/n-3", "--out", "alone")
    assert alone.status == 0, alone.err
    np.testing.assert_array_equal(ends["Dense, N = 3/output/depth"], arrays_of("alone")["grid/output/depth"])
    layers = [layer for name, layer in rows("out") if name == "SAO, N = 3"]
    assert layers[:2] == ["fc1", "fc2"]
    assert ", ".join(names) + " as its checkpoint has it" in " ".join(report("out")["notes"])


def test_a_cell_that_diverged_is_left_out(call, grid, tmp_path):
    shutil.copytree(grid / "runs/grid", "run")
    shutil.rmtree("run/compare/dense/n-3")
    told = json.loads(Path("run/report.json").read_text())
    (cell,) = (one for one in told["details"]["compare"] if one["folder"] == "compare/dense/n-3")
    cell["trained"] = False
    Path("run/report.json").write_text(json.dumps(told))
    outcome = call("spectra", grid / "grid.yaml", "spectra.isometry.grid=run", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert Path("out/isometry-grid.png").stat().st_size > 1000
    assert "Dense, N = 3" not in {row[0] for row in table("out", "isometry: output by input")}


def test_checkpoints_that_cannot_be_compared(call, grid, trained, tmp_path):
    key, recipe = "spectra.isometry", grid / "grid.yaml"
    refused(call("spectra", recipe, f"{key}.compare={{x: no-run}}"), 1, f"{key}.compare.x: no-run", "no such file")
    (tmp_path / "empty").mkdir()
    refused(call("spectra", recipe, f"{key}.compare={{x: empty}}"), 1, f"{key}.compare.x: empty", "no model.pt")
    refused(call("spectra", recipe, f"{key}.grid=empty"), 1, f"{key}.grid: empty", "no run of `train.compare`")
    shutil.copytree(grid / "runs/grid", "moved")
    shutil.rmtree("moved/compare/dense/n-3")
    refused(call("spectra", recipe, f"{key}.grid=moved"), 1, f"{key}.grid, Dense, N = 3: moved/compare/dense/n-3")
    alone = trained / "runs/net-train"
    refused(call("spectra", recipe, f"{key}.grid={alone}"), 1, f"{key}.grid", "no run of `train.compare`")
    refused(call("spectra", recipe, f"{key}.compare={{x: {alone}}}"), 2, f"{key}.compare.x: start", "'fc3'")
    named = f"{key}.compare={{'SAO, N = 4': {alone}}}"
    refused(
        call("spectra", recipe, named, "~spectra.isometry.start", f"{key}.grid={grid / 'runs/grid'}"),
        *(2, f"{key}.grid: 'SAO, N = 4'", "rename"),
    )
    np.savez("a.npz", inputs=np.ones((20, 1, 12, 12), np.float32), targets=np.arange(20) % 10)
    other = call("spectra", recipe, "data={kind: arrays, path: a.npz}", f"{key}.compare={{x: {alone}}}")
    assert other.status == 1
    assert f"error: {key}.compare.x: {alone}" in other.err
    assert "made for classification of inputs (1, 28, 28)" in other.err


def test_a_trained_net_beside_untrained_ones_is_said_to_be_one(call, net, tmp_path):
    assert program("train", net, "train={epochs: 1, batch_size: 64}", "--quiet", cwd=tmp_path).status == 0
    said = "isometry: net as its checkpoint has it, trained, and wide, relu as training would start it"
    notes = {}
    for name, source in {"trained": ("-c", "runs/net-train"), "fresh": ()}.items():
        assert call("spectra", net, *source, "--out", name, "--quiet").status == 0
        notes[name] = json.loads(Path(f"{name}/report.json").read_text())["notes"]
    assert any(note.startswith(said) for note in notes["trained"])
    assert not any("trained" in note and note.startswith("isometry") for note in notes["fresh"])
