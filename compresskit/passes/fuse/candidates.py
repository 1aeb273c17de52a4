"""Candidates: all chains that one layer could stand in for, each grown from its end against the flow."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from torch import fx

from compresskit.errors import UnsupportedModelError
from compresskit.graph.chains import (
    Chain,
    block_name,
    block_target,
    chain_from,
    chain_of,
    entering,
    is_weighted,
    refuse_shared,
    scope_of,
)


def candidates(network: fx.GraphModule, longest: int) -> tuple[list[Chain], dict[str, str]]:
    """All chains and blocks of 2 to `longest` weighted layers, shortest first, in the order of the network.

    And by name the layers that are in none of them, each with the reason why it makes none with the layer before it.
    """
    search = _Search(network, longest)
    found = search.pairs()
    for ends, chain in search.blocks().items():
        found.setdefault(ends, chain)
    place = search.place
    chains = [found[ends] for ends in sorted(found, key=lambda ends: (len(found[ends].layers), *map(place.get, ends)))]
    held = {layer for chain in chains for layer in chain.layers}
    return chains, search.reasons(held)


@dataclass(frozen=True)
class _Part:
    """What only `source` enters and only the last of `nodes`, which are in the order of the graph, leaves."""

    source: fx.Node
    nodes: list[fx.Node]
    layers: list[fx.Node]

    @property
    def ends(self) -> tuple[fx.Node, fx.Node]:
        return self.source, self.nodes[-1]

    def chain(self, name: str) -> Chain:
        return chain_from(self.source, self.nodes, self.layers, name)


class _Search:
    """place: of each node in the graph."""

    def __init__(self, network: fx.GraphModule, longest: int) -> None:
        self.place = {node: index for index, node in enumerate(network.graph.nodes)}
        self._network, self._longest = network, longest
        self._layers = [node for node in self.place if is_weighted(network, node)]
        self._weighted = set(self._layers)
        self._calls = Counter(str(layer.target) for layer in self._layers)

    def pairs(self) -> dict[tuple[fx.Node, fx.Node], Chain]:
        """By source and target, chains from the input of one layer to the output of another."""
        ends = [layer for layer in self._layers if self._calls[str(layer.target)] == 1]
        parts = [part for target in ends for part in self._parts(target) if self._starts_with_a_layer(part)]
        return {part.ends: part.chain(str(part.nodes[-1].target)) for part in parts}

    def blocks(self) -> dict[tuple[fx.Node, fx.Node], Chain]:
        """By source and target, chains that are submodules; the outermost one's where several have the same ends."""
        found: dict[tuple[fx.Node, fx.Node], Chain] = {}
        for scope, inside in self._scopes().items():
            sources, target = entering(inside), block_target(self._network, inside)
            for part in self._parts(target) if len(sources) == 1 else ():
                if part.source in sources:
                    found.setdefault(part.ends, part.chain(block_name(scope, target)))
        return found

    def reasons(self, held: set[str]) -> dict[str, str]:
        """Of the layers that no chain holds."""
        before = zip([None, *self._layers], self._layers, strict=False)
        return {
            str(layer.target): self._reason(previous, layer) for previous, layer in before if layer.target not in held
        }

    def _reason(self, start: fx.Node | None, target: fx.Node) -> str:
        try:
            if start is not None:
                for layer in (start, target):
                    refuse_shared(str(layer.target), self._calls[str(layer.target)])
                chain_of(self._network, start, target)
        except UnsupportedModelError as error:
            return str(error)
        return f"no chain of up to {self._longest} layers holds it"

    def _parts(self, target: fx.Node) -> Iterator[_Part]:
        """All that end with `target` and hold 2 to `longest` layers, smallest first.

        Nodes join latest first. Then whoever reads a node and leads to `target` has joined before it: a node that
        another one reads can only be the source, and is that if nothing else waits.
        """
        joined, layers = [], []
        queued, waiting = {target}, [(0, target)]
        while True:
            node = heappop(waiting)[1]
            inputs = [read for read in node.all_input_nodes if read.op != "get_attr"]
            if not inputs or (node is not target and not queued.issuperset(node.users)):
                return
            joined.append(node)
            if node in self._weighted:
                layers.append(node)
            if len(layers) > self._longest:
                return
            for read in inputs:
                if read not in queued:
                    queued.add(read)
                    heappush(waiting, (-self.place[read], read))
            if len(waiting) == 1 and len(layers) > 1:
                yield _Part(waiting[0][1], joined[::-1], layers[::-1])

    def _starts_with_a_layer(self, part: _Part) -> bool:
        """Which is called once, and reads the source alone."""
        return any(
            layer.all_input_nodes == [part.source] and self._calls[str(layer.target)] == 1 for layer in part.layers
        )

    def _scopes(self) -> dict[str, list[fx.Node]]:
        """The nodes of each module with weighted layers in it, outer modules first."""
        inside: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self.place:
            for scope in _prefixes(scope_of(node)):
                inside[scope].append(node)
        scopes = dict.fromkeys(scope for layer in self._layers for scope in _prefixes(str(layer.target))[:-1])
        return {scope: inside[scope] for scope in scopes}


def _prefixes(path: str) -> list[str]:
    """a, a.b and a.b.c of a.b.c; of an empty path none."""
    parts = path.split(".") if path else []
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]
