"""Training step of an ExpandNet against that of its compact net: factors multiplied (online), or one after another.

    python scripts/bench_expand.py [--nets smallnet:7 resnet18:0.5] [--strategies cl ck ck+fc] [--rates 4 auto]
                                   [--batches 128] [--parts 1] [--ways compact online copied sequential each-part]
                                   [--device cpu] [--threads 1] [--compile] [--repeats 15] [--no-memory]

A net is smallnet:KERNEL or resnet18:WIDTH, of which the 3x3 layers are expanded. Ways: copied is online as it was, the
largest factor copied between layouts; each-part forms the product for each of the `--parts` of a batch, not once;
launched, on a GPU, does not replay the products from a recording.
Prints one JSON line for each net, strategy, rate and batch size: milliseconds of a step (forward, backward, SGD with
momentum) as medians of steps taken in turn, their ratios to the compact net and what multiply-adds let expect, and peak
memory above an idle process in MB, each measured in a process of its own. Before anything is timed, loss and gradients
of online and sequential must agree.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from compresskit.graph.counting import count as counted
from compresskit.graph.trace import trace
from compresskit.models.images.resnet import ResNet
from compresskit.models.plain.smallnet import SmallNet
from compresskit.numerics.expansion import composition
from compresskit.passes.expand.network import Expansion, expand, set_factors
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.rates import auto_rates
from compresskit.training.optimization.accumulation import micro_batches
from compresskit.training.optimization.products import Products, online_layers

WAYS = ("compact", "online", "launched", "copied", "sequential", "each-part")
SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Case:
    """What one line is about. rate: a number, or auto."""

    net: str
    strategy: str
    rate: str
    batch: int
    parts: int = 1

    def compact(self) -> fx.GraphModule:
        torch.manual_seed(0)
        kind, number = self.net.split(":")
        made = SmallNet(kernel=int(number)) if kind == "smallnet" else ResNet(width=float(number))
        return trace(made.build(SHAPE, 10))

    def expansion(self) -> Expansion:
        network = self.compact()
        layers = ("re:.*",) if self.net.startswith("smallnet") else ("@conv3x3",)
        rate = "auto" if self.rate == "auto" else float(self.rate)
        options = Expand(strategy=self.strategy, rate=rate, layers=layers)
        if rate == "auto":
            macs = {layer.name: layer.macs * self.batch for layer in counted(network, SHAPE).layers}
            options = replace(options, rate=auto_rates(network, options, macs)[0])
        return expand(network, options)

    def make(self, way: str, device: torch.device) -> fx.GraphModule:
        """The net that one way trains, with the same weights in all expanded ones."""
        network = self.compact() if way == "compact" else self.expansion().network
        if way == "sequential":
            set_factors(network, mode=way)
        return network.to(device).train()

    def expected(self) -> float:
        """Multiply-adds of an online step over those of the compact net's."""
        products = sum(layer.product_macs for layer in self.expansion().layers)
        return 1 + products / (self.batch * counted(self.compact(), SHAPE).macs)


