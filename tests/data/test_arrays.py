import h5py
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from compresskit.data.arrays import Arrays
from compresskit.errors import DataError

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    return str(path)


def parts(inputs=None, targets=None, joint="/"):
    """Train and test groups of 12 and 6 samples, with one array replaced for both."""
    arrays = {}
    for group, count in (("train", 12), ("test", 6)):
        arrays[f"{group}{joint}inputs"] = RANDOM.integers(256, size=(count, 2, 5, 4), dtype=np.uint8)
        arrays[f"{group}{joint}targets"] = np.arange(count) % 3
        if inputs is not None:
            arrays[f"{group}{joint}inputs"] = inputs(count)
        if targets is not None:
            arrays[f"{group}{joint}targets"] = targets(count)
    return arrays


def all_of(split):
    return next(split.batches(100, CPU))


@pytest.mark.parametrize(("name", "joint"), [("a.h5", "/"), ("a.npz", "/"), ("a.npz", "_"), ("no-suffix", "/")])
def test_groups_of_either_format_are_read(name, joint, tmp_path):
    arrays = parts(joint=joint)
    data = Arrays(path=write(tmp_path / name, arrays), normalize="none").load(seed=0)
    assert (data.task, data.outputs, data.input_shape, data.validation) == ("classification", 3, (2, 5, 4), None)
    for group, split in (("train", data.train), ("test", data.test)):
        inputs, targets = all_of(split)
        np.testing.assert_array_equal((inputs * 255).round().numpy(), arrays[f"{group}{joint}inputs"])
        np.testing.assert_array_equal(targets.numpy(), arrays[f"{group}{joint}targets"])


def test_names_of_groups_and_arrays_are_options(tmp_path):
    path = write(tmp_path / "a.h5", {f"{g}/{a}": np.ones((4, 2)) for g in ("fit", "val", "final") for a in "xy"})
    options = Arrays(path=path, inputs="x", targets="y", train="fit", test="final", validation_group="val")
    data = options.load(seed=0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4, 4, 4]


def test_without_groups_a_fixed_fraction_is_the_test_part(tmp_path):
    path = write(tmp_path / "a.npz", {"inputs": np.arange(20.0)[:, None], "targets": np.arange(20) % 2})
    one, again, other = (
        Arrays(path=path, normalize="none", test_fraction=0.25, split_seed=split_seed).load(seed=seed)
        for seed, split_seed in ((0, 0), (1, 0), (0, 1))
    )
    train, test = all_of(one.train)[0], all_of(one.test)[0]
    assert len(test) == 5
    assert torch.cat([train, test]).flatten().sort().values.tolist() == list(range(20))
    assert torch.equal(all_of(again.test)[0], test)
    assert not torch.equal(all_of(other.test)[0], test)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_real_targets_make_a_regression(shape, tmp_path):
    arrays = parts(targets=lambda count: RANDOM.normal(size=(count, *shape)))
    data = Arrays(path=write(tmp_path / "a.h5", arrays)).load(seed=0)
    targets = all_of(data.train)[1]
    assert (data.task, data.outputs) == ("regression", targets.shape[1])
    assert targets.dtype == torch.float32
    np.testing.assert_array_equal(targets.numpy(), arrays["train/targets"].reshape(12, -1).astype(np.float32))


def test_the_task_can_be_stated(tmp_path):
    path = write(tmp_path / "a.h5", parts(targets=lambda count: np.arange(float(count)).reshape(-1, 1) % 3))
    assert Arrays(path=path).load(seed=0).task == "regression"
    data = Arrays(path=path, task="classification", classes=5).load(seed=0)
    assert data.outputs == 5
    assert all_of(data.test)[1].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("dtype", [np.int16, np.float64, ">f4"])
