"""Exported files, loaded where nothing but torch, or onnxruntime, is installed: the table in docs/results/files.md.

    python scripts/make_files_table.py --torch BARE/bin/python --onnx OTHER/bin/python --own --torchvision
    python scripts/make_files_table.py --table

A net is exported as .py, .pt2 and .onnx, with its batch norms and with them folded, and run by the two interpreters on
a batch of five, which the files were not made with. Weights are drawn, statistics of batch norms too. A row holds the
largest difference of the outputs as a share of the largest output. A .safetensors file is tried in the net's own class
here, which its row tells, too. Rows are appended; what is there is not made again.
Where no norm can be folded, the folded file is the other one, and only its source is written.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compresskit.commands.export import verb
from compresskit.commands.export.options import Options
from compresskit.graph.trace import trace
from compresskit.models.registry import MODELS
from compresskit.report import TerminalProgress
from compresskit.storage.checkpoint import Checkpoint, load, save

FILES = [f"{name}{suffix}" for suffix in (".py", ".pt2", ".onnx") for name in ("net", "folded")]
OWN: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"widths": (64, 32)}, (1, 28, 28)),
    "lenet-300-100": ({}, (1, 28, 28)),
    "lenet-5": ({}, (1, 28, 28)),
    "convnet": ({"channels": (8, 16), "batch_norm": True}, (3, 32, 32)),
    "smallnet": ({}, (3, 32, 32)),
    "resnet": ({}, (3, 32, 32)),
    "wide-resnet": ({"depth": 16, "widen": 2.0}, (3, 32, 32)),
    "densenet": ({"depth": 22}, (3, 32, 32)),
    "vgg": ({"width": 0.25}, (3, 32, 32)),
    "mobilenet": ({"small_images": True}, (3, 32, 32)),
    "mobilenet-v2": ({}, (3, 32, 32)),
    "fnn": ({"depth": 5}, (1, 28, 28)),
    "vanilla-cnn": ({"depth": 8, "width": 16}, (1, 28, 28)),
    "lipconvnet": ({"depth": 5}, (3, 32, 32)),
    "yolo-lite": ({"batch_norm": True}, (3, 64, 64)),
    "unet": ({"width": 16}, (3, 32, 32)),
}
UNDRAWN = ("googlenet", "inception_v3")  # torchvision takes minutes to draw their first weights
LOADS = {"strict": "loads", "fitted": "by `load_state`", "refused": "does not load", "not tried": "not tried"}
# Run by interpreters that lack this package.
TORCH = """
import json, sys, torch
folder, names = sys.argv[1], sys.argv[2:]
sys.path.insert(0, folder)
inputs, expected = torch.load(f"{folder}/batch.pt", weights_only=True)
found = {}
for name in names:
    stem, suffix = name.rsplit(".", 1)
    if suffix == "py":
        network = __import__(stem).Net.from_file()
    else:
        network = torch.export.load(f"{folder}/{name}").module()
    with torch.no_grad():
        found[name] = float((network(inputs) - expected).abs().max() / expected.abs().max())
print(json.dumps(found))
"""
ONNX = """
import json, sys, numpy, onnxruntime
folder, names = sys.argv[1], sys.argv[2:]
batch = numpy.load(f"{folder}/batch.npz")
found = {}
for name in names:
    runtime = onnxruntime.InferenceSession(f"{folder}/{name}")
    (output,) = runtime.run(None, {runtime.get_inputs()[0].name: batch["inputs"]})
    found[name] = float(abs(output - batch["expected"]).max() / abs(batch["expected"]).max())
