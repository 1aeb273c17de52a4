"""What products of factors cost in a training step, and the rates at which they cost no more than a limit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from compresskit.graph.layers.expanded import kernel_shapes
from compresskit.graph.selectors import select
from compresskit.numerics.expansion.composition import cost
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.sites import by_name, fitting, layer_shape, unfit
from compresskit.passes.expand.strategies import STRATEGIES, LayerShape, Unfit

LARGEST, SMALLEST, STEP = 4.0, 1.0, 0.25  # the document's rate; below 1 no trained layer has factors
RATES = [LARGEST - STEP * number for number in range(int((LARGEST - SMALLEST) / STEP) + 1)]
HALVINGS = 40  # of the interval in which the largest share lies


@dataclass(frozen=True)
class StepCost:
    """Multiply-adds of a training step of one process, both gradients included: three times those of its forward pass.

    compact: of the compact network. layers: of what runs on the batch, which is the compact network again, or its
    factors one after another. products: of factors, formed once a step whatever its batch. parameters: in training.
    batch: samples of the step. limit: what `times` had better not exceed. rate_below: the one for all layers that would
    keep to it, None if there is none. auto: whether `rate: auto` finds a layer that it can expand. separate: why the
    factors have no product in training, None where they have.
    """

    compact: int
    layers: int
    products: int
    parameters: int
    batch: int
    limit: float
    rate_below: float | None
    auto: bool
    separate: str | None

    @property
    def times(self) -> float:
        """The step's over the compact network's."""
        return (self.layers + self.products) / self.compact


def product_macs(shape: LayerShape, options: Expand, rate: float) -> int:
    """Multiply-adds that form the layer's weight from its factors, once a step, without the gradients.

    By the first strategy that fits. Raises Unfit.
    """
    reason = unfit(shape, options)
    for strategy in fitting(shape, options):
        try:
            branches = STRATEGIES[strategy].branches(shape, rate)
        except Unfit as found:
            reason = found
        else:
            inputs = shape.groups * shape.inputs
            return sum(cost(kernel_shapes(inputs, shape.groups, branch)) for branch in branches)
    raise reason


def auto_rates(
    network: fx.GraphModule, options: Expand, macs: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, str]]:
    """By layer the rate, of 1 to 4 in quarters, and of layers that are left alone the reason.

    macs: by layer, multiply-adds of one forward pass of a process's batch through the compact network, all layers. A
    product, its gradients included, costs three times its forward pass, as a layer does: so products may take
    limit - 1 times the sum of `macs`. Each layer takes in proportion to its own macs what a rate of 4 does not exceed;
    what one leaves the others take. A layer for which a rate of 1 takes more is left alone.
    """
    shapes, left, options = {}, {}, by_name(network, options)
    for name in select(network, options.layers):
        try:
            shapes[name] = layer_shape(network, name, options)
            product_macs(shapes[name], options, SMALLEST)
        except Unfit as reason:
            shapes.pop(name, None)
            left[name] = str(reason)
    table = {name: {rate: product_macs(shape, options, rate) for rate in RATES} for name, shape in shapes.items()}
    budget = (options.limit - 1) * sum(macs.values())

    def at(share: float) -> dict[str, float]:
        """The largest rates at which each layer's product takes no more than this share of its own macs."""
        fits = {name: [r for r in RATES if costs[r] <= share * macs[name]] for name, costs in table.items()}
        return {name: rates[0] for name, rates in fits.items() if rates}

    rates = _largest(at, lambda found: sum(table[name][rate] for name, rate in found.items()) <= budget)
    left |= dict.fromkeys(
        table.keys() - rates.keys(), f"a rate of 1 would cost more than expand.limit: {options.limit:g}"
    )
    return rates, left


def rate_below(network: fx.GraphModule, options: Expand, names: Sequence[str], budget: float) -> float | None:
    """The largest rate for all these layers, in steps of 0.05, whose products take at most `budget`, or None."""
    options = by_name(network, options)
    shapes = [layer_shape(network, name, options) for name in names]

    def total(number: int) -> int:
        return sum(product_macs(shape, options, number / 20) for shape in shapes)

    low, high = 0, 20 * 64
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= budget else (low, middle)
    return low / 20 if low else None


def _largest(at: Callable[[float], dict[str, float]], allowed: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """What `at` gives for the largest share that is allowed."""
    low, high = 0.0, 1.0
    while allowed(at(high)) and high < 1e12:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(at(middle)) else (low, middle)
    return at(low)
