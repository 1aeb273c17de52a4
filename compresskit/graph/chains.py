"""Chains: the part of a network from one activation to one pre-activation, which a single layer can stand in for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from compresskit.errors import RecipeError, UnsupportedModelError, near_names
from compresskit.graph.operations import calls_of

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# What follows a layer and stays when the layer is fused: the last layer's batch norm and activation.
KEPT_MODULES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Identity),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.PReLU),
)
KEPT_FUNCTIONS = {"relu", "relu_", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "sigmoid", "tanh", "elu", "selu"}


@dataclass(frozen=True)
class Chain:
    """Nodes by name: `source` carries the activation that enters, `target` the pre-activation that leaves.

    nodes: those that fusing removes, in the order of the graph, target last. layers: the weighted modules among them.
    name: the module that will hold the fused layer.
    """

    name: str
    source: str
    target: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]

    def __str__(self) -> str:
        name = "+".join(self.layers)
        return name if self.name == self.layers[-1] else f"{name}+{self.target}"


def find_chain(network: fx.GraphModule, first: str, last: str | None = None) -> Chain:
    """Chain from the input of `first` to the output of `last`, both names of layers (or of nodes, for `last`).

    With `last` None, `first` names a block: all nodes that come from that submodule, less the batch norm and the
    activation at its end. Raises UnsupportedModelError where the chain has another way in or out, says which, and
    RecipeError for names that there are not, or that come in the wrong order.
    """
    if last is None:
        return _block(network, first)
    start, target = _called_once(network, first), _called_once(network, last)
    if target in closure(start, lambda node: node.all_input_nodes):
        raise RecipeError(f"fuse: {first} comes behind {last} in the network; write [{last}, {first}]")
    return chain_of(network, start, target)


def chain_of(network: fx.GraphModule, start: fx.Node, target: fx.Node) -> Chain:
    """Chain from the input of layer `start` to the output of `target`; raises UnsupportedModelError as `find_chain`."""
    first, last = (str(node.target) if node.op == "call_module" else node.name for node in (start, target))
    if len(start.all_input_nodes) != 1:
        raise UnsupportedModelError(f"{first}: it reads {len(start.all_input_nodes)} activations; fusing needs one")
    (source,) = start.all_input_nodes
    chain = between(network, source, target, last if target.op == "call_module" else first)
    if start.name not in chain.nodes:
        raise UnsupportedModelError(f"{first} does not lead to {last}; give the layers in the order of the network")
    return chain


def between(network: fx.GraphModule, source: fx.Node, target: fx.Node, name: str) -> Chain:
    """Chain of all nodes on a path from `source` to `target`, if nothing else enters or leaves."""
    nodes = _on_paths(source, target)
    inside = set(nodes)
    label = f"the chain that ends with {target.target if target.op == 'call_module' else target.name}"
    for node in nodes:
        for other in node.all_input_nodes:
            if other is not source and other not in inside and other.op != "get_attr":
                raise UnsupportedModelError(f"{label}: {node.name} also reads {other.name} from outside of it")
        if node is not target and (outer := next((user for user in node.users if user not in inside), None)):
            raise UnsupportedModelError(f"{label}: {outer.name}, outside of it, also reads {node.name}")
    layers = [node for node in nodes if is_weighted(network, node)]
    if len(layers) < 2:
        found = ", ".join(str(node.target) for node in layers) or "none"
        raise UnsupportedModelError(
            f"{label}: fusing needs two convolutions or linear layers, or more, and it has {found} (transposed "
            "convolutions do not count)"
        )
    return chain_from(source, nodes, layers, name)


def chain_from(source: fx.Node, nodes: Sequence[fx.Node], layers: Sequence[fx.Node], name: str) -> Chain:
    """nodes: in the order of the graph, the last one the target; layers: the weighted ones among them."""
    return Chain(
        name,
        source.name,
        nodes[-1].name,
        tuple(node.name for node in nodes),
        tuple(str(node.target) for node in layers),
    )


def _on_paths(source: fx.Node, target: fx.Node) -> list[fx.Node]:
    """Nodes behind `source` that lead to `target`, in the order of the graph; no node outside of the two is visited."""
    leading, node = {target}, target
    window: list[fx.Node] = []
    while node is not source and node.op != "root":  # fx's own mark of the ends of the list
        if node in leading:
            leading.update(node.all_input_nodes)
            window.append(node)
        node = node.prev
    after = {source}
    for node in reversed(window):
        if not after.isdisjoint(node.all_input_nodes):
            after.add(node)
    return [node for node in reversed(window) if node in after]


def weighted(network: fx.GraphModule, name: str) -> Weighted:
    """The convolution or linear layer of that name; of the names in `Chain.layers`, all are."""
    module = network.get_submodule(name)
    assert isinstance(module, WEIGHTED)
    return module


def closure(start: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """All nodes that repeated steps from `start` reach, such as all its users; without `start` itself."""
    reached: set[fx.Node] = set()
    pending = list(step(start))
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending.extend(step(node))
    return reached


def _block(network: fx.GraphModule, name: str) -> Chain:
    inside = [node for node in network.graph.nodes if f"{scope_of(node)}.".startswith(f"{name}.")]
    if not inside:
        scopes = {str(node.meta.get("scope", "")) for node in network.graph.nodes} - {""}
        raise RecipeError(f"fuse: no block is named {name!r}; {near_names(name, scopes)}")
    sources = entering(inside)
    if len(sources) != 1:
        names = ", ".join(sorted(node.name for node in sources))
        raise UnsupportedModelError(f"block {name}: it reads {len(sources)} activations ({names}); fusing needs one")
    target = block_target(network, inside)
    return between(network, sources.pop(), target, block_name(name, target))


def entering(inside: Sequence[fx.Node]) -> set[fx.Node]:
    """Activations that the nodes of a block read from outside of it."""
    own = set(inside)
    return {read for node in inside for read in node.all_input_nodes if read not in own and read.op != "get_attr"}


def block_target(network: fx.GraphModule, inside: Sequence[fx.Node]) -> fx.Node:
    """The last node of a block before the batch norm and the activation at its end."""
    target = inside[-1]
    while _is_kept(network, target) and target.all_input_nodes[0] in inside:
        target = target.all_input_nodes[0]
    return target


def block_name(scope: str, target: fx.Node) -> str:
    """Of the module that will hold the layer fused from a block."""
    return str(target.target) if target.op == "call_module" else f"{scope}.fused"


def _called_once(network: fx.GraphModule, name: str) -> fx.Node:
    nodes = calls_of(network, name) or [
        node for node in network.graph.nodes if node.name == name and node.op != "placeholder"
    ]
    if not nodes:
        known = {str(n.target) if n.op == "call_module" else n.name for n in network.graph.nodes}
        raise RecipeError(f"fuse: no layer is named {name!r}; {near_names(name, known)}")
    refuse_shared(name, len(nodes))
    return nodes[0]


def refuse_shared(name: str, calls: int) -> None:
    if calls > 1:
        raise UnsupportedModelError(f"{name}: it is called {calls} times; a shared layer cannot be fused")


def scope_of(node: fx.Node) -> str:
    """Path of the module that a node calls or, of a function, that calls it; "" for what belongs to no module."""
    if node.op in ("placeholder", "output", "get_attr"):
        return ""
    return str(node.target if node.op == "call_module" else node.meta.get("scope", ""))


def is_weighted(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), WEIGHTED)


def _is_kept(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), KEPT_MODULES)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in KEPT_FUNCTIONS
