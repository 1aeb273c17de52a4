"""Unstructured pruning: single weights or whole kernels that are worth least become zero, and stay so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.counting import Counts, count
from compresskit.graph.format.table import shared_names
from compresskit.graph.layers.grouped import GroupedLinear
from compresskit.graph.layers.skew_convolution import SkewConvolution
from compresskit.graph.masks import Masks, kept, prices
from compresskit.graph.weights import Weight, chosen, parameter_of, weights_of
from compresskit.numerics.pruning.masks import of_units, units_left
from compresskit.numerics.pruning.ratios import counts
from compresskit.passes.prune.budgets import Floats, Weighed, first
from compresskit.passes.prune.mask_options import OF_WEIGHTS, Masking
from compresskit.shapes import Shape

ROUNDING = 1e-9  # relative, of a limit that is a share
_FINE = 1 << 30  # levels between nothing and what a budget takes


@dataclass(frozen=True)
class Masked:
    """What stays. masks: those that the network had included. layers: (name, units, units kept) of each. asked, got,
    whole: of the target; the last of the network without masks."""

    masks: dict[str, Tensor]
    layers: list[tuple[str, int, int]]
    skipped: dict[str, str]
    asked: float
    got: float
    whole: float


@dataclass(frozen=True)
class _Layer:
    """One layer. parameter: its weight's name. units: number of all. order: numbers of those that are left, the best
    first. sums: (len(order) + 1,) float64, what as many of them cost in the unit of the target. scores: (len(order),)
    in their place."""

    name: str
    parameter: str
    weight: Tensor
    units: int
    order: Tensor
    sums: Tensor
    scores: Tensor


class Masker:
    """What is worked out once for a network and a recipe; the network stays as it is."""

    def __init__(
        self,
        network: fx.GraphModule,
        options: Masking,
        input_shape: Shape,
        masks: Masks,
        seed: int,
        section: str = "prune",
    ) -> None:
        """masks: that the network has already; what they set to zero stays zero. section: of the recipe, for messages.

        Raises RecipeError where nothing can be masked, or the target lies out of what can be reached, ConvergenceError
        for weights that are not finite, which no criterion can put in order.
        """
        self._network, self._options, self._seed = network, options, seed
        self._masks, self._kernels = masks, options.kind == "kernels"
        self._counts = count(network, input_shape)
        names, self.skipped = _maskable(network, options, self._counts, section)
        generator = torch.Generator().manual_seed(seed)
        self.layers = [self._layer(name, generator) for name in names]
        self.whole, self._fixed = self._sizes()
        self.now = self._size([len(layer.order) for layer in self.layers])
        self.asked = options.target.limit(self.whole, [tuple(layer.weight.shape) for layer in self.layers])
        self.least = self._size(self._kept(np.ones(len(self.layers))))
        if not self._fits(self.least) or self.asked >= self.now:
            raise RecipeError(
                f"{section}.target.{options.target.goal}: {self.asked:,.6g} of {self.whole:,.6g} {self.unit} would be "
                f"left; what can be reached lies from {self.least:,.6g} ({self.least / self.whole:.2%}: min_units of "
                f"every layer that is masked) to {self.now:,.6g}; ask for a value in between, or mask more layers"
            )

    @property
    def unit(self) -> str:
        """Of the sizes."""
        goal = self._options.target.goal
        return "weights" if goal in OF_WEIGHTS else {"params": "parameters", "macs": "MACs"}[goal]

    def mask(self) -> Masked:
        """Chooses what becomes zero."""

        def reaches(ratios: Floats) -> bool:
            return self._fits(self._size(self._kept(ratios)))

        ratios = self._ratios(reaches)
        # Budgets go by steps of their own; the last part of one is taken back, in all layers alike
        part = first(_FINE, lambda number: reaches(ratios * (number / _FINE))) / _FINE
        numbers = self._kept(ratios * part)
        masks = {name: mask.cpu() for name, mask in self._masks.items()}
        for layer, number in zip(self.layers, numbers, strict=True):
            units = torch.zeros(layer.units, dtype=torch.bool)
            units[layer.order[:number]] = True
            mask = of_units(units, layer.weight, kernels=self._kernels)
            masks[layer.parameter] = mask & self._before(layer.parameter, layer.weight)
        rows = [(layer.name, layer.units, number) for layer, number in zip(self.layers, numbers, strict=True)]
        return Masked(masks, rows, self.skipped, self.asked, self._size(numbers), self.whole)

    def _ratios(self, reaches: Callable[[Floats], bool]) -> Floats:
        """What the budget takes of the units that are left; layers without any are none of its business."""
        alive = np.array([len(layer.order) > 0 for layer in self.layers])
        layers = [layer for layer in self.layers if len(layer.order)]

        def spread(ratios: Floats) -> Floats:
            found = np.zeros(len(alive))
            found[alive] = ratios
            return found

        weighed = Weighed(
            self._network,
            [[layer.name] for layer in layers],
            [layer.scores for layer in layers],
            self._seed,
            np.array([len(layer.order) / layer.units for layer in layers]),
        )
        return spread(self._options.budget(weighed, lambda ratios: reaches(spread(ratios))))

    def _layer(self, name: str, generator: torch.Generator) -> _Layer:
        parameter = parameter_of(self._network, name)
        weight = self._network.get_parameter(parameter).detach()
        if not bool(weight.isfinite().all()):
            raise ConvergenceError(f"{parameter}: it holds NaN or infinity; take a checkpoint that is whole")
        before = self._before(parameter, weight)
        left = units_left(before, kernels=self._kernels)
        scores = self._options.criterion(weight, generator, kernels=self._kernels).cpu()
        alive = left.nonzero()[:, 0]
        order = alive[scores[alive].argsort(descending=True, stable=True)]
        costs = before.double()
        if self._options.target.goal == "macs":
            costs *= prices(self._counts, parameter, tuple(weight.shape))
        sums = torch.zeros(len(order) + 1, dtype=torch.float64)
        sums[1:] = units_left(costs, kernels=self._kernels)[order].cumsum(0)
        return _Layer(name, parameter, weight, len(left), order, sums, scores[order])

    def _before(self, parameter: str, weight: Tensor) -> Tensor:
        """The weight's mask so far."""
        return self._masks.get(parameter, torch.ones(weight.shape, dtype=torch.bool)).cpu()

    def _sizes(self) -> tuple[float, float]:
        """Of the network without masks, and of what stays whatever is masked here."""
        goal = self._options.target.goal
        own = {layer.parameter for layer in self.layers}
        if goal in OF_WEIGHTS:
            return float(sum(layer.weight.numel() for layer in self.layers)), 0.0
        whole = kept(self._counts, {})
        others = {name: mask for name, mask in self._masks.items() if name not in own}
        none = {layer.parameter: torch.zeros(layer.weight.shape, dtype=torch.bool) for layer in self.layers}
        fixed = kept(self._counts, others | none)
        place = 0 if goal == "params" else 1
        return float(whole[place]), float(fixed[place])

    def _size(self, numbers: Sequence[int]) -> float:
        """With so many units left of each layer."""
        layers = zip(self.layers, numbers, strict=True)
        return self._fixed + sum(float(layer.sums[number]) for layer, number in layers)

    def _fits(self, size: float) -> bool:
        return size <= self.asked * (1 + ROUNDING)

    def _kept(self, ratios: Floats) -> list[int]:
        return counts(ratios, [len(layer.order) for layer in self.layers], self._options.min_units, 1)


