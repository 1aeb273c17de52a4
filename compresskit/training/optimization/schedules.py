"""Schedules of the learning rate: pure functions of the step, so a resumed run has nothing to restore."""

import math
from bisect import bisect_right
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from compresskit.options import option

Epochs = Annotated[float, Ge(0)]
Start = Annotated[float, Gt(0), Le(1)]


@option
class Constant:
    """The full rate from the end of the warm-up on."""

    kind: Literal["constant"] = "constant"
    warmup: Epochs = 0.0  # epochs in which the rate rises linearly
    warmup_start: Start = 0.01  # share of the rate at the first step of the warm-up

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the rate at `step`, counted from 0 over the whole run."""
        return _ramp(step, self.warmup * steps_per_epoch, self.warmup_start)


@option
class Step:
    """The rate is multiplied by gamma every `step_size` epochs."""

    kind: Literal["step"] = "step"
    step_size: Annotated[int, Gt(0)]  # epochs, counted from the start of the run
    gamma: Annotated[float, Gt(0)] = 0.1  # factor of the rate
    warmup: Epochs = 0.0  # epochs in which the rate rises linearly
    warmup_start: Start = 0.01  # share of the rate at the first step of the warm-up

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the rate at `step`, counted from 0: gamma ** floor(epoch / step_size)."""
        decay = self.gamma ** (step // steps_per_epoch // self.step_size)
        return decay * _ramp(step, self.warmup * steps_per_epoch, self.warmup_start)


@option
class MultiStep:
    """The rate is multiplied by gamma at each milestone."""

    kind: Literal["multi-step"] = "multi-step"
    milestones: tuple[Annotated[int, Gt(0)], ...]  # epochs, counted from the start of the run, rising
    gamma: Annotated[float, Gt(0)] = 0.1  # factor of the rate
    warmup: Epochs = 0.0  # epochs in which the rate rises linearly
    warmup_start: Start = 0.01  # share of the rate at the first step of the warm-up

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: {list(self.milestones)} do not rise; write them in order, each once")

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the rate at `step`, counted from 0: gamma ** (number of milestones reached)."""
        decay = self.gamma ** bisect_right(self.milestones, step // steps_per_epoch)
        return decay * _ramp(step, self.warmup * steps_per_epoch, self.warmup_start)


@option
class Cosine:
    """The rate falls along half a cosine from the end of the warm-up to the end of the run, at each step or epoch."""

    kind: Literal["cosine"] = "cosine"
    # epoch: the rate of an epoch is that of the curve at its end, so that the last epoch has `final`
    by: Literal["step", "epoch"] = "step"
    final: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the rate that the curve ends at
    warmup: Epochs = 0.0  # epochs in which the rate rises linearly
    warmup_start: Start = 0.01  # share of the rate at the first step of the warm-up

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the rate at `step`, counted from 0: final + (1 - final) (1 + cos(pi t)) / 2, t in [0, 1].

        by: epoch takes t at the end of the step's epoch, (epoch + 1) / epochs without a warm-up.
        Source: Loshchilov and Hutter 2017, eq. 5, without restarts; by epoch, layerwise training, (2.12).
        """
        warm = self.warmup * steps_per_epoch
        if step < warm:
            return _ramp(step, warm, self.warmup_start)
        if self.by == "epoch":
            step = (step // steps_per_epoch + 1) * steps_per_epoch
        t = _passed(step, warm, epochs * steps_per_epoch)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * t)) / 2


@option
class Linear:
    """The rate falls along a line from the end of the warm-up to the end of the run, at each step."""

    kind: Literal["linear"] = "linear"
    final: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the rate that the line ends at
    warmup: Epochs = 0.0  # epochs in which the rate rises linearly
    warmup_start: Start = 0.01  # share of the rate at the first step of the warm-up

    def __call__(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the rate at `step`, counted from 0: 1 - (1 - final) t, t in [0, 1] (ShuffleNet, section 4)."""
        warm = self.warmup * steps_per_epoch
        if step < warm:
            return _ramp(step, warm, self.warmup_start)
        return 1 - (1 - self.final) * _passed(step, warm, epochs * steps_per_epoch)


Schedule = Constant | Step | MultiStep | Cosine | Linear


def _ramp(step: int, warm: float, start: float) -> float:
    """Linear from `start` at step 0 to 1 at step `warm`, and 1 from there on."""
    return 1.0 if step >= warm else start + (1 - start) * step / warm


def _passed(step: int, warm: float, steps: int) -> float:
    """Share of the steps behind the warm-up that lie before this one."""
    return (step - warm) / (steps - warm)


SCHEDULES: dict[str, type[Constant] | type[Step] | type[MultiStep] | type[Cosine] | type[Linear]] = {
    "constant": Constant,
    "step": Step,
    "multi-step": MultiStep,
    "cosine": Cosine,
    "linear": Linear,
}
