"""One epoch of gradient steps, with what outlives it: network, optimiser and gradient scaler."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from compresskit.data.dataset import DataSet
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.training.distributed import Group
from compresskit.training.evaluation import METRICS
from compresskit.training.losses import loss_for
from compresskit.training.optimizers import parameter_groups
from compresskit.training.options import Training
from compresskit.training.seeds import epoch_seed

CHECK_EVERY = 50  # steps between two looks at the losses; each look makes the host wait for the device
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Trains `network` in place on the training split; every process of `group` holds one."""

    def __init__(
        self, network: fx.GraphModule, data: DataSet, options: Training, seed: int, device: torch.device, group: Group
    ) -> None:
        self.drop_last = _drop_last(len(data.train), options.batch_size, group.world)
        self.steps = count_steps(data, options, device, group)
        self.network, self.split, self.options, self.seed = network, data.train, options, seed
        self.device, self.group = device, group
        self.loss = loss_for(data.task, options.loss)
        self.score_name, self.score = next(iter(METRICS[data.task].items()))
        self.optimizer = options.optimizer(parameter_groups(network, decay_bias_and_norm=options.decay_bias_and_norm))
        self.parameters = [p for part in self.optimizer.param_groups for p in part["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
        self.module = _wrap(network, options, device, group)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "scaler")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)

    def train_epoch(self, epoch: int, on_step: Callable[[int], None]) -> dict[str, float]:
        """Runs epoch `epoch`, counted from 0, and returns its figures; `on_step` gets the steps done in it.

        The network is left in train mode, with the main process's buffers in every process. The caller's random state
        is left as it was. Raises ConvergenceError at a loss that is not finite.
        """
        began = time.perf_counter()
        self.network.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(epoch_seed(self.seed, epoch, self.group.rank))
            loss, score, count = self._run(epoch, on_step)
        self.optimizer.zero_grad(set_to_none=True)
        self.group.broadcast(self.network.buffers())
        return {
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss / count,
            f"train_{self.score_name}": score / count,
            "images_per_second": count / (time.perf_counter() - began),
        }

    def _run(self, epoch: int, on_step: Callable[[int], None]) -> list[float]:
        """Sums of loss, score and samples over all processes."""
        tally = _Tally(epoch)
        batches = self.split.batches(
            self.options.batch_size,
            self.device,
            seed=epoch_seed(self.seed, epoch),
            rank=self.group.rank,
            world=self.group.world,
            drop_last=self.drop_last,
        )
        for index, (inputs, targets) in enumerate(batches):
            self._set_rate(epoch * self.steps + index)
            tally.add(*self._step(inputs, targets), len(targets))
            on_step(index + 1)
        tally.settle()
        sums = torch.tensor([tally.loss, tally.score, tally.count], dtype=torch.float64, device=self.device)
        self.group.sum_tensors([sums])
        return sums.tolist()

    def _set_rate(self, step: int) -> None:
        lr = self.options.optimizer.lr * self.options.schedule(step, self.steps, self.options.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and summed score of the batch, before the step; both stay on the device."""
        with self._autocast():
            output = self.module(inputs)
            loss = self.loss(output, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), self.score.total(output.detach(), targets)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.options.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[self.options.precision])


class _Tally:
    """Sums of an epoch in this process; figures wait on the device until enough have come to be read at once."""

    def __init__(self, epoch: int) -> None:
        self.loss = self.score = 0.0
        self.count = self.steps = 0
        self._epoch = epoch
        self._waiting: list[tuple[Tensor, Tensor, int]] = []

    def add(self, loss: Tensor, score: Tensor, size: int) -> None:
        self._waiting.append((loss, score, size))
        if len(self._waiting) == CHECK_EVERY:
            self.settle()

    def settle(self) -> None:
        """Adds what waits. Raises ConvergenceError at the first loss that is not finite."""
        if not self._waiting:
            return
        losses, scores, sizes = zip(*self._waiting, strict=True)
        self._waiting.clear()
        for loss, size in zip(torch.stack(losses).tolist(), sizes, strict=True):
            self.steps += 1
            if not math.isfinite(loss):
                raise ConvergenceError(
                    f"training, epoch {self._epoch + 1}, step {self.steps}: the loss is {loss}; lower optimizer.lr, "
                    "set clip_norm or schedule.warmup, or use precision: float32"
                )
            self.loss += loss * size
        self.score += torch.stack(scores).double().sum().item()
        self.count += sum(sizes)


def _drop_last(samples: int, batch_size: int, world: int) -> bool:
    """Whether to leave out a smaller last batch: processes need equal shares, and batch norm more than one sample."""
    return world > 1 or (samples > batch_size and samples % batch_size == 1)


def count_steps(data: DataSet, options: Training, device: torch.device, group: Group) -> int:
    """Steps of an epoch. Raises RecipeError if the device, the processes or the data cannot do what is asked."""
    samples, batch_size, world = len(data.train), options.batch_size, group.world
    if options.precision == "float16" and device.type != "cuda":
        raise RecipeError("precision: float16 needs --device cuda; on the CPU use float32 or bfloat16")
    if batch_size % world:
        raise RecipeError(f"batch_size: {batch_size} cannot be shared by {world} processes; use a multiple of {world}")
    whole = _drop_last(samples, batch_size, world)
    steps = samples // batch_size if whole else math.ceil(samples / batch_size)
    if steps == 0:
        raise RecipeError(f"batch_size: {batch_size} is more than the {samples} training samples; use a smaller one")
    return steps


def _wrap(network: fx.GraphModule, options: Training, device: torch.device, group: Group) -> Callable[..., Tensor]:
    module: nn.Module = network
    if group.world > 1:
        module = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
    return torch.compile(module) if options.compile else module
