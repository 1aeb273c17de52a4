"""The size of a network by which of its channels are alive, without cutting it."""

from collections.abc import Callable
from math import prod

from torch import Tensor, fx, nn

from compresskit.graph.channels.walk import Channels, Operand
from compresskit.graph.counting import LayerCount, count
from compresskit.graph.format.table import named_tensors
from compresskit.graph.layers.windows import WindowAttention
from compresskit.graph.operations import EXECUTED, called
from compresskit.shapes import Shape

Term = Callable[[Tensor], float]  # multiply-accumulates with these atoms alive


class CutSizes:
    """Parameters, multiply-accumulates and channels of a network by what is alive.

    What a layer costs is in proportion to the entries of its weight; a product of activations to the product of its
    sizes; attention as one module to both. They are those of the cut network exactly.
    """

    def __init__(self, network: fx.GraphModule, channels: Channels, input_shape: Shape) -> None:
        self._channels = channels
        tensors: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in named_tensors(network):
            if isinstance(tensor, nn.Parameter):
                tensors.setdefault(id(tensor), (name, tensor))
        self._shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(network)}
        self._parameters = [name for name, _ in tensors.values()]
        nodes = {str(node.target) if node.op == "call_module" else node.name: node for node in network.graph.nodes}
        counted = [layer for layer in count(network, input_shape).layers if layer.macs]
        self._terms = [self._term(network, layer, nodes[layer.name]) for layer in counted]

    def __call__(self, goal: str, alive: Tensor) -> float:
        """`params`, `macs` or `channels` (outputs of layers) with these atoms, (n_atoms,) bool."""
        if goal == "channels":
            return float(sum(int(alive[atoms].sum()) for atoms in self._channels.writes.values()))
        if goal == "macs":
            return float(sum(term(alive) for term in self._terms))
        return float(sum(self._entries(name, alive) for name in self._parameters))

    def _term(self, network: fx.GraphModule, layer: LayerCount, node: fx.Node) -> Term:
        """What the node costs."""
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.MultiheadAttention):
            width = module.embed_dim
            tokens = round((width**2 + layer.macs / (2 * width)) ** 0.5 - width)  # macs = 4 T C^2 + 2 T^2 C
            return self._attention(
                layer.macs, [f"{layer.name}.in_proj_weight", f"{layer.name}.out_proj.weight"], tokens
            )
        if isinstance(module, WindowAttention):
            weights = [str(source.target) for source in node.all_input_nodes[1:3]]
            return self._attention(layer.macs, weights, prod(module.window_size))
        if node.name in self._channels.products:
            return _product(node, layer.macs, self._channels.products[node.name])
        weight = f"{layer.name}.weight" if module is not None else _weight_of(network, node)
        if weight not in self._shapes:
            return lambda alive: layer.macs
        each = layer.macs / prod(self._shapes[weight])
        mixes = self._channels.mixed.get(node.name)  # whose positions are channels of others
        if mixes is None:
            return lambda alive: each * self._entries(weight, alive)
        calls = prod(mixes.shape[:-1])
        return lambda alive: each * self._entries(weight, alive) * prod(mixes.left(alive)[:-1]) / calls

    def _attention(self, macs: int, weights: list[str], positions: int) -> Term:
        """Of a module that makes query, key and value of one input by the first weight, in this order, lets each
        position look at so many, and leads the result through the second weight."""
        packed, _ = weights
        third = self._shapes[packed][0] // 3
        everything = prod(self._shapes[packed]) + third**2 + 2 * third * positions
        each = macs / everything
        rows = self._channels.slots.get((packed, 0))

        def term(alive: Tensor) -> float:
            kept = 2 * third if rows is None else int(alive[rows[:third]].sum()) + int(alive[rows[2 * third :]].sum())
            return each * (sum(self._entries(name, alive) for name in weights) + kept * positions)

        return term

    def _entries(self, name: str, alive: Tensor) -> int:
        entries = 1
        for dim, size in enumerate(self._shapes[name]):
            atoms = self._channels.slots.get((name, dim))
            entries *= size if atoms is None else int(alive[atoms].sum())
        return entries


def _product(node: fx.Node, macs: int, operands: tuple[Operand, ...]) -> Term:
    """In proportion to what its sizes multiply to."""
    sizes = _SIZES.get(called(node), _matmul)
    whole = sizes(node, [operand.shape for operand in operands])
    return lambda alive: macs * sizes(node, [operand.left(alive) for operand in operands]) / whole


def _matmul(node: fx.Node, shapes: list[tuple[int, ...]]) -> int:
    """a[..., i, k] b[..., k, j] with a batch that both have, or one of them."""
    first, second = shapes[-2:]
    batch = [max(sizes) for sizes in zip(_padded(first), _padded(second), strict=True)]
    return prod(batch) * prod(first[-2:]) * (second[-1] if len(second) > 1 else 1)


def _einsum(node: fx.Node, shapes: list[tuple[int, ...]]) -> int:
    letters = str(node.args[0]).replace(" ", "").partition("->")[0].split(",")
    return prod(
        {one: n for own, shape in zip(letters, shapes, strict=True) for one, n in zip(own, shape, strict=True)}.values()
    )


def _attention(node: fx.Node, shapes: list[tuple[int, ...]]) -> int:
    query, key, value = shapes[:3]
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_SIZES: dict[str, Callable[[fx.Node, list[tuple[int, ...]]], int]] = {
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
_DIMS = 8


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What stands before the last two dimensions, with ones before it."""
    batch = shape[:-2]
    return (1,) * (_DIMS - len(batch)) + batch


def _weight_of(network: fx.GraphModule, node: fx.Node) -> str:
    """The tensor of the network that a call reads as its weight, moved at most: the largest; "" where there is none."""
    found: list[str] = []
    for source in node.all_input_nodes:
        while source.op != "get_attr" and len(source.all_input_nodes) == 1 and called(source) in EXECUTED:
            (source,) = source.all_input_nodes
        found += [str(source.target)] if source.op == "get_attr" else []
    sizes = dict(named_tensors(network))
    return max(found, key=lambda name: sizes[name].numel() if name in sizes else 0, default="")
