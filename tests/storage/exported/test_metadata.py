"""What files tell of themselves, as anybody may have written it: it is right, or refused in a line, or not ours."""

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from compresskit.errors import CheckpointError
from compresskit.storage.exported.metadata import FILE, KEYS, as_constants, as_texts, read_metadata

IMAGES = [{"type": "uint8", "shape": ["N", 2, 6, 6]}]
GOOD: dict[str, Any] = {
    "task": "classification",
    "inputs": IMAGES,
    "mean": [0.25, 0.5],
    "std": [0.5, 0.125],
    "scale": 1 / 255,
    "classes": ["cat", "dog"],
    "normalised_inside": True,
    "probabilities": True,
    "quantized": "int8",
    "outputs": {"dict": [["boxes", 0], ["maps", [1, {"tuple": [2]}]]]},
}
FLOATS = [{"type": "float32", "shape": ["N", 2, 6, 6]}]
SUFFIXES = [
    pytest.param(".onnx", marks=pytest.mark.skipif(not importlib.util.find_spec("onnx"), reason="onnx is optional")),
    ".pt2",
    ".py",
]
WRONG = {
    "mean of texts": ({"mean": ["0.25", "0.5"]}, "mean.0: Input should be a valid number, found '0.25'"),
    "NaN": ({"mean": [float("nan"), 0.5]}, "mean.0: Input should be a finite number, found nan"),
    "infinity": ({"std": [float("inf"), 0.5]}, "std.0: Input should be a finite number, found inf"),
    "no list": ({"mean": 0.25}, "mean: Input should be a valid list, found 0.25"),
    "a deviation of 0": ({"std": [0.0, 0.5]}, "std.0: Input should be greater than 0, found 0.0"),
    "too few": ({"mean": [0.25], "std": [0.5]}, "normalised_inside: mean has 1 numbers, and inputs 1 of 2 channels"),
    "other lengths": ({"std": [0.5]}, "mean has 2 numbers and std 1"),
    "a scale of 0": ({"scale": 0}, "scale: 0.0 was found; allowed: 1, and 1/255"),
    "NaN as scale": ({"scale": float("nan")}, "scale: nan was found"),
    "bytes of scale 1": ({"scale": 1}, "the scale of inputs of uint8 is 1.0; bytes alone have 1/255"),
    "numbers of scale 1/255": ({"inputs": FLOATS}, "the scale of inputs of float32 is 0.0039"),
    "an unknown task": ({"task": "translation"}, "task: Input should be 'classification'"),
    "probabilities of boxes": ({"task": "detection"}, "probabilities: true was found, and the task is detection"),
    "no shape": ({"inputs": [{"type": "uint8"}]}, "inputs.0.shape: Field required"),
    "no input": ({"inputs": []}, "inputs: List should have at least 1 item"),
    "inputs of another form": ({"inputs": "N×2×6×6"}, "inputs: Input should be a valid list, found 'N×2×6×6'"),
    "an unknown type": ({"inputs": [{"type": "object", "shape": ["N", 2]}]}, "found 'object'"),
    "no size": ({"inputs": [{"type": "uint8", "shape": ["N", 0]}]}, "greater than or equal to 1, found 0"),
    "two inputs": ({"inputs": IMAGES * 2}, "mean has 2 numbers, and inputs 2 of 2 channels"),
    "a number for yes": ({"normalised_inside": 1}, "normalised_inside: Input should be a valid boolean, found 1"),
    "four bits": ({"quantized": "int4"}, "quantized: Input should be 'int8', found 'int4'"),
    "classes in a mapping": ({"classes": {"0": "cat"}}, "classes: Input should be a valid list, found {'0': 'cat'}"),
    "outputs that are none": ({"outputs": {"run": 0}}, "{'run': 0} stands for no argument"),
    "outputs in another order": ({"outputs": [1, 0]}, "its tensors are not numbered in their order"),
    "outputs of texts": ({"outputs": ["a"]}, "its tensors are not numbered in their order"),
    "lists in lists": ({"classes": [[[["cat"]]]]}, "classes.0: Input should be a valid string"),
}


