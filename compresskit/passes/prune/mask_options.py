"""What a recipe's `prune` section says of masks: criteria, budgets and targets for single weights and kernels."""

from collections.abc import Iterable
from math import prod
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from compresskit.numerics.pruning import masks
from compresskit.options import option
from compresskit.passes.prune.budgets import Global, MaskBudget
from compresskit.passes.prune.options import Repair
from compresskit.passes.shares import Amount, only_one, share

GOALS = ("sparsity", "degree", "params", "macs")
OF_WEIGHTS = ("sparsity", "degree")  # of the weights of the layers that are masked


@option
class MagnitudeOfWeights:
    """|w| of a weight; of a kernel the mean of |w|, or its root mean square."""

    kind: Literal["magnitude"] = "magnitude"
    norm: Literal["l1", "l2"] = "l2"  # of a kernel

    def __call__(self, weight: Tensor, generator: torch.Generator, *, kernels: bool) -> Tensor:
        return masks.magnitude(weight, 1.0 if self.norm == "l1" else 2.0, kernels=kernels)


@option
class RandomWeights:
    """As good as any other, by the recipe's seed: what every criterion must beat."""

    kind: Literal["random"] = "random"

    def __call__(self, weight: Tensor, generator: torch.Generator, *, kernels: bool) -> Tensor:
        units = weight.numel() // masks.taps_of(weight, kernels=kernels)
        return torch.rand(units, generator=generator, dtype=torch.float64)


MaskCriterion = MagnitudeOfWeights | RandomWeights


@option
class MaskTarget:
    """How much of the network is left: one of these. Only weights that are not masked count."""

    sparsity: Amount | None = None  # zeros among the weights of the layers, 90% or 0.9
    # as many weights, or kernels, as sao keeps of the layers with this degree: the share follows their width
    degree: Annotated[int, Ge(1)] | None = None
    params: Amount | None = None  # parameters that are not zero, of the whole network: a share of all, or a number
    macs: Amount | None = None  # multiply-accumulates by weights that are not zero

    def __post_init__(self) -> None:
        only_one(self, GOALS)
        if self.sparsity is not None and not isinstance(self.sparsity, str) and not self.sparsity < 1:
            raise ValueError(f"sparsity: {self.sparsity} is no share below 1; write it as 0.9, or as 90%")
        if self.degree is not None and (isinstance(self.degree, str) or self.degree % 1):
            raise ValueError(f"degree: {self.degree} is no whole number of neighbours; write it as 4")

    @property
    def goal(self) -> str:
        return next(name for name in GOALS if getattr(self, name) is not None)

    def limit(self, whole: float, shapes: Iterable[tuple[int, ...]]) -> float:
        """What may be left of `whole`: weights of the layers, parameters or multiply-accumulates.

        shapes: (outputs, inputs, *taps) of the weights of the layers. A regular graph of degree k keeps k of the
        longer side for each node of the shorter one. Source: SAO, section IV-A.
        """
        if self.degree is not None:
            return float(sum(min(self.degree, max(shape[:2])) * min(shape[:2]) * prod(shape[2:]) for shape in shapes))
        amount = getattr(self, self.goal)
        part = share(amount) if isinstance(amount, str) else float(amount)
        if self.goal == "sparsity":
            return (1 - part) * whole
        return part * whole if isinstance(amount, str) else part

    def at(self, limit: float, whole: float) -> "MaskTarget":
        """The same goal, or a sparsity in the place of a degree, with another limit."""
        given: dict[str, Any] = {"sparsity": 1 - limit / whole} if self.goal in OF_WEIGHTS else {self.goal: limit}
        return MaskTarget(**given)


@option
class Masking:
    """Which single weights, or kernels (the taps that one output has of one input), become zero."""

    kind: Literal["weights", "kernels"]
    target: MaskTarget  # how many weights stay
    criterion: MaskCriterion = MagnitudeOfWeights()  # what a weight or a kernel is worth
    budget: MaskBudget = Global()  # how much each layer loses; uniform: the same share of each, chosen layer by layer
    layers: tuple[str, ...] = ("re:.*",)  # selectors of the layers that are masked
    dense: tuple[str, ...] = ()  # selectors of those among them that stay whole after all
    min_units: Annotated[int, Ge(0)] = 1  # weights or kernels that are left of each layer; 0 lets layers die


@option
class Mask(Masking):
    """Set single weights, or kernels (the taps that one output has of one input), to zero, and keep them there."""

    # the weights that are left, solved again by least squares for the outputs that their layers had: all layers at
    # once, or one after another from what is left before them, with a pass over the data for each
    repair: Repair = "top-down"
    norms: bool = True  # estimate the means and variances of batch norms again


MASK_CRITERIA: dict[str, type[MaskCriterion]] = {"magnitude": MagnitudeOfWeights, "random": RandomWeights}
