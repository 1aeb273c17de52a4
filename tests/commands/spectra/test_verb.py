"""`compresskit spectra` on checkpoints, state dicts and named models: its table, its files and its refusals."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compresskit.models.torchvision_zoo import Torchvision
from compresskit.storage.checkpoint import load, save
from tests.commands.conftest import report
from tests.commands.test_bad_input import refused

SPECTRA = "spectra: {min_eigenvalues: 4}\n"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "bare.yaml"
    path.write_text(SPECTRA)
    return path


def rows(folder: str) -> dict[str, dict[str, str]]:
    with (Path(folder) / "spectra.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_a_checkpoint_gives_table_files_and_plots(call, bare, trained, tmp_path):
    outcome = call("spectra", bare, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    names = {path.name for path in Path("out").iterdir()}
    assert names >= {
        "spectra.csv",
        "eigenvalues.npz",
        "report.json",
        "report.md",
        "densities.png",
        "alpha-by-depth.png",
    }
    network = load(trained / "runs/net-train/model.pt").network
    found = rows("out")
    with np.load("out/eigenvalues.npz") as file:
        eigenvalues = dict(file)
    assert list(found) == list(eigenvalues) == ["conv1", "conv2", "head"]
    head = network.get_submodule("head").weight.detach().double().numpy()
    expected = np.sort(np.linalg.svd(head, compute_uv=False) ** 2)
    np.testing.assert_allclose(eigenvalues["head"], expected, rtol=1e-9)
    assert float(found["head"]["norm"]) == pytest.approx(expected.sum())
    assert found["conv2"]["shape"] == "8x4x3x3"
    layers = report("out")["details"]["layers"]
    assert [layer["alpha"] for layer in layers] == [pytest.approx(float(row["alpha"])) for row in found.values()]
    alphas = [row[2] for row in report("out")["tables"][0]["rows"]]
    assert alphas == sorted(alphas)
    assert "its alpha says little" in outcome.out


def test_every_epoch_that_was_kept_has_its_alphas(call, recipe, bare):
    trained = call("train", recipe, "train.keep=all", "--out", "kept")
    assert trained.status == 0, trained.err
    assert sorted(path.name for path in Path("kept/weights").iterdir()) == [f"epoch-{n:04}.pt" for n in range(3)]
    last = torch.load("kept/weights/epoch-0002.pt", weights_only=True)
    torch.testing.assert_close(last["head.weight"], load(Path("kept/model.pt")).network.state_dict()["head.weight"])
    outcome = call("spectra", bare, "-c", "kept", "--out", "out")
    assert outcome.status == 0, outcome.err
    by_epoch = report("out")["details"]["alpha by epoch"]
    assert list(by_epoch) == ["0", "1", "2"]
    assert by_epoch["2"]["head"] == pytest.approx(float(rows("out")["head"]["alpha"]), rel=1e-6)
    assert by_epoch["0"] != by_epoch["2"]
    assert Path("out/alpha-through-training.png").exists()


@pytest.mark.parametrize("form", ["pt", "safetensors", "nested"])
def test_a_bare_state_dict_needs_no_model(call, bare, form):
    torch.manual_seed(0)
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(40, 12)).state_dict()
    path = Path(f"weights.{'safetensors' if form == 'safetensors' else 'pt'}")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if form == "nested" else state, path)
    outcome = call("spectra", bare, "-c", path, "--out", "out")
    assert outcome.status == 0, outcome.err
    assert {name: row["kind"] for name, row in rows("out").items()} == {"0": "conv", "2": "linear"}


def test_of_several_state_dicts_the_report_names_the_one_that_was_taken(call, bare):
    state = nn.Linear(40, 12).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": {name: 2 * value for name, value in state.items()}}, "both.pt")
    outcome = call("spectra", bare, "-c", "both.pt", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert "both.pt: the averaged weights (state_dict_ema) were taken" in Path("out/report.md").read_text()


def test_a_named_model_needs_neither_checkpoint_nor_data(call, bare):
    bare.write_text("model: {kind: torchvision, name: squeezenet1_1}\nspectra: {layers: ['re:features.3.*']}\n")
    outcome = call("spectra", bare, "--out", "out")
    assert outcome.status == 0, outcome.err
    assert "random weights" in outcome.out
    assert list(rows("out")) == [f"features.3.{part}" for part in ("squeeze", "expand1x1", "expand3x3")]


def test_a_net_of_zeros_and_nan_has_a_table(call, bare, trained):
    checkpoint = load(trained / "runs/net-train/model.pt")
    checkpoint.network.get_submodule("conv2").weight.data.zero_()
    checkpoint.network.get_submodule("head").weight.data[0, 0] = math.nan
    save(checkpoint, Path("broken.pt"))
    outcome = call("spectra", bare, "-c", "broken.pt", "--out", "out")
    assert outcome.status == 0, outcome.err
    skipped = report("out")["skipped"]
    assert skipped["head"] == "weights are not finite"
    assert skipped["conv2"].startswith("no power law: 0 of")
    assert rows("out")["conv1"]["status"] == "success"


def test_weights_that_are_not_finite_have_a_table_with_a_model_of_the_recipe_too(call, bare, tmp_path):
    bare.write_text("model: {kind: torchvision, name: squeezenet1_1}\nspectra: {layers: ['re:features.3.*']}\n")
    state = Torchvision(name="squeezenet1_1").build((3, 224, 224), 1000).state_dict()
    state["features.3.squeeze.weight"][0] = math.nan
    torch.save(state, "broken.pt")
    outcome = call("spectra", bare, "-c", "broken.pt", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert report("out")["skipped"]["features.3.squeeze"] == "weights are not finite"


def test_similarity_is_drawn_and_written(call, recipe, trained):
    recipe.write_text(recipe.read_text() + "spectra: {min_eigenvalues: 4, cka: {samples: 64, batch_size: 16}}\n")
    model = trained / "runs/net-train"
    outcome = call("spectra", recipe, f"spectra.cka.other={model}", "-c", model, "--out", "out")
    assert outcome.status == 0, outcome.err
    cka = report("out")["details"]["cka"]
    assert cka["layers"] == cka["other layers"] == ["conv1", "conv2", "head"]
    assert cka["images"] == 64
    np.testing.assert_allclose(np.diag(cka["similarity"]), 1, rtol=1e-6)
    for own in ("of the first", "of the other"):
        np.testing.assert_allclose(cka[own], cka["similarity"], rtol=1e-6)  # it is the same network
    assert Path("out/cka.png").exists()


def test_any_output_can_be_compared(call, recipe, trained):
    section = (
        "spectra={min_eigenvalues: 4, cka: {outputs: [activations], estimator: biased, samples: 64, batch_size: 16}}"
    )
    model = trained / "runs/net-train"
    assert call("spectra", recipe, section, "-c", model, "--out", "out").status == 0
    cka = report("out")["details"]["cka"]
    assert cka["layers"] == ["act1", "act2"]
    assert np.array(cka["similarity"]).shape == (2, 2)
    outcome = call("spectra", recipe, section.replace("activations", "norms"), "-c", model, "--out", "none")
    refused(outcome, 2, "spectra.cka.outputs", "the network has none of norms")


def test_a_checkpoint_needs_no_data_even_if_the_recipe_has_some(call, recipe, trained):
    recipe.write_text(
        "model: {kind: mlp, widths: [8]}\ndata: {kind: cifar10, root: nowhere}\nspectra: {min_eigenvalues: 4}\n"
    )
    outcome = call("spectra", recipe, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    refused(call("spectra", recipe, "--out", "other"), 1, "nowhere")


def test_a_state_dict_goes_into_the_recipes_model(call, recipe, trained):
    state = load(trained / "runs/net-train/model.pt").network.state_dict()
    torch.save(state, "state.pt")
    recipe.write_text(recipe.read_text() + SPECTRA)
    assert call("spectra", recipe, "-c", "state.pt", "--out", "out").status == 0
    assert list(rows("out")) == ["conv1", "conv2", "head"]
    torch.save({**state, "head.weight": state["head.weight"][:5]}, "wrong.pt")
    refused(call("spectra", recipe, "-c", "wrong.pt", "--out", "no"), 1, "wrong.pt", "wrong shape", "head.weight")


def test_a_dry_run_lists_the_matrices(call, bare, trained, tmp_path):
    outcome = call("spectra", bare, "-c", trained / "runs/net-train", "--dry-run", "--json")
    (table,) = json.loads(outcome.out)["tables"]
    assert [row[0] for row in table["rows"]] == ["conv1", "conv2", "head"]
    assert [path.name for path in tmp_path.iterdir()] == ["bare.yaml"]


def test_refusals(call, bare, recipe, trained, tmp_path):
    model = trained / "runs/net-train/model.pt"
    refused(call("spectra", bare), 2, "--checkpoint", "state dict (.pt, .safetensors)", "`model`")
    refused(call("spectra", recipe, "-c", model), 2, "spectra")
    refused(call("spectra", bare, "spectra.cka={}", "-c", model), 2, "spectra.cka", "`data:`")
    refused(call("spectra", bare, "spectra.layers=[hed]", "-c", model), 2, "'hed'", "head")
    refused(call("spectra", bare, "spectra.alpha=lest", "-c", model), 2, "spectra.alpha", "search")
    refused(call("spectra", bare, "-c", "none.pt"), 1, "none.pt: no such file")
    Path("text.pt").write_text("no weights")
    refused(call("spectra", bare, "-c", "text.pt"), 1, "text.pt")
    torch.save({"scale": torch.ones(3)}, "flat.pt")
    refused(call("spectra", bare, "-c", "flat.pt"), 1, "no layer with a matrix of weights")
    assert not (tmp_path / "runs").exists()


def test_layerwise_rates_are_reported_and_drawn(call, recipe):
    recipe.write_text(
        "model: {kind: mlp, widths: [24, 16]}\n"
        "data: {kind: mnist-mini, limit: 600, validation: 200}\n"
        "train: {epochs: 2, batch_size: 64, layerwise_rates: {map: linear, bounds: [0.2, 3]}}\n"
        "report: {latency_repeats: 1}\n"
    )
    outcome = call("train", recipe, "--out", "out")
    assert outcome.status == 0, outcome.err
    (table,) = [table for table in report("out")["tables"] if table["title"] == "layerwise rates"]
    rates = {row[0]: row[3] for row in table["rows"]}
    assert list(rates) == ["fc1", "fc2", "head"]
    with Path("out/metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert {name: float(last[f"rate {name}"]) for name in rates} == rates
    alphas = {name: float(last[f"metric {name}"]) for name in rates}
    assert rates["fc1"] == pytest.approx(np.clip(3 * alphas["fc1"] / sum(alphas.values()), 0.2, 3))
    assert "measuring alpha took" in outcome.out
    assert Path("out/layer-rates.png").exists()
