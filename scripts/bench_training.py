"""Images per second of `fit` on MNIST against a plain loop over torchvision's DataLoader: one JSON line.

python scripts/bench_training.py [--root data] [--device cpu] [--batch-size 128] [--repeats 3]

Same network (convolutions of 2-4-8-16 channels), same optimiser, one epoch each; both must reach the same kind of loss
before a time counts.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from machine import machine
from torch import fx, nn
from torchvision import transforms

from compresskit.data.dataset import DataSet
from compresskit.data.named import MNIST, MNIST_NORMALIZATION
from compresskit.training.loop import fit
from compresskit.training.optimization.optimizers import SGD
from compresskit.training.optimization.schedules import Constant
from compresskit.training.options import Training

LR = 0.05


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = (1, 2, 4, 8, 16)
    for before, after in zip(channels, channels[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, stride=1 if before < 4 else 2, padding=1), nn.ReLU()]
    return fx.symbolic_trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 49, 10)))


def ours(data: DataSet, batch_size: int, device: torch.device) -> tuple[float, float]:
    """Mean loss of the epoch and images per second of its steps."""
    options = Training(epochs=1, batch_size=batch_size, optimizer=SGD(lr=LR), schedule=Constant())
    with tempfile.TemporaryDirectory() as folder:
        row = fit(network(), data, options, seed=0, device=device, folder=Path(folder)).rows[0]
    return row["train_loss"], row["images_per_second"]


def plain(root: str, workers: int, batch_size: int, device: torch.device) -> tuple[float, float]:
    """The same of a loop as in torchvision's and PyTorch's own examples."""
    steps = [transforms.ToTensor(), transforms.Normalize(MNIST_NORMALIZATION.mean, MNIST_NORMALIZATION.std)]
    images = torchvision.datasets.MNIST(root, transform=transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True, num_workers=workers)
    net = network().to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    total, began = 0.0, time.perf_counter()
    for inputs, targets in loader:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(targets)
    return total / len(images), len(images) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    root, device = str(Path(arguments.root).expanduser()), torch.device(arguments.device)
    data = MNIST(root=root, validation=1000).load(0)
    rivals: dict[str, Callable[[], tuple[float, float]]] = {
        "compresskit": lambda: ours(data, arguments.batch_size, device),
        "dataloader, 0 workers": lambda: plain(root, 0, arguments.batch_size, device),
        "dataloader, 2 workers": lambda: plain(root, 2, arguments.batch_size, device),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for _ in range(arguments.repeats):  # in turn, so that a busy moment of the machine meets all of them
        for name, rival in rivals.items():
            found[name].append(rival())
    losses = {name: statistics.median(loss for loss, _ in runs) for name, runs in found.items()}
    if max(losses.values()) > 1.3 * min(losses.values()):
        raise SystemExit(f"the rivals do not learn alike, so their speeds say nothing: mean losses {losses}")
    rates = {name: statistics.median(rate for _, rate in runs) for name, runs in found.items()}
    report = {
        "benchmark": "training",
        "loss": {name: round(loss, 4) for name, loss in losses.items()},
        "images_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratio": {name: round(rates["compresskit"] / rate, 2) for name, rate in rates.items() if name != "compresskit"},
        "batch_size": arguments.batch_size,
        **machine(device),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
