"""Chains: the part of a network from one activation to one pre-activation, which a single layer can stand in for."""

from collections.abc import Callable, Iterable
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
    start = _called_once(network, first)
    if len(start.all_input_nodes) != 1:
        raise UnsupportedModelError(f"{first}: it reads {len(start.all_input_nodes)} activations; fusing needs one")
    (source,) = start.all_input_nodes
    target = _called_once(network, last)
    if target is source or target in closure(start, lambda node: node.all_input_nodes):
        raise RecipeError(f"fuse: {first} comes behind {last} in the network; write [{last}, {first}]")
    name = last if target.op == "call_module" else first
    chain = between(network, source, target, name)
    if start.name not in chain.nodes:
        raise UnsupportedModelError(f"{first} does not lead to {last}; give the layers in the order of the network")
    return chain


def between(network: fx.GraphModule, source: fx.Node, target: fx.Node, name: str) -> Chain:
    """Chain of all nodes on a path from `source` to `target`, if nothing else enters or leaves."""
    after = closure(source, lambda node: node.users)
    before = closure(target, lambda node: node.all_input_nodes)
    inside = [node for node in network.graph.nodes if node in after and (node in before or node is target)]
    label = f"the chain that ends with {target.target if target.op == 'call_module' else target.name}"
    for node in inside:
        for other in node.all_input_nodes:
            if other is not source and other not in inside and other.op != "get_attr":
                raise UnsupportedModelError(f"{label}: {node.name} also reads {other.name} from outside of it")
        if node is not target and any(user not in inside for user in node.users):
            outer = next(user.name for user in node.users if user not in inside)
            raise UnsupportedModelError(f"{label}: {outer}, outside of it, also reads {node.name}")
    layers = tuple(str(node.target) for node in inside if _is_weighted(network, node))
    if len(layers) < 2:
        raise UnsupportedModelError(f"{label}: it holds {len(layers)} weighted layers; fusing needs two or more")
    return Chain(name, source.name, target.name, tuple(node.name for node in inside), layers)


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


def candidates(network: fx.GraphModule, longest: int) -> tuple[list[Chain], dict[str, str]]:
    """All chains and blocks of 2 to `longest` weighted layers, shortest first, in the order of the network.

    And by name the layers that are in none of them, each with the reason why not.
    """
    layers = [node for node in network.graph.nodes if _is_weighted(network, node)]
    found: dict[tuple[str, str], Chain] = {}
    reasons = {str(layer.target): f"no chain of up to {longest} layers holds it" for layer in layers}

    def propose(first: str, last: str | None = None) -> None:
        try:
            chain = find_chain(network, first, last)
        except UnsupportedModelError as error:
            reasons[last or first] = str(error)
        else:
            if len(chain.layers) <= longest:
                found.setdefault((chain.source, chain.target), chain)

    for index, target in enumerate(layers):
        for start in layers[:index]:
            propose(str(start.target), str(target.target))
    for scope in dict.fromkeys(scope for layer in layers for scope in _ancestry(str(layer.target))):
        propose(scope)
    order = {node.name: index for index, node in enumerate(network.graph.nodes)}
    chains = sorted(found.values(), key=lambda chain: (len(chain.layers), order[chain.source], order[chain.target]))
    held = {layer for chain in chains for layer in chain.layers}
    return chains, {str(layer.target): reasons[str(layer.target)] for layer in layers if layer.target not in held}


def _block(network: fx.GraphModule, name: str) -> Chain:
    inside = [node for node in network.graph.nodes if _within(node, name)]
    if not inside:
        scopes = {str(node.meta.get("scope", "")) for node in network.graph.nodes} - {""}
        raise RecipeError(f"fuse: no block is named {name!r}; {near_names(name, scopes)}")
    sources = {n for node in inside for n in node.all_input_nodes if n not in inside and n.op != "get_attr"}
    if len(sources) != 1:
        names = ", ".join(sorted(node.name for node in sources))
        raise UnsupportedModelError(f"block {name}: it reads {len(sources)} activations ({names}); fusing needs one")
    target = inside[-1]
    while _is_kept(network, target) and target.all_input_nodes[0] in inside:
        target = target.all_input_nodes[0]
    fused = str(target.target) if target.op == "call_module" else f"{name}.fused"
    return between(network, sources.pop(), target, fused)


def _called_once(network: fx.GraphModule, name: str) -> fx.Node:
    nodes = calls_of(network, name) or [
        node for node in network.graph.nodes if node.name == name and node.op != "placeholder"
    ]
    if not nodes:
        known = {str(n.target) if n.op == "call_module" else n.name for n in network.graph.nodes}
        raise RecipeError(f"fuse: no layer is named {name!r}; {near_names(name, known)}")
    if len(nodes) > 1:
        raise UnsupportedModelError(f"{name}: it is called {len(nodes)} times; a shared layer cannot be fused")
    return nodes[0]


def _ancestry(target: str) -> list[str]:
    parts = target.split(".")[:-1]
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def _within(node: fx.Node, scope: str) -> bool:
    path = str(node.target if node.op == "call_module" else node.meta.get("scope", ""))
    return node.op not in ("placeholder", "output", "get_attr") and f"{path}.".startswith(f"{scope}.")


def _is_weighted(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), WEIGHTED)


def _is_kept(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), KEPT_MODULES)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in KEPT_FUNCTIONS
