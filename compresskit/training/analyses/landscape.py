"""The loss around a trained network, on a plane through its weights (Li et al. 2018)."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from compresskit.data.dataset import DataSet
from compresskit.options import option
from compresskit.training.tasks.evaluation import evaluate


@option
class Landscape:
    """Loss and main metric on a grid over two random, filter-normalised directions (ExpandNets, Figure 4)."""

    points: Annotated[int, Ge(3)] = 21  # a side of the grid; odd, so that the trained net is its middle
    extent: Annotated[float, Gt(0)] = 1.0  # of each direction, both ways
    samples: Annotated[int, Gt(0)] = 1000  # training images, without augmentation
    drawn: Literal["loss", "error"] = "loss"  # error: of a classifier, top-1, as the document draws it

    def __post_init__(self) -> None:
        if self.points % 2 == 0:
            raise ValueError(
                f"points: {self.points} a side have no middle, where the trained net lies; give an odd number"
            )

    @property
    def places(self) -> list[float]:
        """Coordinates along a direction: evenly spaced, and exactly 0 in the middle."""
        middle = self.points // 2
        return [self.extent * (number - middle) / middle for number in range(self.points)]


def directions(network: nn.Module, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two directions in the space of the weights, drawn from N(0, 1) and scaled filter by filter:

    d_i <- d_i ||w_i|| / ||d_i|| for each filter i, along the first dimension of a weight: an output of a layer, of a
    transposed convolution an input, as their code has it. Vectors (biases, norms) get 0, their `ignore: biasbn`.
    Source: Li et al. 2018, section 4.
    """
    draws = torch.Generator().manual_seed(seed)
    return _direction(network, draws), _direction(network, draws)


def _direction(network: nn.Module, draws: torch.Generator) -> dict[str, Tensor]:
    found = {}
    for name, weight in network.named_parameters():
        step = torch.zeros_like(weight)
        if weight.ndim > 1:
            drawn = torch.randn(weight.shape, generator=draws).to(weight)
            norms = drawn.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
            scale = weight.detach().flatten(1).norm(dim=1) / norms
            step = drawn * scale.view(-1, *[1] * (weight.ndim - 1))
        found[name] = step
    return found


def landscape(
    network: nn.Module, data: DataSet, options: Landscape, *, seed: int, device: torch.device, batch_size: int
) -> dict[str, list[list[float]]]:
    """By metric of the task, its values at w + a d1 + b d2: rows a, columns b, from -extent to extent.

    In eval mode, so with the statistics that batch norms have; on a fixed sample of the training images. The weights
    are put back bit by bit.
    """
    sample = data.train.sample(options.samples)
    first, second = directions(network, seed)
    trained = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    surfaces: dict[str, list[list[float]]] = {}
    try:
        for row, a in enumerate(options.places):
            for b in options.places:
                _move(network, {name: w + a * first[name] + b * second[name] for name, w in trained.items()})
                figures = evaluate(
                    network, sample, task=data.task, anchors=data.anchors, device=device, batch_size=batch_size
                )
                for name, value in figures.items():
                    surfaces.setdefault(name, [[] for _ in options.places])[row].append(value)
    finally:
        _move(network, trained)
    return surfaces


def _move(network: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(weights[name])
