"""`expand` through the program, on real images: files, table, stages in a chain, resuming, teachers, refusals."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import compresskit
from compresskit.commands.expand.settings import settings
from compresskit.commands.recipe import load_recipe
from compresskit.graph.layers import expanded as expanded_layer
from compresskit.numerics.expansion.composition import contract
from compresskit.passes.expand.network import expanded_layers
from compresskit.storage.checkpoint import load
from compresskit.storage.lock import is_lock
from tests.commands.conftest import environment, program
from tests.digits import write_digits, write_recipe

RECIPE = """\
model: {kind: smallnet, kernel: 5}
data: {kind: arrays, path: digits.npz, add_channel: true, validation: 100}
train: {epochs: 2, batch_size: 64, optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}}
expand:
  strategy: ck+fc
  rate: 2
report: {latency_repeats: 2}
"""
COMPARE = """\
  compare:
    SmallNet: {strategy: none}
    cl, rate 1: {strategy: cl, rate: 1}
    one after another: {mode: sequential}
    contracted start: {init: expandnet}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.yaml and what `expand` made of it, two trials and a comparison."""
    folder = tmp_path_factory.mktemp("expand")
    write_digits(folder / "digits.npz", 320, 200)
    (folder / "net.yaml").write_text(RECIPE.replace("report:", f"{COMPARE}trials: 2\nreport:"))
    outcome = program("expand", "net.yaml", cwd=folder)
    assert outcome.status == 0, outcome.err
    (folder / "table.txt").write_text(outcome.out)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE, 320)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path).network.state_dict()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_files_at_fixed_names(done):
    run = done / "runs/net-expand"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "model.pt", "best.pt", "expanded.pt", "report.json", "report.md", "training-curves.png", "trial-1", "trial-2"
    }  # fmt: skip
    assert {path.name for path in (run / "trial-1").iterdir()} >= {"model.pt", "best.pt", "expanded.pt", "metrics.csv"}
    assert {path.name for path in (run / "compare").iterdir()} == {
        "smallnet", "cl-rate-1", "one-after-another", "contracted-start"
    }  # fmt: skip
    assert not [path for path in run.rglob(".*") if not is_lock(path)]


def test_the_compact_net_predicts_what_the_expanded_one_did(done):
    details = json.loads((done / "runs/net-expand/report.json").read_text())["details"]["networks"]
    assert list(details) == ["ck+fc, rate 2", "SmallNet", "cl, rate 1", "one after another", "contracted start"]
    for trial in details["ck+fc, rate 2"]:
        assert trial["differing predictions"] == 0
        assert 0 < trial["difference"] < 1e-5  # the factors one after another, in float32
        assert trial["trained"]["metrics"] == trial["final"]["metrics"]
        assert trial["trained"]["parameters"] == 230580
        assert trial["final"]["parameters"] == 35514
    for trial in details["one after another"]:
        assert trial["differing predictions"] == 0
        assert 0 < trial["difference"] < 1e-5
    assert all(trial["difference"] is None for trial in details["SmallNet"])
    expanded, compact = (done / "runs/net-expand/trial-1" / name for name in ("expanded.pt", "model.pt"))
    x = torch.rand(20, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(compresskit.load(expanded)(x), compresskit.load(compact)(x))


def test_the_table_has_a_row_for_each_network(done):
    table = (done / "table.txt").read_text()
    for name in ("ck+fc, rate 2", "SmallNet", "cl, rate 1", "one after another", "contracted start"):
        assert f"│ {name} " in table
    assert "0 predictions on the test set differ between the contracted and the expanded net" in table
    assert "32×16×3×3 · 32×32×3×3" in table  # the factors of conv3
    rows = json.loads((done / "runs/net-expand/report.json").read_text())["tables"][0]["rows"]
    by_name = {row[0]: row for row in rows}
    assert by_name["SmallNet"][3] == by_name["contracted start"][3] == 35514
    assert by_name["one after another"][3:5] == by_name["ck+fc, rate 2"][3:5] == [230580, 1848100]


def test_a_variant_is_trained_as_the_same_recipe_alone(done, recipe, call):
    """SmallNet of the comparison is what `train` gives, and `contracted start` what train.init: expandnet gives."""
    run = done / "runs/net-expand/compare"
    assert call("train", recipe, "--out", "plain").status == 0
    assert same(Path("plain/model.pt"), run / "smallnet/trial-1/model.pt")
    assert call("train", recipe, "train.init=expandnet", "--out", "started").status == 0
    assert same(Path("started/model.pt"), run / "contracted-start/trial-1/model.pt")
    assert not same(Path("plain/model.pt"), Path("started/model.pt"))


def test_stages_in_a_chain_end_with_the_same_net(done, recipe, call):
    chain = [("expand",), ("train",), ("contract",)]
    parent: tuple[str, ...] = ()
    for (stage,) in chain:
        outcome = call("expand", recipe, f"expand.stages=[{stage}]", "--out", stage, *parent)
        assert outcome.status == 0, outcome.err
        parent = ("-c", f"{stage}/model.pt")
    whole = done / "runs/net-expand/trial-1"
    assert same(Path("train/model.pt"), whole / "expanded.pt")
    assert same(Path("contract/model.pt"), whole / "model.pt")
    assert not Path("expand/metrics.csv").exists()
    history = [entry["verb"] for entry in load(Path("contract/model.pt")).history]
    assert history == ["expand", "expand", "expand"]


@pytest.mark.parametrize("verb", ["fuse", "reconstruct"])
def test_factors_are_multiplied_before_another_verb_reads_the_layers(done, recipe, call, verb, tmp_path):
    section = {"fuse": "fuse={layers: [[conv2, conv3]]}", "reconstruct": "reconstruct={target: {size: 50%}}"}[verb]
    expanded = done / "runs/net-expand/expanded.pt"
    outcome = call(verb, recipe, section, "-c", expanded)
    assert outcome.status == 1
    assert outcome.err == (
        f"error: {expanded}: '{verb}' reads plain layers, but conv1, conv2, conv3, ... are still products of factors; "
        "take the model.pt that `expand` left beside it, or make one with: compresskit expand RECIPE "
        f"'expand.stages=[contract]' --checkpoint {expanded}\n"
    )
    assert not (tmp_path / "runs").exists()
    assert call("expand", recipe, "expand.stages=[contract]", "-c", expanded, "--out", "plain").status == 0


def test_a_trained_net_is_expanded_without_a_change(done, recipe, call, tmp_path):
    trained = done / "runs/net-expand/model.pt"
    outcome = call("expand", recipe, "expand={strategy: cl+fc, stages: [expand]}", "-c", trained, "--out", "wide")
    assert outcome.status == 0, outcome.err
    before, after = compresskit.load(trained), compresskit.load("wide/model.pt")
    x = torch.rand(20, 1, 28, 28)
    with torch.inference_mode():
        assert (before(x) - after(x)).abs().max() < 1e-5 * before(x).abs().max()
    assert sum(p.numel() for p in after.parameters()) > 200_000


def test_a_trained_net_lends_nonlinear_factors_the_rest_of_its_weights(done, recipe, call):
    trained = done / "runs/net-expand/model.pt"
    wide = "expand={strategy: fc, nonlinear: true, stages: [expand]}"
    assert call("expand", recipe, wide, "-c", trained, "--out", "wide").status == 0
    assert torch.equal(weights(Path("wide/model.pt"))["conv1.weight"], weights(trained)["conv1.weight"])


def test_init_nonlinear_trains_twice(recipe, call):
    options = "expand={strategy: ck, rate: 1, init: nonlinear, init_train: {epochs: 1, batch_size: 64}}"
    outcome = call("expand", recipe, options, "train.epochs=1", "--out", "run")
    assert outcome.status == 0, outcome.err
    assert Path("run/nonlinear/metrics.csv").exists()
    assert json.loads(Path("run/report.json").read_text())["details"]["networks"]["ck, rate 1"][0]["difference"] < 1e-5


def test_a_killed_run_is_resumed_and_ends_with_the_same_net(recipe, tmp_path):
    recipe.write_text(RECIPE.replace("epochs: 2", "epochs: 12") + "name: net\n")
    assert program("expand", "net.yaml", "--out", "whole", cwd=tmp_path).status == 0
    command = [sys.executable, "-m", "compresskit", "expand", "net.yaml", "--out", "killed"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed/state.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed/model.pt").exists()
    assert program("expand", "net.yaml", "--out", "killed", "--resume", cwd=tmp_path).status == 0
    assert same(tmp_path / "killed/model.pt", tmp_path / "whole/model.pt")


def test_a_dry_run_shows_the_factors_and_writes_nothing(recipe, call, tmp_path):
    outcome = call("expand", recipe, "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "16×8×3×3 · 16×16×3×3" in outcome.out
    assert "loss of the first batch" in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.npz", "net.yaml"]
    assert "expand" in call("validate", recipe).out
    outcome = call("expand", recipe, "expand.compare={alone: {strategy: none}}", "--dry-run")
    assert "networks to train" in outcome.out
    assert "│ alone " in outcome.out


def test_an_entry_changes_the_training(recipe, call):
    longer = "expand.compare.longer={strategy: none, train: {epochs: 3, gradient_confusion: {pairs: 2}}}"
    adam = "expand.compare.adam={rate: 1, train: {optimizer: {kind: adam}, batch_size: 8}}"
    planned = " ".join(call("expand", recipe, longer, adam, "--dry-run").out.split())
    assert "changes in training" in planned
    assert re.search(r"│ longer │ [\d,]+ │ [\d,]+ │ epochs 3, gradient_confusion pairs 2 +│", planned)
    assert re.search(r"│ adam │ [\d,]+ │ [\d,]+ │ batch_size 8, optimizer adam +│", planned)
    assert "adam: a step takes" in planned  # of batches of 8
    assert "ck+fc, rate 2: a step takes" not in planned
    done = call("expand", recipe, longer, adam, "train.epochs=1", "data.limit=128", "--out", "run")
    assert done.status == 0, done.err
    networks = json.loads(Path("run/report.json").read_text())["details"]["networks"]
    assert [len(trials[0]["rows"]) for trials in networks.values()] == [1, 3, 1]
    assert "cosines of gradients" in done.out  # of the one that measured them
    (costs,) = [
        table for table in json.loads(Path("run/report.json").read_text())["tables"] if "step" in table["title"]
    ]
    weights = {row[0]: row[-1] / row[-2] for row in costs["rows"]}
    assert weights == {"ck+fc, rate 2": pytest.approx(12e-6), "adam": pytest.approx(16e-6)}  # bytes of a parameter


def test_a_dry_run_of_a_batch_in_parts_takes_one_part(recipe, call):
    """A whole batch need not fit in memory. Equal samples have equal losses."""
    outputs = [
        call("expand", recipe, f"train.batch_size={size}", f"train.accumulate={parts}", "--dry-run").out
        for size, parts in ((64, 1), (128, 2), (128, 1))
    ]
    losses = [next(line for line in out.splitlines() if "loss of the first batch" in line) for out in outputs]
    assert losses[0] == losses[1] != losses[2]


def test_the_cost_of_a_step_is_said_before_and_after(recipe, call):
    """SmallNet of 5x5 kernels, ck+fc: fc1's product alone is more than all convolutions' of 64 images."""
    small = ["expand.rate=4", "train.batch_size=8", "train.epochs=1"]
    for extra, path in ((["--dry-run"], None), ([], "runs/net-expand/report.json")):
        outcome = call("expand", recipe, *small, *extra)
        assert outcome.status == 0, outcome.err
        said = " ".join(outcome.out.split())
        assert "a training step, with its gradients" in said
        assert re.search(
            r"ck\+fc, rate 4: a step takes [\d.]+ times the multiply-adds of the compact net's: products of factors "
            r"take [\d.]+ times, whatever the batch is; expand.rate: [\d.]+, rate: auto, or batches of \d+ for 8 would "
            r"keep it below 1.5",
            said,
        )
        if path:
            details = json.loads(Path(path).read_text())
            assert any(note.startswith("ck+fc, rate 4: a step takes") for note in details["notes"])
    rates = re.search(r"expand.rate: ([\d.]+), rate: auto, or batches of (\d+) for", said)
    for cheaper in ([f"expand.rate={rates[1]}", "train.batch_size=8"], [small[0], f"train.batch_size={rates[2]}"]):
        assert "a step takes" not in call("expand", recipe, *cheaper, "--dry-run").out
    outcome = call("expand", recipe, "expand={strategy: cl, mode: sequential, limit: 1.1}", "--dry-run")
    assert "since its factors run one by one; mode: online multiplies" in " ".join(outcome.out.split())


def test_a_costly_step_is_told_what_its_own_net_can_do(recipe, call):
    """Factors without a product have no mode: online, and a layer too wide for a rate of 1 has no rate: auto."""
    parted = "expand={strategy: ck, nonlinear: true, stages: [expand, train], limit: 1.1}"
    assert "run one by one, and `nonlinear` parts them" in " ".join(
        call("expand", recipe, parted, "--dry-run").out.split()
    )
    wide = ("model={kind: mlp, widths: []}", "expand={strategy: fc, rate: 4}", "train.batch_size=8", "--dry-run")
    said = " ".join(call("expand", recipe, *wide).out.split())
    assert re.search(r"whatever the batch is; (expand.rate: [\d.]+, or )?batches of [\d,]+ for 8", said)
    assert "auto finds no layer" in call("expand", recipe, *wide, "expand.rate=auto").err


def test_auto_chooses_rates_and_says_them(recipe, call):
    auto = ["expand={strategy: cl+fc, rate: auto, limit: 1.05, compare: {more: {limit: 2.5}}}", "train.batch_size=32"]
    planned = call("expand", recipe, *auto, "--dry-run").out
    assert "a rate of 1 would cost more than expand.limit: 1.05" in " ".join(planned.split())  # fc1
    outcome = call("expand", recipe, *auto, "train.epochs=1")
    assert outcome.status == 0, outcome.err
    networks = json.loads(Path("runs/net-expand/report.json").read_text())["details"]["networks"]
    costs = {}
    for name, limit in (("cl+fc, rate auto below 1.05", 1.05), ("more", 2.5)):
        layers = networks[name][0]["layers"]
        assert all(1 <= layer["rate"] <= 4 for layer in layers)
        costs[name] = 3 * sum(layer["product_macs"] for layer in layers)
        assert costs[name] <= (limit - 1) * 3 * 32 * 1_430_272  # README's MACs of the compact net
    assert costs["more"] > costs["cl+fc, rate auto below 1.05"]


def test_auto_needs_a_training(recipe, call):
    outcome = call("expand", recipe, "expand={strategy: cl, rate: auto, stages: [expand]}", "~train")
    assert outcome.status == 2
    assert "expand.rate: auto weighs the batches of a training; add the section `train`" in outcome.err
    outcome = call("expand", recipe, "expand={strategy: fc, layers: [fc1], rate: auto}", "train.batch_size=2")
    assert "auto finds no layer for which a rate of 1 stays below expand.limit: 1.5; raise the limit" in outcome.err


REFUSALS = {
    "expand.rate=0": "expand.rate: must be a number greater than 0, 'auto' or a mapping, given 0",
    "expand={strategy: cl, rate: auto, mode: sequential}": "rate: auto weighs the products of mode: online",
    "expand.strategy=cx": "strategy: 'cx' was given; allowed: cl, ck, fc, acnet, acnet-bn, or some joined by +",
    "expand={strategy: ck, layers: [conv1, conv2]}": None,  # taken: 5x5
    "expand={strategy: ck, layers: [fc1]}": "expand: fc1: ck is not for linear layers",
    "expand={strategy: ck, layers: [conv7]}": "'conv7': no convolution or linear layer is named so",
    "expand.stages=[train]": "expand.stages: 'train' goes on with what an earlier stage left; name its model.pt",
    "expand.stages=[expand, contract]": "stages: ['expand', 'contract'] are not neighbours",
    "expand={strategy: cl, nonlinear: true}": "a net with nonlinear factors cannot be contracted",
    "expand={strategy: cl, init: from_checkpoint}": "from_checkpoint starts from a trained net; name one with",
    "expand={strategy: cl, init_train: {epochs: 1}}": "init_train: only init: nonlinear trains a net to start from",
    "expand={init: nonlinear, init_train: {epochs: 1, monitor: map}}": "monitor: map was given",
    "expand={compare: {n: {init: nonlinear}}, init_train: {epochs: 1}}": None,  # of the one that it is for
    "expand.compare={a b: {rate: 2}, a-b: {rate: 1}}": "a b and a-b would share a row or a folder; rename one",
    "expand.compare={'ck+fc, rate 2': {rate: 1}}": "would share a row or a folder; rename one",
    "expand.compare={'+': {rate: 1}}": "expand.compare.+: a name needs a letter or a digit",
    "expand.compare={x: {strategy: none, rate: 2, init: expandnet}}": "for which rate, init can say nothing; leave out",
    "expand.factors=7": "expand.factors: must be 2 or 3 or a mapping, given 7",
    "expand.factors={fc1: 7}": "expand.factors.fc1: must be 2 or 3, given 7",
    "expand.first=widen": "expand.first: must be 'keep' or 'expand', given 'widen'",
    "expand.layers=[]": "layers: none are named; name some, or leave the key out for all",
    "expand.rate={conv9: 2}": "expand.rate: layer selector 'conv9': no convolution or linear layer is named so",
    "expand.stages=[]": "stages: name one at least of expand, train, contract",
    "expand.compare={x: {}}": "expand.compare.x: it says nothing that differs from `expand`; give one of strategy",
    "expand.compare={x: {train: {}}}": "expand.compare.x: it says nothing that differs from `expand`; give one of",
    "expand.compare={x: {train: {monitor: map}}}": "expand.compare.x: monitor: map was given",
    "expand.compare={x: {train: {epoch: 3}}}": "expand.compare.x.train.epoch: unknown key; did you mean 'epochs'?",
    "expand.compare={x: {strategy: ck, layers: [fc1]}}": "expand.compare.x: expand: fc1: ck is not for linear layers",
    "expand.compare={x: {distill: {kind: kd, teacher: zz}}}": "expand.compare.x: distill.teacher: zz: no such file",
    "expand.compare={x: {strategy: cc}}": "expand.compare.x: strategy: 'cc' was given",
    "train.distill={kind: kd, teacher: nowhere.pt}": "nowhere.pt: no such file",
}


@pytest.mark.parametrize("change", REFUSALS)
def test_refusals_before_any_work(recipe, call, tmp_path, change):
    outcome = call("expand", recipe, change, *(["--dry-run"] if REFUSALS[change] is None else []))
    if REFUSALS[change] is None:
        assert outcome.status == 0, outcome.err
        return
    assert outcome.status in (1, 2)
    assert REFUSALS[change] in outcome.err
    assert not (tmp_path / "runs").exists()


def test_ck_on_a_3x3_kernel_is_refused_by_name(recipe, call):
    outcome = call("expand", recipe, "model.kernel=3", "expand={strategy: ck, layers: [conv2]}")
    assert outcome.status == 2
    assert outcome.err == ("error: expand: conv2: ck takes odd kernels larger than 3, and its kernel is 3x3; use cl\n")


def test_recipes_without_what_a_stage_needs(recipe, call):
    outcome = call("expand", recipe, "~train")
    assert outcome.status == 2
    assert "expand.stages: 'train' trains as the section `train` says, which is missing; add it" in outcome.err
    outcome = call("expand", recipe, "~model")
    assert "expand: there is no net to expand; add the section `model`" in outcome.err
    outcome = call("train", recipe, "~expand", "train.init=expandnet")
    assert "train.init: expandnet starts from the net that the section `expand` describes" in outcome.err


def test_what_is_no_expanded_net_cannot_go_on(done, recipe, call):
    compact = done / "runs/net-expand/model.pt"
    for stage in ("train", "contract"):
        outcome = call("expand", recipe, f"expand.stages=[{stage}]", "-c", compact)
        assert outcome.status == 2
        assert "it has no expanded layers; name the model.pt that an earlier stage left" in outcome.err


def test_an_expanded_net_is_not_expanded_again(done, recipe, call):
    outcome = call("expand", recipe, "-c", done / "runs/net-expand/expanded.pt")
    assert outcome.status == 2
    assert "expanded.pt: it is expanded already; go on with expand.stages=[train, contract]" in outcome.err


def test_a_later_stage_runs_in_the_mode_that_it_asks_for(done, recipe, call):
    later = ("expand.stages=[train]", "expand.mode=sequential", "train.epochs=1", "data.limit=128")
    assert call("expand", recipe, *later, "-c", done / "runs/net-expand/expanded.pt", "--out", "on").status == 0
    modes = {layer.mode for layer in expanded_layers(compresskit.load("on/model.pt")).values()}
    assert modes == {"sequential"}


def test_a_start_that_forgets_what_was_learnt_is_noted(done, recipe, call):
    trained, note = done / "runs/net-expand/model.pt", "factors were drawn afresh"
    for change, noted in (("expand.init=standard", True), ("expand.strategy=cl+fc", False)):
        outcome = call("expand", recipe, "expand.stages=[expand]", change, "-c", trained, "--out", "w", "--force")
        assert outcome.status == 0, outcome.err
        assert (note in outcome.out) == noted


def test_a_contracted_start_is_untrained_even_from_a_checkpoint(recipe):
    asked = load_recipe(recipe, ["expand.compare={c: {init: expandnet}}"])
    own, variant = settings(asked)
    assert own.expand.init is None  # from_checkpoint, where there is one
    assert (variant.contracted, variant.expand.init) == (True, "standard")


def test_memorisation_asks_for_errors_alone(recipe, call):
    options = ("train.memorisation={label_noise: [0.5]}", "train.gradient_confusion={pairs: 2}", "train.epochs=1")
    outcome = call("expand", recipe, *options, "data.limit=128", "--out", "m")
    assert outcome.status == 0, outcome.err
    assert "errors under corrupted labels" in outcome.out
    assert "gradient_cosine" in Path("m/metrics.csv").read_text()
    (table,) = Path("m/memorisation").rglob("metrics.csv")
    assert "gradient_cosine" not in table.read_text()
    outcome = call("expand", recipe, *options, "expand.stages=[expand, train]")
    assert outcome.status == 2
    assert "train.memorisation: its networks go through all stages" in outcome.err


def test_validate_leaves_what_goes_on_from_a_checkpoint(recipe, call):
    for change in ("expand.init=from_checkpoint", "expand.stages=[train]"):
        outcome = call("validate", recipe, change)
        assert outcome.status == 0, outcome.err
        assert "expand" in outcome.out
        assert "can be checked only with --checkpoint" in outcome.out


def test_a_net_of_nonlinear_factors_is_not_contracted(recipe, call):
    nonlinear = "expand={strategy: cl, nonlinear: true, stages: [expand, train]}"
    assert call("expand", recipe, nonlinear, "train.epochs=1", "--out", "wide").status == 0
    outcome = call("expand", recipe, "expand={strategy: cl, stages: [contract]}", "-c", "wide")
    assert outcome.status == 2
    assert "contract: conv1 was trained with nonlinear factors, which have no product" in outcome.err
    outcome = call("expand", recipe, "expand={strategy: cl, stages: [train], mode: online}", "-c", "wide")
    assert "expand.mode: online multiplies the factors, and those of wide/model.pt are nonlinear" in outcome.err


def test_distillation_through_the_program(done, recipe, call):
    teacher = str(done / "runs/net-expand/model.pt")
    for kind in ("{kind: kd, temperature: 2", "{kind: hint, layers: [[conv2, conv3]]", "{kind: pkt"):
        distill = f"train.distill={kind}, teacher: {teacher}}}"
        outcome = call("expand", recipe, distill, "train.epochs=1", "--out", "student", "--force")
        assert outcome.status == 0, outcome.err
        assert "distill_loss" in Path("student/metrics.csv").read_text()
    without = "expand.compare={alone: {distill: none}}"
    outcome = call("expand", recipe, distill, without, "train.epochs=1", "--out", "both")
    assert outcome.status == 0, outcome.err
    assert "distill_loss" not in Path("both/compare/alone/trial-1/metrics.csv").read_text()
    finetune = f"finetune={{epochs: 1, distill: {{kind: kd, teacher: {teacher}}}}}"
    assert call("finetune", recipe, finetune, "-c", "student", "--out", "tuned").status == 0


def test_a_teacher_of_other_classes_or_layers_is_refused(done, recipe, call, tmp_path):
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "five.npz",
        inputs=random.integers(0, 255, (60, 1, 28, 28), dtype=np.uint8),
        targets=np.arange(60) % 5,
    )
    data = "data={kind: arrays, path: five.npz}"
    assert call("train", recipe, data, "train.epochs=1", "--out", "five").status == 0
    for verb in ("train", "expand"):
        outcome = call(verb, recipe, "train.distill={kind: kd, teacher: five}", "--out", "student")
        assert outcome.status == 2
        assert "distill.teacher: five/model.pt: it has 5 outputs, the recipe's data 10" in outcome.err
    teacher = done / "runs/net-expand/model.pt"
    outcome = call("expand", recipe, f"train.distill={{kind: hint, teacher: {teacher}, layers: [[conv9, conv1]]}}")
    assert "distill.layers: the student has no layer 'conv9'" in outcome.err
    assert not (tmp_path / "runs").exists()


def scaled(kernels, biases, order=None):
    kernel, bias = contract(kernels, biases, order)
    return 1.5 * kernel, bias


def without_bias(kernels, biases, order=None):
    kernel, bias = contract(kernels, biases, order)
    return kernel, None if bias is None else torch.zeros_like(bias)


def shifted(kernels, biases, order=None):
    kernel, bias = contract(kernels, biases, order)
    return (kernel.roll(1, dims=2) if kernel.ndim > 3 else kernel), bias


@pytest.mark.parametrize("broken", [scaled, without_bias, shifted])
def test_a_wrong_product_is_seen_in_the_report(recipe, call, monkeypatch, broken):
    """Also where the expanded net is trained as that very product."""
    monkeypatch.setattr(expanded_layer, "contract", broken)
    options = "expand={strategy: cl, rate: 1, mode: online}"
    assert call("expand", recipe, options, "train.epochs=4", "--out", "run", "--quiet").status == 0
    checks = json.loads(Path("run/report.json").read_text())["checks"]
    assert checks["contracted net against the expanded one, relative"] > 0.01
