"""`export --quantize int8`: calibrated on training images, and measured on the test set beside the float network."""

from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from compresskit.commands.evaluate.exported import metrics_of, timed
from compresskit.commands.export.inputs import BATCH
from compresskit.commands.export.network import difference
from compresskit.commands.export.picture import draw
from compresskit.commands.result import Result, Table, counted
from compresskit.commands.session import Session
from compresskit.storage.atomic import atomic_write
from compresskit.storage.checkpoint import Checkpoint
from compresskit.storage.exported.onnx import write_onnx
from compresskit.storage.exported.quantised import write_quantised
from compresskit.storage.exported.running import Exported

_SAMPLES = 512  # training images that ranges of activations are taken from
_AT_A_TIME = 64
_TIMED = (1, BATCH)


def quantise(
    current: Session, original: Checkpoint, path: Path, exported: Checkpoint, inputs: Any, told: dict[str, Any],
    out: Path, folder: Path, result: Result,
) -> None:  # fmt: skip
    """Writes `out`, once it is measured. inputs: a batch. folder: for the float file, which is measured, too."""
    whole, eight = folder / out.name, folder / f"int8-{out.name}"
    plain = Exported(write_onnx(exported.network, inputs, whole, told), told)
    result.checks["float32 .onnx read back"] = difference(plain.runs, exported.network, inputs)
    told = told | {"quantized": "int8"}
    chosen = current.data.train.sample(_SAMPLES)
    batches = (plain.taken(inputs) for inputs, _ in chosen.batches(_AT_A_TIME, torch.device("cpu")))
    small = Exported(write_quantised(whole, batches, eight, told), told)
    result.notes.append(f"calibrated on {len(chosen)} training samples, without augmentation")
    images, _ = next(current.data.test.batches(BATCH, torch.device("cpu")))
    result.checks["int8 against float32, on test samples"] = difference(small, plain, images)
    nets = {"PyTorch": (original.network, path), "ONNX": (plain, whole), "ONNX int8": (small, eight)}
    rows = []
    for name, (network, file) in nets.items():
        metrics = metrics_of(current, network)
        rows.append((name, *metrics.values(), file.stat().st_size, *(timed(current, network, n) for n in _TIMED)))
    columns = [f"test {name}" for name in metrics]
    times = [f"ms, batch {batch}" for batch in _TIMED]
    threads = torch.get_num_threads()
    title = f"float32 and int8, on the cpu, {counted(threads, 'thread')}"
    result.tables.append(Table(title, ("", *columns, "bytes", *times), rows))
    with atomic_write(out) as temporary:
        copyfile(eight, temporary)
    if current.recipe.report.plots:
        draw(result.tables[-1], out)
