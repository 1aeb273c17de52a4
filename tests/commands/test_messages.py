"""What is said of values that are out of place: what was given, what is allowed, and what to do."""

import pytest

from compresskit.errors import ResourceError
from compresskit.storage import run_folder
from compresskit.storage.run_folder import check_disk
from tests.commands.test_bad_input import refused

MORE = "prune: {target: {macs: 60%}}\nreconstruct: {keep: 60%}\nexpand: {rate: 2}\n"
MASKS = "prune={kind: weights, target: {sparsity: %s}}"


CASES = {
    "seed=18446744073709551616": "seed: must be an integer at least 0 and less than 4611686018427387904",
    "seed=-1": "seed: must be an integer at least 0",
    "trials=1000000000": "trials: must be an integer at least 1 and at most 10000",
    "reconstruct={target: {size: 0.4}}": "reconstruct.target.size: 0.4 is a number; write the share as 40%",
    "reconstruct={target: {macs: 40}}": "reconstruct.target.macs: 40 is a number; write the share as 60%",
    "reconstruct={error: 1.5}": "reconstruct.error: must be a number greater than 0 and less than 1",
    "prune.target={macs: 0.6}": "prune.target.macs: 0.6 is less than one; write the share as 60%",
    MASKS % "1.0": "prune.target.sparsity: 1.0 is no share below 1; write it as 0.9, or as 90%",
    MASKS % "98.4": "prune.target.sparsity: 98.4 is no share below 1",
    "prune={kind: weights, target: {sparsity: 50%}, compare: {at: [1.5]}}": "prune.compare.at: sparsity: 1.5",
    "fuse={layers: auto, until: {macs: 0.5}}": "fuse.until.macs: 0.5 is a number; write the share as 50%",
    "fuse={layers: auto, until: {error: 1.5}}": "fuse.until.error: must be a number greater than 0 and less than 1",
    "fuse.layers=[[head, conv2]]": "fuse: head comes behind conv2 in the network; write [conv2, head]",
    "fuse.layers=[[conv9, head]]": "fuse: no layer is named 'conv9'; did you mean 'conv2' or 'conv1'?",
    "fuse.layers=[[block]]": "fuse: no block is named 'block'",
    "fuse.layers=[{first: conv1, last: conv2, kernel: 60}]": "fuse.kernel: 60 was given for conv1+conv2, whose map has",
    "expand.layers=[conv9]": "expand.layers: layer selector 'conv9': no convolution or linear layer is named so",
    "expand.rate={conv9: 2}": "expand.rate: layer selector 'conv9': no convolution or linear layer is named so",
    "expand.rate=1e9": "GB with their gradients, and this machine has",
    "model.channels=[4, 10000000]": "model: it would have 5,270,000,050 parameters",
    "moments={memory: lots}": "such as 4GB or 500 MiB",
}


@pytest.mark.parametrize("override", CASES)
def test_values_out_of_place_are_said(call, recipe, trained, override):
    recipe.write_text(recipe.read_text() + MORE)
    source = [] if override.startswith("model") else ["-c", trained / "runs/net-train"]
    outcome = call("validate", recipe, override, *source)
    refused(outcome, 2, CASES[override])


@pytest.mark.parametrize(
    ("key", "near"), [("model.batchnorm", "batch_norm"), ("model.norm", None), ("train.epoch", "epochs")]
)
def test_only_a_name_that_is_mistyped_is_suggested(call, recipe, key, near):
    """`norm` is no batch_norm: to follow such a suggestion would change the net."""
    err = call("validate", recipe, f"{key}=1").err
    said = f"; did you mean '{near}'?" if near else "; allowed:"
    assert f"{key}: unknown key{said}" in err


def test_amounts_on_disk_are_in_a_unit_that_shows_them(tmp_path, monkeypatch):
    class Usage:
        free = 300

    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(ResourceError, match=r"12.3 kB are needed and 300 bytes are free"):
        check_disk(tmp_path, 12_345)


def test_evaluate_promises_no_folder_by_default(call):
    assert "runs/NAME-VERB" not in call("evaluate", "--help").out
    assert "runs/NAME-VERB" in call("train", "--help").out.replace("\n", " ")


def test_validate_says_what_a_verb_would_leave_alone(call, recipe, trained):
    recipe.write_text(recipe.read_text() + MORE)
    out = call("validate", recipe, "-c", trained / "runs/net-train", "--json").out
    assert '"prune: head": "it is the network\'s output"' in out
