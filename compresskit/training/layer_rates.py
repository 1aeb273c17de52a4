"""Learning rates of their own for layers, by the spectra of their weights; numerics.spectra.rate_maps has the maps."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import fx, nn

from compresskit.errors import RecipeError
from compresskit.graph.layers.grouped_stack import GroupedStack
from compresskit.graph.weights import parameter_of, weights_of
from compresskit.numerics.spectra.rate_maps import Map, Noise, disturbed, factors
from compresskit.options import option
from compresskit.passes.spectra.options import Estimator, Null, Spectra
from compresskit.passes.spectra.weights import spectra

Metric = Literal[
    "alpha", "rand_distance", "stable_rank", "entropy", "norm", "log_norm", "spectral_norm", "log_spectral_norm",
    "alpha_weighted", "log_alpha_norm", "frobenius", "spectral",
]  # fmt: skip
FROM_ONE = ("alpha", "stable_rank")  # metrics that are never below 1
METRIC, RATE, SECONDS = "metric ", "rate ", "spectra_seconds"  # columns of an epoch, the first two of each layer
WATCHED = "{metric} of {layer}"  # the column of a metric that is watched


@option
class LayerwiseRates:
    """Each layer's rate is the schedule's times n map(metric) / sum of map(metric) over the n layers."""

    metric: Metric | None = (
        None  # of the spectra, see `spectra`; default: alpha, or with `watch` one rate for all layers
    )
    # metrics that are measured, too, and change nothing; each of each layer is a column of metrics.csv
    watch: tuple[Metric, ...] = ()
    # negative-powers-of-two: by rank alone; bounded: TempBalance's, linear between `bounds`; log2: of alpha and
    # stable_rank alone, which are 1 at least
    map: Map = "sqrt"
    inverse: bool = False  # the larger the metric, the smaller the rate
    noise: Noise = "none"  # in the place of what was measured, draws about it
    every: Annotated[int, Ge(1)] = 1  # epochs between two measurements
    bounds: tuple[Annotated[float, Ge(0)], Annotated[float, Gt(0)]] | None = None  # of the factors; bounded: 0.5, 1.5
    weight_decay: bool = False  # scale it as the rate, too
    definitions: Literal["weightwatcher", "tempbalance", "document"] = "weightwatcher"  # see `spectra`
    alpha: Estimator | None = None  # see `spectra`

    def __post_init__(self) -> None:
        if self.bounds is not None and self.bounds[0] > self.bounds[1]:
            raise ValueError(f"bounds: {list(self.bounds)} are in the wrong order; write [smallest, largest]")
        if len(set(self.watch)) < len(self.watch):
            raise ValueError(f"watch: {list(self.watch)} names one twice; give each once")
        if self.steers is None and (named := self._of_rates()):
            raise ValueError(f"watch: it alone changes no rate, so drop {named}, or give `metric`, too")
        if self.map == "log2" and (self.steers not in FROM_ONE or self.inverse):
            given = f"the inverse of {self.steers}" if self.inverse else self.steers
            raise ValueError(
                f"map: log2 is 0 and no rate for values up to 1, which {given} can have; use it with "
                f"{' or '.join(FROM_ONE)}, or take sqrt or bounded"
            )
        if self.noise == "normal-rate" and self.map != "linear":
            raise ValueError("map: noise: normal-rate draws the shares themselves; use map: linear with it")

    def _of_rates(self) -> str | None:
        """The first key that says something of rates."""
        keys = ("map", "inverse", "noise", "bounds", "weight_decay")
        defaults = {field.name: field.default for field in fields(self)}
        return next((key for key in keys if getattr(self, key) != defaults[key]), None)

    @property
    def steers(self) -> Metric | None:
        """The metric that rates follow; None where all layers have the same."""
        return self.metric or (None if self.watch else "alpha")

    def spectra(self, metrics: Sequence[Metric]) -> Spectra:
        """What is measured: nothing that these do not need."""
        null: Null | None = None if "rand_distance" in metrics else "none"
        return Spectra(definitions=self.definitions, alpha=self.alpha, null=null, marchenko_pastur=False)


def owners(network: fx.GraphModule) -> dict[nn.Parameter, str]:
    """The layer that each parameter goes with: its own, and of a batch norm the layer before it, else the next one.

    A norm that does not follow a layer directly (behind a concatenation or a sum) goes with the layer that reads it.
    Raises RecipeError for layers that share a parameter, which has one rate.
    """
    for name, module in network.named_modules():
        if isinstance(module, GroupedStack):
            raise RecipeError(
                f"layerwise_rates: {name} holds {module.layers} layers in one; train them with layout: masked"
            )
    layers = [weight.name for weight in weights_of(network)[0]]
    weights = {parameter_of(network, layer): layer for layer in layers}
    found: dict[nn.Parameter, str] = {}
    for name, parameter in network.named_parameters():
        own = weights.get(name) or next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        path, _, label = name.rpartition(".")
        if own is None and label == "in_proj_bias":  # of query, key and value, which may have three matrices
            own = next(iter(_within(path, layers)), None)
        if own is not None:
            found[parameter] = own
    nodes = [node for node in network.graph.nodes if node.op == "call_module"]
    for node in nodes:
        near = _near(node, layers, lambda n: n.all_input_nodes, -1) or _near(node, layers, lambda n: list(n.users), 0)
        for parameter in network.get_submodule(node.target).parameters():
            if near is not None:
                found.setdefault(parameter, near)
    return found


class LayerRates:
    """Factors of the groups of an optimiser, measured again every so many epochs, and the metrics that are watched.

    Factors are kept in the groups, with the metrics that they came of, so that the optimiser's state brings them back.
    weight_decay: of the optimiser. epochs: of the training.
    """

    def __init__(self, network: fx.GraphModule, options: LayerwiseRates, weight_decay: float, epochs: int) -> None:
        self._network, self._options, self._decay, self._epochs = network, options, weight_decay, epochs
        self._seconds = 0.0  # that measuring took in this epoch

    def measure(
        self, optimizer: torch.optim.Optimizer, epoch: int, rate: float, seed: int, device: torch.device
    ) -> None:
        """Sets the factors for epoch `epoch`, counted from 0, if their time has come.

        rate: of the schedule, at the start of the epoch. A layer whose metric cannot be found, or has no place in the
        map (0, where inverses are taken), keeps the schedule's.
        """
        began, metric = time.perf_counter(), self._options.steers
        if metric is not None and epoch % self._options.every == 0:
            values, found = self._factors(metric, rate, seed, device)
            for group in optimizer.param_groups:
                group["metric"], group["factor"] = values.get(group["layer"], np.nan), found.get(group["layer"], 1.0)
                if self._options.weight_decay and group["weight_decay"]:
                    group["weight_decay"] = self._decay * group["factor"]
        self._seconds = time.perf_counter() - began

    def row(self, optimizer: torch.optim.Optimizer, epoch: int, seed: int, device: torch.device) -> dict[str, float]:
        """Columns of an epoch: of each layer its metric and its factor, what is watched behind the epoch, and the
        seconds that measuring took."""
        began = time.perf_counter()
        groups = {group["layer"]: group for group in optimizer.param_groups if group.get("layer")}
        metrics = {f"{METRIC}{name}": group["metric"] for name, group in groups.items()}
        rates = {f"{RATE}{name}": group["factor"] for name, group in groups.items()}
        watched = self._watched(epoch, seed, device)
        return metrics | rates | watched | {SECONDS: self._seconds + time.perf_counter() - began}

    def _watched(self, epoch: int, seed: int, device: torch.device) -> dict[str, float]:
        """Of every `every`-th epoch and the last one; NaN in the others."""
        options = self._options
        if not options.watch:
            return {}
        due = (epoch + 1) % options.every == 0 or epoch + 1 == self._epochs
        found = self._measured(options.watch, seed, device) if due else {}
        layers = [weight.name for weight in weights_of(self._network)[0]]
        return {
            WATCHED.format(metric=metric, layer=layer): found.get(metric, {}).get(layer, math.nan)
            for metric in options.watch
            for layer in layers
        }

    def _factors(
        self, metric: Metric, rate: float, seed: int, device: torch.device
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The metric and the factor of each layer whose metric can be found."""
        options = self._options
        values = self._measured([metric], seed, device)[metric]
        values = {name: value for name, value in values.items() if np.isfinite(value)}
        if options.inverse and min(values.values(), default=1.0) >= 0:
            values = {name: value for name, value in values.items() if value > 0}  # 0 has no inverse
        if not values:
            return {}, {}
        drawn = disturbed(np.array(list(values.values())), options.noise, rate, np.random.default_rng(seed))
        if options.inverse and drawn.min() == 0:  # draws that were negative
            drawn = np.maximum(drawn, drawn[drawn > 0].min(initial=1.0))
        shares = factors(drawn, options.map, inverse=options.inverse, bounds=options.bounds)
        return values, dict(zip(values, shares.tolist(), strict=True))

    def _measured(self, metrics: Sequence[Metric], seed: int, device: torch.device) -> dict[Metric, dict[str, float]]:
        """By metric, of each layer whose spectrum is found."""
        rows, _ = spectra(weights_of(self._network)[0], self._options.spectra(metrics), seed=seed, device=device)
        return {metric: {row.name: float(getattr(row, metric)) for row in rows} for metric in metrics}


def _near(
    start: fx.Node, layers: Sequence[str], step: Callable[[fx.Node], Sequence[fx.Node]], place: int
) -> str | None:
    """The layer that a way without forks leads to; of several in one call, that at `place`, in their order."""
    nodes = step(start)
    while len(nodes) == 1:
        if inside := _layers_of(nodes[0], layers):
            return inside[place]
        nodes = step(nodes[0])
    return None


def _layers_of(node: fx.Node, layers: Sequence[str]) -> list[str]:
    """The layers whose weights a call multiplies by: a layer's own, or those within attention, or arguments."""
    read = [f"{source.target}".removesuffix(".weight") for source in node.all_input_nodes if source.op == "get_attr"]
    if node.op == "call_module":
        read = [*read, str(node.target)]
    own = [name for name in read if name in layers]
    return own or [layer for name in read for layer in _within(name, layers)]


def _within(module: str, layers: Sequence[str]) -> list[str]:
    return [layer for layer in layers if layer.rpartition(".")[0] == module]
