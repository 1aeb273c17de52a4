"""All weights of a compressed network together, by gradients towards the original's outputs: no label is looked at."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, fx, nn

from compresskit.distributed import Group
from compresskit.errors import ConvergenceError
from compresskit.graph.capture import capture, output_name
from compresskit.graph.chains import WEIGHTED, weighted
from compresskit.graph.masks import Masks
from compresskit.graph.operations import calls_of
from compresskit.graph.shapes import evaluating
from compresskit.numerics.outputs import mean_relative_error, relative_error
from compresskit.options import option
from compresskit.passes.repair.part import size_of

Batches = Callable[[int, int], Iterable[tuple[Any, Tensor]]]  # epoch, first batch -> its shuffled batches from there on
Judging = Callable[[fx.GraphModule], float]
Saved = dict[str, Any]
Places = Mapping[str, Tensor | None]  # None: all are there
LOOKS = 5  # at held-out images on the way, and one before it
TRIAL = 0.1  # share of the steps behind which the loss may change
ASTRAY = 1.5  # divergence by then, as a share of that at the start, above which the outputs alone are tried, too
NEARER = 0.9  # divergence, as a share of the other's, that they must have to go on
_WARM = 0.05  # share of the steps in which the rate rises


@option
class Match:
    """Train all weights together to give the original's outputs, on training images without their labels."""

    steps: Annotated[int, Gt(0)] = 600  # of gradients; of the weights on the way the best are taken, by held-out images
    batch_size: Annotated[int, Gt(0)] = 64  # of all processes together
    # by which a step moves weights at most, as a share of the root mean square of their tensor; it falls to 0
    rate: Annotated[float, Gt(0)] = 0.02


@dataclass
class Matched:
    """looks: (step, mean divergence on held-out images), from step 0 on. best: step whose weights were taken. layers:
    whether outputs of layers count; not where they led astray."""

    looks: list[tuple[int, float]] = field(default_factory=list)
    layers: bool = True

    @property
    def best(self) -> int:
        return min(self.looks, key=lambda look: look[1])[0]

    @property
    def told(self) -> str:
        """What held-out images say, in words."""
        (_, first), (last, _) = self.looks[0], self.looks[-1]
        told = f"{first:.4g} -> {dict(self.looks)[self.best]:.4g} at step {self.best} of {last}"
        return told + ("" if self.layers else ", without the outputs of layers, which led astray")