def test_other_inputs_become_float32_normalised_by_the_training_part(dtype, tmp_path):
    arrays = parts(inputs=lambda count: RANDOM.integers(-50, 50, size=(count, 3, 7)).astype(dtype))
    data = Arrays(path=write(tmp_path / "a.h5", arrays)).load(seed=0)
    np.testing.assert_allclose(data.mean, arrays["train/inputs"].astype(np.float64).mean((0, 2)), rtol=1e-12)
    inputs = all_of(data.train)[0]
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs.mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [np.float16, ">f2", bool])
def test_small_inputs_stay_small_and_become_float32_in_each_batch(dtype, tmp_path):
    arrays = parts(inputs=lambda count: RANDOM.integers(0, 2, size=(count, 3, 7)).astype(dtype))
    data = Arrays(path=write(tmp_path / "a.h5", arrays)).load(seed=0)
    stored = arrays["train/inputs"].astype(np.float64)
    assert data.train._examples.inputs.element_size() == np.dtype(dtype).itemsize
    np.testing.assert_allclose(data.mean, stored.mean((0, 2)), rtol=1e-12)
    inputs = all_of(data.train)[0]
    assert inputs.dtype == torch.float32
    expected = (stored - stored.mean((0, 2))[:, None]) / stored.std((0, 2))[:, None]
    np.testing.assert_allclose(inputs.numpy(), expected, atol=1e-6)  # float32


ANIMALS = ["owl", "cat", "ant"]


@pytest.mark.parametrize(
    "store",
    [
        np.array,
        lambda names: np.array(names, "S"),
        lambda names: np.array(names, h5py.string_dtype()),
        lambda names: np.array(names, h5py.string_dtype("utf-8", 5)),
    ],
    ids=["str", "bytes", "hdf5", "fixed"],
)
def test_names_of_classes_are_numbered_in_their_order(store, tmp_path):
    arrays = parts(targets=lambda count: store([ANIMALS[i % 3] for i in range(count)]))
    path = tmp_path / ("a.npz" if store is np.array else "a.h5")
    data = Arrays(path=write(path, arrays)).load(seed=0)
    assert (data.task, data.outputs) == ("classification", 3)
    assert all_of(data.test)[1].tolist() == [2, 1, 0, 2, 1, 0]
    assert data.notes[0].endswith("targets: names of 3 classes, numbered in their order: 0 ant, 1 cat, 2 owl")
    assert data.classes == ("ant", "cat", "owl")


def test_truth_values_are_two_classes_or_values_of_0_and_1(tmp_path):
    one = Arrays(path=write(tmp_path / "a.h5", parts(targets=lambda count: np.arange(count) % 2 == 1))).load(seed=0)
    assert (one.task, one.outputs, all_of(one.test)[1].tolist()) == ("classification", 2, [0, 1, 0, 1, 0, 1])
    flags = np.array([[True, True, False], [False, True, False]])
    several = parts(targets=lambda count: flags[np.arange(count) % 2])
    data = Arrays(path=write(tmp_path / "b.h5", several)).load(seed=0)
    assert (data.task, data.outputs) == ("regression", 3)
    np.testing.assert_array_equal(all_of(data.test)[1].numpy(), several["test/targets"])
    assert not any("whole" in note for note in data.notes)


def test_add_channel(tmp_path):
    path = write(tmp_path / "a.h5", parts(inputs=lambda count: np.ones((count, 6, 5), np.uint8)))
    assert Arrays(path=path, add_channel=True).load(seed=0).input_shape == (1, 6, 5)


def spoilt(value, index):
    def make(count):
        array = RANDOM.normal(size=(count, 2))
        array[index] = value
        return array

    return make


