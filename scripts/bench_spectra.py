"""Time of the spectra of whole networks against WeightWatcher 0.7.7, and whether every column agrees with it.

    python scripts/bench_spectra.py [--models resnet50 vgg19] [--weights random student] [--threads 2]
        [--calls default full]

Networks are torchvision's: `random` as they are initialised, `student` with entries of a Student t of three degrees of
freedom in the same scale, which gives heavy tails as trained nets have them. Calls are WeightWatcher's
`analyze()` (default) and `analyze(randomize=True, mp_fit=True)` (full), ours with the same columns.

Prints one JSON line: for each network and call the seconds of both, their ratio, ours in units of the eigenvalues
alone (of the weights and, in the full call, of one permutation of them, with the same threads), and by column the
largest difference from WeightWatcher: relative, of alpha absolute, of the random ones (its permutations are not seeded)
in units of the figure. A difference above 1e-8 of alpha or 1e-9 of another ends the program with status 1.
Every time is the best of `--repeats`; of WeightWatcher's full call, which takes minutes, that of one run.
"""

import argparse
import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torchvision

from compresskit.graph.weights import Weight, weights_of
from compresskit.numerics.spectra.eigenvalues import eigenvalues
from compresskit.passes.spectra.matrices import matrices, skipped
from compresskit.passes.spectra.options import Spectra
from compresskit.passes.spectra.spectrum import Spectrum
from compresskit.passes.spectra.weights import in_threads, spectra

RANDOM = ("rand_", "max_rand_eval", "ww_")
CALLS: dict[str, tuple[dict[str, bool], Spectra]] = {
    "default": ({}, Spectra(null="none", marchenko_pastur=False)),
    "full": ({"randomize": True, "mp_fit": True}, Spectra()),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vgg19"])
    parser.add_argument("--weights", nargs="+", choices=["random", "student"], default=["student"])
    parser.add_argument("--calls", nargs="+", choices=list(CALLS), default=list(CALLS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = [
        measured(model, kind, call, arguments.threads, arguments.repeats)
        for model in arguments.models
        for kind in arguments.weights
        for call in arguments.calls
    ]
    versions = {name: version(name) for name in ("torch", "numpy", "weightwatcher")}
    machine = {"machine": platform.machine(), "threads": arguments.threads, **versions}
    print(json.dumps({"bench": "spectra", **machine, "rows": rows}))
    return int(any(row["wrong"] for row in rows))


def measured(model: str, kind: str, call: str, threads: int, repeats: int) -> dict[str, Any]:
    import weightwatcher  # it prints when it is imported

    network = drawn(model, kind)
    weights, _ = weights_of(network)
    asked, options = CALLS[call]
    ours, (found, _) = timed(lambda: spectra(weights, options, threads=threads), repeats)
    alone, _ = timed(lambda: only_eigenvalues(weights, options, threads), repeats)
    with quiet():
        theirs, table = timed(
            lambda: weightwatcher.WeightWatcher(model=network).analyze(**asked), 1 if asked else repeats
        )
    differences = compared(found, table)
    return {
        "network": f"{model}, {kind}",
        "call": call,
        "layers": len(found),
        "ours": round(ours, 3),
        "weightwatcher": round(theirs, 3),
        "ratio": round(theirs / ours, 1),
        "ours / eigenvalues alone": round(ours / alone, 3),
        "differences": differences,
        "wrong": [
            name
            for name, value in differences.items()
            if not name.startswith(RANDOM) and value > (1e-8 if name == "alpha" else 1e-9)
        ],
    }


def drawn(model: str, kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = torchvision.models.get_model(model, weights=None)
    if kind == "student":
        student = torch.distributions.StudentT(3.0)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.std() / 3**0.5 * student.sample(parameter.shape)
    return network


def only_eigenvalues(weights: Sequence[Weight], options: Spectra, threads: int) -> None:
    """The same eigenvalues and nothing else: what no definition can do without."""
    reasons = skipped(weights, options)
    times = 1 if options.random == "none" else 2

    def take(weight: Weight) -> None:
        for _ in range(times):
            eigenvalues(matrices(weight, options))

    in_threads(take, [weight for weight in weights if weight.name not in reasons], options, threads)


def compared(found: Sequence[Spectrum], table: Any) -> dict[str, float]:
    """By column that both have, the largest difference over the layers."""
    by_name = {row.name: row for row in found}
    worst: dict[str, float] = {}
    for _, theirs in table.iterrows():
        ours = by_name[theirs["longname"]]
        for column in table.columns:
            value = theirs[column]
            if not hasattr(ours, column) or not isinstance(value, int | float | np.number):
                continue
            difference = abs(float(getattr(ours, column)) - float(value))
            if column != "alpha" and value != 0:
                difference /= abs(float(value))
            if np.isfinite(difference):
                worst[column] = max(worst.get(column, 0.0), difference)
    return {column: float(f"{value:.1e}") for column, value in worst.items()}


def timed(action: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - began)
    return min(times), result


class quiet:
    """WeightWatcher prints a line for each small layer."""

    def __enter__(self) -> None:
        self._stdout, sys.stdout = sys.stdout, sys.stderr

    def __exit__(self, *exception: object) -> None:
        sys.stdout = self._stdout


if __name__ == "__main__":
    sys.exit(main())
