"""Training step of an ExpandNet against that of its compact net: factors multiplied (online), or one after another.

    python scripts/bench_expand.py [--strategies cl ck ck+fc] [--rates 4] [--batches 128] [--kernel 7] [--device cpu]
                                   [--threads 1] [--compile] [--repeats 15]

Prints one JSON line for each strategy, rate and batch size: milliseconds of a step (forward, backward, SGD with
momentum) as medians of steps taken in turn, their ratios to the compact net, and peak memory above an idle process in
MB, each measured in a process of its own. Before anything is timed, loss and gradients of both ways must agree.
"""

import argparse
import copy
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from compresskit.graph.trace import trace
from compresskit.models.plain.smallnet import SmallNet
from compresskit.passes.expand.network import expand, set_factors
from compresskit.passes.expand.options import Expand

WAYS = ("compact", "online", "sequential")


def make(way: str, strategy: str, rate: float, kernel: int, device: torch.device) -> fx.GraphModule:
    """The net that one way trains, with the same weights in both expanded ones."""
    torch.manual_seed(0)
    network = trace(SmallNet(kernel=kernel).build((3, 32, 32), 10))
    if way != "compact":
        network = expand(network, Expand(strategy=strategy, rate=rate)).network
        set_factors(network, mode=way)
    return network.to(device).train()


class Step:
    """One training step after another on one batch."""

    def __init__(self, network: nn.Module, batch: int, device: torch.device, *, compiled: bool) -> None:
        images = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(batch, 3, 32, 32, generator=images).to(device)
        self.targets = torch.randint(10, (batch,), generator=images).to(device)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
        self.network = torch.compile(network) if compiled else network

    def loss(self) -> Tensor:
        return functional.cross_entropy(self.network(self.inputs), self.targets)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()


def check(strategy: str, rate: float, kernel: int, device: torch.device) -> float:
    """Largest relative difference between the gradients of both ways, in float64; it must be rounding."""
    found = []
    online = make("online", strategy, rate, kernel, device).double()
    sequential = copy.deepcopy(online)
    set_factors(sequential, mode="sequential")
    for network in (online, sequential):
        step = Step(network, 8, device, compiled=False)
        step.inputs = step.inputs.double()
        found.append(torch.autograd.grad(step.loss(), list(network.parameters())))
    scale = max(float(g.abs().max()) for g in found[0])
    difference = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) / scale
    assert difference < 1e-10, f"{strategy}: gradients differ by {difference:.1e}"
    return difference


def milliseconds(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, float]:
    """Median time of a step of each, taken in turn, after three that are not counted."""
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats + 3):
        for way, step in steps.items():
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            times[way].append(1000 * (time.perf_counter() - start))
    return {way: statistics.median(values[3:]) for way, values in times.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(arguments: argparse.Namespace, way: str, strategy: str, rate: float, batch: int) -> float:
    """Megabytes that three steps take above the idle process, in a process of its own."""
    options = ["--device", arguments.device, "--threads", str(arguments.threads), "--kernel", str(arguments.kernel)]
    asked = ["--memory-of", way, "--strategies", strategy, "--rates", str(rate), "--batches", str(batch)]
    done = subprocess.run([sys.executable, __file__, *options, *asked], check=True, capture_output=True, text=True)
    return float(done.stdout)


def measured_memory(way: str, strategy: str, rate: float, kernel: int, batch: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = 0
    else:
        make(way, strategy, rate, kernel, device)  # what libraries set up on first use is no part of the step
        Step(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 2, device, compiled=False)()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    step = Step(make(way, strategy, rate, kernel, device), batch, device, compiled=False)
    for _ in range(3):
        step()
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")
    return (after - before) / 1e6


def resident(field: str) -> int:
    """Bytes, from Linux."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", default=["cl", "ck", "ck+fc"])
    parser.add_argument("--rates", nargs="+", type=float, default=[4.0])
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    parser.add_argument("--kernel", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    cases = itertools.product(arguments.strategies, arguments.rates, arguments.batches)
    for strategy, rate, batch in cases:
        if arguments.memory_of:
            print(measured_memory(arguments.memory_of, strategy, rate, arguments.kernel, batch, device))
            continue
        difference = check(strategy, rate, arguments.kernel, device)
        nets = {way: make(way, strategy, rate, arguments.kernel, device) for way in WAYS}
        factors = 4e-6 * (count(nets["online"]) - count(nets["compact"]))
        steps = {way: Step(net, batch, device, compiled=arguments.compile) for way, net in nets.items()}
        times = milliseconds(steps, arguments.repeats, device)
        memory = {way: peak_memory(arguments, way, strategy, rate, batch) for way in WAYS}
        row = {
            "bench": "expand", "net": f"smallnet {arguments.kernel}x{arguments.kernel}", "strategy": strategy,
            "rate": rate, "batch": batch, "compiled": arguments.compile, "ms": rounded(times),
            "ratio": rounded({way: times[way] / times["compact"] for way in WAYS[1:]}),
            "peak_mb": rounded(memory), "factors_mb": round(factors, 2), "gradients_differ": difference,
            "device": arguments.device if device.type == "cpu" else torch.cuda.get_device_name(device),
            "threads": arguments.threads, "torch": torch.__version__, "machine": platform.machine(),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    main()
