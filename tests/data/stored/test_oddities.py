"""Labels and values that cannot be meant are refused, odd ones are noted; each in one line."""

import numpy as np
import pytest
import torch

from compresskit.data.arrays import Arrays
from compresskit.data.memory import Examples, InMemory, assemble
from compresskit.errors import DataError

RANDOM = np.random.default_rng(0)
LABELS = np.arange(48) % 3


def load(folder, train, test=None, inputs=None, **options):
    inputs = RANDOM.normal(size=(48, 1, 8, 8)).astype("f4") if inputs is None else inputs
    test = train if test is None else test
    arrays = {"train_inputs": inputs, "train_targets": train, "test_inputs": inputs, "test_targets": test}
    np.savez(folder / "a.npz", **arrays)
    return Arrays(path=str(folder / "a.npz"), **options).load(seed=0)


def test_what_is_as_it_should_be_has_no_notes(tmp_path):
    assert load(tmp_path, LABELS).notes == ()
    assert load(tmp_path, RANDOM.normal(size=(48, 3))).notes == ()


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "u1"])
def test_one_hot_rows_are_classes_and_it_is_said(dtype, tmp_path):
    data = load(tmp_path, np.eye(3, dtype=dtype)[LABELS])
    assert (data.task, data.outputs) == ("classification", 3)
    _, targets = next(data.train.batches(48, torch.device("cpu")))
    assert targets.tolist() == LABELS.tolist()
    (note,) = data.notes
    assert "one-hot rows, read as class numbers; set data.task: regression to fit the rows themselves" in note


def test_one_hot_rows_are_values_to_fit_where_the_recipe_insists(tmp_path):
    data = load(tmp_path, np.eye(3, dtype="f4")[LABELS], task="regression")
    assert (data.task, data.outputs, data.notes) == ("regression", 3, ())


def test_rows_of_zeros_and_ones_with_several_ones_are_no_classes(tmp_path):
    rows = np.ones((48, 3))
    rows[:, 0] = LABELS > 0
    assert load(tmp_path, rows).task == "regression"


def test_whole_numbers_as_floats_are_noted(tmp_path):
    data = load(tmp_path, LABELS.astype("f8"))
    assert data.task == "regression"
    assert any("real numbers that are all whole, read as values to fit; for classes set" in note for note in data.notes)
    assert load(tmp_path, LABELS.astype("f8"), task="classification").notes == ()
    assert load(tmp_path, LABELS.astype("f8"), task="regression").notes == ()


def test_classes_are_not_left_unused(tmp_path):
    with pytest.raises(
        DataError, match=r"targets: real numbers, but data\.classes is 3; set data\.task: classification"
    ):
        load(tmp_path, LABELS.astype("f4"), classes=3)
    with pytest.raises(ValueError, match="classes: a regression has none; leave classes out"):
        Arrays(path="a.npz", task="regression", classes=3)


def test_labels_from_one_are_noted(tmp_path):
    (note,) = load(tmp_path, LABELS + 1).notes
    assert note.startswith("data: classes begin at 1, so that one of the 4 outputs never has a sample; subtract 1")
    assert load(tmp_path, LABELS + 1, classes=4).notes == ()


def test_gaps_are_noted(tmp_path):
    (note,) = load(tmp_path, LABELS * 2).notes
    assert note == "data: 2 of 5 classes have no sample (1, 3); renumber the targets"


def test_one_class_is_refused_unless_the_classes_are_stated(tmp_path):
    with pytest.raises(DataError, match="targets: every target is 0, and one class is always right; check the targets"):
        load(tmp_path, LABELS * 0)
    assert load(tmp_path, LABELS * 0, classes=3).notes == ("data: all training samples are of class 0",)


@pytest.mark.parametrize("labels", [LABELS * 1000, np.arange(48) * 41_667, np.where(LABELS == 2, 2_000_000, LABELS)])
def test_ids_are_refused_unless_the_classes_are_stated(labels, tmp_path):
    with pytest.raises(DataError, match=r"which makes [\d,]+ outputs, and \d+ of them have samples; renumber them"):
        load(tmp_path, labels)
    assert load(tmp_path, LABELS * 1000, classes=2001).outputs == 2001


def test_labels_that_training_never_sees_are_noted(tmp_path):
    notes = load(tmp_path, LABELS, np.where(np.arange(48) < 5, 3, LABELS)).notes
    assert notes == ("data: 5 of 48 test samples are of classes that training never sees (3)",)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8, 1), "f4"), ((8, 8, 3), "f4"), ((8, 9, 3), "u1"), ((6, 6, 4), "f8")]
)
def test_channels_last_are_refused(shape, dtype, tmp_path):
    inputs = RANDOM.integers(256, size=(48, *shape)).astype(dtype)
    with pytest.raises(DataError, match=r"with channels last; they come first: store inputs.transpose\(0, 3, 1, 2\)"):
        load(tmp_path, LABELS, inputs=inputs)


def test_narrow_signals_of_many_channels_are_noted_and_taken(tmp_path):
    data = load(tmp_path, LABELS, inputs=RANDOM.normal(size=(48, 9, 32, 1)))
    assert data.input_shape == (9, 32, 1)
    assert [note.partition("inputs: ")[2] for note in data.notes] == [
        "read as 9 channels of 32 x 1; if channels come last, transpose them"
    ]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 1), (2, 5, 4), (3, 4, 4), (8, 8)])
def test_channels_first_are_taken_without_a_word(shape, tmp_path):
    assert load(tmp_path, LABELS, inputs=RANDOM.normal(size=(48, *shape))).notes == ()


def test_constant_inputs_and_targets_are_noted(tmp_path):
    inputs = RANDOM.normal(size=(48, 3))
    inputs[:, 1] = 7
    notes = load(tmp_path, LABELS, inputs=inputs).notes
    assert notes == ("data: 1 of 3 channels of the training inputs are constant (1): they teach nothing",)
    (note,) = load(tmp_path, np.full(48, 0.5)).notes
    assert note == "data: 1 of 1 training targets are constant (0): they teach nothing"


def test_what_varies_late_is_not_constant():
    inputs = torch.zeros(1000, 2, 2)
    inputs[-1, 0, 0] = 1
    part = Examples(inputs, torch.arange(1000) % 2)
    data = assemble(InMemory(kind="any"), part, part, task="classification", outputs=2, seed=0)
    assert data.notes == ("data: 1 of 2 channels of the training inputs are constant (1): they teach nothing",)