class Matching:
    """Trains a copy of `student`; every process of `group` holds one.

    What is lowered is the mean squared difference of the outputs, of classes their scores before softmax (Ba and
    Caruana 2014), as a share of the variance of the teacher's, of several tensors the mean; and the mean of the same
    over the outputs of layers, at the channels that the student still has, which tell the weights before them more than
    the end of the network does; these count less and less, and nothing in the end. A narrow student that cannot have
    such outputs is led astray by them: where it is far away behind a tenth of the steps, these are taken again with the
    outputs alone, which go on where they come nearer.
    Steps are Adam's (Kingma and Ba 2015), whose length hardly depends on the gradient's, times rate x rms(tensor), so
    that one rate serves all networks (as in Adafactor, Shazeer and Stern 2018, section 8); it rises over the first
    twentieth of the steps and falls along a cosine to 0. Norms use their running statistics and dropout is off, so that
    what is trained is the network that will be used.
    """

    def __init__(
        self, student: fx.GraphModule, teacher: fx.GraphModule, judge: Judging, options: Match,
        places: Places = MappingProxyType({}), masks: Masks | None = None, group: Group = Group(),  # noqa: B008
    ) -> None:  # fmt: skip
        """judge: how far a network's outputs on held-out images are from the teacher's. places: by layer, where among
        the outputs of the teacher's those of the student's are. masks: of parameters, whose zeros stay zero."""
        self.network = copy.deepcopy(student)
        self._original, self._judge, self._options, self._group = teacher, judge, options, group
        self._student, self._teacher, self._places = _compared(self.network, teacher, places)
        self._asked = {name: p.requires_grad for name, p in self.network.named_parameters()}
        self._trained = {name: p for name, p in self.network.named_parameters() if p.is_floating_point()}
        sizes = [float(size_of(p)) for p in self._trained.values()]
        groups = [
            {"params": [p.requires_grad_()], "size": size}
            for p, size in zip(self._trained.values(), sizes, strict=True)
        ]
        self._optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
        self._masks = {name: mask.to(self._trained[name].device) for name, mask in (masks or {}).items()}
        self._step, self._epoch, self._served = 0, 0, 0  # served: batches of the epoch
        self.found, self._best = Matched(), self._weights()
        self._trial = max(1, round(TRIAL * options.steps)) if self._places else 0  # the step at which it ends; 0: none
        self._start = self._now() | {"layers": False} | dict.fromkeys(("network", "best"), student.state_dict())
        self._tried: Saved | None = None  # what the trial with layers came to; empty once one loss is chosen

    def run(
        self, batches: Batches, on_step: Callable[[int, float], None], save: Callable[[Saved], None]
    ) -> fx.GraphModule:
        """The network with the weights that diverged least on held-out images, those at the start among them.

        on_step: is told the steps done, which stand still in a second trial, and the least divergence. save: is given,
        behind each look, what `load` goes on from. Raises ConvergenceError where the outputs are not finite from the
        start.
        """
        steps = self._options.steps
        if not self.found.looks:
            self._look()
            save(self._state())
        inputs = self._inputs(batches)
        with evaluating(self.network, training_outputs=True), evaluating(self._original, training_outputs=True):
            while self._step < steps:
                self._descend(next(inputs))
                self._step += 1
                if self._step == self._trial or self._step * LOOKS // steps > (self._step - 1) * LOOKS // steps:
                    self._look()
                    if self._step == self._trial and self._choose():
                        inputs = self._inputs(batches)
                    save(self._state())
                done = self._step if self._tried is None else max(self._step, self._trial)
                on_step(done, min(value for _, value in self.found.looks))
        self.network.load_state_dict(self._best)
        for name, parameter in self.network.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self._asked[name])
        return self.network

    def load(self, saved: Saved) -> None:
        self._go_to(saved["now"])
        self._tried = saved["tried"]

    def _inputs(self, batches: Batches) -> Iterator[Any]:
        """From the batch of the present step on, epoch after epoch; none before it is read."""
        while True:
            for inputs, _ in batches(self._epoch, self._served):
                self._served += 1
                yield inputs
            if not self._served:
                raise ValueError("no batches to match on")
            self._epoch, self._served = self._epoch + 1, 0

    def _rate(self) -> float:
        done = self._step / self._options.steps
        warm = min(1.0, (self._step + 1) / max(1.0, _WARM * self._options.steps))
        return self._options.rate * warm * (1 + math.cos(math.pi * done)) / 2

    def _descend(self, inputs: Any) -> None:
        with torch.no_grad():
            expected, *theirs = self._teacher(inputs)
        found, *ours = self._student(inputs)
        loss, left = mean_relative_error(found, expected), 1 - self._step / self._options.steps
        if self.found.layers:
            for one, other, (dim, kept) in zip(ours, theirs, self._places, strict=True):
                other = other if kept is None else other.index_select(dim, kept)
                loss = loss + left * relative_error(one, other, dim) / len(ours)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name, parameter in self._trained.items():
            if parameter.grad is None:
                continue
            self._group.sum_tensors([parameter.grad])
            parameter.grad /= self._group.world
            if name in self._masks:
                parameter.grad *= self._masks[name]
        rate = self._rate()
        for part in self._optimizer.param_groups:
            part["lr"] = rate * part["size"]
        self._optimizer.step()

    def _look(self) -> None:
        value = self._group.share(self._judge(self.network))
        if not math.isfinite(value) and not self.found.looks:
            raise ConvergenceError("match: the outputs are not finite; check the checkpoint and the data for NaN")
        self.found.looks.append((self._step, value if math.isfinite(value) else math.inf))
        if self.found.best == self._step:
            self._best = self._weights()

    def _choose(self) -> bool:
        """Behind a trial with the outputs of layers may begin one without; behind that, the better one goes on. Whether
        it is another one than before."""
        (_, first), *_, (_, last) = self.found.looks
        tried, self._tried = self._tried, {}
        if tried is None and last > ASTRAY * first:
            self._tried = copy.deepcopy(self._now())
            self._go_to(self._start | {"looks": self.found.looks[:1]})
            return True
        if tried is not None and not last < NEARER * tried["looks"][-1][1]:
            self._go_to(tried)
            return True
        return False

    def _state(self) -> Saved:
        return {"now": self._now(), "tried": self._tried}

    def _now(self) -> Saved:
        """All that changes from step to step, not copied."""
        return {
            "step": self._step,
            "epoch": self._epoch,
            "served": self._served,
            "looks": self.found.looks,
            "layers": self.found.layers,
            "best": self._best,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def _go_to(self, saved: Saved) -> None:
        self._step, self._epoch, self._served = saved["step"], saved["epoch"], saved["served"]
        self.found, self._best = Matched(list(saved["looks"]), saved["layers"]), saved["best"]
        self.network.load_state_dict(saved["network"])
        self._optimizer.load_state_dict(saved["optimizer"])

    def _weights(self) -> Mapping[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}


def _compared(
    student: fx.GraphModule, teacher: fx.GraphModule, places: Places
) -> tuple[fx.GraphModule, fx.GraphModule, list[tuple[int, Tensor | None]]]:
    """Both networks with their outputs and those of the layers that both have; the dimension of the channels, and where
    the student's are among the teacher's."""
    names: list[list[str]] = [[output_name(student)], [output_name(teacher)]]
    found: list[tuple[int, Tensor | None]] = []
    for layer, kept in places.items():
        calls = [calls_of(network, layer)[:1] for network in (student, teacher)]
        plain = all(calls) and isinstance(teacher.get_submodule(layer), WEIGHTED)  # attention gives a tuple
        if plain and calls[0][0].name != names[0][0]:
            for own, (node,) in zip(names, calls, strict=True):
                own.append(node.name)
            module = weighted(teacher, layer)
            there = kept if kept is None else kept.to(module.weight.device)  # once, and not in each step
            found.append((-1 if isinstance(module, nn.Linear) else 1, there))
    return capture(student, names[0]), capture(teacher, names[1]), found
