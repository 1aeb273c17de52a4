"""Candidates found the slow way, as a reference: every pair of layers and every block is tried by name."""

from torch import fx

from compresskit.errors import UnsupportedModelError
from compresskit.graph.chains import KEPT_FUNCTIONS, KEPT_MODULES, WEIGHTED, Chain, closure
from compresskit.graph.operations import calls_of


def all_pairs(network: fx.GraphModule, longest: int) -> tuple[list[Chain], dict[str, str]]:
    """What passes/fuse/candidates.py says of a network; two closures for each pair of layers."""
    layers = [node for node in network.graph.nodes if _is_weighted(network, node)]
    found: dict[tuple[str, str], Chain] = {}
    reasons = {str(layer.target): f"no chain of up to {longest} layers holds it" for layer in layers}

    def propose(start: fx.Node | None, target: fx.Node | None, scope: str = "") -> None:
        try:
            chain = _block(network, scope) if scope else _pair(network, start, target)
        except UnsupportedModelError as error:
            reasons[scope or str(target.target)] = str(error)
        else:
            if len(chain.layers) <= longest:
                found.setdefault((chain.source, chain.target), chain)

    for index, target in enumerate(layers):
        for start in layers[:index]:
            propose(start, target)
    for scope in dict.fromkeys(scope for layer in layers for scope in _ancestry(str(layer.target))):
        propose(None, None, scope)
    order = {node.name: index for index, node in enumerate(network.graph.nodes)}
    chains = sorted(found.values(), key=lambda chain: (len(chain.layers), order[chain.source], order[chain.target]))
    held = {layer for chain in chains for layer in chain.layers}
    return chains, {str(layer.target): reasons[str(layer.target)] for layer in layers if layer.target not in held}


def _pair(network: fx.GraphModule, start: fx.Node, target: fx.Node) -> Chain:
    for layer in (start, target):
        if (calls := len(calls_of(network, str(layer.target)))) > 1:
            raise UnsupportedModelError(f"{layer.target}: it is called {calls} times; a shared layer cannot be fused")
    if len(start.all_input_nodes) != 1:
        raise UnsupportedModelError(
            f"{start.target}: it reads {len(start.all_input_nodes)} activations; fusing needs one"
        )
    chain = _between(network, start.all_input_nodes[0], target, str(target.target))
    if start.name not in chain.nodes:
        raise UnsupportedModelError(
            f"{start.target} does not lead to {target.target}; give the layers in the order of the network"
        )
    return chain


def _between(network: fx.GraphModule, source: fx.Node, target: fx.Node, name: str) -> Chain:
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
        found = ", ".join(layers) or "none"
        raise UnsupportedModelError(
            f"{label}: fusing needs two convolutions or linear layers, or more, and it has {found} (transposed "
            "convolutions do not count)"
        )
    return Chain(name, source.name, target.name, tuple(node.name for node in inside), layers)


def _block(network: fx.GraphModule, name: str) -> Chain:
    inside = [node for node in network.graph.nodes if _within(node, name)]
    sources = {n for node in inside for n in node.all_input_nodes if n not in inside and n.op != "get_attr"}
    if len(sources) != 1:
        raise UnsupportedModelError(f"block {name}: it reads {len(sources)} activations")
    target = inside[-1]
    while _is_kept(network, target) and target.all_input_nodes[0] in inside:
        target = target.all_input_nodes[0]
    fused = str(target.target) if target.op == "call_module" else f"{name}.fused"
    return _between(network, sources.pop(), target, fused)


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
