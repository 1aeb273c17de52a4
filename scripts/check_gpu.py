"""Every verb on a GPU against the CPU, and the times that a GPU is bought for: a JSON file and a page in Markdown.

    python scripts/check_gpu.py [--out build/gpu] [--only prune train] [--no-bench] [--device cuda]

Runs on the images that come with the package, without a network, in about six minutes. Each check runs a verb on the
CPU and on the device, from the same checkpoint and seed, and compares what the two nets answer to the same images, or
the losses of the last epoch where both train. --device cpu compares the CPU with itself, which tries the script out.
The exit status is 1 if a check fails.
"""

import argparse
import csv
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from compresskit.cli import app

SCRIPTS = Path(__file__).parent
DATA = {"kind": "mnist-mini", "validation": 1000}
TRAIN = {"epochs": 1, "batch_size": 1500, "optimizer": {"kind": "adam", "lr": 2e-3}, "schedule": "constant"}
NETS: dict[str, dict[str, Any]] = {
    "cnn": {"kind": "convnet", "channels": [8, 16, 32], "kernel": 5},
    "resnet": {"kind": "resnet", "depth": 18, "width": 0.125},
    "mlp": {"kind": "mlp", "widths": [64, 32]},
    "vit": {
        "kind": "timm:vit_tiny_patch16_224",
        "arguments": {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
}
# Relative to the largest output or loss. torch lets convolutions on a GPU round float32 to ten bits (TF32): so do the
# activations that layers are fitted to, and the batch norms behind them.
ROUNDED, FITTED, NORMED = 2e-2, 1e-3, 3e-2


@dataclass(frozen=True)
class Check:
    """One verb with one section of a recipe, on one net. `of`: what is compared, the net's outputs or its losses."""

    name: str
    verb: str
    net: str
    sections: dict[str, Any] = field(default_factory=dict)
    of: str = "outputs"
    tolerance: float = FITTED
    device_only: bool = False  # what a CPU does not do, against float32 on the CPU


def train(name: str, net: str = "resnet", tolerance: float = 5e-3, device_only: bool = False, **options: Any) -> Check:
    return Check(f"train, {name}", "train", net, {"train": TRAIN | options}, "losses", tolerance, device_only)


def section(verb: str, name: str, net: str, tolerance: float = FITTED, **options: Any) -> Check:
    return Check(f"{verb}, {name}", verb, net, {verb: options}, tolerance=tolerance)


def prune(name: str, net: str = "resnet", **options: Any) -> Check:
    asked: dict[str, Any] = {"target": {"macs": "60%"}, "samples": 1000} | options
    return section("prune", name, net, tolerance=NORMED if net == "resnet" else FITTED, **asked)


def reconstruct(name: str, **options: Any) -> Check:
    asked: dict[str, Any] = {"keep": "60%", "samples": 1000} | options
    return section("reconstruct", name, "cnn", **asked)


def checks() -> Iterator[Check]:
    yield train("resnet")
    yield train("vit", "vit")
    yield train("bfloat16", precision="bfloat16", tolerance=ROUNDED)
    yield train("float16", precision="float16", tolerance=ROUNDED, device_only=True)
    yield train("compiled", "cnn", compile=True)
    yield train("layerwise rates", layerwise_rates={"metric": "alpha"})
    yield train("gradient confusion", "cnn", gradient_confusion={"pairs": 10})
    yield train("sao", "mlp", init={"kind": "sao", "degree": 4, "layers": ["fc2"]})
    yield train("masks, before", "mlp", mask={"kind": "weights", "when": "before", "target": {"sparsity": 0.9}})
    yield train("clipped, weight decay spared", clip_norm=1.0, decay_bias_and_norm=False)
    yield Check("finetune", "finetune", "resnet", {"finetune": TRAIN}, "losses", 5e-3)
    yield Check("evaluate", "evaluate", "resnet", of="figures")
    for solver in ("cholesky", "eigh", "cg"):
        yield section("fuse", solver, "cnn", layers=[["conv2", "conv3"]], solver=solver, samples=1000)
    yield section("fuse", "auto", "cnn", until={"layers": 3}, samples=1000)
    for criterion in ("magnitude", "hydra", "norm-scale", "taylor", "augprune", "random", "spectral-energy"):
        yield prune(criterion, criterion=criterion, images=256)
    for budget in ("global", "lamp", "erk", "spectral"):
        yield prune(f"{budget} budget", budget=budget)
    yield prune("top-down", repair="top-down")
    yield prune("vit", "vit", repair="top-down")
    yield prune("vit, heads and width", "vit", groups=["heads", "width", "hidden"])
    yield prune("weights", kind="weights", target={"sparsity": 0.8})
    yield prune("kernels", kind="kernels", target={"sparsity": 0.5})
    yield reconstruct("backward")
    yield reconstruct("top-down", chaining="top-down")
    yield reconstruct("target", keep=None, target={"params": "60%"})
    yield reconstruct("low rank", low_rank={"error": 0.01})
    for solver in ("newton", "admm", "fista", "alternating"):
        yield reconstruct(solver, selection={"kind": "group-lasso", "solver": solver, "points": 8})
    for strategy in ("cl", "ck", "acnet", "cl+fc"):
        sections = {"expand": {"strategy": strategy, "rate": 2, "init": "standard"}, "train": TRAIN}
        yield Check(f"expand, {strategy}", "expand", "cnn", sections, "losses", 5e-3)
    yield Check("spectra", "spectra", "resnet", {"spectra": {}}, "tables", 1e-6)
    yield Check("spectra, CKA", "spectra", "cnn", {"spectra": {"cka": {"samples": 512}}}, "tables", 1e-3)
    yield Check("spectra, isometry", "spectra", "mlp", {"spectra": {"isometry": {"images": 4}}}, "tables", 1e-3)


LATENCY = Check("prune, latency", "prune", "resnet", {"prune": {"target": {"latency": "70%"}, "samples": 1000}}, "end")


class Runs:
    """Runs of verbs in one folder."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device

    def recipe(self, check: Check, device: str) -> Path:
        path = self.folder / f"{slug(check.name)}-{device}.yaml"
        sections = json.loads(json.dumps(check.sections))
        if check.device_only and device == "cpu" and self.device != "cpu":
            sections["train"]["precision"] = "float32"
        options = {key: without_none(value) for key, value in sections.items()}
        path.write_text(yaml.safe_dump({"model": NETS[check.net], "data": DATA, **options}))
        return path

    def command(self, check: Check, device: str) -> list[str]:
        out = self.folder / f"{slug(check.name)}-{device}"
        parent = [] if check.verb in ("train", "expand") else ["--checkpoint", str(self.parent(check.net))]
        given = [str(self.recipe(check, device)), *parent]
        command = [sys.executable, "-m", "compresskit", check.verb, *given, "--device", device]
        return [*command, "--out", str(out), "--force"]

    def parent(self, net: str) -> Path:
        return self.folder / f"parent-{net}-cpu"

    def run(self, check: Check, device: str) -> tuple[Path, float]:
        """The folder of a finished run, and its seconds. Raises RuntimeError with what it said."""
        started = time.monotonic()
        done = CliRunner().invoke(app, self.command(check, device)[3:])
        if done.exit_code:
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise RuntimeError(f"on {device}: " + "".join(traceback.format_exception(done.exception))[-600:])
            raise RuntimeError(f"on {device}: {(done.stderr.strip() or done.stdout.strip())[-600:]}")
        return self.folder / f"{slug(check.name)}-{device}", time.monotonic() - started

    def make_parents(self, checks: list[Check]) -> None:
        """The nets that the checks start from, trained on the CPU."""
        asked = {check.net for check in checks if check.verb not in ("train", "expand")}
        nets = [
            Check(f"parent-{net}", "train", net, {"train": TRAIN}) for net in NETS if net in asked and available(net)
        ]
        for check in nets:
            self.run(check, "cpu")

    def compared(self, check: Check) -> dict[str, Any]:
        """A row: how much the device's run differs from the CPU's, and whether that is too much."""
        if not available(check.net):
            return {"check": check.name, "skipped": "needs timm"}
        try:
            (one, seconds), (other, on_device) = self.run(check, "cpu"), self.run(check, self.device)
            difference = DIFFERENCES[check.of](one, other)
        except RuntimeError as error:
            return {"check": check.name, "failed": str(error)}
        except Exception:  # one check that breaks must not hide what the others find
            return {"check": check.name, "failed": traceback.format_exc()[-600:]}
        row = {"check": check.name, "of": check.of, "difference": difference, "tolerance": check.tolerance}
        row |= {"s_cpu": round(seconds, 1), "s_device": round(on_device, 1)}
        return row if difference <= check.tolerance else row | {"failed": f"{difference:.1e} > {check.tolerance:.0e}"}


def outputs_differ(one: Path, other: Path) -> float:
    """Largest difference of the outputs for 64 images, relative to the largest output; infinity for other shapes."""
    from compresskit import load
    from compresskit.data.mini import MnistMini

    images, _ = next(iter(MnistMini().load(0).test.batches(64, torch.device("cpu"))))
    nets = [load(folder / "model.pt").eval() for folder in (one, other)]
    shapes = [{name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} for net in nets]
    if shapes[0] != shapes[1]:
        return math.inf
    with torch.no_grad():
        first, second = (net(images) for net in nets)
    return relative(first, second)


def losses_differ(one: Path, other: Path) -> float:
    """Of the last epoch's mean training losses, of all trainings that the runs consist of."""
    found = [[last_loss(path) for path in sorted(folder.rglob("metrics.csv"))] for folder in (one, other)]
    return largest(*found)


def last_loss(path: Path) -> float:
    with path.open() as file:
        return float(list(csv.DictReader(file))[-1]["train_loss"])


def figures_differ(one: Path, other: Path) -> float:
    first, second = (json.loads((folder / "report.json").read_text())["figures"] for folder in (one, other))
    found = {f["name"]: f["after"] for f in second}
    return max(largest(f["after"], found[f["name"]]) for f in first if f["format"] == "number")


def tables_differ(one: Path, other: Path) -> float:
    first, second = (json.loads((folder / "report.json").read_text())["tables"] for folder in (one, other))
    rows = [(a["rows"], b["rows"]) for a, b in zip(first, second, strict=True)]
    return max(largest(a, b) for pair in rows for a, b in zip(*pair, strict=True))


def largest(first: list[Any], second: list[Any]) -> float:
    """Largest relative difference of the numbers of two rows."""
    numbers = [(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, int | float) and a is not True]
    if any(math.isfinite(a) != math.isfinite(b) for a, b in numbers):
        return math.inf
    return max((abs(float(a) - float(b)) / max(abs(a), 1e-12) for a, b in numbers if math.isfinite(a)), default=0.0)


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max())


DIFFERENCES: dict[str, Callable[[Path, Path], float]] = {
    "end": lambda one, other: 0.0,  # no more can be asked than that both came to their end
    "outputs": outputs_differ,
    "losses": losses_differ,
    "figures": figures_differ,
    "tables": tables_differ,
}


def killed_and_resumed(runs: Runs) -> dict[str, Any]:
    """A training killed in its second epoch and resumed, against one that went through."""
    sections = {"train": TRAIN | {"epochs": 3}}
    whole, cut = (Check(name, "train", "resnet", sections) for name in ("resumed, whole", "resumed, killed"))
    try:
        through, _ = runs.run(whole, runs.device)
        command, folder = runs.command(cut, runs.device), runs.folder / f"{slug(cut.name)}-{runs.device}"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(folder.glob("**/state.pt")):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = [word for word in command if word != "--force"] + ["--resume"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {"check": cut.name, "failed": done.stderr[-600:]}
        difference = losses_differ(through, folder)
    except RuntimeError as error:
        return {"check": cut.name, "failed": str(error)}
    row = {"check": "train, killed and resumed", "of": "losses", "difference": difference, "tolerance": 5e-3}
    return row if difference <= 5e-3 else row | {"failed": f"{difference:.1e}"}


def two_processes(runs: Runs) -> dict[str, Any]:
    """torchrun with NCCL, where there are two GPUs."""
    name = "train, two GPUs"
    if runs.device == "cpu" or torch.cuda.device_count() < 2:
        return {"check": name, "skipped": "needs two GPUs"}
    one, two = (Check(f"{name}, {n}", "train", "resnet", {"train": TRAIN}) for n in (1, 2))
    command = runs.command(two, runs.device)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *command[1:]], capture_output=True, text=True)
    if done.returncode:
        return {"check": name, "failed": done.stderr[-600:]}
    difference = losses_differ(runs.run(one, runs.device)[0], runs.folder / f"{slug(two.name)}-{runs.device}")
    row = {"check": name, "of": "losses", "difference": difference, "tolerance": ROUNDED}
    return row if difference <= ROUNDED else row | {"failed": f"{difference:.1e}"}


