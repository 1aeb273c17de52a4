"""Images of mnist-mini in a file, with fewer to test: its 2,000 take most nets of tests longer than their training."""

from importlib.resources import files
from pathlib import Path

import numpy as np


def write_digits(path: Path, train: int, test: int) -> None:
    """An NPZ file of so many of them, as a recipe's `data: {kind: arrays, add_channel: true}` reads it."""
    counts = {"train": train, "test": test}
    with np.load(files("compresskit.data") / "mnist-mini.npz") as arrays:
        np.savez(path, **{name: arrays[name][: counts[name.partition("_")[0]]] for name in arrays})


def write_recipe(folder: Path, recipe: str, train: int) -> Path:
    """net.yaml, and digits.npz beside it, which it reads: so many images to train with, 200 to test."""
    path = folder / "net.yaml"
    path.write_text(recipe)
    write_digits(folder / "digits.npz", train, 200)
    return path