def write(path: Path, told: dict[str, Any]) -> Path:
    """A file without a network that tells this."""
    if path.suffix == ".py":
        named = {name.upper(): value for name, value in told.items()}
        text = "".join(f"{name} = {value!r}\n" for name, value in named.items())
        path.write_text(text.replace("nan", "1e400 - 1e400").replace("[inf", "[1e400"))
    elif path.suffix == ".pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"net/extra/{FILE}", json.dumps(told))
    else:
        write_texts(path, as_texts(told))
    return path


def write_texts(path: Path, texts: dict[str, str]) -> Path:
    import onnx

    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_that_export_writes_comes_back(suffix, tmp_path):
    assert read_metadata(write(tmp_path / f"net{suffix}", GOOD)) == GOOD


@pytest.mark.parametrize("suffix", SUFFIXES[:2])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_with_its_place(case, suffix, tmp_path):
    change, words = WRONG[case]
    path = write(tmp_path / f"net{suffix}", GOOD | change)
    with pytest.raises(CheckpointError) as caught:
        read_metadata(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: what it tells of itself ")
    assert words in line
    assert line.endswith("; export it again")
    assert len(line) < len(str(path)) + 400


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("key", ["task", "inputs", "normalised_inside", "probabilities"])
def test_what_lacks_is_named(key, suffix, tmp_path):
    path = write(tmp_path / f"net{suffix}", {name: value for name, value in GOOD.items() if name != key})
    with pytest.raises(CheckpointError, match=rf"{key}: Field required"):
        read_metadata(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("key", ["mean", "std", "scale"])
def test_bytes_are_not_undone_without_what_it_takes(key, suffix, tmp_path):
    path = write(tmp_path / f"net{suffix}", {name: value for name, value in GOOD.items() if name != key})
    with pytest.raises(CheckpointError, match="does not fit together"):
        read_metadata(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unknown_keys_are_nothing(suffix, tmp_path):
    assert read_metadata(write(tmp_path / f"net{suffix}", GOOD | {"license": [{}], "names": 3})) == GOOD


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_words_of_others_are_not_ours(suffix, tmp_path):
    assert read_metadata(write(tmp_path / f"net{suffix}", {"task": "detect", "mean": "0.5", "names": {}})) == {}


@pytest.mark.skipif(not importlib.util.find_spec("onnx"), reason="onnx is optional")
def test_texts_that_are_no_json(tmp_path):
    assert read_metadata(write_texts(tmp_path / "other.onnx", {"task": "detect", "stride": "32"})) == {}
    path = write_texts(tmp_path / "net.onnx", as_texts(GOOD) | {"mean": "0.5, 0.5"})
    with pytest.raises(CheckpointError, match=r"net.onnx: it cannot be read \(.*\); export it again"):
        read_metadata(path)


@pytest.mark.parametrize("suffix", [".pt2", ".py"])
def test_nesting_without_end(suffix, tmp_path):
    path, deep = tmp_path / f"net{suffix}", "[" * 100_000 + "]" * 100_000
    if suffix == ".py":
        path.write_text(f"PROBABILITIES = False\nCLASSES = {deep}\n")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"net/extra/{FILE}", f'{{"probabilities": {deep}}}')
    with pytest.raises(CheckpointError, match="it cannot be read"):
        read_metadata(path)


def test_texts_and_constants():
    told = {"mean": [0.1], "classes": ['a"b'], "inputs": []}
    assert as_texts(told) == {"mean": "[0.1]", "classes": '["a\\"b"]', "inputs": "[]"}
    assert as_constants(told | {"other": 1}) == {"MEAN": [0.1], "CLASSES": ['a"b'], "INPUTS": []}
    assert set(KEYS) == set(GOOD)
