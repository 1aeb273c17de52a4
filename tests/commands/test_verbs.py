"""What the verbs promise beyond the chain: dry runs, trials, choosing, resuming, and what can be shown."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from compresskit import __version__
from compresskit.storage.checkpoint import load
from tests.commands.conftest import environment, program, report


def same_weights(first: str, second: str) -> bool:
    one, two = (load(Path(folder) / "model.pt").network.state_dict() for folder in (first, second))
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("verb", ["train", "fuse", "finetune"])
def test_a_dry_run_checks_and_writes_nothing(call, recipe, trained, verb):
    source = [] if verb == "train" else ["-c", trained / "runs/net-train"]
    outcome = call(verb, recipe, *source, "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "nothing was written" in outcome.out
    assert [path.name for path in recipe.parent.iterdir()] == ["net.yaml"]


def test_validate_tries_every_section(call, recipe, trained):
    outcome = call("validate", recipe)
    assert outcome.status == 0
    assert "its layers can be checked only with --checkpoint" in outcome.out
    whole = call("validate", recipe, "-c", trained / "runs/net-train", "--json")
    sections = json.loads(whole.out)["tables"][0]["rows"]
    assert sections == [["train", "ready"], ["fuse", "ready"], ["finetune", "ready"]]
    assert [path.name for path in recipe.parent.iterdir()] == ["net.yaml"]


def test_auto_shows_its_candidates_and_stops_in_a_dry_run(call, recipe, trained):
    outcome = call("fuse", recipe, "fuse.layers=auto", "-c", trained / "runs/net-train", "--dry-run", "--json")
    rows = json.loads(outcome.out)["tables"][0]["rows"]
    assert {row[0] for row in rows} == {"conv1+conv2", "conv2+head"}
    shares = [float("inf") if row[3] is None else row[3] for row in rows]  # null: fewer images than unknowns
    assert shares == sorted(shares)


def test_auto_fuses_until_the_target_is_met(call, recipe, trained):
    until = ("fuse.layers=auto", "fuse.until={layers: 1}")
    outcome = call("fuse", recipe, *until, "-c", trained / "runs/net-train", "--out", "one")
    assert outcome.status == 0, outcome.err
    assert report(Path("one"))["targets"] == [{"name": "layers", "asked": "1", "got": "1", "met": True}]
    assert (Path("one") / "candidates.png").exists()
    again = call("fuse", recipe, *until, "-c", trained / "runs/net-train", "--out", "one", "--resume")
    assert again.status == 0, again.err
    assert [table["title"] for table in report(Path("one"))["tables"]][-1] == "candidates"
    # two steps, and no third pass over the data to find that it is done
    assert sorted(path.name for path in Path("one/moments").iterdir()) == ["step-1", "step-2"]


def test_auto_leaves_alone_what_is_not_among_its_layers(call, recipe, trained):
    options = ("fuse.layers=auto", "fuse.among=['@conv']", "-c", trained / "runs/net-train", "--dry-run", "--json")
    report = json.loads(call("fuse", recipe, *options).out)
    assert [row[0] for row in report["tables"][0]["rows"]] == ["conv1+conv2"]
    assert report["skipped"] == {"conv2+head": "`among` leaves out one of its layers"}
    unknown = call("fuse", recipe, "fuse.layers=auto", "fuse.among=[conv7]", *options[2:])
    assert unknown.status == 2
    assert "conv7" in unknown.err


def test_a_target_that_is_missed_is_exit_status_3_and_the_work_is_saved(call, recipe, trained):
    until = ("fuse.layers=auto", "fuse.until={macs: 1%}")
    outcome = call("fuse", recipe, *until, "-c", trained / "runs/net-train", "--out", "some")
    assert outcome.status == 3
    assert "macs: 1% was asked for" in outcome.err
    assert (Path("some") / "model.pt").exists()
    assert not report(Path("some"))["targets"][0]["met"]


def test_an_error_limit_allows_nothing_worse(call, recipe, trained):
    until = ("fuse.layers=auto", "fuse.until={error: 1e-9}")
    outcome = call("fuse", recipe, *until, "-c", trained / "runs/net-train", "--out", "none")
    assert outcome.status == 2
    assert "no chain was fused" in outcome.err


def test_trials_have_a_folder_each_and_a_spread_in_the_report(call, recipe):
    small = ("trials=2", "train.epochs=1", "data.limit=200", "data.validation=100")
    assert call("train", recipe, *small, "--quiet").status == 0
    fused = call("fuse", recipe, *small, "-c", "runs/net-train")
    assert fused.status == 0, fused.err
    assert "±" in fused.out
    first, second = (load(Path(f"runs/net-fuse/trial-{trial}/model.pt")) for trial in (1, 2))
    assert first.history[0]["seed"] == 0
    assert second.history[0]["seed"] == 1
    assert Path("runs/net-fuse/model.pt").exists()
    (best,) = {trial for trial in (1, 2) if same_weights(f"runs/net-train/trial-{trial}", "runs/net-train")}
    single = call("fuse", recipe, *small, "trials=1", "-c", "runs/net-train", "--out", "single")
    assert single.status == 0
    assert load(Path("single/model.pt")).history[0]["seed"] == best - 1
    too_many = call("fuse", recipe, *small, "trials=3", "-c", "runs/net-train", "--out", "x")
    assert "3 were asked for" in too_many.err


def test_a_report_of_few_samples_is_json_all_the_same(call, recipe, trained):
    plain = "fuse.solver={kind: cholesky, ridge: 0.0}"
    outcome = call("fuse", recipe, "fuse.samples=5", plain, "-c", trained / "runs/net-train", "--json")
    assert (
        json.loads(outcome.out, parse_constant=pytest.fail)["details"]["trials"][0]["steps"][0]["row"]["expected_error"]
        is None
    )


def test_validate_loads_the_data_even_where_no_verb_can_be_tried(call, tmp_path):
    (tmp_path / "only.yaml").write_text("data: {kind: arrays, path: nowhere.h5}\nfuse: {layers: [[a, b]]}\n")
    outcome = call("validate", "only.yaml")
    assert outcome.status == 1
    assert "nowhere.h5" in outcome.err


def test_quiet_says_nothing(call, recipe):
    outcome = call("train", recipe, "train.epochs=1", "--quiet")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")


def test_a_killed_chain_goes_on_and_ends_the_same(recipe, trained, tmp_path):
    """`fuse` with two steps and retraining, killed while the second is retrained."""
    options = ["fuse.layers=[[conv2, head], [conv1, head]]", "fuse.retrain={epochs: 2, batch_size: 64}"]
    arguments = ["fuse", "net.yaml", *options, "-c", str(trained / "runs/net-train")]
    whole = program(*arguments, "--out", "whole", cwd=tmp_path)
    assert whole.status == 0, whole.err
    command = [sys.executable, "-m", "compresskit", *arguments, "--out", "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/step-2/retrain/state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/model.pt").exists()
    kept = ["step-1/step.json", "step-2/fused.pt", "moments/step-2"]
    before = [(tmp_path / "killed" / name).stat().st_mtime_ns for name in kept]
    resumed = program(*arguments, "--out", "killed", "--resume", cwd=tmp_path)
    assert resumed.status == 0, resumed.err
    assert [(tmp_path / "killed" / name).stat().st_mtime_ns for name in kept] == before
    assert same_weights(str(tmp_path / "whole"), str(tmp_path / "killed"))


def test_an_interrupt_is_status_130_and_says_how_to_go_on(recipe, tmp_path):
    command = [sys.executable, "-m", "compresskit", "train", "net.yaml", "train.epochs=200"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "runs/net-train/state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; --resume goes on from the last saved state" in errors


@pytest.mark.parametrize(
    ("topic", "words"),
    [("models", "lenet-300-100"), ("datasets", "mnist-mini"), ("recipes", "fuse.until.macs")],
)
def test_show(call, topic, words):
    assert words in call("show", topic, "--json").out


def test_show_a_section_of_recipes(call):
    found = call("show", "recipes", "prune", "--json").out
    assert "prune[channels].budget[spectral].metric" in found
    assert "train.epochs" not in found
    assert "fmt: skip" not in found
    assert "no section 'prun'" in call("show", "recipes", "prun").err
    assert "no section 'prune'" in call("show", "models", "prune").err


def test_show_layers(call, trained):
    assert "conv2" in call("show", "layers", "-c", trained / "runs/net-train/model.pt").out
    assert "--checkpoint" in call("show", "layers").err
    assert "allowed: models, datasets, recipes, layers" in call("show", "nonsense").err


def test_a_narrow_terminal_cuts_no_key(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "…" not in call("show", "recipes").out


def test_inspect_says_how_a_net_came_to_be(call, trained):
    out = call("inspect", trained / "runs/net-train/model.pt").out
    assert "compresskit train net.yaml" in out
    assert "sha256" in out


def test_version(call):
    assert call("--version").out == f"compresskit {__version__}\n"


def test_augmix_with_consistency_trains(call, recipe):
    augment = "data.augment={augmix: {}, consistency: 12}"
    assert call("train", recipe, augment, "--dry-run").status == 0
    outcome = call("train", recipe, augment, "train.epochs=1", "train.gradient_confusion={pairs: 2}", "--out", "out")
    assert outcome.status == 0, outcome.err
    assert "add augmix" in call("train", recipe, "data.augment={consistency: 12}").err


@pytest.mark.parametrize("plots", [True, False])
def test_evaluate_draws_where_it_writes(call, trained, plots):
    done = call(
        "evaluate", trained / "net.yaml", f"report.plots={plots}".lower(), "-c", trained / "runs/net-train", "-o", "out"
    )
    assert done.status == 0, done.err
    assert {path.name for path in Path("out").glob("*.[ps][nv]g")} == (
        {"layer-sizes.png", "layer-sizes.svg"} if plots else set()
    )
    assert ("layer-sizes.svg" in Path("out/report.html").read_text()) == plots


def test_tensorboard_gets_what_was_compressed_where_it_is_asked_for(call, trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fused = ["fuse", trained / "net.yaml", "-c", trained / "runs/net-train"]
    retrain = "fuse.retrain={epochs: 1, optimizer: {kind: adam, lr: 1e-3}, tensorboard: true}"
    for _ in range(2):  # the second one goes on, and writes each figure once all the same
        done = call(*fused, retrain, "-o", "out", "--resume")
        assert done.status == 0, done.err
    events = EventAccumulator("out/tensorboard/report").Reload()
    found = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    figures = {figure["name"]: figure for figure in json.loads(Path("out/report.json").read_text())["figures"]}
    for name, figure in figures.items():
        assert found[f"report/{name}"] == pytest.approx([*figure["before"], *figure["after"]])
    assert len(found["layers/MACs, share"]) == 2  # conv1, and one for conv2 and head
    assert sum(found["layers/parameters, share"]) == pytest.approx(1)
    assert call(*fused, "-o", "without").status == 0
    assert not Path("without/tensorboard").exists()
