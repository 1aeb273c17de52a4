"""Time of a whole `fuse` (moments, solve, surgery) against one training epoch on the same images; and of `--help`.

    python scripts/bench_fuse.py [--device cpu] [--repeats 3]

Prints one JSON line. The fused net is checked before anything is timed: on the images of its moments its error must be
that which the moments predict.
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

from compresskit.data.mini import MnistMini
from compresskit.graph.trace import trace
from compresskit.models.plain.convnet import ConvNet
from compresskit.passes.fuse.fusible import find
from compresskit.passes.fuse.network import fuse, measure, solve
from compresskit.passes.fuse.options import Fuse
from compresskit.passes.moments import collect
from compresskit.training.loop import fit
from compresskit.training.options import Training

PAIRS = {"conv-conv": ("conv1", "conv2"), "conv-dense": ("conv3", "head")}


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
    help_command = [str(Path(sys.executable).with_name("compresskit")), "--help"]
    result["help_s"] = seconds(lambda: subprocess.run(help_command, capture_output=True, check=True), 5, device)
    result["images"] = len(data.train)
    result["machine"] = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    result["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
