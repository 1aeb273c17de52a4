"""Times MomentSums.add against what one would write first, after checking that both give the same sums.

    python scripts/bench_moments.py [--threads 1] [--batch 16] [--device cpu] [--repeats 5]

Prints one JSON line. For each case `unfold` is how many times longer F.unfold with float64 products in one piece takes
(both sum patch patch^T and sum y patch^T), `forward` how many times longer ours takes than the layer's own float32
forward pass with one float32 product patch patch^T.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.numerics.moments.moments import MomentSums
from compresskit.numerics.moments.patches import Patches


@dataclass(frozen=True)
class Case:
    """A convolution with as many outputs as channels; kernel None: a linear layer on the channels of each pixel."""

    channels: int
    size: int
    kernel: int | None
    stride: int = 1

    @property
    def patches(self) -> Patches | None:
        if self.kernel is None:
            return None
        pad = self.kernel // 2
        return Patches((self.kernel,) * 2, (self.stride,) * 2, (1, 1), ((pad, pad),) * 2)

    @property
    def features(self) -> int:
        return self.channels * (self.kernel or 1) ** 2


CASES = {
    "3x3": Case(64, 32, 3),
    "5x5": Case(64, 32, 5),
    "7x7": Case(64, 32, 7),
    "3x3 stride 2": Case(64, 32, 3, 2),
    "7x7 stride 2": Case(3, 64, 7, 2),
    "linear": Case(512, 8, None),
}


def unfolded(case: Case, x: Tensor) -> Tensor:
    """Patches (features, positions of the whole batch) in the type of x."""
    if case.kernel is None:
        return x.transpose(0, 1).flatten(1)
    u = F.unfold(x, case.kernel, padding=case.kernel // 2, stride=case.stride)
    return u.transpose(0, 1).flatten(1)


def rival(case: Case, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    u = unfolded(case, x.double())
    return u @ u.T, y.double().transpose(0, 1).flatten(1) @ u.T


def ours(case: Case, x: Tensor, y: Tensor, sums: MomentSums) -> None:
    if case.patches is None:
        sums.add(x.movedim(1, -1), y.movedim(1, -1))
    else:
        sums.add(x, y, case.patches)


def forward(case: Case, x: Tensor, u: Tensor, weight: Tensor) -> None:
    if case.kernel is None:
        F.linear(x.movedim(1, -1), weight)
    else:
        F.conv2d(x, weight, stride=case.stride, padding=case.kernel // 2)
    u @ u.T


def seconds(runs: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Median time of each, called in turn so that a busy machine slows all alike; the first turn warms up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]


def measure(case: Case, batch: int, device: torch.device, repeats: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, case.channels, case.size, case.size, generator=generator).to(device)
    side = case.size // case.stride
    y = torch.randn(batch, case.channels, side, side, generator=generator).to(device)
    sums = MomentSums.zeros(case.features, case.channels, device=device)
    ours(case, x, y, sums)
    xx, yx = rival(case, x, y)
    error = max(float((sums.xx[0] - xx).triu().abs().max()), float((sums.yx[0] - yx).abs().max()))
    if error > 1e-10 * float(xx.abs().max()):
        raise SystemExit(f"{case}: sums differ by {error}")
    weight = torch.randn(case.channels, case.channels, *(() if case.kernel is None else (case.kernel,) * 2)).to(device)
    u = unfolded(case, x)
    runs = (lambda: ours(case, x, y, sums), lambda: rival(case, x, y), lambda: forward(case, x, u, weight))
    own, other, single = seconds(runs, device, repeats)
    return {"ms": round(1e3 * own, 2), "unfold": round(other / own, 2), "forward": round(own / single, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    ratios = {name: measure(case, args.batch, device, args.repeats) for name, case in CASES.items()}
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    print(json.dumps({"bench": "moments", **vars(args), "machine": machine, "torch": torch.__version__, **ratios}))


if __name__ == "__main__":
    main()
