"""The runs that the campaigns disturb: every verb on a small net and few images of 12 x 12."""

from pathlib import Path

import numpy as np
import torch

from compresskit.data.mini import MnistMini

SOURCE = "source"  # the run of `train` that the others start from

RECIPE = """\
model: {kind: convnet, channels: [4, 6], batch_norm: true}
data: {kind: arrays, path: digits.npz, validation: 40}
train: {epochs: 2, batch_size: 64, optimizer: {kind: adam, lr: 5e-3}}
finetune: {epochs: 2, batch_size: 64, optimizer: {kind: adam, lr: 1e-3}}
fuse: {layers: [[conv2, head]], held_out: 40, retrain: {epochs: 1, batch_size: 64}}
expand: {}
prune: {target: {macs: 60%}, repair: top-down, samples: 100, retrain: {epochs: 1, batch_size: 64}}
reconstruct: {keep: 60%, samples: 100, retrain: {epochs: 1, batch_size: 64}}
spectra: {}
report: {latency_repeats: 1, plots: false}
"""

# By name: the arguments behind the recipe. All write a model.pt but spectra.
RUNS: dict[str, tuple[str, ...]] = {
    "train": ("train", "net.yaml"),
    "train, two trials": ("train", "net.yaml", "trials=2", "train.epochs=1"),
    "finetune": ("finetune", "net.yaml", "-c", SOURCE),
    "fuse": ("fuse", "net.yaml", "-c", SOURCE),
    "fuse, two steps": (
        "fuse",
        "net.yaml",
        "fuse.layers=[[conv2, head], [conv1, head]]",
        "~fuse.retrain",
        "-c",
        SOURCE,
    ),
    "expand": ("expand", "net.yaml", "train.epochs=1"),
    "prune": ("prune", "net.yaml", "-c", SOURCE),
    "prune weights": (
        "prune",
        "net.yaml",
        "prune={kind: weights, target: {sparsity: 50%}, retrain: {epochs: 1, batch_size: 64}}",
        "-c",
        SOURCE,
    ),
    "reconstruct": ("reconstruct", "net.yaml", "-c", SOURCE),
    "spectra": ("spectra", "net.yaml", "-c", SOURCE),
}


def write_digits(folder: Path) -> None:
    """digits.npz: 160 images to train on, 60 to test."""
    data = MnistMini(limit=160).load(0)
    parts: dict[str, np.ndarray] = {}
    for name, split, count in (("train", data.train, 160), ("test", data.test, 60)):
        images, targets = next(split.batches(count, torch.device("cpu")))
        parts |= {f"{name}_inputs": images[:, :, 2:26:2, 2:26:2].numpy(), f"{name}_targets": targets.numpy()}
    np.savez(folder / "digits.npz", **parts)
