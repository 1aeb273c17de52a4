"""`compresskit prune` end to end: its stages, targets, steps, resuming and refusals."""

from pathlib import Path

import pytest
import torch

from compresskit.commands.prune import channels as prune_channels
from compresskit.graph.channels.cut import cut
from compresskit.storage.checkpoint import Checkpoint, load
from tests.commands.conftest import RECIPE, program, report, rows
from tests.commands.test_bad_input import refused

PRUNE = """\
prune:
  target: {macs: 60%}
  samples: 300
  images: 128
"""
RETRAIN = "prune.retrain={epochs: 1, batch_size: 64, optimizer: {kind: adam, lr: 1e-3}}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(RECIPE + PRUNE)
    return path


def table(folder: str, title: str) -> dict[str, list]:
    return {row[0]: row[1:] for row in rows(folder, title)}


def test_every_stage_is_reported(call, recipe, trained):
    outcome = call("prune", recipe, RETRAIN, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert list(table("out", "test metrics")) == ["original", "cut", "repaired", "fine-tuned"]
    found = report("out")
    assert found["targets"][0]["met"]
    assert found["checks"]["cut against the whole net that does not see what is cut"] < 1e-4
    assert found["checks"]["model.pt read back"] == 0
    assert found["skipped"]["head"] == "it is the network's output"
    channels = table("out", "channels")
    network = load(Path("out/model.pt")).network
    for layer, (before, kept, _) in channels.items():
        assert len(network.get_submodule(layer).weight) == kept < before
    macs = {figure["name"]: figure for figure in found["figures"]}["MACs"]
    assert macs["after"][0] <= 0.6 * macs["before"][0]
    assert {path.name for path in Path("out").iterdir()} >= {"model.pt", "pruned.pt", "pruning-ratios.png", "moments"}
    assert [entry["verb"] for entry in load(Path("out/model.pt")).history] == ["train", "prune"]


def test_an_exact_cut_is_exact_whatever_becomes_of_the_norms_afterwards(call, recipe, tmp_path, monkeypatch):
    assert program("train", recipe, "model.batch_norm=true", "train.epochs=1", "--quiet", cwd=tmp_path).status == 0
    options = ("model.batch_norm=true", "prune.repair=none", "prune.norms=true", "-c", "runs/net-train", "--quiet")
    check = "cut against the whole net that does not see what is cut"
    assert call("prune", recipe, *options, "--out", "out").status == 0
    assert report("out")["checks"][check] < 1e-4

    def wrong(network, channels, alive):
        """Cuts other channels than those that were chosen."""
        found = cut(network, channels, alive)
        with torch.no_grad():
            found.conv2.weight.copy_(found.conv2.weight.flip(1))
        return found

    monkeypatch.setattr(prune_channels, "cut", wrong)
    assert call("prune", recipe, *options, "--out", "broken").status == 0
    assert report("broken")["checks"][check] > 1e-2


@pytest.mark.parametrize("criterion", ["hydra", "taylor", "augprune", "fisher", "random", "spectral-energy"])
def test_criteria_by_name(call, recipe, trained, criterion):
    override = f"prune.criterion={criterion}"
    outcome = call("prune", recipe, override, "-c", trained / "runs/net-train", "--out", "out", "--quiet")
    assert outcome.status == 0, outcome.err
    assert report("out")["targets"][0]["met"]


@pytest.mark.parametrize(
    "budget",
    ["global", "lamp", "erk", "{kind: spectral, metric: entropy}", "{kind: spectral, metric: norm, inverse: true}"],
)
def test_budgets_by_name(call, recipe, trained, budget):
    outcome = call("prune", recipe, f"prune.budget={budget}", "-c", trained / "runs/net-train", "--out", "out", "-q")
    assert outcome.status == 0, outcome.err
    assert report("out")["targets"][0]["met"]


def test_repair_helps_and_can_be_left_out(call, recipe, trained):
    bare = ("prune.repair=none", "prune.norms=false")
    source = ("-c", trained / "runs/net-train")
    assert call("prune", recipe, *bare, *source, "--out", "bare", "prune.criterion=random").status == 0
    assert (
        call("prune", recipe, *source, "--out", "fixed", "prune.criterion=random", "prune.repair=top-down").status == 0
    )
    assert "repaired" not in table("bare", "test metrics")
    (original, *_), (cut, *_), (repaired, *_) = (
        table("fixed", "test metrics")[name] for name in ("original", "cut", "repaired")
    )
    assert cut == table("bare", "test metrics")["cut"][0]
    assert original[0] >= repaired[0] > cut[0]


def test_steps_prune_and_retrain_in_turn(call, recipe, trained):
    outcome = call("prune", recipe, RETRAIN, "prune.steps=2", "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    rows = table("out", "test metrics")
    assert list(rows) == [
        "original",
        *(f"step {n}: {what}" for n in (1, 2) for what in ("cut", "repaired", "fine-tuned")),
    ]
    steps = report("out")["details"]["trials"][0]["steps"]
    assert steps[0]["asked"] == pytest.approx(0.6**0.5 * steps[0]["whole"])
    assert steps[1]["asked"] == pytest.approx(0.6 * steps[0]["whole"])
    assert steps[1]["whole"] == steps[0]["got"]
    assert report("out")["targets"][0]["met"]


def test_a_share_of_a_latency_is_one_of_what_was_measured_once(call, recipe, trained, monkeypatch):
    """The whole net is a tenth quicker each time that it is looked at: it was asked for 95 %, and then had 90 %."""
    looks = 0

    def measured(network, *arguments):
        nonlocal looks
        filters = sum(len(layer.weight) for layer in network.modules() if hasattr(layer, "weight"))
        looks += filters == 4 + 8 + 10
        return filters * (0.9**looks if filters == 4 + 8 + 10 else 0.5)

    monkeypatch.setattr(prune_channels, "latency", measured)
    options = ("~prune.target", "prune.target={latency: 95%}", "prune.repair=none", "-c", trained / "runs/net-train")
    outcome = call("prune", recipe, *options, "--out", "out")
    assert outcome.status == 0, outcome.err
    (target,) = report("out")["targets"]
    assert "(95.00%)" in target["asked"]


def test_several_trials_leave_the_best_at_the_top(call, recipe, trained):
    outcome = call(
        "prune", recipe, "trials=2", "prune.criterion=random", "-c", trained / "runs/net-train", "--out", "out"
    )
    assert outcome.status == 0, outcome.err
    metrics = table("out", "test metrics")["repaired"][0]
    best = max(range(2), key=lambda trial: metrics[trial])
    top, own = (load(Path(path)).network.state_dict() for path in ("out/model.pt", f"out/trial-{best + 1}/model.pt"))
    assert all(torch.equal(top[name], own[name]) for name in top)


def whole_and_resumed(source: tuple, folder: Path) -> list[Checkpoint]:
    """Of a run, and of one that is resumed behind its pruned.pt, which it must leave alone."""
    for name in ("whole", "cut"):
        done = program("prune", "net.yaml", RETRAIN, *source, "--out", name, cwd=folder)
        assert done.status == 0, done.err
    for name in ("model.pt", "retrain/state.pt", "report.json"):
        (folder / "cut" / name).unlink()
    before = (folder / "cut/pruned.pt").stat().st_mtime_ns
    again = program("prune", "net.yaml", RETRAIN, *source, "--out", "cut", "--resume", cwd=folder)
    assert again.status == 0, again.err
    assert (folder / "cut/pruned.pt").stat().st_mtime_ns == before
    return [load(folder / name / "model.pt") for name in ("whole", "cut")]


def test_a_killed_run_goes_on(recipe, trained, tmp_path):
    found = whole_and_resumed(("-c", trained / "runs/net-train"), tmp_path)
    one, other = (checkpoint.network.state_dict() for checkpoint in found)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_dry_run_says_what_can_be_reached(call, recipe, trained, tmp_path):
    outcome = call("prune", recipe, "-c", trained / "runs/net-train", "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "MACs that can be reached" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["net.yaml"]


def test_refusals(call, recipe, trained, tmp_path):
    source = ("-c", trained / "runs/net-train")
    refused(call("prune", recipe), 2, "--checkpoint", "'prune' works on a trained net")
    refused(call("prune", recipe, "prune.target={macs: 0%}", *source), 2, "prune.target", "is no share")
    refused(call("prune", recipe, "prune.target={macs: 100%}", *source), 2, "prune.target", "is no share")
    refused(
        call("prune", recipe, "prune.target={macs: 1%}", *source), 2, "what can be reached lies from", "min_channels"
    )
    refused(call("prune", recipe, "prune.target={}", *source), 2, "prune.target", "give one of params, macs")
    refused(
        call("prune", recipe, "prune.criterion=norm-scale", *source), 2, "conv1 (and 1 more): norm-scale reads norms"
    )
    refused(call("prune", recipe, "prune.layers=[head]", *source), 2, "no channel can go", "the network's output")
    refused(call("prune", recipe, "prune.steps=3", *source), 2, "prune", "`match`, `blocks` or `retrain`")
    refused(call("prune", recipe, "~data", *source), 2, "data")
    refused(call("prune", recipe, "prune.criterion=magnitud", *source), 2, "magnitude")
    assert not (tmp_path / "runs").exists()


COMPARE = "prune.compare={at: [80%, 60%], budget: [uniform, {kind: spectral, metric: entropy, inverse: true}]}"


def test_a_study_is_one_run(call, recipe, trained):
    """Each row is what a run of its own gives, and every network is kept."""
    rates = "prune.compare.layerwise_rates=[null, {metric: norm}]"
    outcome = call("prune", recipe, RETRAIN, COMPARE, rates, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    (found,) = [table for table in report("out")["tables"] if table["title"] == "comparison"]
    assert found["columns"][:4] == ["budget", "layerwise_rates", "asked", "left"]
    assert [row[:3] for row in found["rows"]] == [
        [budget, rates, f"macs {share}"]
        for budget in ("uniform", "spectral metric entropy, inverse True")
        for rates in ("one rate", "rates by norm")
        for share in ("80%", "60%")
    ]
    folder = Path("out/compare/macs-60-spectral-metric-entropy-inverse-True-rates-by-norm")
    alone = (
        "prune.target={macs: 60%}", "prune.budget={kind: spectral, metric: entropy, inverse: true}",
        "prune.retrain.layerwise_rates={metric: norm}",
    )  # fmt: skip
    assert call("prune", recipe, RETRAIN, *alone, "-c", trained / "runs/net-train", "--out", "alone").status == 0
    one, other = (load(path / "model.pt").network.state_dict() for path in (folder, Path("alone")))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert found["rows"][-1][4:] == [
        table("alone", "test metrics")[stage][0] for stage in ("cut", "repaired", "fine-tuned")
    ]
    assert all((path / "retrain/layer-rates.png").exists() for path in (folder, Path("alone")))
    assert list(table("alone", "layerwise rates")) == ["conv1", "conv2", "head"]
    details = report("out")["details"]["comparison"][0]
    assert len(details) == 8
    assert details[-1]["ratios"]["conv1"] > 0
    assert {path.name for path in Path("out").iterdir()} >= {"comparison.png", "comparison-ratios.png", "model.pt"}


def test_a_killed_study_goes_on_with_the_next_setting(call, recipe, trained):
    source = ("-c", trained / "runs/net-train")
    assert call("prune", recipe, COMPARE, *source, "--out", "out").status == 0
    first, last = Path("out/compare/macs-80-uniform"), Path("out/compare/macs-60-spectral-metric-entropy-inverse-True")
    before = (first / "pruned.pt").stat().st_mtime_ns
    whole = report("out")["tables"][-1]
    for path in (last / "pruned.json", last / "model.pt", Path("out/report.json")):
        path.unlink()
    assert call("prune", recipe, COMPARE, *source, "--out", "out", "--resume").status == 0
    assert (first / "pruned.pt").stat().st_mtime_ns == before
    assert report("out")["tables"][-1] == whole


def test_a_study_is_refused_before_any_work(call, recipe, trained, tmp_path):
    source = ("-c", trained / "runs/net-train")
    refused(call("prune", recipe, "prune.compare={at: [80%, 1%]}", *source), 2, "what can be reached lies from")
    refused(call("prune", recipe, "prune.compare={at: [0%]}", *source), 2, "prune.compare.at", "is no share")
    refused(call("prune", recipe, "prune.compare={layerwise_rates: [{}]}", *source), 2, "add `retrain`")
    refused(
        call("prune", recipe, "prune.compare={criterion: [norm-scale]}", *source),
        2,
        "norm-scale reads norms with a scale",
    )
    assert not (tmp_path / "runs").exists()


def test_the_setting_that_is_kept_is_not_done_again(call, recipe, trained):
    compare = "prune.compare={budget: [uniform, global], repair: [parallel, none]}"
    outcome = call("prune", recipe, "prune.norms=false", compare, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    (found,) = [table for table in report("out")["tables"] if table["title"] == "comparison"]
    assert found["columns"][-2:] == ["test accuracy, cut", "test accuracy, repaired"]
    assert found["rows"][0][-2:] == [table("out", "test metrics")[stage][0] for stage in ("cut", "repaired")]
    assert found["rows"][1][-1] == found["rows"][1][-2]  # without repair
    assert len(list(Path("out/compare").iterdir())) == 3


def test_settings_that_differ_in_an_option_are_told_apart(call, recipe, trained):
    rates = "prune.compare={layerwise_rates: [{metric: norm}, {metric: norm, map: linear}]}"
    outcome = call("prune", recipe, RETRAIN, rates, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert len(list(Path("out/compare").iterdir())) == 2
    resumed = call("prune", recipe, RETRAIN, rates, "-c", trained / "runs/net-train", "--out", "out", "--resume")
    assert resumed.status == 0, resumed.err


def test_settings_share_moments_of_the_whole_net_alone(call, recipe, trained):
    strict = ("prune.repair=top-down", "prune.compare={at: [80%, 60%]}", "moments.stale=fail")
    outcome = call("prune", recipe, *strict, "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err


def test_steps_that_take_more_than_their_share_end_early(call, recipe, trained):
    outcome = call("prune", recipe, RETRAIN, "prune.steps=12", "-c", trained / "runs/net-train", "--out", "out")
    assert outcome.status == 0, outcome.err
    steps = report("out")["details"]["trials"][0]["steps"]
    assert 1 < len(steps) < 12  # there are twelve channels, four may go
    assert report("out")["targets"][0]["met"]


def test_a_dry_run_lists_the_settings(call, recipe, trained):
    outcome = call("prune", recipe, COMPARE, "-c", trained / "runs/net-train", "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "4 settings to compare" in outcome.out


def test_comparisons_of_nothing_and_of_one_thing_twice_are_refused(call, recipe, trained):
    source = ("-c", trained / "runs/net-train")
    refused(call("prune", recipe, "prune.compare={}", *source), 2, "prune.compare", "it names nothing")
    refused(call("prune", recipe, "prune.compare={at: [50%, 50%]}", *source), 2, "macs-50-as", "comes twice")
    refused(call("prune", recipe, "prune.target={sparsity: 90%}", *source), 2, "unknown key", "write `kind: weights`")


def test_a_layer_with_one_channel_left_is_noted(call, recipe, trained):
    source = ("-c", trained / "runs/net-train", "--out", "out", "--quiet")
    assert call("prune", recipe, "prune={target: {params: 13%}, budget: uniform}", *source).status == 0
    (note,) = [note for note in report("out")["notes"] if "one channel is left" in note]
    assert "of conv2 (of 8)" in note
    assert "set min_channels" in note
    assert call("prune", recipe, "prune={target: {params: 60%}}", *source, "--force").status == 0
    assert not any("one channel is left" in note for note in report("out")["notes"])
