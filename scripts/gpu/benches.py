"""The times that a GPU is bought for."""

import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.differences import relative
from torch import nn

SCRIPTS = Path(__file__).parents[1]
MACHINE = ("bench", "device", "machine", "torch", "threads")  # which the page says once


def benches(device: str) -> Iterator[tuple[str, list[str]]]:
    """The benches that matter on a GPU: what is measured, and the program."""
    expand = ["bench_expand.py", "--device", device, "--no-memory", "--strategies"]
    ways = ["--ways", "compact", "online", "launched"]
    yield "expand", [*expand, "cl", "--nets", "smallnet:7", "resnet18:0.5", "resnet18:1", *ways]
    yield "expand", [*expand, "ck", *ways]
    yield "expand, compiled", [*expand, "cl", "--compile", "--ways", "compact", "online"]
    yield "moments", ["bench_moments.py", "--device", device, "--batch", "64"]
    for share, degree in (("90 %", "26"), ("98 %", "5")):
        options = ["--degree", degree, "--depth", "100", "--width", "260", "--fused", "--sparse-depth", "0"]
        yield f"grouped, {share} zeros", ["bench_sparse.py", "--device", device, *options]
        for batch in ("1", "128"):
            inference = [*options, "--inference", "--batch", batch]
            yield f"grouped, {share} zeros, inference", ["bench_sparse.py", "--device", device, *inference]
    conv = ["bench_sparse.py", "--device", device, "--conv", "--depth", "20", "--width", "64", "--degree", "4"]
    yield "grouped convolutions", conv
    yield "grouped convolutions, inference", [*conv, "--inference"]


def benched(device: str) -> Iterator[dict[str, Any]]:
    own = (("training", training_times), ("eigenvalues in float64", eigenvalue_times), ("latency", latencies))
    for name, measure in own:
        try:
            yield {"bench": name, "found": measure(device)}
        except Exception:  # one bench that breaks must not hide what the others find
            yield {"bench": name, "failed": traceback.format_exc()[-600:]}
    for name, command in benches(device):
        words = [sys.executable, str(SCRIPTS / command[0]), *command[1:]]
        done = subprocess.run(words, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                yield {"bench": name, "found": {key: value for key, value in found.items() if key not in MACHINE}}
        if done.returncode:
            yield {"bench": name, "failed": done.stderr[-600:]}


def training_times(device: str) -> dict[str, Any]:
    """Images per second of `fit` and of a plain loop over images that lie on the device; a ResNet-18, batch 128."""
    from compresskit.data.mini import MnistMini
    from compresskit.graph.trace import trace
    from compresskit.models.images.resnet import ResNet
    from compresskit.training.loop import fit
    from compresskit.training.optimization.optimizers import SGD
    from compresskit.training.options import Training

    data, where = MnistMini().load(0), torch.device(device)
    batches = list(data.train.batches(128, where, drop_last=True))

    def plain(net: nn.Module) -> float:
        optimizer = torch.optim.SGD(net.to(where).train().parameters(), lr=0.05, momentum=0.9)
        total, started = torch.zeros((), device=where), time.perf_counter()
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        total.item()
        return 128 * len(batches) / (time.perf_counter() - started)

    def ours(net: nn.Module) -> float:
        options = Training(epochs=1, batch_size=128, optimizer=SGD(lr=0.05))
        with tempfile.TemporaryDirectory() as folder:
            row = fit(trace(net), data, options, seed=0, device=where, folder=Path(folder)).rows[0]
        return float(row["images_per_second"])

    rivals = (("plain", plain), ("fit", ours))
    rates = {name: max(run(ResNet().build((1, 28, 28), 10)) for _ in range(3)) for name, run in rivals}
    return {name: round(rate) for name, rate in rates.items()} | {"ratio": round(rates["fit"] / rates["plain"], 2)}


def latencies(device: str) -> dict[str, Any]:
    """Milliseconds of a ResNet-50 forward as reports give them, and the mean of 50 in a row by CUDA events."""
    import torchvision

    from compresskit.commands.figures import latency
    from compresskit.graph.trace import trace

    found: dict[str, Any] = {}
    network, where = trace(torchvision.models.resnet50(weights=None)).eval(), torch.device(device)
    for batch in (1, 128):
        told = latency(network.to(where), (3, 224, 224), where, batch, 20)
        found[f"batch {batch}"] = {"report": round(told, 3)}
        if device == "cuda":
            found[f"batch {batch}"] |= {"events": round(event_time(network, batch), 3)}
    return found


def event_time(network: nn.Module, batch: int, repeats: int = 50) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    inputs = torch.zeros(batch, 3, 224, 224, device="cuda")
    with torch.no_grad():
        for number in range(repeats + 10):
            if number == 10:
                start.record()
            network(inputs)
        end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / repeats


def eigenvalue_times(device: str) -> dict[str, Any]:
    """Seconds of the squared singular values of square matrices, on the CPU and on the device, and their difference."""
    from compresskit.numerics.spectra.eigenvalues import eigenvalues

    found: dict[str, Any] = {}
    for side in (512, 2048, 4096):
        matrix = np.random.default_rng(0).standard_normal((1, side, side))
        taken, values = {}, {}
        for where in dict.fromkeys(("cpu", device)):
            eigenvalues(matrix[:, :64, :64], device=where)  # what libraries set up on first use
            started = time.perf_counter()
            values[where] = torch.from_numpy(eigenvalues(matrix, device=where))
            taken[where] = round(time.perf_counter() - started, 3)
        found[str(side)] = {"s": taken, "differ": relative(values["cpu"], values[device])}
    return found
