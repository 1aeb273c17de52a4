"""scripts/prepare_har.py: UCI's archive, however it is packed, becomes the arrays that the recipe reads."""

import io
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.forked.start import python
from tests.prepared import refused

SCRIPT = Path(__file__).parents[1] / "scripts/prepare_har.py"
SIGNALS = [f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in ("x", "y", "z")]
LABELS = {"train": [5, 1, 6, 2, 3, 4, 1], "test": [2, 6, 1]}


def rows(table: np.ndarray) -> bytes:
    """As UCI has them: two blanks or one in front of each number."""
    return "".join("".join(f" {number: .10e}" for number in row) + "\n" for row in table).encode()


@pytest.fixture(scope="module")
def signals() -> dict[str, np.ndarray]:
    """Of each part (N, 9, 128), with numbers that text and float32 keep."""
    random = np.random.default_rng(0)
    return {part: random.integers(-999, 999, (len(labels), 9, 128)) / 512 for part, labels in LABELS.items()}


@pytest.fixture
def files(signals) -> dict[str, bytes]:
    found = {"UCI HAR Dataset/activity_labels.txt": b"1 WALKING\n"}
    for part, labels in LABELS.items():
        folder = f"UCI HAR Dataset/{part}"
        found[f"{folder}/y_{part}.txt"] = "".join(f"{label}\n" for label in labels).encode()
        found[f"{folder}/X_{part}.txt"] = b"the 561 features\n"
        for number, signal in enumerate(SIGNALS):
            name = f"{signal}_{part}.txt"
            found[f"{folder}/Inertial Signals/{name}"] = rows(signals[part][:, number])
            found[f"__MACOSX/{folder}/Inertial Signals/._{name}"] = b"\0Mac OS X"
    return found


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def as_downloaded(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "human+activity.zip"
    path.write_bytes(zipped({"UCI HAR Dataset.names": b"words", "UCI HAR Dataset.zip": zipped(files)}))
    return path


def as_inner_zip(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "UCI HAR Dataset.zip"
    path.write_bytes(zipped(files))
    return path


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    shutil.unpack_archive(as_inner_zip(folder, files), folder / "extracted")
    return folder / "extracted"


@pytest.mark.parametrize("packed", [as_downloaded, as_inner_zip, as_folder])
def test_the_arrays_are_those_of_the_archive(tmp_path, files, signals, packed):
    done = python(SCRIPT, packed(tmp_path, files), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train/inputs float32 (7, 9, 128)" in done.stdout
    with h5py.File(tmp_path / "data/har.h5") as file:
        for part, labels in LABELS.items():
            assert file[f"{part}/inputs"].dtype == np.float32
            np.testing.assert_array_equal(file[f"{part}/inputs"], signals[part])
            assert file[f"{part}/targets"].dtype == np.int64
            np.testing.assert_array_equal(file[f"{part}/targets"], np.array(labels) - 1)
        assert file.attrs["classes"][0] == "walking"
        assert list(file.attrs["channels"]) == SIGNALS


SIGNAL = "UCI HAR Dataset/test/Inertial Signals/body_gyro_y_test.txt"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda files: files.pop(SIGNAL), "holds no body_gyro_y_test.txt of the set; give UCI's whole archive"),
        (lambda files: files.clear(), "holds no body_acc_x_test.txt and 19 more files of the set"),
        (lambda files: files.update({SIGNAL: b"1 2 x\n"}), "body_gyro_y_test.txt: cannot be read as rows of numbers"),
        (lambda files: files.update({SIGNAL: rows(np.ones((2, 128)))}), "(2, 128), where (3, 128) fits its labels"),
        (lambda files: files.update({SIGNAL: rows(np.full((3, 128), np.nan))}), "has NaN or infinite values"),
        (lambda files: files.update({"y_test.txt": b"1\n7\n2\n"}), "y_test.txt has the label 7, where 1 to 6"),
    ],
)
def test_what_is_wrong_in_the_archive_is_named(tmp_path, files, change, told):
    change(files)
    done = python(SCRIPT, as_inner_zip(tmp_path, files), cwd=tmp_path)
    refused(done, told, tmp_path)


def test_damaged_archives(tmp_path, files):
    path = as_downloaded(tmp_path, files)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(python(SCRIPT, path, cwd=tmp_path), "neither a zip nor a tar archive, or a damaged one", tmp_path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 64]) + whole[middle + 64 :])
    refused(python(SCRIPT, path, cwd=tmp_path), "UCI HAR Dataset.zip: cannot be read as a zip archive", tmp_path)


def test_files_that_are_not_there_or_not_to_be_written(tmp_path, files):
    refused(python(SCRIPT, "har.zip", cwd=tmp_path), "har.zip: there is no such file; give the downloaded", tmp_path)
    (tmp_path / "kept.h5").write_bytes(b"mine")
    asked = (as_inner_zip(tmp_path, files), "--out", "kept.h5")
    refused(python(SCRIPT, *asked, cwd=tmp_path), "kept.h5: exists; write elsewhere with --out", tmp_path)
    assert (tmp_path / "kept.h5").read_bytes() == b"mine"
    assert python(SCRIPT, *asked, "--force", cwd=tmp_path).returncode == 0
    assert h5py.is_hdf5(tmp_path / "kept.h5")
    own = python(SCRIPT, "kept.h5", "--out", "kept.h5", "--force", cwd=tmp_path)
    refused(own, "kept.h5: it is what is read", tmp_path)


@pytest.mark.parametrize("asked", [(), ("har.zip", "--synthetic"), ("--synthetic", "--samples", "0")])
def test_what_is_asked_for_must_be_clear(tmp_path, asked):
    done = python(SCRIPT, *asked, cwd=tmp_path)
    assert done.returncode == 2
    assert "--synthetic for a made set" in done.stderr or "must be greater than 0, given 0" in done.stderr


def test_a_made_set_can_be_learned(tmp_path):
    done = python(SCRIPT, "--synthetic", "--samples", "600", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    powers, targets = {}, {}
    with h5py.File(tmp_path / "data/har-synthetic.h5") as file:
        assert file["train/inputs"].shape == (600, 9, 128)
        assert file["test/inputs"].shape == (150, 9, 128)
        for part in LABELS:
            powers[part] = np.log(np.abs(np.fft.rfft(file[f"{part}/inputs"])) ** 2).reshape(-1, 9 * 65)
            targets[part] = file[f"{part}/targets"][()]
    means = np.stack([powers["train"][targets["train"] == label].mean(0) for label in range(6)])
    nearest = ((powers["test"][:, None] - means) ** 2).sum(2).argmin(1)
    assert np.mean(nearest == targets["test"]) > 0.5
