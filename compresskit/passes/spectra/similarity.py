"""How alike the layers of one network, or of two, represent the same samples."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, fx

from compresskit.graph.capture import capture
from compresskit.graph.shapes import evaluating
from compresskit.numerics.spectra.cka import BatchedCKA


def similarity(
    first: fx.GraphModule,
    second: fx.GraphModule | None,
    layers: tuple[Sequence[str], Sequence[str]],
    batches: Iterable[Tensor],
    on_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """CKA of the outputs of `layers`, (of the first, of the second); of the first with itself where there is no second.

    Networks run in eval mode. Raises ValueError for batches of less than 4 samples.
    """
    networks = [first] if second is None else [first, second]
    parts = [capture(network, _nodes(network, names)) for network, names in zip(networks, layers, strict=False)]
    found = BatchedCKA()
    for inputs in batches:
        features = []
        for part in parts:
            with torch.inference_mode(), evaluating(part):
                features.append(part(inputs))
        found.add(*features)
        on_batch()
    return found.similarity()


def _nodes(network: fx.GraphModule, layers: Sequence[str]) -> list[str]:
    """Names of the nodes that call these layers first."""
    nodes: dict[str, str] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            nodes.setdefault(str(node.target), node.name)
    return [nodes[layer] for layer in layers]
