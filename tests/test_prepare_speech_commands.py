"""scripts/prepare_speech_commands.py: recordings become log-mel spectrograms, each in its place."""

import io
import math
import tarfile
import wave
from pathlib import Path

import h5py
import numpy as np
import pytest

from scripts.prepare.log_mel import LogMel
from tests.forked.start import python
from tests.prepared import refused

SCRIPT = Path(__file__).parents[1] / "scripts/prepare_speech_commands.py"
LENGTHS = {  # samples of each recording, in the order of the archive
    "yes/b_nohash_0.wav": 16000, "yes/a_nohash_0.wav": 12345, "yes/c_nohash_1.wav": 16001,
    "cat/b_nohash_0.wav": 20000, "cat/a_nohash_0.wav": 0, "cat/d_nohash_0.wav": 16000,
    "no/a_nohash_0.wav": 16000, "no/d_nohash_0.wav": 16000, "no/e_nohash_0.wav": 15999,
}  # fmt: skip
TESTING = ["yes/b_nohash_0.wav", "cat/b_nohash_0.wav", "no/a_nohash_0.wav"]
VALIDATION = ["yes/c_nohash_1.wav", "cat/a_nohash_0.wav", "no/e_nohash_0.wav"]


def recording(sound: np.ndarray, rate: int = 16000, channels: int = 1, width: int = 2) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(sound.astype("<i2").tobytes())
    return content.getvalue()


@pytest.fixture(scope="module")
def sounds() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.integers(-(2**15), 2**15, length) for name, length in LENGTHS.items()}


@pytest.fixture
def files(sounds) -> dict[str, bytes]:
    found = {"README.md": b"words", "_background_noise_/rain.wav": recording(np.zeros(99))}
    found |= {name: recording(sound) for name, sound in sounds.items()}
    found["testing_list.txt"] = "\n".join(TESTING).encode() + b"\n"
    found["validation_list.txt"] = "\n".join(VALIDATION).encode() + b"\n"
    return found