def benches(device: str) -> Iterator[tuple[str, list[str]]]:
    """The benches that matter on a GPU: what is measured, and the program."""
    yield "expand", ["bench_expand.py", "--device", device, "--strategies", "cl", "ck"]
    yield "expand, compiled", ["bench_expand.py", "--device", device, "--strategies", "cl", "--compile"]
    yield "moments", ["bench_moments.py", "--device", device, "--batch", "64"]
    for share, degree in (("90 %", "26"), ("98 %", "5")):
        options = ["--degree", degree, "--depth", "100", "--width", "260", "--fused", "--sparse-depth", "0"]
        yield f"grouped, {share} zeros", ["bench_sparse.py", "--device", device, *options]


def benched(device: str) -> Iterator[dict[str, Any]]:
    for name, command in benches(device):
        words = [sys.executable, str(SCRIPTS / command[0]), *command[1:]]
        done = subprocess.run(words, capture_output=True, text=True)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        yield from [{"bench": name, "found": each} for each in found] or [{"bench": name, "failed": done.stderr[-600:]}]
    own = (("training", training_times), ("eigenvalues in float64", eigenvalue_times), ("latency", latencies))
    for name, measure in own:
        try:
            yield {"bench": name, "found": measure(device)}
        except Exception:  # as above
            yield {"bench": name, "failed": traceback.format_exc()[-600:]}


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


