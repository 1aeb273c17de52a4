"""What is odd about the data is said when they are loaded, and is among the notes of the report, --quiet or not."""

import json

import numpy as np
import pytest

NOTE = "data: classes begin at 1, so that one of the 4 outputs never has a sample; subtract 1 from the targets"


@pytest.fixture
def odd(tmp_path):
    labels = np.arange(48) % 3 + 1
    inputs = labels[:, None, None, None] + np.random.default_rng(0).normal(size=(48, 1, 8, 8)).astype("f4")
    np.savez(tmp_path / "a.npz", train_inputs=inputs, train_targets=labels, test_inputs=inputs, test_targets=labels)
    path = tmp_path / "odd.yaml"
    path.write_text(
        "model: {kind: convnet, channels: [2]}\ndata: {kind: arrays, path: a.npz}\n"
        "train: {epochs: 1, batch_size: 16}\nfinetune: {epochs: 1, batch_size: 16}\nspectra: {isometry: {images: 4}}\n"
        "report: {latency_repeats: 1, plots: false}\n"
    )
    return path


@pytest.mark.parametrize("quiet", [False, True])
def test_notes_reach_the_user_and_the_report(quiet, odd, call, tmp_path):
    done = call("train", odd, "--out", "run", *(["-q"] if quiet else []))
    assert done.status == 0, done.err
    assert done.err.splitlines().count(f"warning: {NOTE}") == (0 if quiet else 1)
    assert json.loads((tmp_path / "run/report.json").read_text())["notes"].count(NOTE) == 1
    assert NOTE in (tmp_path / "run/report.md").read_text()


@pytest.mark.parametrize("section", ["train", "data", "spectra"])
def test_validate_says_them_once(section, odd, call):
    dropped = {"train": ["~spectra"], "spectra": ["~train"], "data": ["~train", "~spectra", "~finetune"]}[section]
    done = call("validate", odd, *dropped, "--json")
    assert done.status == 0, done.err
    assert done.err.splitlines().count(f"warning: {NOTE}") == 1
    assert json.loads(done.out)["notes"].count(NOTE) == 1
