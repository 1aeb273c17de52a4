"""data/speech-commands.h5, which configs/fuse/table4-speech-commands.yaml reads, from Google's Speech Commands.

    python scripts/prepare_speech_commands.py speech_commands_v0.02.tar.gz
    python scripts/prepare_speech_commands.py speech_commands_v0.02.tar.gz --words ten
    python scripts/prepare_speech_commands.py --synthetic     # a made set: data/speech-commands-synthetic.h5

The archive is http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz (or v0.01), or the folder that it was
extracted to; the archive is read twice, and nothing is extracted. Each folder is a word, numbered by the alphabet;
_background_noise_ is left out. What testing_list.txt names is the test set. What validation_list.txt names goes to the
training set, since the recipe holds nothing out; --validation test adds it to the test set, --validation validation
makes a group of its own (data.validation_group=validation).

    train/inputs float32 (N, 1, bands, frames)    train/targets int64 (N,)    test/inputs ...    test/targets ...

Recordings (16 bits, 16 kHz, mono) are cut, or filled up with zeros at their end, to one second; scripts/prepare/
log_mel.py says what is made of it. v0.02 gives 94,824 and 11,005 of (1, 40, 98), 1.7 GB; v0.01 takes 1.0 GB.
The attribute `classes` has the words. `--words ten` is the common task, without its classes "unknown" and "silence".
"""

import argparse
import io
import sys
import wave
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from prepare.archives import AGAIN, Read, members
from prepare.log_mel import LogMel
from prepare.program import parser, positive, run

from compresskit.data.reading.regular import reading
from compresskit.errors import DataError, near_names

RATE = 16000
SECOND = RATE  # samples that each recording is brought to
TEN = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
LISTS = ("testing_list.txt", "validation_list.txt")
TOGETHER = 64  # recordings transformed at a time, in 60 MB
ADVICE = "give the whole archive speech_commands_v0.01 or v0.02, or the folder of one of them"


class Clip(NamedTuple):
    """One second of sound (16000,) in [-1, 1], with its place in the file."""

    group: str
    row: int
    sound: NDArray[np.float64]


def main(options: argparse.Namespace, file: h5py.File) -> None:
    spectrogram = LogMel(options.bands, options.window, options.hop, RATE)
    if options.synthetic:
        words = list(TEN)
        rows = made_rows(options.samples, words)
        clips = made_clips(rows, words)
    else:
        names = read_names(options.source)
        words = chosen(options.source, names, options.words)
        rows = divided(options.source, names, words, options.validation)
        clips = read_clips(options.source, rows)
    file.attrs["classes"] = words
    write(file, rows, words, clips, spectrogram)


class Names(NamedTuple):
    """Recordings as WORD/FILE.wav, and those that each list names."""

    clips: set[str]
    lists: dict[str, set[str]]


def read_names(source: Path) -> Names:
    """What the archive holds. Raises DataError where a list or what it names is missing, or two sets are mixed."""
    clips: set[str] = set()
    lists = {}
    for name, content in members(source):
        base = PurePosixPath(name).name
        if base in LISTS:
            with reading(f"{source}: {name}", "a list of files", AGAIN):
                lists[base] = set(content().decode().split())
        elif clip := clip_of(name):
            if clip in clips:
                raise DataError(f"{source}: holds {clip} twice; {ADVICE}")
            clips.add(clip)
    for name in LISTS:
        if name not in lists:
            raise DataError(f"{source}: holds no {name}; {ADVICE}")
        if lost := sorted(lists[name] - clips):
            raise DataError(f"{source}: {name} names {len(lost)} recordings that are not there, as {lost[0]}; {ADVICE}")
    return Names(clips, lists)


def clip_of(name: str) -> str | None:
    """WORD/FILE.wav of a recording; None for other files."""
    path = PurePosixPath(name)
    word = path.parent.name
    if path.suffix != ".wav" or path.name.startswith(".") or not word or word.startswith("_"):
        return None
    return f"{word}/{path.name}"


def chosen(source: Path, names: Names, asked: list[str] | None) -> list[str]:
    """The words by the alphabet. Raises DataError for one that there is not, or fewer than two."""
    known = {clip.partition("/")[0] for clip in names.clips}
    words = sorted(known) if asked is None else sorted(TEN if asked == ["ten"] else set(asked))
    for word in words:
        if word not in known:
            raise DataError(f"{source}: holds no word {word!r}; {near_names(word, known)}")
    if len(words) < 2:
        raise DataError(f"{source}: {len(words)} words, where two or more are needed; name more with --words")
    return words


def divided(source: Path, names: Names, words: list[str], validation: str) -> dict[str, list[str]]:
    """The recordings of each group, by the alphabet, whatever order the archive has. Raises DataError for an empty one.

    validation: the group that those of the validation list go to.
    """
    testing, held = (names.lists[name] for name in LISTS)
    rows: dict[str, list[str]] = {group: [] for group in ("train", "test", validation)}
    for clip in sorted(names.clips):
        if clip.partition("/")[0] in words:
            rows["test" if clip in testing else validation if clip in held else "train"].append(clip)
    for group, clips in rows.items():
        if not clips:
            raise DataError(f"{source}: no recordings of {', '.join(words)} for the group {group!r}; {ADVICE}")
    return rows


