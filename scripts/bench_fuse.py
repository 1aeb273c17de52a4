"""Time of a whole `fuse` (moments, solve, surgery) against one training epoch on the same images; of finding the
candidates against trying all pairs of layers; and of `--help`.

    python scripts/bench_fuse.py [--device cpu] [--repeats 3]

Prints one JSON line. What is timed is checked before: on the images of its moments the error of the fused net must be
that which the moments predict, and both ways must find the same candidates.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import fx, nn
from torchvision.models import get_model

from compresskit.data.mini import MnistMini
from compresskit.graph.trace import trace
from compresskit.models.plain.convnet import ConvNet
from compresskit.passes.fuse.candidates import candidates
from compresskit.passes.fuse.fusible import find
from compresskit.passes.fuse.network import fuse, measure, solve
from compresskit.passes.fuse.options import Fuse
from compresskit.passes.moments import collect
from compresskit.training.loop import fit
from compresskit.training.options import Training

sys.path.insert(0, str(Path(__file__).parents[1]))  # the reference is the tests'
from tests.passes.fuse.all_pairs import all_pairs  # noqa: E402

PAIRS = {"conv-conv": ("conv1", "conv2"), "conv-dense": ("conv3", "head")}

NETS = ("resnet50", "mobilenet_v2", "googlenet", "vit_b_16", "densenet121")


def sequence(length: int) -> nn.Sequential:
    layers = [(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(length)]
    return nn.Sequential(*(layer for three in layers for layer in three))


def searched(network: fx.GraphModule, repeats: int) -> dict[str, float]:
    """Both ways to find chains of two layers."""
    cpu = torch.device("cpu")
    assert candidates(network, 2)[0] == all_pairs(network, 2)[0]
    slow = seconds(lambda: all_pairs(network, 2), 1, cpu)
    fast = seconds(lambda: candidates(network, 2), repeats, cpu)
    return {"chains": len(candidates(network, 2)[0]), "all_pairs_s": slow, "grown_s": fast, "ratio": slow / fast}


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median wall time after one run that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    data = MnistMini().load(0)
    torch.manual_seed(0)
    network = trace(ConvNet(channels=(16, 32, 64)).build(data.input_shape, data.outputs)).to(device)

    class Batches:
        def __iter__(self):
            return data.train.batches(256, device)

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(network, data, Training(epochs=1), seed=0, device=device, folder=Path(folder))

    result = {"bench": "fuse", "epoch_s": seconds(epoch, arguments.repeats, device)}
    for name, pair in PAIRS.items():
        fusible = find(network, pair, data.input_shape)
        sums = {fusible.request.name: fusible.request.zeros(device)}
        collect(network, [fusible.request], Batches(), sums)
        fusion = solve(fusible, sums[fusible.request.name].finish(), Fuse())
        error, _ = measure(network, fusible, fusion, Batches())
        assert abs(error - fusion.error) < 1e-4 * fusion.error, (error, fusion.error)  # float32 activations
        result[f"{name}_s"] = seconds(lambda pair=pair: fuse(network, Batches(), [pair]), arguments.repeats, device)
        result[f"{name}_per_epoch"] = result[f"{name}_s"] / result["epoch_s"]
    nets = {name: get_model(name, weights=None) for name in NETS} | {"100 layers": sequence(100)}
    result["candidates"] = {name: searched(trace(net), arguments.repeats) for name, net in nets.items()}
    help_command = [str(Path(sys.executable).with_name("compresskit")), "--help"]
    result["help_s"] = seconds(lambda: subprocess.run(help_command, capture_output=True, check=True), 5, device)
    result["images"] = len(data.train)
    result["machine"] = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    result["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
