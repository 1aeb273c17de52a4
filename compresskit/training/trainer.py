"""One epoch of gradient steps, with what outlives it: network, optimiser and gradient scaler."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from compresskit.data.dataset import DataSet
from compresskit.distributed import Group
from compresskit.errors import ConvergenceError
from compresskit.graph.masks import Masks, apply_masks
from compresskit.numerics.consistency import divergence
from compresskit.training.analyses.gradient_confusion import gradient_cosines
from compresskit.training.checks import checked_steps, drops_last, largest_part
from compresskit.training.distillation import distiller_for
from compresskit.training.layer_rates import LayerRates, owners
from compresskit.training.optimization.accumulation import micro_batches
from compresskit.training.optimization.optimizers import parameter_groups
from compresskit.training.optimization.products import Products, online_layers
from compresskit.training.options import Training
from compresskit.training.seeds import epoch_seed
from compresskit.training.tasks.evaluation import METRICS, Metric
from compresskit.training.tasks.losses import first_view, loss_for

CONFUSION, RATES = -1, -2  # in the place of a rank: random numbers that training does not use
CHECK_EVERY = 50  # steps between two looks at the losses; each look makes the host wait for the device
FIRST = "nothing was learnt yet, so check the data, and the weights that it starts from, for NaN and infinity"
AFTER = "lower optimizer.lr, set clip_norm or schedule.warmup, use precision: float32, or check the data for NaN"
LEAST_SCALE = 2.0**-10  # of the loss in float16: 2^16 at the start, half of it after each step that overflows
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Trains `network` in place on the training split; every process of `group` holds one."""

    def __init__(
        self,
        network: fx.GraphModule,
        data: DataSet,
        options: Training,
        seed: int,
        device: torch.device,
        group: Group,
        teacher: fx.GraphModule | None = None,
        masks: Masks | None = None,
    ) -> None:
        """masks: of parameters, whose zeros stay zero."""
        self.drop_last = drops_last(len(data.train), options.batch_size, group.world)
        self.steps = checked_steps(network, data, options, device, group)
        self.network, self.split, self.options, self.seed = network, data.train, options, seed
        self.device, self.group = device, group
        self.loss = loss_for(data.task, options.loss, data.anchors)
        self.consistency = data.consistency
        self.score_name, score = next(iter(METRICS[data.task].items()), ("", Metric()))
        self.score = score.total  # None: the main metric is no mean over samples, too dear to take in training
        self.distiller = distiller_for(network, teacher, options.distill, data.input_shape, seed)
        self.regressors = self.distiller.regressors if self.distiller else nn.ModuleList()
        trained = nn.ModuleList([network, self.regressors])
        rates, optimizer = options.layerwise_rates, options.optimizer
        self.layer_rates = None if rates is None else LayerRates(network, rates, optimizer.weight_decay, options.epochs)
        self.optimizer = optimizer(
            parameter_groups(
                trained,
                decay_bias_and_norm=options.decay_bias_and_norm,
                owners=owners(network) if rates is not None and rates.steers else None,
            )
        )
        self.parameters = [p for part in self.optimizer.param_groups for p in part["params"]]
        self.masks = [
            (network.get_parameter(name), mask.to(device, network.get_parameter(name).dtype))
            for name, mask in (masks or {}).items()
        ]
        apply_masks(network, masks or {})
        formed = [] if options.compile else online_layers(network)  # compiled layers form their products themselves
        self.products = Products(formed, recorded=device.type == "cuda" and group.world == 1)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
        self.no_sync, self.module = _wrap(self.distiller.student if self.distiller else network, options, device, group)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("network", "regressors", "optimizer", "scaler")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)

    def train_epoch(self, epoch: int, on_step: Callable[[int], None]) -> dict[str, float]:
        """Runs epoch `epoch`, counted from 0, and returns its figures; `on_step` gets the steps done in it.

        The network is left in train mode, with the main process's buffers in every process. The caller's random state
        is left as it was. Raises ConvergenceError at a loss that is not finite.
        """
        seed = epoch_seed(self.seed, epoch, RATES)
        if self.layer_rates is not None:
            rate = self._rate(epoch * self.steps)
            self.layer_rates.measure(self.optimizer, epoch, rate, seed, self.device)
        began = time.perf_counter()
        self.network.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(epoch_seed(self.seed, epoch, self.group.rank))
            loss, score, term, count = self._run(epoch, on_step)
        self.optimizer.zero_grad(set_to_none=True)
        self.group.broadcast(self.network.buffers())
        speed = count / (time.perf_counter() - began)
        return {
            "lr": self._rate((epoch + 1) * self.steps - 1),
            "train_loss": loss / count,
            **({f"train_{self.score_name}": score / count} if self.score is not None else {}),
            **({"distill_loss": term / count} if self.distiller else {}),
            **(self.layer_rates.row(self.optimizer, epoch, seed, self.device) if self.layer_rates else {}),
            "images_per_second": speed,
        }

    def _run(self, epoch: int, on_step: Callable[[int], None]) -> list[float]:
        """Sums of loss, score, the teacher's term and samples over all processes."""
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
            tally.add(self._step(inputs, targets), len(targets))
            on_step(index + 1)
        tally.settle()
        if self.scaler.get_scale() < LEAST_SCALE:  # every step is left out whose gradients overflow
            raise ConvergenceError(
                f"training, epoch {epoch + 1}: the gradients overflow in float16 however little the loss is scaled, so "
                "nothing is learnt; use precision: bfloat16 or float32, or lower optimizer.lr"
            )
        sums = torch.tensor([tally.loss, tally.score, tally.term, tally.count], dtype=torch.float64, device=self.device)
        self.group.sum_tensors([sums])
        return sums.tolist()

    def _rate(self, step: int) -> float:
        """The schedule's."""
        return self.options.optimizer.lr * self.options.schedule(step, self.steps, self.options.epochs)

    def _set_rate(self, step: int) -> None:
        rate = self._rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)

    def _step(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Of the batch, before the step: mean loss, summed score and mean term of the teacher (0 where there is none).

        They stay on the device.
        """
        parts = micro_batches(inputs, targets, largest_part(self.options, self.group))
        self.optimizer.zero_grad(set_to_none=True)
        figures = self._gradients(parts, len(targets))
        self._mask_gradients()
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return figures

    def _gradients(self, parts: list[tuple[Any, Any]], samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Adds the gradients of the batch that has these parts, and returns its figures."""
        found = []
        try:
            self.products.form(len(parts))
            for number, (inputs, targets) in enumerate(parts, 1):
                if number == len(parts):
                    self.products.before_last()
                share = len(targets) / samples
                with nullcontext() if number == len(parts) else self.no_sync():
                    loss, output, term = self._objective(self.module, inputs, targets, self.options.precision)
                    self.scaler.scale(loss * share).backward()
                score = term.new_zeros(()) if self.score is None else self.score(output.detach(), targets)
                found.append((loss.detach() * share, score, term * share))
        finally:
            self.products.release()
        loss, score, term = (torch.stack(values).sum(0) for values in zip(*found, strict=True))
        return loss, score, term

    def _mask_gradients(self) -> None:
        """Where weight, gradient and momentum are zero, so is every optimiser's step, decay included."""
        pairs = [(parameter.grad, mask) for parameter, mask in self.masks if parameter.grad is not None]
        if pairs:
            gradients, masks = zip(*pairs, strict=True)
            torch._foreach_mul_(gradients, masks)

    def _objective(
        self, module: Callable[..., Any], inputs: Any, targets: Any, precision: str
    ) -> tuple[Tensor, Any, Tensor]:
        """The loss of a batch, the outputs for its targets, and the teacher's term in it."""
        with self._autocast(precision):
            output, *features = module(inputs) if self.distiller else (module(inputs),)
            loss, term = self._supervised(output, targets), torch.zeros((), device=self.device)
            if self.distiller is not None:
                loss, term = self.distiller.loss(loss, (output, *features), inputs)
            return loss, first_view(output, targets), term

    def _supervised(self, output: Any, targets: Any) -> Tensor:
        """The loss that targets give, of the first of several views; with what the views differ in."""
        loss = self.loss(first_view(output, targets), targets)
        if self.consistency:
            loss = loss + self.consistency * divergence(output.unflatten(0, (-1, len(targets))))
        return loss

    def gradient_cosines(self, epoch: int, pairs: int) -> list[float]:
        """Of `pairs` pairs of mini-batches, with the weights as they are and batch norms as in training.

        Pairs are neighbours in a shuffled order of their own, drawn anew when it ends. Every process takes them all.
        In float32 where training takes float16, whose gradients vanish unless the scaler enlarges them. Running
        statistics and random state are left as they were.
        """
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        bare = self.distiller.student if self.distiller else self.network
        precision = "float32" if self.options.precision == "float16" else self.options.precision
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(epoch_seed(self.seed, epoch, CONFUSION))
            self.network.train()
            found = gradient_cosines(
                lambda inputs, targets: self._objective(bare, inputs, targets, precision)[0],
                trained,
                self._pairs(epoch, pairs),
                dict(self.masks),
            )
        for buffer, value in zip(self.network.buffers(), buffers, strict=True):
            buffer.copy_(value)
        return found

    def _pairs(self, epoch: int, count: int) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        size = min(self.options.batch_size, len(self.split) // 2)
        for order in itertools.count():
            seed = epoch_seed(epoch_seed(self.seed, epoch, CONFUSION), order)
            batches = self.split.batches(size, self.device, seed=seed, drop_last=True)
            for pair in zip(batches, batches, strict=False):  # one iterator twice: neighbours
                yield pair
                count -= 1
                if count == 0:
                    return

    def _autocast(self, precision: str) -> AbstractContextManager[Any]:
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[precision])


class _Tally:
    """Sums of an epoch in this process; figures wait on the device until enough have come to be read at once."""

    def __init__(self, epoch: int) -> None:
        self.loss = self.score = self.term = 0.0
        self.count = self.steps = 0
        self._epoch = epoch
        self._waiting: list[tuple[tuple[Tensor, Tensor, Tensor], int]] = []

    def add(self, figures: tuple[Tensor, Tensor, Tensor], size: int) -> None:
        """Of a batch of `size`: mean loss, summed score, and mean term of the teacher."""
        self._waiting.append((figures, size))
        if len(self._waiting) == CHECK_EVERY:
            self.settle()

    def settle(self) -> None:
        """Adds what waits. Raises ConvergenceError at the first loss that is not finite."""
        if not self._waiting:
            return
        figures, sizes = zip(*self._waiting, strict=True)
        self._waiting.clear()
        losses, scores, terms = (torch.stack(values) for values in zip(*figures, strict=True))
        for loss, term, size in zip(losses.tolist(), terms.tolist(), sizes, strict=True):
            self.steps += 1
            if not math.isfinite(loss):
                remedy = AFTER if self._epoch > 0 or self.steps > 1 else FIRST
                raise ConvergenceError(
                    f"training, epoch {self._epoch + 1}, step {self.steps}: the loss is {loss}; {remedy}"
                )
            self.loss += loss * size
            self.term += term * size
        self.score += scores.double().sum().item()
        self.count += sum(sizes)


def _wrap(
    module: nn.Module, options: Training, device: torch.device, group: Group
) -> tuple[Callable[[], AbstractContextManager[Any]], Callable[..., Any]]:
    """Where gradients stay with their process, and the module as it is trained."""
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    if group.world > 1:
        module = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
        no_sync = module.no_sync
    return no_sync, torch.compile(module) if options.compile else module
