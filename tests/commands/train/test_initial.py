"""`compresskit train` of networks that are drawn, masked, grouped and compared as the recipe says."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from compresskit.storage.checkpoint import load
from tests.commands.conftest import environment, program
from tests.commands.prune.test_verb import report, table
from tests.commands.test_bad_input import refused

RECIPE = """\
model: {kind: mlp, widths: [64, 32, 32, 32], activation: tanh}
data: {kind: mnist-mini, limit: 600, validation: 200}
train:
  epochs: 2
  batch_size: 64
  optimizer: {kind: sgd, lr: 0.05, momentum: 0.9, weight_decay: 1.0e-3}
  init: {kind: sao, degree: 4, gain: 1.1, layers: ["re:fc[2-4]"]}
report: {latency_repeats: 2}
"""
DENSE = "train.init={kind: orthogonal, gain: 1.1}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE)
    return path


def same(first: str, second: str) -> bool:
    one, other = (load(Path(folder) / "model.pt").network.state_dict() for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_sparse_layers_are_drawn_trained_and_reported(call, recipe):
    outcome = call("train", recipe, "--out", "out")
    assert outcome.status == 0, outcome.err
    checkpoint = load(Path("out/model.pt"))
    assert set(checkpoint.masks) == {"fc2.weight", "fc3.weight", "fc4.weight"}
    for name, mask in checkpoint.masks.items():
        weight = checkpoint.network.get_parameter(name)
        assert torch.equal(weight != 0, mask)
        assert (torch.linalg.svdvals(weight) - 1.1).abs().max() > 1e-3  # trained
    rows = table("out", "layers as they were drawn")
    assert rows["fc2"] == [1, "sao", "32×64", 2, 4, "6.25%", pytest.approx(8**0.5), 16, 0, pytest.approx(1 + 3**0.5)]
    assert rows["fc3, fc4"][:2] == [2, "sao"]
    assert "train.init leaves layers as torch draws them: fc1, head" in outcome.out
    figures = {figure["name"]: figure["after"][0] for figure in report("out")["figures"]}
    gone = 64 * 32 + 2 * 32 * 32 - 4 * (32 + 32 + 32)
    assert figures["parameters"] - figures["parameters not masked"] == gone
    assert figures["MACs"] - figures["MACs by weights not masked"] == gone
    assert figures["test accuracy"] > 0.4


def test_the_first_step_starts_from_orthogonal_weights(call, recipe):
    """keep: all has the weights before any step."""
    assert call("train", recipe, "train.keep=all", "train.epochs=1", "--out", "out").status == 0
    (first,) = Path("out/weights").glob("*0.pt")
    weights = torch.load(first, weights_only=True)
    for name in ("fc2", "fc3", "fc4"):
        assert (torch.linalg.svdvals(weights[f"{name}.weight"].double()) - 1.1).abs().max() < 1e-6
        assert not weights[f"{name}.bias"].any()


def test_grouped_is_the_masked_network_in_less(call, recipe):
    for layout in ("masked", "grouped"):
        assert call("train", recipe, f"train.layout={layout}", "--out", layout).status == 0
    rows = [
        [[row["train_loss"], row["val_loss"]] for row in report(layout)["details"]["trials"][0]["rows"]]
        for layout in ("masked", "grouped")
    ]
    assert rows[1] == [pytest.approx(row, rel=1e-4) for row in rows[0]]  # float32, sums in another order
    masked, grouped = (load(Path(layout) / "model.pt") for layout in ("masked", "grouped"))
    assert grouped.masks == {}
    assert grouped.network.get_submodule("fc3").weight.numel() == 32 * 4
    kept = sum(int(mask.sum()) for mask in masked.masks.values())
    dense = sum(p.numel() for n, p in masked.network.named_parameters() if n not in masked.masks)
    assert sum(p.numel() for p in grouped.network.parameters()) == kept + dense
    x = torch.randn(8, *masked.input_shape)
    torch.testing.assert_close(grouped.network(x), masked.network(x), rtol=1e-3, atol=1e-4)  # after 14 steps apart
    outcome = call("evaluate", recipe, "-c", "grouped", "--json")
    assert outcome.status == 0, outcome.err


MASKS = {
    "weights": "train.mask={kind: weights, target: {sparsity: 90%}, layers: ['re:fc.*']",
    "ramanujan": "train.mask={kind: ramanujan, degree: 4, layers: ['re:fc[2-4]']",
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_before_and_after_training(call, recipe, kind):
    for when in ("before", "after"):
        outcome = call("train", recipe, DENSE, f"{MASKS[kind]}, when: {when}}}", "--out", when)
        assert outcome.status == 0, outcome.err
        checkpoint = load(Path(when) / "model.pt")
        kept = sum(int(mask.sum()) for mask in checkpoint.masks.values())
        whole = sum(mask.numel() for mask in checkpoint.masks.values())
        assert kept == (pytest.approx(whole / 10, abs=1) if kind == "weights" else 4 * 96)
        for name, mask in checkpoint.masks.items():
            assert not checkpoint.network.get_parameter(name)[~mask].any()
    assert not Path("before/dense").exists()
    assert Path("after/dense/state.pt").exists()
    one, other = (load(Path(when) / "model.pt").masks for when in ("before", "after"))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one) == (kind == "ramanujan")


def test_masks_after_training_start_from_the_trained_net(call, recipe):
    """The dense training is that of the same recipe without masks."""
    mask = "train.mask={kind: ramanujan, degree: 4, layers: ['re:fc[2-4]'], when: after}"
    assert call("train", recipe, DENSE, "--out", "dense").status == 0
    assert call("train", recipe, DENSE, mask, "train.keep=all", "--out", "after").status == 0
    network, masks = load(Path("dense/model.pt")).network, load(Path("after/model.pt")).masks
    (first,) = Path("after/weights").glob("*0.pt")
    weights = torch.load(first, weights_only=True)
    for name, value in network.state_dict().items():
        assert weights[name].equal(value * masks[name] if name in masks else value)


def test_grouped_after_training(call, recipe):
    mask = "train.mask={kind: ramanujan, degree: 4, layers: ['re:fc[2-4]'], when: after}"
    outcome = call("train", recipe, DENSE, mask, "train.layout=grouped", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert load(Path("out/model.pt")).network.get_submodule("fc3").weight.numel() == 32 * 4


LENET = """\
model: lenet-300-100
data: {kind: mnist-mini, limit: 200}
train: {epochs: 1, batch_size: 50, init: {kind: sao, sparsity: 90%}}
report: {latency_repeats: 1}
"""
NEAREST = [
    ("train.init.nearest=true", "train.layout=grouped"),
    ("train.init=kaiming", "train.mask={kind: ramanujan, sparsity: 90%, nearest: true}"),
    ("train.init=kaiming", "train.mask={kind: ramanujan, sparsity: 90%, nearest: true, when: after}"),
]


@pytest.mark.parametrize("changes", NEAREST, ids=["init", "before", "after"])
def test_a_sparsity_that_does_not_divide_is_met_as_nearly_as_can_be(call, tmp_path, changes):
    """300 x 784 has common divisors to 4 alone, 100 x 300 has 10."""
    (tmp_path / "lenet.yaml").write_text(LENET)
    refused(call("train", "lenet.yaml"), 2, "train.init: fc1", "cannot be had", "nearest: true")
    outcome = call("train", "lenet.yaml", *changes, "--out", "out")
    assert outcome.status == 0, outcome.err
    assert table("out", "sparsity as near as can be") == {
        "fc1": [1, "90.00%", "75.00%"],
        "fc2": [1, "90.00%", "90.00%"],
    }
    (note,) = [note for note in report("out")["notes"] if note.startswith("nearest:")]
    assert note.startswith("nearest: of the 265,200 weights of these layers 90.00% were to go, and 76.70% went")
    checkpoint = load(Path("out/model.pt"))
    network = checkpoint.network
    left = sum(
        int(checkpoint.masks.get(f"{fc}.weight", network.get_submodule(fc).weight).count_nonzero())
        for fc in ("fc1", "fc2")
    )
    assert left == 300 * 784 // 4 + 100 * 300 // 10


COMPARE = """\
  compare:
    rows:
      Dense: {train.init: {kind: orthogonal, gain: 1.1}}
      GMP-T:
        train.init: {kind: orthogonal, gain: 1.1}
        train.mask: {kind: weights, target: {sparsity: 80%}, when: after}
      SAO: {}
      Lost: {train.optimizer.lr: 1.0e+20}
    columns:
      N = 4: {}
      N = 3: {"model.widths": [64, 32, 32]}
