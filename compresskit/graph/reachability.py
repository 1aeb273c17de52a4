"""Which inputs of a layer have a path of kept weights to which outputs of the layers behind it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from compresskit.errors import UnsupportedModelError
from compresskit.graph.chains import WEIGHTED
from compresskit.graph.layers.grouped import ChannelPermutation, GroupedLinear
from compresskit.graph.masks import Masks
from compresskit.graph.operations import (
    ELEMENTWISE,
    ELEMENTWISE_MODULES,
    NORMS,
    REDUCING,
    SPATIAL,
    SPATIAL_MODULES,
    called,
)
from compresskit.graph.shapes import Interpreter, node_shapes
from compresskit.shapes import Shape

_WEIGHTED = (*WEIGHTED, GroupedLinear)
_RESHAPING = frozenset({"flatten", "view", "reshape", "squeeze", "unsqueeze"})
_JOINING = frozenset({"cat", "concat"})


@dataclass(frozen=True)
class Reachability:
    """matrices: by layer, `start` first, (outputs, inputs of `start`) bool: whether that input can influence it.

    For convolutions inputs and outputs are channels. Source: SAO, section IV-B and Figure 8, whose matrices are the
    transposed ones.
    """

    start: str
    matrices: dict[str, Tensor]

    @property
    def disconnected(self) -> dict[str, int]:
        """By layer, the pairs of an input of `start` and an output without a path."""
        return {name: matrix.numel() - int(matrix.sum()) for name, matrix in self.matrices.items()}

    @property
    def connected_from(self) -> tuple[int, str] | None:
        """Number, counted from 1 at `start`, and name of the first layer to which all inputs have all paths."""
        for number, (name, count) in enumerate(self.disconnected.items(), 1):
            if not count:
                return number, name
        return None


def reachability(network: fx.GraphModule, input_shape: Shape, masks: Masks, start: str | None = None) -> Reachability:
    """From the inputs of layer `start`; default: of the first layer that has as many outputs as inputs.

    A weight is a path if its mask keeps it or, without a mask, if it is not zero.
    Raises UnsupportedModelError where there is no such layer, and for an operation whose paths are not known.
    """
    first = start or _square(network)
    node = next(n for n in network.graph.nodes if n.op == "call_module" and n.target == first)
    walk = _Walk(network, node_shapes(network, input_shape), masks, node.all_input_nodes[0])
    walk.run(torch.empty(1, *input_shape))
    return Reachability(first, {first: walk.found.pop(first), **walk.found})


def _square(network: fx.GraphModule) -> str:
    for node in network.graph.nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _WEIGHTED) and len(module.weight) == module.weight.shape[1] * _groups(module):
            return str(node.target)
    raise UnsupportedModelError("no layer has as many outputs as inputs; name one as `start`")


class _Walk(Interpreter):
    """Carries (channels, inputs of start) bool matrices in place of values; None for what `start` does not reach."""

    def __init__(
        self, network: fx.GraphModule, shapes: dict[str, tuple[int, ...]], masks: Masks, source: fx.Node
    ) -> None:
        super().__init__(network)
        self.found: dict[str, Tensor] = {}
        self._shapes, self._masks, self._source = shapes, masks, source

    def run_node(self, n: fx.Node) -> Any:
        if n is self._source:
            return torch.eye(self._shapes[n.name][1], dtype=torch.bool)
        if n.op in ("placeholder", "get_attr"):
            return None
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        reached = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not reached or n.op == "output":
            return None
        if n.op == "call_module":
            return self._module(n, self.fetch_attr(str(n.target)), reached[0])
        return self._call(n, args, kwargs, reached)

    def _module(self, n: fx.Node, module: nn.Module, x: Tensor) -> Tensor:
        name, kind = str(n.target), type(module).__name__
        if isinstance(module, _WEIGHTED):
            passed = self._weighted(n, module, x)
            self.found.setdefault(name, passed)
            return passed
        if isinstance(module, NORMS) or kind in ELEMENTWISE_MODULES or kind in SPATIAL_MODULES:
            return x
        if isinstance(module, ChannelPermutation) and module.dim % len(self._shapes[n.name]) == 1:
            return x[module.indices().cpu()]
        if kind == "Flatten":
            return self._reshaped(n, x)
        raise _unknown(n, kind)

    def _weighted(self, n: fx.Node, module: Any, x: Tensor) -> Tensor:
        """(out, inputs of start): an output is reached where a kept tap reads what is reached."""
        if isinstance(module, nn.Linear | GroupedLinear) and len(self._shapes[n.name]) != 2:
            raise _unknown(n, "a linear layer on more than one dimension")
        mask = self._masks.get(f"{n.target}.weight")
        kept = (module.weight.detach() != 0 if mask is None else mask).cpu().flatten(2 if module.weight.ndim > 2 else 1)
        taps = kept.any(2) if kept.ndim > 2 else kept
        groups = _groups(module)
        return _paths(taps.unflatten(0, (groups, -1)), x.unflatten(0, (groups, -1))).flatten(0, 1)

    def _call(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], reached: list[Tensor]) -> Any:
        name = called(n)
        if name in ("size", "dim", "getattr", "numel"):
            return None
        if name in ELEMENTWISE and len({len(x) for x in reached} - {1}) < 2:
            return torch.stack(torch.broadcast_tensors(*reached)).any(0)
        if name in SPATIAL or (name in REDUCING and self._keeps_channels(n)):
            return reached[0]
        if name in _RESHAPING:
            return self._reshaped(n, reached[0])
        if name in _JOINING and self._dimension(n) == 1:
            return self._joined(n, args[0])
        if name == "chunk" and self._dimension(n) == 1:
            return torch.chunk(reached[0], args[1] if len(args) > 1 else kwargs["chunks"])
        if name == "getitem" and isinstance(args[0], tuple):
            return args[0][args[1]]
        raise _unknown(n, name)

    def _dimension(self, n: fx.Node) -> int:
        """Along which a call joins, or splits into as many parts as its second argument says."""
        place = 1 if called(n) in _JOINING else 2
        given: Any = n.kwargs.get("dim", n.args[place] if len(n.args) > place else 0)
        return int(given) % len(self._shapes[n.all_input_nodes[0].name])

    def _keeps_channels(self, n: fx.Node) -> bool:
        """Whether a mean over positions leaves the channels in their place."""
        before, after = self._shapes[n.all_input_nodes[0].name], self._shapes[n.name]
        return after[1:2] == before[1:2] and len(before) > 2

    def _reshaped(self, n: fx.Node, x: Tensor) -> Tensor:
        """Each channel as often as it has positions, where these become features."""
        shape, channels = self._shapes[n.name], len(x)
        if len(shape) > 2 and shape[1] == channels:
            return x
        if len(shape) == 2 and shape[1] % channels == 0:
            return x.repeat_interleave(shape[1] // channels, 0)
        raise _unknown(n, f"{called(n)} to {shape}")

    def _joined(self, n: fx.Node, parts: Any) -> Tensor:
        (inputs,) = {part.shape[1] for part in parts if part is not None}
        nodes = n.all_input_nodes
        return torch.cat(
            [
                torch.zeros(self._shapes[node.name][1], inputs, dtype=torch.bool) if part is None else part
                for node, part in zip(nodes, parts, strict=True)
            ]
        )


def _groups(module: Any) -> int:
    return int(getattr(module, "groups", 1))


def _paths(first: Tensor, then: Tensor) -> Tensor:
    """The product of boolean matrices with OR for + and AND for x; counts of paths are exact in float32 up to 2^24."""
    return first.float() @ then.float() > 0


def _unknown(n: fx.Node, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{n.target if n.op == 'call_module' else n.name}: paths through {what} are not known")
