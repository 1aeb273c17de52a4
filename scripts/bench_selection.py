"""Time of choosing the inputs that layers keep: elimination in one layer, and a size shared out among many.

    python scripts/bench_selection.py [--threads 1] [--channels 64 128 256 512] [--nets NAME ...] [--sites 100 1000]
        [--plain]

Elimination: a convolution of C to C channels, 3x3, its R of a random basis with a spectrum that falls to 1e-6. Sharing
out: torchvision's nets at 64x64 with moments of 256 random images, 70 % of the parameters; `elimination_s` is that of
all their layers. Sites: a chain of so many layers of 64 inputs, for what a step costs. --plain: beside the plain ones
of the tests, which update or compute everything at each step and must find the same.

Prints one JSON line. tests/numerics/selection has the laws.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from compresskit.graph.trace import trace
from compresskit.numerics.group_lasso.problem import Part, Problem
from compresskit.numerics.selection.allocation import allocate
from compresskit.numerics.selection.cost import Cost
from compresskit.numerics.selection.elimination import eliminate
from compresskit.passes.moments import gather_from
from compresskit.passes.reconstruct.budget import SizeModel, shared_out
from compresskit.passes.reconstruct.chaining import Choosing
from compresskit.passes.reconstruct.options import Reconstruct, Target
from compresskit.passes.reconstruct.readers import plan
from compresskit.passes.reconstruct.selection import Curve, Rule
from tests.numerics.selection import plain

NETS = ("resnet18", "mobilenet_v2", "resnet50", "densenet121")
SHAPE, IMAGES, PART = (3, 64, 64), 256, 0.7


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work(*arguments)
    return round(time.perf_counter() - start, 3), result


def convolution(channels: int, taps: int = 9) -> Problem:
    generator = torch.Generator().manual_seed(0)
    size = channels * taps
    basis = torch.randn(size, size, dtype=torch.float64, generator=generator)
    basis *= torch.logspace(0, -3, size, dtype=torch.float64)
    basis *= torch.logspace(0, -1, channels, dtype=torch.float64).repeat_interleave(taps)[:, None]
    cxx = basis @ basis.T
    weight = torch.randn(channels, size, dtype=torch.float64, generator=generator)
    groups = torch.arange(channels).repeat_interleave(taps)
    return Problem((Part(cxx, weight @ cxx, groups),), float((weight * (weight @ cxx)).sum()), channels)


def elimination(channels: int, with_plain: bool) -> dict[str, Any]:
    """gflops: of the best scheme for these sizes, as `eliminate` counts them, for each second."""
    problem = convolution(channels)
    seconds, found = timed(eliminate, problem)
    n = 9 * channels
    row = {"s": seconds, "gflops": round((n**3 * 5 / 3 + 4 * channels * n**2) / seconds / 1e9, 1)}
    if with_plain:
        row["plain_s"], (order, _) = timed(plain.eliminate, problem)
        row["same_order"] = found.order.tolist() == order
    return row


def sharing_out(name: str, with_plain: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    network = trace(getattr(torchvision.models, name)(num_classes=10).eval())
    options = Reconstruct(target=Target(params=f"{PART:.0%}"))
    made = plan(network, SHAPE, options)
    images = [(torch.randn(64, *SHAPE), None) for _ in range(IMAGES // 64)]
    moments = gather_from(images)(network, [reader.request for reader in made.readers], None)  # type: ignore[arg-type]
    jobs = [Choosing(site, moments, Rule(), options) for site in made.sites]
    eliminated, choices = timed(lambda: [job() for job in jobs])
    curves: list[Curve] = [choice.curve for choice in choices]
    losses = [torch.tensor(curve.errors, dtype=torch.float64) for curve in curves]
    modelled, model = timed(SizeModel, network, made, SHAPE)
    shared, counts = timed(shared_out, curves, losses, model, "params", PART)
    row = {"sites": len(made.sites), "elimination_s": eliminated, "size_model_s": modelled, "sharing_out_s": shared}
    if with_plain:
        import compresskit.passes.reconstruct.budget as budget

        budget.allocate = plain.allocate
        row["plain_s"], expected = timed(shared_out, curves, losses, model, "params", PART)
        budget.allocate = allocate
        row["same"] = counts == expected
    return row


def step(sites: int) -> float:
    """Microseconds of a greedy step, exchanges and all, of a chain: each layer shares a weight with two others."""
    generator = torch.Generator().manual_seed(0)
    off = torch.full((sites - 1,), 0.5, dtype=torch.float64)
    cost = Cost(0.0, torch.ones(sites, dtype=torch.float64), off.diag(1) + off.diag(-1))
    kept: list[Tensor] = [torch.arange(64, 0, -1) for _ in range(sites)]
    rises = [torch.rand(64, generator=generator, dtype=torch.float64).sort().values for _ in range(sites)]
    losses = [rise.cumsum(0) - rise[0] for rise in rises]
    limit = 0.5 * float(cost(torch.full((1, sites), 64.0, dtype=torch.float64)))
    seconds, found = timed(allocate, kept, losses, cost, limit)
    return round(1e6 * seconds / sum(found), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", type=int, nargs="*", default=[64, 128, 256, 512])
    parser.add_argument("--nets", nargs="*", default=NETS)
    parser.add_argument("--sites", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "bench": "selection",
        "elimination": {channels: elimination(channels, arguments.plain) for channels in arguments.channels},
        "sharing_out": {name: sharing_out(name, arguments.plain) for name in arguments.nets},
        "step_us": {sites: step(sites) for sites in arguments.sites},
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