"""
SELECTED = "train.init.layers=[fc2, fc3]"


@pytest.fixture
def compared(recipe: Path) -> Path:
    recipe.write_text(RECIPE.replace("report:", COMPARE + "report:"))
    return recipe


def test_rows_and_columns_are_trained_beside(call, compared):
    outcome = call("train", compared, SELECTED, "trials=2", "--out", "out")
    assert outcome.status == 1, outcome.err  # one row diverges
    rows = table("out", "test accuracy")
    assert list(rows) == ["Dense", "GMP-T", "SAO", "Lost"]
    assert rows["Lost"] == ["diverged", "diverged"]
    own = next(figure["after"] for figure in report("out")["figures"] if figure["name"] == "test accuracy")
    assert rows["SAO"][0] == own
    assert len(rows["Dense"][1]) == 2
    assert not Path("out/compare/sao/n-4").exists()
    kept = table("out", "parameters not masked")
    network = load(Path("out/compare/dense/n-3/model.pt")).network
    assert kept["Dense"][1] == sum(p.numel() for p in network.parameters())
    assert kept["SAO"][1] < kept["Dense"][1]
    assert report("out")["failed"]["compare/lost/n-4/trial-1"].startswith("training, epoch 1")
    assert {(cell["row"], cell["column"]) for cell in report("out")["details"]["compare"]} >= {("SAO", "N = 3")}
    assert Path("out/comparison.png").stat().st_size > 10000


def test_a_cell_is_the_recipe_with_its_changes(call, compared):
    assert call("train", compared, SELECTED, "~train.compare.rows.Lost", "--out", "out").status == 0
    assert call("train", compared, "~train.compare", DENSE, "model.widths=[64, 32, 32]", "--out", "own").status == 0
    assert same("out/compare/dense/n-3", "own")


def test_one_cell_may_differ_from_its_row_and_column(call, compared):
    cells = "train.compare.cells={'Dense, N = 3': {model.widths: [64, 16], train.epochs: 1}}"
    assert call("train", compared, SELECTED, "~train.compare.rows.Lost", cells, "--out", "out").status == 0
    network = load(Path("out/compare/dense/n-3/model.pt")).network
    assert network.get_submodule("fc2").weight.shape == (16, 64)
    assert load(Path("out/compare/dense/n-4/model.pt")).network.get_submodule("fc2").weight.shape == (32, 64)
    wrong = call("train", compared, "train.compare.cells={SAO: {train.epochs: 1}}")
    refused(wrong, 2, "train.compare.cells", "'SAO' is none of 'Dense, N = 4', 'Dense, N = 3'")


def test_columns_of_a_list_are_crossed(call, compared):
    columns = (
        "train.compare.columns=[{N = 4: {}, N = 3: {model.widths: [64, 32, 32]}}, "
        "{short: {train.epochs: 1}, tanh: {model.activation: tanh, train.epochs: 1}}]"
    )
    rows = ("~train.compare.rows.Lost", "~train.compare.rows.GMP-T")
    cells = "train.compare.cells={'Dense, N = 3, tanh': {model.widths: [64, 16]}}"
    assert call("train", compared, SELECTED, columns, *rows, cells, "--out", "out").status == 0
    (found,) = [table for table in report("out")["tables"] if table["title"] == "test accuracy"]
    assert found["columns"] == ["network", "N = 4, short", "N = 4, tanh", "N = 3, short", "N = 3, tanh"]
    networks = {name: load(Path(f"out/compare/dense/{name}/model.pt")) for name in ("n-4-tanh", "n-3-short")}
    assert networks["n-4-tanh"].model["activation"] == "tanh"
    assert len(networks["n-4-tanh"].model["widths"]) == 4
    assert networks["n-3-short"].model["widths"] == [64, 32, 32]
    assert load(Path("out/compare/dense/n-3-tanh/model.pt")).model["widths"] == [64, 16]


def test_a_comparison_without_columns(call, compared):
    assert call("train", compared, "~train.compare.columns", "~train.compare.rows.Lost", "--out", "out").status == 0
    (found,) = [table for table in report("out")["tables"] if table["title"] == "test accuracy"]
    assert found["columns"] == ["network", "test accuracy"]
    assert Path("out/compare/dense/model.pt").exists()


def test_a_dry_run_lists_the_cells(call, compared, tmp_path):
    outcome = call("train", compared, SELECTED, "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "GMP-T, N = 3" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["net.yaml"]


def test_a_killed_comparison_goes_on(compared, tmp_path):
    arguments = ("train", "net.yaml", SELECTED, "~train.compare.rows.Lost")
    assert program(*arguments, "--out", "whole", cwd=tmp_path).status == 0
    command = [sys.executable, "-m", "compresskit", *arguments, "train.epochs=2", "--out", "killed"]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    deadline, sign = time.monotonic() + 200, tmp_path / "killed/compare/gmp-t/n-4/dense/state.pt"
    while not sign.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed/report.json").exists()
    again = program(*arguments, "--out", "killed", "--resume", cwd=tmp_path)
    assert again.status == 0, again.err
    for cell in ("", "compare/dense/n-4", "compare/gmp-t/n-4", "compare/gmp-t/n-3", "compare/sao/n-3"):
        assert same(tmp_path / "killed" / cell, tmp_path / "whole" / cell)


REFUSALS = [
    (["train.init={kind: sao}"], ("train.init", "give one of degree, density, sparsity, not 0")),
    (["train.init=saodelta"], ("train.init", "given 'saodelta'; did you mean 'sao-delta'?")),
    (
        ["train.init={kind: sao, degree: 3}"],
        (
            "train.init: fc1: degree 3 does not divide 784",
            "; fc2: degree 3 does not divide 64",
        ),
    ),
    (["train.init={kind: sao, degree: 4, layers: [nope]}"], ("layer selector 'nope'",)),
    (["train.layout=grouped", DENSE], ("train.layout: no layer can be grouped (there are no masks)",)),
    (["train.mask={kind: ramanujan, degree: 4}"], ("train.mask: `train.init` has made the network sparse already",)),
    ([DENSE, "train.mask={kind: ramanujan, degree: 3}"], ("train.mask: fc1", "degree 3 does not divide")),
    ([DENSE, "train.mask={kind: weights, target: {sparsity: 99.999%}}"], ("train.mask.target.sparsity", "min_units")),
    ([DENSE, "train.mask={kind: weights, target: {sparsity: 9}}"], ("train.mask.target.sparsity", "no share below 1")),
    (["train.compare={rows: {}}"], ("train.compare.rows", "name one at least")),
    (["train.compare={rows: {a: {data.limit: 3}}}"], ("train.compare, a: it changes data.limit", "keys of `model`")),
    (["train.compare={rows: {a: {train.epochz: 3}}}"], ("train.compare, a: ", "unknown key; did you mean 'epochs'?")),
    (["train.compare={rows: {a: {train.init: {kind: sao, degree: 5}}}}"], ("train.compare, a: ", "degree 5 does not")),
    (["train.init=[]"], ("train.init: an empty list draws nothing",)),
    (["train.compare={rows: {a: {train.memorisation: {}}}}"], ("it changes train.memorisation",)),
    (
        [
            "train.layout=grouped",
            "model.widths=[64, 32, 32, 32, 32]",
            "train.init.layers=['re:fc[2-5]']",
            "train.layerwise_rates={}",
        ],
        ("holds 2 layers in one",),
    ),
    (["train.compare={rows: {a b: {}, a-b: {}}}"], ("a b and a-b would share a folder",)),
    (["train.compare={rows: {'?': {}}}"], ("a name needs a letter or a digit",)),
    (
        [DENSE, "train.mask={kind: ramanujan, degree: 4, layers: [fc2], when: after}", "train.memorisation={}"],
        ("train.memorisation", "masked after training"),
    ),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSALS, ids=lambda value: str(value[0])[:40])
def test_refusals(call, recipe, tmp_path, overrides, words):
    refused(call("train", recipe, *overrides), 2, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["net.yaml"]


@pytest.mark.parametrize("key", ["init", "mask", "layout", "compare"])
def test_expand_does_not_pass_over_them(call, recipe, key):
    values = {
        "init": "orthogonal",
        "mask": "{kind: ramanujan, degree: 4}",
        "layout": "grouped",
        "compare": "{rows: {a: {}}}",
    }
    outcome = call("expand", recipe, "~train.init", f"train.{key}={values[key]}", "expand={strategy: fc}")
    refused(outcome, 2, f"train.{key}: only the verb `train` takes it")