def read_clips(source: Path, rows: dict[str, list[str]]) -> Iterator[Clip]:
    """Each recording, in the order of the archive. Raises DataError for one that is damaged, or not as it should be."""
    places = {clip: (group, row) for group, clips in rows.items() for row, clip in enumerate(clips)}
    for name, content in members(source):
        if (clip := clip_of(name)) in places:
            yield Clip(*places[clip], second(f"{source}: {name}", content))


def second(where: str, content: Read) -> NDArray[np.float64]:
    """The first second of a WAV file, in [-1, 1], with zeros behind a shorter one."""
    data = content()
    with reading(where, "a WAV file of 16 bits", AGAIN), wave.open(io.BytesIO(data)) as file:
        found = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
        if found != (1, 16, RATE):
            raise DataError(f"{where}: channels, bits and Hz are {found}, where (1, 16, {RATE}) are needed; {ADVICE}")
        count = min(file.getnframes(), SECOND)
        sound = np.frombuffer(file.readframes(count), "<i2") / 2**15
    if len(sound) < count:
        raise DataError(f"{where}: ends before its {count} samples do; {AGAIN}")
    return np.pad(sound, (0, SECOND - count))


def write(
    file: h5py.File, rows: dict[str, list[str]], words: list[str], clips: Iterable[Clip], spectrogram: LogMel
) -> None:
    """Inputs as they come, a few at a time; targets at once."""
    numbers = {word: number for number, word in enumerate(words)}
    shape = (1, spectrogram.bands, spectrogram.frames(SECOND))
    for group, names in rows.items():
        file[f"{group}/targets"] = np.array([numbers[name.partition("/")[0]] for name in names], np.int64)
        file.create_dataset(f"{group}/inputs", (len(names), *shape), np.float32)
    total, done = sum(map(len, rows.values())), 0
    remaining = iter(clips)
    while together := list(islice(remaining, TOGETHER)):
        images = spectrogram(np.stack([clip.sound for clip in together]))
        for clip, image in zip(together, images, strict=True):
            file[f"{clip.group}/inputs"][clip.row, 0] = image
        done += len(together)
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} recordings", end="\n" * (done == total), file=sys.stderr, flush=True)


def made_rows(samples: int, words: list[str]) -> dict[str, list[str]]:
    """As many in training as asked, a quarter of it in test."""
    counts = {"train": samples, "test": max(samples // 4, len(words))}
    return {group: [f"{words[row % len(words)]}/{row}" for row in range(count)] for group, count in counts.items()}


def made_clips(rows: dict[str, list[str]], words: list[str]) -> Iterator[Clip]:
    """A word is two tones that glide from one pitch to another, in noise; when, how fast and how loud differs."""
    random = np.random.default_rng(0)
    pitches = random.uniform(np.log(200), np.log(4000), (len(words), 2, 2))  # begin and end, of two tones
    for group, names in rows.items():
        for row, name in enumerate(names):
            begin, length = random.uniform(0, 0.4), random.uniform(0.3, 0.6)
            share = np.clip((np.arange(SECOND) / RATE - begin) / length, 0, 1)
            first, last = pitches[words.index(name.partition("/")[0])] + random.normal(0, 0.05)
            pitch = np.exp(np.stack([first, last]).T @ np.stack([1 - share, share]))
            tones = np.sin(2 * np.pi * np.cumsum(pitch, axis=1) / RATE).sum(0) * np.sin(np.pi * share)
            loud = 10 ** random.uniform(-1.5, -0.5)
            yield Clip(group, row, loud * tones + random.normal(0, 0.01, SECOND))


def milliseconds(text: str) -> float:
    number = float(text)
    if not 1000 / RATE <= number <= 1000:
        raise argparse.ArgumentTypeError(f"must be from {1000 / RATE:g} to 1000 ms, given {text}")
    return number


def parsed() -> argparse.ArgumentParser:
    found = parser(__doc__, "the archive, or its folder", "speech-commands", samples=1000)
    found.add_argument("--words", nargs="+", help="of the archive, those alone; ten: the ten of the common task  [all]")
    found.add_argument("--validation", choices=["train", "test", "validation"], default="train",
                       help="the group that validation_list.txt goes to  [train]")  # fmt: skip
    found.add_argument("--bands", type=positive, default=40, help="of frequencies  [40]")
    found.add_argument("--window", type=milliseconds, default=25.0, help="of a frame, in ms  [25]")
    found.add_argument("--hop", type=milliseconds, default=10.0, help="from one frame to the next, in ms  [10]")
    return found


if __name__ == "__main__":
    sys.exit(run(parsed(), main))
