"""What a network's outputs lose when one of its sites alone is thinned: each time only what lies behind it is run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.utils._pytree import tree_map

from compresskit.graph.chains import weighted
from compresskit.graph.operations import calls_of
from compresskit.graph.shapes import Interpreter, evaluating
from compresskit.numerics.outputs import doubled
from compresskit.passes.held_out import Divergence, samples_in
from compresskit.passes.reconstruct.refitted import Layer

Layers = Mapping[str, Layer]  # by name


def losses_alone(
    network: fx.GraphModule,
    changes: Sequence[Layers],
    batches: Iterable[Tensor],
    divergence: Divergence,
    tell: Callable[[], None] = lambda: None,
) -> list[float]:
    """For each change, the mean divergence of the outputs from the network's own when these layers are in its place.

    tell: is called behind every change of every batch. A pass over the network keeps what later nodes read, and every
    change goes on from there with its layers: it costs the nodes from its first layer on. Memory: twice what the
    network itself holds at a time.
    """
    forks = _by_first_node(network, changes)
    totals, images = [torch.zeros((), dtype=torch.float64)] * len(changes), 0
    with torch.inference_mode(), evaluating(network, training_outputs=True):
        for inputs in batches:
            expected, count = doubled(network(inputs)), samples_in(inputs)
            for index, found in _Forking(network, changes, forks).outputs(inputs):
                totals[index] = totals[index] + divergence(doubled(found), expected) * count  # read at the end
                tell()
            images += count
    return (torch.stack(totals) / max(images, 1)).tolist() if totals else []


def _by_first_node(network: fx.GraphModule, changes: Sequence[Layers]) -> dict[fx.Node, list[int]]:
    place = {node: number for number, node in enumerate(network.graph.nodes)}
    forks: dict[fx.Node, list[int]] = {}
    for index, change in enumerate(changes):
        calls = [node for layer in change for node in calls_of(network, layer)]
        forks.setdefault(min(calls, key=place.__getitem__), []).append(index)
    return forks


class _Forking(Interpreter):
    """Runs a network up to each node where changes begin, and from there to the end for each of them."""

    def __init__(self, network: fx.GraphModule, changes: Sequence[Layers], forks: Mapping[fx.Node, list[int]]) -> None:
        super().__init__(network)
        self._changes, self._forks = changes, forks
        self._change: Layers = {}

    def outputs(self, inputs: Any) -> Iterable[tuple[int, Any]]:
        """(index of the change, outputs). inputs: a tensor, or a tuple of them where the network takes several."""
        nodes = list(self.graph.nodes)
        left = sum(map(len, self._forks.values()))
        self.args_iter = iter((inputs,))
        for place, node in enumerate(nodes):
            for index in self._forks.get(node, ()):
                kept = self.env
                self.env = {held: tree_map(_copy, value) for held, value in kept.items()}
                self._change = self._changes[index]
                for later in nodes[place:]:
                    self._step(later)
                yield index, self.env[nodes[-1]]
                self.env, self._change, left = kept, {}, left - 1
            if not left:
                return
            self._step(node)

    def _step(self, node: fx.Node) -> None:
        self.env[node] = self.run_node(node)
        for done in self.user_to_last_uses.get(node, ()):
            del self.env[done]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self._change.get(target)
        return super().call_module(target, args, kwargs) if layer is None else self._changed(target, layer, args)

    def _changed(self, target: str, layer: Layer, args: tuple[Any, ...]) -> Tensor:
        module = weighted(self.module, target)  # type: ignore[arg-type]
        weight = layer.weight.view_as(module.weight).to(module.weight)
        bias = layer.bias.to(module.weight)
        if module.bias is not None:
            found: Tensor = functional_call(module, {"weight": weight, "bias": bias}, args)
            return found
        found = functional_call(module, {"weight": weight}, args)
        dim = -1 if isinstance(module, torch.nn.Linear) else 1
        return found + bias.view([-1 if axis == dim % found.ndim else 1 for axis in range(found.ndim)])


def _copy(value: Any) -> Any:
    """Calls that work in place must not change what other changes start from."""
    return value.clone() if isinstance(value, Tensor) else value
