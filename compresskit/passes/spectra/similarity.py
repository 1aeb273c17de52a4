"""How alike the layers of one network, or of two, represent the same samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx

from compresskit.graph.capture import capture
from compresskit.graph.shapes import evaluating
from compresskit.numerics.spectra.cka import BatchedCKA, Estimator


def similarity(
    networks: Sequence[fx.GraphModule],
    outputs: Sequence[Mapping[str, str]],
    batches: Iterable[Tensor],
    estimator: Estimator = "unbiased",
    on_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """CKA of every output of the networks with every other: (outputs, outputs), those of the first network first.

    outputs: of each network, the nodes that give them, by name. Networks run in eval mode.
    Raises ValueError for batches of less than 4 samples.
    """
    parts = [capture(network, list(nodes.values())) for network, nodes in zip(networks, outputs, strict=True)]
    found = BatchedCKA(estimator)
    for inputs in batches:
        features: list[Tensor] = []
        for part in parts:
            with torch.inference_mode(), evaluating(part):
                features += part(inputs)
        found.add(features)
        on_batch()
    return found.similarity()
