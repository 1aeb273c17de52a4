"""Bytes of a network under the encodings that a report compares."""

from dataclasses import dataclass

from torch import fx

from compresskit.graph.channels.cut import selections
from compresskit.numerics.selection.encoding import csr_bits, raw_bits, selection_bits
from compresskit.shapes import Shape


@dataclass(frozen=True)
class Sizes:
    """In bytes. raw: 32 bits a parameter, and the selections. csr: the same with weights as compressed sparse rows.

    selections: log2 of the binomials that say which inputs dynamic readers read.
    """

    raw: float
    csr: float
    selections: float


def sizes(network: fx.GraphModule, input_shape: Shape) -> Sizes:
    chosen = sum(selection_bits(inputs, kept) for inputs, kept in selections(network, input_shape))
    parameters = list(network.parameters())
    raw = raw_bits(sum(p.numel() for p in parameters)) + chosen
    return Sizes(raw / 8, (sum(csr_bits(p) for p in parameters) + chosen) / 8, chosen / 8)
