"""Budgets that a recipe can name: how much each group of channels loses, so that the network reaches its target."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Gt, Le, Len, Lt
from numpy.typing import NDArray
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.weights import by_filter, parameter_of, weights_of
from compresskit.numerics.pruning.descent import convex, descent
from compresskit.numerics.pruning.ratios import ceilings, erdos_renyi, lamp, uniform
from compresskit.numerics.spectra.rate_maps import positive
from compresskit.options import option
from compresskit.passes.shares import Share, check_share, share
from compresskit.passes.spectra.options import Spectra
from compresskit.passes.spectra.weights import spectra

Floats = NDArray[np.float64]
Reaches = Callable[[Floats], bool]  # whether pruning by these ratios, one for each group, meets the target
_FINE = 2000  # levels of a budget that has no steps of its own


class Alone(NamedTuple):
    """What one group alone costs. share: of it, that was to go. gone: what went, in whole channels. loss: of the
    outputs, by that."""

    share: float
    gone: float
    loss: float


@dataclass(frozen=True)
class Weighed:
    """What budgets look at. layers: of each group. scores: (n,) of what each group may lose, channels or weights, one
    at least. left: share of each group that is left of what it was; default: all. size: of the network by ratios, one
    for each group. alone: for each group, what shares of it cost when nothing of others goes; none of the two for
    weights and kernels.
    """

    network: fx.GraphModule
    layers: Sequence[Sequence[str]]
    scores: Sequence[Tensor]
    seed: int
    left: Floats | None = None
    size: Callable[[Floats], float] | None = None
    alone: Callable[[Sequence[float]], Sequence[Sequence[Alone]]] | None = None


@option
class Uniform:
    """The same share of every group."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, weighed: Weighed, reaches: Reaches) -> Floats:
        return _least(lambda level: uniform(len(weighed.layers), level), reaches)


@option
class Global:
    """The least scores of all groups together."""

    kind: Literal["global"] = "global"

    def __call__(self, weighed: Weighed, reaches: Reaches) -> Floats:
        return _by_rank(weighed.scores, reaches)


@option
class LAMP:
    """The least scores of all groups together, each as a share of itself and the larger ones of its group."""

    kind: Literal["lamp"] = "lamp"

    def __call__(self, weighed: Weighed, reaches: Reaches) -> Floats:
        return _by_rank([lamp(scores - scores.min().clamp(max=0)) for scores in weighed.scores], reaches)


@option
class ERK:
    """Densities by Erdos-Renyi kernel: small layers stay denser."""

    kind: Literal["erk"] = "erk"

    def __call__(self, weighed: Weighed, reaches: Reaches) -> Floats:
        shapes = [_shape(weighed.network, layers[0]) for layers in weighed.layers]
        left = np.ones(len(shapes)) if weighed.left is None else weighed.left
        return _least(lambda level: np.maximum(1 - (1 - erdos_renyi(shapes, level)) / left, 0), reaches)


@option
class Spectral:
    """Ceilings in proportion to a metric of each group's spectra; ratios rise by a step until the target is met.

    The ceilings k_i are c metric_i / mean metric, c the smallest for which the target is within them. The metric of a
    group is the mean over its layers; layers without one count as the mean of the others. A metric that is several
    times as large in one layer as in the others leaves next to nothing of it, which `least` prevents.
    """

    kind: Literal["spectral"] = "spectral"
    metric: Literal[
        "alpha", "rand_distance", "stable_rank", "entropy", "norm", "log_norm", "spectral_norm", "log_spectral_norm",
        "alpha_weighted", "log_alpha_norm",
    ] = "alpha"  # fmt: skip
    inverse: bool = False  # the larger the metric, the less goes
    step: Annotated[float, Gt(0), Le(1)] = 0.01  # by which ratios rise
    least: Share | None = None  # of each group, what a step leaves at least, such as 10%
    definitions: Literal["weightwatcher", "tempbalance", "document"] = "weightwatcher"  # see `spectra`

    def __post_init__(self) -> None:
        check_share("least", self.least, whole=False)

    def __call__(self, weighed: Weighed, reaches: Reaches) -> Floats:
        metrics, most = self._metrics(weighed), 1 - share(self.least) if self.least else 1.0
        if self.least and not reaches(np.full(len(metrics), most)):
            raise RecipeError(
                f"prune.budget.least: with {self.least} of every layer left, the target cannot be reached; lower one of"
                " the two"
            )
        highest = float(metrics.mean() / metrics.min())  # at which every ceiling is 1
        steps = max(1, int(np.ceil(highest / self.step)))
        scale = first(steps, lambda number: reaches(ceilings(metrics, number * self.step, most))) * self.step
        tops = ceilings(metrics, scale, most)
        number = first(int(np.ceil(tops.max() / self.step)), lambda n: reaches(np.minimum(tops, n * self.step)))
        return np.asarray(np.minimum(tops, number * self.step))

    def _metrics(self, weighed: Weighed) -> Floats:
        """Positive, one for each group; the inverse where that is asked for."""
        null: Literal["none"] | None = None if self.metric == "rand_distance" else "none"
        options = Spectra(definitions=self.definitions, null=null, marchenko_pastur=False, min_eigenvalues=2)
        rows, _ = spectra(weights_of(weighed.network)[0], options, seed=weighed.seed)
        by_layer = {row.name: float(getattr(row, self.metric)) for row in rows}
        values = [[by_layer.get(layer, np.nan) for layer in layers] for layers in weighed.layers]
        means = np.array([np.mean(own) if (own := [v for v in some if np.isfinite(v)]) else np.nan for some in values])
        known = means[np.isfinite(means)]
        means = np.where(np.isfinite(means), means, known.mean() if len(known) else 1.0)
        found = positive(means)
        return 1 / found if self.inverse else found