print(json.dumps(found))
"""


def main() -> None:
    arguments = parsed()
    done = read(arguments.out)
    for name in arguments.nets or list_of(arguments):
        row = done.setdefault(name, {"net": name})
        if "failed" in row or all(f"net{suffix}" in row for suffix in arguments.only):
            continue
        started = time.perf_counter()
        try:
            found = row_of(name, arguments)
        except Exception as error:  # a row for each, whatever happened
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        row |= {**found, "seconds": round(time.perf_counter() - started)}
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    if arguments.table:
        print(table(done))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", help="names: resnet, torchvision:resnet18")
    parser.add_argument("--torch", type=Path, default=Path(sys.executable), help="Python with torch alone")
    parser.add_argument("--onnx", type=Path, default=Path(sys.executable), help="Python with onnxruntime alone")
    parser.add_argument("--out", type=Path, default=Path("files.jsonl"), help="where rows are kept")
    parser.add_argument("--own", action="store_true", help="the models of this package")
    parser.add_argument("--torchvision", action="store_true", help="all classifiers of torchvision")
    parser.add_argument("--only", nargs="*", default=[".py", ".pt2", ".onnx", ".safetensors"], help="formats")
    parser.add_argument("--table", action="store_true", help="print the table of all rows")
    return parser.parse_args()


def list_of(arguments: argparse.Namespace) -> list[str]:
    from torchvision import models

    names = list(OWN) if arguments.own else []
    return names + [f"torchvision:{n}" for n in models.list_models(module=models) if arguments.torchvision]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """By net, all that its rows tell."""
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        rows[row["net"]] = rows.get(row["net"], {}) | row
    return rows


def row_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    made, shape = net_of(name)
    with tempfile.TemporaryDirectory() as text:
        folder, files = Path(text), [file for file in FILES if Path(file).suffix in arguments.only]
        network = trace(made, shape).eval()
        told = {"mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
        save(Checkpoint(network, section_of(name), shape, "classification", told, []), folder / "model.pt")
        del made, network  # gigabytes of some, which exports need
        found: dict[str, Any] = {}
        if ".safetensors" in arguments.only:
            options = Options(folder / "model.pt", folder / "net.safetensors")
            loads = verb.run(options, TerminalProgress(quiet=True)).details["loads"]
            found["net.safetensors"] = LOADS[loads["how"]] + (f": {loads['why']}" if loads["how"] == "refused" else "")
        if not files:
            return found
        left, folded, files = export(folder, files)
        inputs = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = load(folder / "model.pt").network(inputs)
        torch.save((inputs, expected), folder / "batch.pt")
        np.savez(folder / "batch.npz", inputs=inputs.numpy(), expected=expected.numpy())
        found |= {"folded": folded, "left": left}
        for python, code, suffixes in ((arguments.torch, TORCH, (".py", ".pt2")), (arguments.onnx, ONNX, (".onnx",))):
            if own := [file for file in files if file.endswith(suffixes)]:
                command = [str(python.absolute()), "-I", "-c", code, str(folder), *own]
                done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1])
                found |= json.loads(done.stdout.splitlines()[-1])
        same = {f"folded{suffix}": found.get(f"net{suffix}") for suffix in {Path(file).suffix for file in files}}
        same = {} if folded else same
        return same | found


def export(folder: Path, files: list[str]) -> tuple[int, int, list[str]]:
    """Writes the files. Returns how many norms are left, how many are folded, and the names of the files."""
    source = folder / "folded.py"
    result = verb.run(Options(folder / "model.pt", source, fold_norms=True), TerminalProgress(quiet=True))
    left, folded = len(result.skipped), sum(len(table.rows) for table in result.tables)
    written = [file for file in files if folded or file.startswith("net") or file == source.name]
    for file in (one for one in written if one != source.name):
        options = Options(folder / "model.pt", folder / file, fold_norms=file.startswith("folded"))
        verb.run(options, TerminalProgress(quiet=True))
    return left, folded, written


def section_of(name: str) -> dict[str, Any]:
    """The recipe's section `model`."""
    library, _, own = name.rpartition(":")
    arguments = {"arguments": {"init_weights": False}} if own in UNDRAWN else {}
    return {"kind": library, "name": own, **arguments} if library else {"kind": own, **OWN[own][0]}


def net_of(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    library, _, own = name.rpartition(":")
    if library:
        from torchvision import models

        size = 80 if own == "inception_v3" else 224 if own.startswith(("vit", "maxvit")) else 64
        options = {"init_weights": False} if own in UNDRAWN else {}
        net, shape = models.get_model(own, weights=None, **options), (3, size, size)
    else:
        options, shape = OWN[own]
        net = MODELS[own](**options).build(shape, 10)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Linear) and not module.weight.any():  # ViT's head, all of whose outputs are 0 so
            nn.init.normal_(module.weight, 0, 0.02)
    return net.eval(), shape


def table(rows: dict[str, dict[str, Any]]) -> str:
    heads = ("net", "norms folded, left", ".py", "folded", ".pt2", "folded", ".onnx", "folded", "state dict")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, row in rows.items():
        cells = [f"{row[file]:.0e}" if row.get(file) else ("equal" if file in row else "") for file in FILES]
        norms = f"{row['folded']}, {row['left']}" if "folded" in row else row.get("failed", "")
        lines.append(f"| {name} | {norms} | {' | '.join(cells)} | {row.get('net.safetensors', '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    verb.times = lambda original, exported: []  # nobody reads them here
    main()
