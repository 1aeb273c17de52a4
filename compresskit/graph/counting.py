"""Parameters and multiply-accumulates of a network, layer by layer, without computing a number."""

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compresskit.graph.chains import WEIGHTED
from compresskit.graph.layers.expanded import Expanded
from compresskit.graph.layers.plain import known_value
from compresskit.graph.shapes import example
from compresskit.shapes import Shape

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


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
class Use:
    """A product by a weight, or by a part of it: the entries that `as_strided` takes from it, each as often as any
    other. macs: of all entries together."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    macs: int

    def of(self, entries: Tensor) -> Tensor:
        """What it reads of a tensor in the shape of the weight."""
        return entries.contiguous().as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class Counts:
    """Of a whole network: parameters (shared ones once), multiply-accumulates for one sample, and its layers.

    uses: by name of a parameter, the products that read it as it is, or moved; not those of what is computed from it.
    """

    parameters: int
    macs: int
    layers: list[LayerCount]
    uses: dict[str, list[Use]]


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
    parameters = sum(p.numel() for p in network.parameters())
    return Counts(parameters, sum(layer.macs for layer in layers), layers, dict(counter.uses))


def _without_values(network: fx.GraphModule) -> fx.GraphModule:
    """A copy whose tensors lie on the meta device; theirs are never copied."""
    tensors = [*network.parameters(), *network.buffers()]
    ghost = copy.deepcopy(network, {id(tensor): _on_meta(tensor) for tensor in tensors})
    for module in ghost.modules():
        if isinstance(module, Expanded):
            module.mode = "sequential"
    return ghost


def _on_meta(tensor: Tensor) -> Tensor:
    ghost = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # contiguous, whatever the tensor is
    return nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost


class _Counter(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.layers: dict[str, LayerCount] = {}
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self._seen: set[int] = set()
        self._names: dict[int, list[str]] = defaultdict(list)
        for name, parameter in network.named_parameters(remove_duplicate=False):
            self._names[_memory(parameter)].append(name)

    def run_node(self, n: fx.Node) -> Any:
        if (known := self._known(n)) is not None:
            return known
        if n.op in ("placeholder", "output", "get_attr"):
            value, macs = super().run_node(n), 0
        else:
            value, macs = self._counted(n)
        first = value[0] if isinstance(value, tuple) and value else value  # attention returns its weights as well
        if n.op not in ("placeholder", "output") and isinstance(first, Tensor):
            self._note(n, first, macs)
        return value

    def _counted(self, n: fx.Node) -> tuple[Any, int]:
        """A value with the multiply-accumulates of the products that make it."""
        from torch.utils.flop_counter import FlopCounterMode  # loads a compiler, which plain layers do without

        flops = FlopCounterMode(display=False)
        with flops, _Products(flops, self._used):
            value = super().run_node(n)
        return value, flops.get_total_flops() // 2

    def _known(self, n: fx.Node) -> Tensor | None:
        """What a plain layer gives, counted; a weighted one reads its weight for each position of the output."""
        if n.op != "call_module":
            return None
        module: Any = self.fetch_attr(str(n.target))
        value = known_value(module, *self.fetch_args_kwargs_from_env(n))
        if value is None:
            return None
        macs = value.numel() * module.weight[0].numel() if isinstance(module, WEIGHTED) else 0
        if macs:
            self._used(module.weight, macs)
        self._note(n, value, macs)
        return value

    def _used(self, tensor: Tensor, macs: int) -> None:
        dims = [dim for dim in range(tensor.ndim) if tensor.stride(dim)]  # those that repeat the same entries have none
        size, stride = (tuple(of[dim] for dim in dims) for of in (tensor.shape, tensor.stride()))
        for name in self._names.get(_memory(tensor), ()):
            self.uses[name].append(Use(size, stride, int(tensor.storage_offset()), macs))

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


class _Products(TorchDispatchMode):
    """Tells of each tensor that a product multiplies by how many multiply-accumulates that takes."""

    def __init__(self, flops: "FlopCounterMode", tell: Callable[[Tensor, int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops, self._tell = flops, tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._flops.get_total_flops()
        value = func(*args, **(kwargs or {}))
        macs = (self._flops.get_total_flops() - before) // 2
        if macs and (factors := _FACTORS.get(func.overloadpacket.__name__)):
            for factor in args[factors]:
                self._tell(factor, macs)
        return value


# Where the factors of a product are among its arguments: what else there is, is added.
_FACTORS = {
    **dict.fromkeys(("mm", "bmm", "convolution"), slice(0, 2)),
    **dict.fromkeys(("addmm", "baddbmm"), slice(1, 3)),
}


def _memory(tensor: Tensor) -> int:
    """What tensors have in common that are views of each other."""
    return int(tensor.untyped_storage()._cdata)
