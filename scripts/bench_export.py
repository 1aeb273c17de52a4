"""One network as it is, folded, and in eight bits: accuracy, bytes, and latency on one thread, timed in turns.

    python scripts/bench_export.py runs/resnet18-train configs/prune/one-shot.yaml data.root=data

Latency is a median over rounds, in each of which all files run once, so that what else the machine does hits all alike;
in processor time, which waits for nobody. Needs the extra `onnx`.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compresskit.commands.evaluate.exported import metrics_of
from compresskit.commands.export import verb
from compresskit.commands.export.options import Options
from compresskit.commands.parents import checkpoint_file
from compresskit.commands.session import Arguments, Session, session
from compresskit.report import TerminalProgress
from compresskit.storage.checkpoint import load
from compresskit.storage.exported.running import open_exported

ROUNDS = 60
BATCHES = (1, 8)
FILES = {  # name: what export is asked for
    "net.pt": {},
    "folded.pt": {"fold_norms": True},
    "net.pt2": {},
    "folded.pt2": {"fold_norms": True},
    "net.onnx": {},
    "folded.onnx": {"fold_norms": True},
    "int8.onnx": {"quantize": "int8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint, or the folder of a run")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    arguments = Arguments(given.recipe, tuple(given.overrides), given.model, device="cpu")
    with (
        tempfile.TemporaryDirectory() as folder,
        session("evaluate", arguments, ("data",), TerminalProgress(quiet=True)) as current,
    ):
        networks = {name: made(Path(folder) / name, given) for name in FILES}
        found = {name: measured(current, Path(folder) / name, network) for name, network in networks.items()}
        for batch in BATCHES:
            for name, milliseconds in timed(current, networks, batch).items():
                found[name][f"ms, batch {batch}"] = milliseconds
    print(json.dumps(found, indent=2))


def made(path: Path, given: argparse.Namespace) -> nn.Module:
    """The network of the file that is written."""
    asked: dict[str, Any] = dict(FILES[path.name])
    if "quantize" in asked:
        asked |= {"recipe": given.recipe, "overrides": tuple(given.overrides)}
    verb.run(Options(checkpoint_file(given.model), path, **asked), TerminalProgress(quiet=True))
    return load(path).network if path.suffix == ".pt" else open_exported(path)


def measured(current: Session, path: Path, network: nn.Module) -> dict[str, float]:
    return metrics_of(current, network) | {"bytes": path.stat().st_size}


def timed(current: Session, networks: dict[str, nn.Module], batch: int) -> dict[str, float]:
    """Milliseconds of processor time by name, medians over the rounds."""
    inputs, _ = next(current.data.test.batches(batch, torch.device("cpu")))
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for _ in range(ROUNDS + 3):
            for name, network in networks.items():
                started = time.process_time()
                network(inputs)
                times[name].append(time.process_time() - started)
    return {name: round(1000 * statistics.median(own[3:]), 4) for name, own in times.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