@option
class Divergence:
    """Shares of groups go where least is lost for what is saved, by what cutting each group alone costs.

    That is the divergence of the outputs from the original's, on held-out images, with the layers behind solved again
    (unless `repair` is none). Losses are taken as additive, and between the shares that are measured as linear; of each
    group's curve the lower convex hull counts, for a share that costs little behind one that costs much goes with it.
    """

    kind: Literal["divergence"] = "divergence"
    # of each group, that go for a measurement
    shares: Annotated[tuple[Annotated[float, Gt(0), Lt(1)], ...], Len(1)] = (0.1, 0.25, 0.5, 0.7, 0.85, 0.95)
    step: Annotated[float, Gt(0), Le(0.5)] = 0.04  # of a group, that goes at a time
    images: Annotated[int, Gt(0)] = 256  # held-out ones

    def __call__(self, weighed: Weighed, reaches: Reaches) -> Floats:
        assert weighed.alone is not None, "masks have budgets of their own"
        assert weighed.size is not None
        at = np.linspace(0, 1, max(2, round(1 / self.step)) + 1)
        losses = np.array([_curve(points, at) for points in weighed.alone(sorted(self.shares))])
        path = descent(losses, at, weighed.size)
        return path[first(len(path) - 1, lambda number: reaches(path[number]))]


def _curve(points: Sequence[Alone], at: Floats) -> Floats:
    """The convex curve below measured losses that never fall, from 0 on; 0 for a group that cannot shrink."""
    worst = {point.gone: point.loss for point in sorted(points, key=lambda point: point.gone) if point.gone > 0}
    if not worst:
        return np.zeros(len(at))
    return convex(np.array([0.0, *worst]), np.maximum.accumulate([0.0, *worst.values()]), at)


MaskBudget = Uniform | Global | LAMP | ERK | Spectral  # of weights and kernels, too
Budget = MaskBudget | Divergence


def _shape(network: fx.GraphModule, layer: str) -> tuple[int, ...]:
    """Of the filters of a layer, or of a part of one that has its weight under a name of its own."""
    path, _, _ = (name := parameter_of(network, layer)).rpartition(".")
    return tuple(by_filter(network.get_submodule(path), network.get_parameter(name)).shape)


def first(last: int, holds: Callable[[int], bool]) -> int:
    """The smallest number up to `last` for which it holds, if it holds for all above it; `last` where it never does."""
    return bisect_left(range(last), True, key=holds)


def _least(ratios: Callable[[float], Floats], reaches: Reaches) -> Floats:
    """The ratios of the lowest level that meets the target, of 2000."""
    return ratios(first(_FINE, lambda number: reaches(ratios(number / _FINE))) / _FINE)


def _by_rank(scores: Sequence[Tensor], reaches: Reaches) -> Floats:
    """Ratios that take the least scores of all, as few as meet the target."""
    ordered = torch.cat(list(scores)).sort(stable=True).indices
    owner = torch.cat([torch.full((len(own),), number) for number, own in enumerate(scores)])[ordered]
    sizes = np.array([len(own) for own in scores])

    def ratios(number: int) -> Floats:
        return np.asarray(torch.bincount(owner[:number], minlength=len(scores)).numpy() / sizes)

    return ratios(first(len(ordered), lambda number: reaches(ratios(number))))


MASK_BUDGETS: dict[str, type[MaskBudget]] = {
    "uniform": Uniform,
    "global": Global,
    "lamp": LAMP,
    "erk": ERK,
    "spectral": Spectral,
}
BUDGETS: dict[str, type[Budget]] = {**MASK_BUDGETS, "divergence": Divergence}