WRONG = {
    "nan in the inputs": (
        parts(inputs=spoilt(np.nan, (4, 1))),
        {},
        r"a\.h5: train inputs: 1 of 24 values are NaN or infinite in float32, the first at \[4, 1\]",
    ),
    "too large for float32": (parts(inputs=spoilt(1e300, 2)), {}, r"train inputs: 2 of 24 .* first at \[2, 0\]"),
    "infinite targets": (parts(targets=spoilt(np.inf, (3, 0))), {}, r"train targets: 1 of 24 .* first at \[3, 0\]"),
    "nan among classes": (
        parts(targets=lambda count: np.full(count, np.nan)),
        {"task": "classification"},
        r"train targets: 12 of 12 values are NaN",
    ),
    "empty": (parts(inputs=lambda count: np.ones((0, 3))), {}, r"train inputs: empty, of shape \(0, 3\)"),
    "lengths": (
        parts(targets=lambda count: np.zeros(count - 1, int)),
        {},
        r"inputs of shape \(12, 2, 5, 4\) and targets of shape \(11,\) do not fit",
    ),
    "flat inputs": (parts(inputs=lambda count: np.ones(count)), {}, r"give inputs \(N, channels, \.\.\.\)"),
    "complex": (parts(inputs=lambda count: np.ones((count, 2), complex)), {}, r"of type complex128; give integers"),
    "half": (
        parts(inputs=lambda count: np.full((count, 2), np.inf, np.float16)),
        {},
        "24 of 24 .* infinite in float16",
    ),
    "texts as inputs": (parts(inputs=lambda count: np.full((count, 2), b"a")), {}, "texts can only be targets"),
    "texts to fit": (
        parts(targets=lambda count: np.full(count, b"a")),
        {"task": "regression"},
        "texts, which name classes, in all groups; leave data.task out",
    ),
    "texts of another alphabet": (parts(targets=lambda count: np.full(count, b"\xff")), {}, "not UTF-8|cannot be read"),
    "texts in one group": (
        parts(targets=lambda count: np.full(count, b"a") if count == 6 else np.arange(count)),
        {},
        "texts, which name classes, in all groups",
    ),
    "class too large": (
        parts(),
        {"classes": 2},
        r"train targets: 4 values are no classes, the first 2 at \[2\]; classes are the integers 0 to 1; check data",
    ),
    "negative class": (parts(targets=lambda count: np.arange(count) - 1), {}, r"the first -1 at \[0\]; .* 0, 1, 2"),
    "fraction as class": (
        parts(targets=lambda count: np.full(count, 0.5)),
        {"task": "classification"},
        r"the first 0\.5 at \[0\]; .*set data\.task: regression",
    ),
    "several classes each": (
        parts(targets=lambda count: np.zeros((count, 2), int)),
        {},
        r"of shape \(12, 2\); classification needs one class number",
    ),
    "three-way targets": (parts(targets=lambda count: np.ones((count, 2, 2))), {}, r"regression needs \(N,\) or"),
    "shapes differ": (
        parts(inputs=lambda count: np.ones((count, count))),
        {},
        r"the groups differ in the shape of inputs or targets \(train \(12, 12\), test \(6, 6\)\)",
    ),
    "types differ": (
        parts(inputs=lambda count: np.ones((count, 2), np.uint8 if count == 6 else np.float32)),
        {},
        "of one group are of another type than those of the others",
    ),
    "no such array": (
        parts(),
        {"inputs": "images"},
        r"holds no array images, only test/inputs, test/targets, train/inputs, train/targets; set data\.inputs",
    ),
    "no such group": (parts(), {"test": "val"}, r"holds no array val/inputs or val_inputs, only test/inputs"),
    "no validation group": (
        {"inputs": np.ones((3, 2)), "targets": np.ones(3)},
        {"validation_group": "val"},
        r"holds no array train/inputs or train_inputs, only inputs, targets",
    ),
    "nothing left to train": ({"inputs": np.ones((1, 2)), "targets": np.ones(1)}, {}, "leaves none to train"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_are_refused_by_name(case, tmp_path):
    arrays, options, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        Arrays(path=write(tmp_path / "a.h5", arrays), **options).load(seed=0)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.h5: there is no such file; check data\.path"):
        Arrays(path=str(tmp_path / "none.h5")).load(seed=0)
    text = tmp_path / "text.h5"
    text.write_text("inputs,targets")
    with pytest.raises(DataError, match=r"text\.h5: neither an HDF5 nor an NPZ file"):
        Arrays(path=str(text)).load(seed=0)


@pytest.mark.parametrize("name", ["a.h5", "a.npz"])
def test_damaged_files(name, tmp_path):
    path = tmp_path / name
    write(path, parts())
    content = bytearray(path.read_bytes())
    if name == "a.h5":
        del content[len(content) // 2 :]
    else:
        content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        Arrays(path=str(path)).load(seed=0)


def test_objects_are_not_unpickled(tmp_path):
    path = write(tmp_path / "a.npz", parts(inputs=lambda count: np.array([{}] * count)))
    with pytest.raises(DataError, match="cannot be read .*allow_pickle=False"):
        Arrays(path=path).load(seed=0)


def test_two_validation_parts_are_refused_with_the_recipe():
    recipe = '{"kind": "arrays", "path": "a", "validation": 5, "validation_group": "val"}'
    with pytest.raises(ValidationError, match="validation and validation_group exclude each other"):
        TypeAdapter(Arrays).validate_json(recipe, strict=True)


def test_cifar10_from_hdf5(real_root):
    path = real_root / "cifar10.h5"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = Arrays(path=str(path), inputs="x", targets="y", train="train", test="test", limit=500).load(seed=0)
    assert (len(data.train), len(data.test)) == (500, 10_000)
    assert (data.outputs, data.input_shape) == (10, (3, 32, 32))