def page(result: dict[str, Any]) -> str:
    lines = [
        f"{result['card']}, torch {result['torch']}, Python {result['python']}.", "",
        "| check | compared | difference | at most | s, CPU | s, device |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in result["checks"]:
        told = row.get("failed") or row.get("skipped")
        shown = f"{row['difference']:.0e}" if "difference" in row else " ".join(str(told).split())[-160:]
        mark = " **failed**" if "failed" in row else ""
        cells = [row["check"] + mark, row.get("of", ""), shown, row.get("tolerance", "")]
        lines.append(
            "| " + " | ".join(str(cell) for cell in (*cells, row.get("s_cpu", ""), row.get("s_device", ""))) + " |"
        )
    return "\n".join(lines) + "\n"


def one_thread() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def available(net: str) -> bool:
    return net != "vit" or importlib.util.find_spec("timm") is not None


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", nargs="+", default=[""], help="checks whose names begin so")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), help="checks at a time")
    parser.add_argument("--no-bench", action="store_true")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --device cpu tries the script out")
    warnings.filterwarnings("ignore")
    folder = Path(tempfile.mkdtemp(prefix="check-gpu-"))
    runs = Runs(folder, arguments.device)
    asked = [check for check in checks() if check.name.startswith(tuple(arguments.only))]
    runs.make_parents(asked)
    rows = []
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"), initializer=one_thread) as pool:
        for finished in as_completed([pool.submit(runs.compared, check) for check in asked]):
            rows.append(finished.result())
            print(json.dumps(rows[-1]), flush=True)
    if arguments.only == [""]:
        rows.append(runs.compared(LATENCY))  # alone, so that nothing disturbs it
        rows += [killed_and_resumed(runs), two_processes(runs)]
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    result: dict[str, Any] = {
        "card": card,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "checks": rows,
    }
    if not arguments.no_bench:
        result["benches"] = []
        for row in benched(arguments.device):
            result["benches"].append(row)
            print(json.dumps(row), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu.json").write_text(json.dumps(result, indent=1))
    (arguments.out / "gpu.md").write_text(page(result))
    print(page(result))
    failed = [row for row in rows if "failed" in row]
    if failed:
        print(f"failed: {len(failed)} of {len(rows)}; what they wrote is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
