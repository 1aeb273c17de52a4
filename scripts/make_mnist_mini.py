"""Packs the set `mnist-mini` from the files of MNIST: python scripts/make_mnist_mini.py ROOT OUT

ROOT holds MNIST/raw as torchvision lays it out. Takes 1,000 training and 200 test images of each digit by a fixed seed
and writes them, in random order, to OUT (compresskit/data/mnist-mini.npz). The same zlib writes the same bytes.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from torchvision.datasets import MNIST

SEED = 20240101
PER_DIGIT = {"train": 1000, "test": 200}


def chosen(labels: np.ndarray, per_digit: int, random: np.random.Generator) -> np.ndarray:
    """Indices of `per_digit` images of each digit, in random order."""
    each = [random.permutation(np.flatnonzero(labels == digit))[:per_digit] for digit in range(10)]
    return random.permutation(np.concatenate(each))


def main(root: Path, out: Path) -> None:
    random = np.random.default_rng(SEED)
    arrays = {}
    for part, per_digit in PER_DIGIT.items():
        mnist = MNIST(root, train=part == "train")
        index = chosen(mnist.targets.numpy(), per_digit, random)
        arrays[f"{part}_inputs"] = mnist.data.numpy()[index]
        arrays[f"{part}_targets"] = mnist.targets.numpy()[index].astype(np.uint8)
    np.savez_compressed(out, **arrays)
    print(f"{out}: {out.stat().st_size:,} bytes, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
