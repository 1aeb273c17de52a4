"""scripts/prepare_positioning.py: channels and positions of MATLAB, HDF5 and NPZ become rows of features and metres."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from scripts.prepare.channel_features import angular, magnitude, real_imag
from tests.forked.start import python
from tests.prepared import refused

SCRIPT = Path(__file__).parents[1] / "scripts/prepare_positioning.py"
RANDOM = np.random.default_rng(0)
CHANNELS = RANDOM.normal(size=(20, 4, 6)) + 1j * RANDOM.normal(size=(20, 4, 6))
POSITIONS = RANDOM.normal(size=(20, 3))
SCALED = CHANNELS / np.sqrt(np.mean(np.abs(CHANNELS) ** 2))


def as_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def as_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def as_matlab_7(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Version 7.3: HDF5 behind a header, the last axis first, complex numbers as pairs, its own things in #refs#."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in {**arrays, "#refs#/a": np.zeros(2)}.items():
            turned = array.T
            if np.iscomplexobj(turned):
                pairs = np.empty(turned.shape, [("real", "f8"), ("imag", "f8")])
                pairs["real"], pairs["imag"] = turned.real, turned.imag
                turned = pairs
            file[name] = turned
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


@pytest.mark.parametrize(
    ("write", "name"), [(savemat, "c.mat"), (as_matlab_7, "c.mat"), (as_hdf5, "c.h5"), (as_npz, "c.npz")]
)
def test_the_arrays_are_those_of_the_file(tmp_path, write, name):
    write(tmp_path / name, {"H": CHANNELS, "pos": POSITIONS, "snr": np.ones((20, 1))})
    done = python(SCRIPT, name, "--metres", "0.001", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "data/positioning.h5", angular(SCALED), 0.001 * POSITIONS[:, :2])


def check(path: Path, inputs: np.ndarray, targets: np.ndarray) -> None:
    with h5py.File(path) as file:
        assert set(file) == {"inputs", "targets"}
        assert file["inputs"].dtype == file["targets"].dtype == np.float32
        np.testing.assert_array_equal(file["inputs"], inputs.astype(np.float32))
        np.testing.assert_array_equal(file["targets"], targets.astype(np.float32))


def test_samples_may_be_the_last_axis_and_names_may_be_said(tmp_path):
    arrays = {"set": {"first": CHANNELS.T, "where": POSITIONS.T}, "H": np.ones(3)}
    savemat(tmp_path / "c.mat", arrays)
    asked = ("--channels", "set/first", "--positions", "set/where", "--features", "real-imag")
    done = python(SCRIPT, "c.mat", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "data/positioning.h5", real_imag(SCALED.transpose(0, 2, 1)), POSITIONS[:, :2])


def test_real_features_stay_as_they_are(tmp_path):
    as_npz(tmp_path / "c.npz", {"features": CHANNELS.real, "x": np.ones(3), "xy": POSITIONS[:, :2]})
    assert python(SCRIPT, "c.npz", cwd=tmp_path).returncode == 0
    check(tmp_path / "data/positioning.h5", CHANNELS.real.reshape(20, 24), POSITIONS[:, :2])
    done = python(SCRIPT, "c.npz", "--features", "magnitude", "--force", cwd=tmp_path)
    assert "real, and kept as they are; leave --features out" in done.stderr


def test_features_against_sums():
    for features, slow in ((angular, slow_angular), (magnitude, slow_magnitude), (real_imag, slow_real_imag)):
        found = features(CHANNELS)
        assert found.shape == (20, 48 if features is real_imag else 24)
        for row, gains in zip(found, CHANNELS, strict=True):
            np.testing.assert_allclose(row, slow(gains), rtol=1e-12)


def slow_angular(gains: np.ndarray) -> list[float]:
    antennas, subcarriers = gains.shape
    power = sum(abs(gain) ** 2 for gain in gains.flat)
    turned = np.exp(-2j * np.pi * np.outer(range(antennas), range(antennas)) / antennas) / np.sqrt(antennas)
    return [abs(turned[k] @ gains[:, s]) / power for k in range(antennas) for s in range(subcarriers)]


def slow_magnitude(gains: np.ndarray) -> list[float]:
    return [(gain * gain.conjugate()).real ** 0.5 for gain in gains.flat]


def slow_real_imag(gains: np.ndarray) -> list[float]:
    return [gain.real for gain in gains.flat] + [gain.imag for gain in gains.flat]


def test_angular_features_grow_with_the_distance():
    np.testing.assert_allclose(angular(CHANNELS / 3), 3 * angular(CHANNELS), rtol=1e-12)


def holed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[7] = value
    return array


GOOD = {"H": CHANNELS, "pos": POSITIONS}


@pytest.mark.parametrize(
    ("arrays", "asked", "told"),
    [
        ({"a": CHANNELS, "pos": POSITIONS}, (), "no arrays that --channels could be; name one with --channels, of a"),
        ({"H": CHANNELS}, (), "--positions, of H complex128 (20, 4, 6)"),
        ({"a/H": CHANNELS, "b/h": CHANNELS, **GOOD}, (), "holds 3 arrays that --channels could be"),
        (GOOD, ("--channels", "h"), "holds no array 'h'; name one with --channels, of H complex128"),
        ({}, (), "none: the file has no arrays"),
        ({"H": CHANNELS, "pos": POSITIONS[:9]}, (), "channels need numbers, one axis of 9"),
        ({"H": CHANNELS, "pos": CHANNELS[:, 0]}, (), "positions must be real, (N, 2) or (N, 3)"),
        ({"H": holed(CHANNELS, 0), "pos": POSITIONS}, (), "1 samples are all zeros, the first 7; leave them out"),
        ({"H": holed(CHANNELS, np.nan), "pos": POSITIONS}, (), "channels: 24 values are NaN or infinite"),
        ({"H": CHANNELS, "pos": holed(POSITIONS, np.inf)}, (), "positions: 3 values are NaN or infinite"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, arrays, asked, told):
    as_hdf5(tmp_path / "c.h5", arrays)
    refused(python(SCRIPT, "c.h5", *asked, cwd=tmp_path), told, tmp_path)


def test_files_that_are_damaged_or_not_there(tmp_path):
    refused(python(SCRIPT, "c.mat", cwd=tmp_path), "c.mat: there is no such file; give the file with", tmp_path)
    (tmp_path / "c.mat").write_bytes(b"words")
    refused(python(SCRIPT, "c.mat", cwd=tmp_path), "c.mat: no file of MATLAB (5 to 7.3), HDF5 or NPZ", tmp_path)
    for write in (savemat, as_matlab_7):
        write(tmp_path / "c.mat", GOOD)
        content = (tmp_path / "c.mat").read_bytes()
        (tmp_path / "c.mat").write_bytes(content[: len(content) // 3])
        refused(python(SCRIPT, "c.mat", cwd=tmp_path), "c.mat: cannot be read as ", tmp_path)
    done = python(SCRIPT, "--synthetic", "--metres", "nan", cwd=tmp_path)
    assert done.returncode == 2
    assert "--metres: must be greater than 0, given nan" in done.stderr


def test_a_made_set_can_be_learned_but_not_wholly(tmp_path):
    done = python(SCRIPT, "--synthetic", "--samples", "500", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "data/positioning-synthetic.h5") as file:
        inputs, targets = np.c_[file["inputs"], np.ones(500)], file["targets"][()]
    assert inputs.shape == (500, 33)
    fitted = np.linalg.lstsq(inputs[:400], targets[:400], rcond=None)[0]
    error = np.abs(inputs[400:] @ fitted - targets[400:]).mean()
    constant = np.abs(targets[:400].mean(0) - targets[400:]).mean()
    assert 0.5 < error < constant / 2