def _maskable(
    network: fx.GraphModule, options: Masking, counts: Counts, section: str
) -> tuple[list[str], dict[str, str]]:
    """Layers in the order of the modules, and why others stay whole."""
    weights, others = weights_of(network)
    skipped = {name: f"{why}, which masks are not for" for name, why in others.items() if name in counts.uses}
    plain = []
    for weight in weights:
        if (reason := _obstacle(network, weight, counts)) is None:
            plain.append(weight)
        else:
            skipped[weight.name] = reason
    skipped |= {
        name: "masks are for plain weights" for name, module in network.named_modules()
        if isinstance(module, SkewConvolution)
    }  # fmt: skip
    dense = {weight.name for weight in chosen(plain, options.dense)}
    found, shared = [], shared_names(network)
    for weight in chosen(plain, options.layers):
        parameter = parameter_of(network, weight.name)
        if weight.name in dense:
            skipped[weight.name] = f"{section}.dense names it"
        elif parameter in shared:
            skipped[weight.name] = "its weights are those of another layer, too"
        elif options.target.goal == "macs" and parameter not in counts.uses:
            skipped[weight.name] = "its weights cost no MACs"
        else:
            found.append(weight.name)
    if not found:
        raise RecipeError(
            f"{section}.layers: every layer that they name stays dense; see {section}.dense and `show layers`"
        )
    return found, skipped


def _obstacle(network: fx.GraphModule, weight: Weight, counts: Counts) -> str | None:
    """Why a layer has no weight that can be masked."""
    parameter = parameter_of(network, weight.name)
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters(remove_duplicate=False))
    if parameter not in parameters or isinstance(modules.get(weight.name), GroupedLinear):
        return "masks are for plain weights"
    if weight.kind != "embedding" and parameter not in counts.uses:
        return "no product reads its weights as they are"
    return None