def packed(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "speech_commands_v0.02.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def extracted(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / "SpeechCommands/speech_commands_v0.02" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "SpeechCommands"


def expected(names: list[str], sounds: dict[str, np.ndarray], spectrogram: LogMel | None = None) -> np.ndarray:
    seconds = [np.pad(sounds[name][:16000], (0, max(0, 16000 - len(sounds[name])))) / 32768 for name in names]
    return (spectrogram or LogMel())(np.stack(seconds))[:, None].astype(np.float32)


@pytest.mark.parametrize("source", [packed, extracted])
def test_each_recording_is_in_its_place(tmp_path, files, sounds, source):
    done = python(SCRIPT, source(tmp_path, files), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    training = sorted(set(LENGTHS) - set(TESTING))
    words = ["cat", "no", "yes"]
    with h5py.File(tmp_path / "data/speech-commands.h5") as file:
        assert list(file.attrs["classes"]) == words
        assert set(file) == {"train", "test"}
        for group, names in (("train", training), ("test", sorted(TESTING))):
            assert file[f"{group}/inputs"].shape == (len(names), 1, 40, 98)
            assert file[f"{group}/inputs"].dtype == np.float32
            np.testing.assert_array_equal(file[f"{group}/inputs"], expected(names, sounds))
            assert file[f"{group}/targets"].dtype == np.int64
            assert [words[label] for label in file[f"{group}/targets"]] == [name.split("/")[0] for name in names]


@pytest.mark.parametrize("group", ["test", "validation"])
def test_where_the_validation_list_goes_which_words_and_what_frames(tmp_path, files, sounds, group):
    frames = ("--bands", "12", "--window", "32", "--hop", "20")
    asked = (packed(tmp_path, files), "--words", "yes", "no", "--validation", group, *frames, "--out", "sound.h5")
    done = python(SCRIPT, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {"train": {"no/d_nohash_0.wav", "yes/a_nohash_0.wav"}, "test": {*TESTING}, "validation": set()}
    names[group] |= set(VALIDATION)
    with h5py.File(tmp_path / "sound.h5") as file:
        assert list(file.attrs["classes"]) == ["no", "yes"]
        assert set(file) == {"train", "test", group}
        for found in file:
            kept = sorted(name for name in names[found] if not name.startswith("cat"))
            np.testing.assert_array_equal(file[f"{found}/inputs"], expected(kept, sounds, LogMel(12, 32, 20)))
            np.testing.assert_array_equal(file[f"{found}/targets"], [name.startswith("yes") for name in kept])


def test_the_ten_words(tmp_path, files):
    done = python(SCRIPT, packed(tmp_path, files), "--words", "ten", cwd=tmp_path)
    assert done.returncode == 1
    assert "holds no word 'down'; there are: cat, no, yes" in done.stderr


def slow_log_mel(sound: np.ndarray, bands: int, size: int, step: int, length: int, rate: int) -> np.ndarray:
    """(bands, frames) of one recording by sums, with an interpolation in the place of triangles' formula."""

    def in_mel(hertz: float) -> float:
        return 2595 * math.log(1 + hertz / 700, 10)

    peaks = [in_mel(20) + number * (in_mel(rate / 2) - in_mel(20)) / (bands + 1) for number in range(bands + 2)]
    peaks = [700 * (math.pow(10, peak / 2595) - 1) for peak in peaks]
    bins = np.arange(length // 2 + 1)
    columns = []
    for start in range(0, len(sound) - size + 1, step):
        shaped = [sound[start + n] * (0.5 - 0.5 * math.cos(2 * math.pi * n / size)) for n in range(size)]
        angles = -2 * np.pi * np.outer(bins, np.arange(size)) / length
        power = (np.cos(angles) @ shaped) ** 2 + (np.sin(angles) @ shaped) ** 2
        weights = [np.interp(bins * rate / length, peaks[m : m + 3], [0, 1, 0]) for m in range(bands)]
        columns.append([math.log(1e-6 + float(weight @ power)) for weight in weights])
    return np.array(columns).T


@pytest.mark.parametrize(("bands", "window", "hop", "size", "length"), [(40, 25, 10, 400, 512), (8, 16, 7, 256, 256)])
def test_spectrograms_against_sums(bands, window, hop, size, length):
    sounds = np.random.default_rng(0).uniform(-1, 1, (2, 1100))
    spectrogram = LogMel(bands, window, hop, 16000)
    found = spectrogram(sounds)
    assert found.shape == (2, bands, spectrogram.frames(1100))
    for one, sound in zip(found, sounds, strict=True):
        slow = slow_log_mel(sound, bands, size, hop * 16, length, 16000)
        np.testing.assert_allclose(one, slow, rtol=0, atol=1e-10)


def test_a_tone_is_in_the_band_of_its_pitch():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)[None]
    mels = 2595 * np.log10(1 + np.array([20, 1000, 8000]) / 700)
    nearest = round((mels[1] - mels[0]) / (mels[2] - mels[0]) * 41) - 1
    assert (LogMel()(tone)[0].argmax(0) == nearest).all()


LIST = "testing_list.txt"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({LIST: None}, "holds no testing_list.txt; give the whole archive"),
        ({"validation_list.txt": None}, "holds no validation_list.txt"),
        ({LIST: b"yes/z.wav\n"}, "testing_list.txt names 1 recordings that are not there, as yes/z.wav"),
        ({LIST: b"\xff"}, "testing_list.txt: cannot be read as a list of files"),
        ({LIST: b""}, "no recordings of cat, no, yes for the group 'test'"),
        ({"again/yes/a_nohash_0.wav": b""}, "holds yes/a_nohash_0.wav twice"),
        ({"no/a_nohash_0.wav": b"RIFF"}, "no/a_nohash_0.wav: cannot be read as a WAV file of 16 bits"),
        ({"no/a_nohash_0.wav": recording(np.zeros(9), rate=8000)}, "(1, 16, 8000), where (1, 16, 16000) are needed"),
        ({"no/a_nohash_0.wav": recording(np.zeros(99))[:-10]}, "no/a_nohash_0.wav: ends before its 99 samples do"),
    ],
)
def test_what_is_wrong_in_the_archive_is_named(tmp_path, files, change, told):
    changed = {name: data for name, data in (files | change).items() if data is not None}
    refused(python(SCRIPT, packed(tmp_path, changed), cwd=tmp_path), told, tmp_path)


def test_an_archive_that_ends_too_soon(tmp_path, files):
    path = packed(tmp_path, files)
    path.write_bytes(path.read_bytes()[:-20000])
    refused(python(SCRIPT, path, cwd=tmp_path), "speech_commands_v0.02.tar.gz: cannot be read as a tar", tmp_path)
    path.write_bytes(b"not found")
    refused(python(SCRIPT, path, cwd=tmp_path), "neither a zip nor a tar archive, or a damaged one", tmp_path)


def test_frames_and_words_that_cannot_be(tmp_path, files):
    path = packed(tmp_path, files)
    refused(python(SCRIPT, path, "--bands", "400", cwd=tmp_path), "take fewer bands or a longer --window", tmp_path)
    refused(python(SCRIPT, path, "--words", "dog", cwd=tmp_path), "holds no word 'dog'; there are: cat", tmp_path)
    refused(python(SCRIPT, path, "--words", "cat", cwd=tmp_path), "1 words, where two or more are needed", tmp_path)
    done = python(SCRIPT, path, "--hop", "0.01", cwd=tmp_path)
    assert done.returncode == 2
    assert "--hop: must be from 0.0625 to 1000 ms, given 0.01" in done.stderr


def test_a_made_set_can_be_learned_but_not_wholly(tmp_path):
    done = python(SCRIPT, "--synthetic", "--samples", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "data/speech-commands-synthetic.h5") as file:
        assert file["train/inputs"].shape == (300, 1, 40, 98)
        assert len(file.attrs["classes"]) == 10
        inputs, targets = file["train/inputs"][()], file["train/targets"][()]
        tested, labels = file["test/inputs"][()], file["test/targets"][()]
    means = np.stack([inputs[targets == label].mean(0) for label in range(10)])
    nearest = ((tested[:, None] - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert 0.3 < np.mean(nearest == labels) < 1
