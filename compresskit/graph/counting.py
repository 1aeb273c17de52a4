"""Parameters and multiply-accumulates of a network, layer by layer, without computing a number."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from compresskit.graph.layers.expanded import Expanded
from compresskit.graph.shapes import example
from compresskit.models.calling import Shape


@dataclass(frozen=True)
class LayerCount:
    """A module that is called, a call that multiplies, or a parameter that calls read; all for one sample.

    weight_shape: None where there is no weight. output_shape: without the batch dimension, of the last call.
    macs: multiply-accumulates of convolutions and matrix products (of all calls); a bias or a norm costs none.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """Of a whole network: parameters (shared ones once), multiply-accumulates for one sample, and its layers."""

    parameters: int
    macs: int
    layers: list[LayerCount]


def count(network: fx.GraphModule, input_shape: Shape) -> Counts:
    """Counts of one forward pass in eval mode.

    input_shape: of one sample. The network itself is not run: a copy without values passes through torch's own FLOP
    counter (2 FLOPs a multiply-accumulate) on the meta device. Expanded layers count as their factors one after
    another, as ExpandNets counts them. Raises RuntimeError where the shapes do not fit.
    """
    ghost = _without_values(network).eval()
    counter = _Counter(ghost)
    with torch.no_grad(), torch.device("meta"):
        counter.run(example(ghost, input_shape))
    layers = [layer for layer in counter.layers.values() if layer.parameters or layer.macs]
    return Counts(sum(p.numel() for p in network.parameters()), sum(layer.macs for layer in layers), layers)


def _without_values(network: fx.GraphModule) -> fx.GraphModule:
    """A copy whose tensors lie on the meta device; theirs are never copied."""
    tensors = [*network.parameters(), *network.buffers()]
    ghost = copy.deepcopy(network, {id(tensor): _on_meta(tensor) for tensor in tensors})
    for module in ghost.modules():
        if isinstance(module, Expanded):
            module.mode = "sequential"
    return ghost


def _on_meta(tensor: Tensor) -> Tensor:
    ghost = tensor.detach().to("meta")
    return nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost


class _Counter(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.layers: dict[str, LayerCount] = {}
        self._seen: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        flops = FlopCounterMode(display=False)
        with flops:
            value = super().run_node(n)
        first = value[0] if isinstance(value, tuple) and value else value  # attention returns its weights as well
        if n.op not in ("placeholder", "output") and isinstance(first, Tensor):
            self._note(n, first, flops.get_total_flops() // 2)
        return value

    def _note(self, node: fx.Node, value: Tensor, macs: int) -> None:
        name, kind, parameters = node.name, str(getattr(node.target, "__name__", node.target)), [value]
        weight: Any = None
        if node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            name, kind = str(node.target), type(module).__name__
            weight, parameters = getattr(module, "weight", None), list(module.parameters())
        elif node.op == "get_attr":
            name, kind, weight = str(node.target), "Parameter", value
        new = [p for p in parameters if isinstance(p, nn.Parameter) and id(p) not in self._seen]
        self._seen |= {id(p) for p in new}
        earlier = self.layers.get(name)
        self.layers[name] = LayerCount(
            name,
            kind,
            None if weight is None else tuple(weight.shape),
            tuple(value.shape) if node.op == "get_attr" else tuple(value.shape[1:]),
            sum(p.numel() for p in new) + (earlier.parameters if earlier else 0),
            macs + (earlier.macs if earlier else 0),
        )