class Step:
    """One training step after another on one batch."""

    def __init__(self, network: nn.Module, case: Case, way: str, device: torch.device, *, compiled: bool) -> None:
        batch, self.way = case.batch, way
        self.largest = -(-batch // case.parts)
        images = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(batch, 3, 32, 32, generator=images).to(device)
        self.targets = torch.randint(10, (batch,), generator=images).to(device)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
        recorded = device.type == "cuda" and way == "online" and not compiled
        self.products = Products([] if way == "each-part" or compiled else online_layers(network), recorded=recorded)
        self.network = torch.compile(network) if compiled else network

    def loss(self) -> Tensor:
        return functional.cross_entropy(self.network(self.inputs), self.targets)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        composition.compose = copied if self.way == "copied" else COMPOSE
        parts = micro_batches(self.inputs, self.targets, self.largest)
        self.products.form(len(parts))
        for number, (inputs, targets) in enumerate(parts, 1):
            if number == len(parts):
                self.products.before_last()
            loss = functional.cross_entropy(self.network(inputs), targets)
            (loss * (len(targets) / len(self.targets))).backward()
        self.products.release()
        self.optimizer.step()


COMPOSE = composition.compose


def copied(second: Tensor, first: Tensor) -> Tensor:
    """As `compose` was, for kernels of which one has one tap: both are copied with the taps in front of the inputs."""
    groups, out, *a, mid = second.shape
    *b, inputs = first.shape[2:]
    pairs = torch.bmm(second.reshape(groups, -1, mid), first.reshape(groups, mid, -1))
    return pairs.view(groups, out, *(x + y - 1 for x, y in zip(a, b, strict=True)), inputs)


def check(case: Case, device: torch.device) -> float:
    """Largest relative difference between the gradients of both ways, in float64; it must be rounding."""
    found = []
    online = case.make("online", device).double()
    sequential = copy.deepcopy(online)
    set_factors(sequential, mode="sequential")
    for network in (online, sequential):
        step = Step(network, replace(case, batch=8), "online", device, compiled=False)
        step.inputs = step.inputs.double()
        found.append(torch.autograd.grad(step.loss(), list(network.parameters())))
    scale = max(float(g.abs().max()) for g in found[0])
    difference = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) / scale
    assert difference < 1e-10, f"{case}: gradients differ by {difference:.1e}"
    return difference


def milliseconds(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, float]:
    """Median time of a step of each, taken in turn, after one that is not counted.

    Of one thread on a CPU the time that it computed, which other work on the machine disturbs less.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(repeats + 1):
        for way, step in steps.items():
            synchronise(device)
            start = clock()
            step()
            synchronise(device)
            times[way].append(1000 * (clock() - start))
    return {way: statistics.median(values[1:]) for way, values in times.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(arguments: argparse.Namespace, way: str, case: Case) -> float:
    """Megabytes that three steps take above the idle process, in a process of its own."""
    options = ["--device", arguments.device, "--threads", str(arguments.threads), "--parts", str(case.parts)]
    asked = ["--memory-of", way, "--nets", case.net, "--strategies", case.strategy, "--rates", case.rate]
    command = [sys.executable, __file__, *options, *asked, "--batches", str(case.batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measured_memory(way: str, case: Case, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = 0
    else:
        case.make(way, device)  # what libraries set up on first use is no part of the step
        small = replace(case, batch=2, parts=1)
        Step(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), small, "compact", device, compiled=False)()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    step = Step(case.make(way, device), case, way, device, compiled=False)
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
    parser.add_argument("--nets", nargs="+", default=["smallnet:7"])
    parser.add_argument("--strategies", nargs="+", default=["cl", "ck", "ck+fc"])
    parser.add_argument("--rates", nargs="+", default=["4"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["compact", "online", "sequential"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if "compact" not in arguments.ways:
        parser.error("--ways: the others are compared with compact; name it, too")
    for chosen in itertools.product(arguments.nets, arguments.strategies, arguments.rates, arguments.batches):
        case = Case(*chosen, arguments.parts)
        if arguments.memory_of:
            print(measured_memory(arguments.memory_of, case, device))
            continue
        difference = check(case, device)
        nets = {way: case.make(way, device) for way in arguments.ways}
        expanded = next((net for way, net in nets.items() if way != "compact"), nets["compact"])
        factors = 4e-6 * (count(expanded) - count(nets["compact"]))
        steps = {way: Step(net, case, way, device, compiled=arguments.compile) for way, net in nets.items()}
        times = milliseconds(steps, arguments.repeats, device)
        memory = {} if arguments.no_memory else {way: peak_memory(arguments, way, case) for way in arguments.ways}
        row = {
            "bench": "expand", **asdict(case), "compiled": arguments.compile, "ms": rounded(times),
            "ratio": rounded({way: times[way] / times["compact"] for way in arguments.ways if way != "compact"}),
            "macs_ratio": round(case.expected(), 3),
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
