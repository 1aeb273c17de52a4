"""A small part of MNIST that is shipped inside the package."""

from importlib.resources import files
from typing import Literal

import numpy as np
import torch

from compresskit.data.dataset import DataSet
from compresskit.data.memory import Examples, InMemory, assemble
from compresskit.data.named import MNIST_NORMALIZATION
from compresskit.options import option


@option
class MnistMini(InMemory):
    """10,000 training and 2,000 test images of MNIST, as many of each digit, shipped inside the package."""

    kind: Literal["mnist-mini"] = "mnist-mini"

    def load(self, seed: int) -> DataSet:
        """The set; packed by scripts/make_mnist_mini.py, in random order."""
        with files("compresskit.data").joinpath("mnist-mini.npz").open("rb") as file, np.load(file) as arrays:
            train, test = (
                Examples(
                    torch.from_numpy(arrays[f"{part}_inputs"]).unsqueeze(1),
                    torch.from_numpy(arrays[f"{part}_targets"]).long(),
                )
                for part in ("train", "test")
            )
        return assemble(
            self, train, test, task="classification", outputs=10, seed=seed, normalization=MNIST_NORMALIZATION
        )
