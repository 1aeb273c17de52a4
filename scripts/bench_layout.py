"""A step of training with images as they are stored against `data.channels_last: true`: one JSON line.

    python scripts/bench_layout.py [--nets mobilenet_v2 resnet18] [--batch-size 32] [--side 64] [--device cpu]

Networks are torchvision's, with 10 outputs, on random images; both layouts come from the splits that all verbs read, in
turn, with the same weights, and must give the same loss before a time counts.
"""

import argparse
import copy
import json
import statistics
import time
from contextlib import nullcontext

import torch
import torchvision
from machine import machine
from torch import nn
from torch.nn.functional import cross_entropy

from compresskit.data.dataset import Split
from compresskit.data.layout import ChannelsLast
from compresskit.data.memory import Examples, MemorySplit
from compresskit.data.stored.normalization import identity
from compresskit.training.trainer import AUTOCAST

NETS = ("mobilenet_v2", "efficientnet_b0", "densenet121", "resnet18")


def seconds(net: nn.Module, split: Split, batch_size: int, device: torch.device, precision: str) -> tuple[float, float]:
    """The loss of the first step, and the median time of the others."""
    cast = nullcontext() if precision == "float32" else torch.autocast(device.type, AUTOCAST[precision])
    net = copy.deepcopy(net).to(device).train()
    optimizer, losses, times = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), list[float](), list[float]()
    for inputs, targets in split.batches(batch_size, device, seed=0, drop_last=True):
        began = time.perf_counter()
        optimizer.zero_grad()
        with cast:
            loss = cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # waits for the device
        times.append(time.perf_counter() - began)
    return losses[0], statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--side", type=int, default=64, help="of the square images")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device, size = torch.device(arguments.device), arguments.batch_size
    torch.manual_seed(0)
    count = size * (arguments.steps + 1)
    images = torch.randint(256, (count, 3, arguments.side, arguments.side), dtype=torch.uint8)
    plain = MemorySplit(Examples(images, torch.randint(10, (count,))), identity(3))
    layouts: dict[str, Split] = {"stored": plain, "channels_last": ChannelsLast(plain)}
    ratios, times = dict[str, float](), dict[str, dict[str, float]]()
    for name in arguments.nets:
        net = getattr(torchvision.models, name)(num_classes=10)
        for module in net.modules():
            if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
                module.p = 0.0  # the same loss for both layouts
        found: dict[str, list[float]] = {layout: [] for layout in layouts}
        for _ in range(arguments.repeats):  # in turn, so that a busy moment of the machine meets both
            losses = []
            for layout, split in layouts.items():
                loss, taken = seconds(net, split, size, device, arguments.precision)
                losses.append(loss)
                found[layout].append(taken)
            if abs(losses[0] - losses[1]) > 1e-2 * abs(losses[0]):
                raise SystemExit(f"{name}: the layouts give other losses: {losses}")
        times[name] = {layout: round(statistics.median(values), 4) for layout, values in found.items()}
        ratios[name] = round(times[name]["stored"] / times[name]["channels_last"], 2)
    report = {
        "benchmark": "layout",
        "seconds": times,
        "ratio": ratios,
        "batch_size": size,
        "side": arguments.side,
        "precision": arguments.precision,
        **machine(device),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
