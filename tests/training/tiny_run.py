"""Tiny data, a tiny network and a run of `fit` on them; as a program, the process that tests kill or run twice.

python tiny_run.py FOLDER [--resume] [--stop-at EPOCH STEP] [--accumulate N] [--shared]: trains, then saves the last
weights as last.pt.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from compresskit.data.dataset import DataSet
from compresskit.distributed import Group, connect
from compresskit.passes.expand.network import expand
from compresskit.passes.expand.options import Expand
from compresskit.training.loop import History, fit
from compresskit.training.optimization.optimizers import SGD, Adam
from compresskit.training.options import Training


@dataclass(frozen=True)
class Split:
    inputs: Tensor
    targets: Tensor
    fingerprint: str = "tiny"

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self))
        if seed is not None:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for chosen in order.split(batch_size):
            if not (drop_last and len(chosen) < batch_size):
                share = chosen.tensor_split(world)[rank]
                yield self.inputs[share].to(device), self.targets[share].to(device)


def dataset(task: str = "classification", *, train: int = 48, validation: bool = True) -> DataSet:
    """Points in 6 dimensions; three classes by the largest of three linear forms, or those forms themselves."""
    draws = torch.Generator().manual_seed(7)
    forms = torch.randn(6, 3, generator=draws)

    def split(count: int) -> Split:
        inputs = torch.randn(count, 6, generator=draws)
        scores = inputs @ forms
        return Split(inputs, scores.argmax(1) if task == "classification" else scores)

    parts = split(train), split(20) if validation else None, split(20)
    return DataSet(
        *parts, task=task, outputs=3, input_shape=(6,), mean=(0.0,), std=(1.0,), fingerprint=f"tiny {task} {train}"
    )


def network(*, norm: bool = True, dropout: float = 0.2, seed: int = 0) -> fx.GraphModule:
    """A small net with dropout and a batch norm of random statistics and affine parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden: list[nn.Module] = [nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout)]
        if norm:
            layer = nn.BatchNorm1d(8)
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            hidden.insert(1, layer)
        return fx.symbolic_trace(nn.Sequential(*hidden, nn.Linear(8, 3)))


def run(folder: Path, options: Training, **arguments: object) -> tuple[fx.GraphModule, History]:
    """Trains a fresh network; `arguments` replace the defaults of `fit`, `net` and `data` those of this file."""
    net = arguments.pop("net", None) or network()
    data = arguments.pop("data", None) or dataset()
    defaults = {"seed": 3, "device": torch.device("cpu"), "folder": folder}
    return net, fit(net, data, options, **{**defaults, **arguments})


OPTIONS = Training(epochs=4, batch_size=10, optimizer=Adam(lr=0.02))


@dataclass
class StopAt:
    """Says that a step is reached and waits there to be killed."""

    epoch: int
    step: int

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (self.epoch, self.step):
            print("reached", flush=True)
            time.sleep(600)

    def on_epoch(self, row: Mapping[str, float]) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-at", type=int, nargs=2)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--shared", action="store_true")  # a run whose result does not depend on the processes
    arguments = parser.parse_args()
    group: Group = connect("cpu")
    progress = StopAt(*arguments.stop_at) if arguments.stop_at else None
    net, options = network(), OPTIONS
    if arguments.shared:
        net, options = network(norm=False, dropout=0.0), Training(epochs=3, batch_size=12, optimizer=SGD(lr=0.1))
        net = expand(net, Expand(strategy="fc", rate=2, layers=("0",))).network
    options = replace(options, accumulate=arguments.accumulate)
    _, history = run(arguments.folder, options, net=net, resume=arguments.resume, group=group, progress=progress)
    if group.is_main:
        torch.save(net.state_dict(), arguments.folder / "last.pt")
        torch.save(history.best_state, arguments.folder / "best.pt")
    group.close()
    if group.world > 1:  # as the command line ends: see compresskit.cli.app.main
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
