"""Repair of a network that lost channels: the layers behind the cut are solved again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx

from compresskit.errors import within
from compresskit.graph.channels.kept import Beside, beside, kept_norms
from compresskit.graph.channels.walk import Channels
from compresskit.graph.format.table import tensor_of
from compresskit.graph.operations import PACKED
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.moments import Request
from compresskit.passes.reconstruct.chaining import Draft, Gather, cube
from compresskit.passes.reconstruct.readers import Reader, find_readers, static_site
from compresskit.passes.reconstruct.refitted import Layer, with_layers
from compresskit.passes.reconstruct.selection import Choice, Curve
from compresskit.passes.reconstruct.workers import Start, silent
from compresskit.shapes import Shape


@dataclass(frozen=True)
class Repair:
    """network: of full size, its layers blind to what is cut, or masked. unexplained: by layer, the share of the
    variance of its output that is lost. skipped: layers that lost inputs and were not solved, and why."""

    network: fx.GraphModule
    unexplained: dict[str, float]
    skipped: dict[str, str]


def repair(
    network: fx.GraphModule,
    channels: Channels,
    alive: Tensor,
    gather: Gather,
    input_shape: Shape,
    *,
    chained: bool,
    start: Start = silent,
) -> Repair:
    """Weights of the layers that read what is cut, by least squares on the channels left, for their own old outputs.

    chained: one after another, from what the layers before give once they are repaired; else all at once, from what
    they will read if the others give their old outputs: the original's activations, but where norms or attention sum
    over what is cut. Moments are centred, so the constant part of what is cut goes into the bias.
    alive: (n_atoms,) bool. start: is told how far solving is, where no passes between tell.
    """
    touched = [layer for layer, atoms in channels.reads.items() if not bool(alive[atoms].all())]
    readers, skipped = find_readers(network, channels, input_shape, touched, several=True)
    skipped |= _arguments(network, channels, alive)
    known = {} if chained else _original(network, channels, alive, gather, readers)
    draft = Draft()
    done = (silent if chained else start)("least squares", [cube(reader.request) for reader in readers.values()])
    for reader in readers.values():
        moments = known
        if chained:
            reader = replace(reader, request=replace(reader.request, name=f"{reader.request.name}--repaired"))
            moments = gather(kept_norms(with_layers(network, draft.layers), channels, alive), [reader.request], network)
        site = static_site([reader])
        assert site.atoms is not None
        kept = alive[site.atoms]
        with within(reader.layer):
            draft.add(site, Choice(kept, Curve((), (), kept[None])), moments, True, None)
        done()
    return repaired(network, draft.layers, skipped)


def repaired(network: fx.GraphModule, layers: Mapping[str, Layer], skipped: dict[str, str]) -> Repair:
    """What came of it, with these layers in the network."""
    unexplained = {name: layer.error / layer.variance if layer.variance > 0 else 0.0 for name, layer in layers.items()}
    return Repair(with_layers(network, layers), unexplained, skipped)


def _original(
    network: fx.GraphModule, channels: Channels, alive: Tensor, gather: Gather, readers: Mapping[str, Reader]
) -> dict[str, Moments]:
    """Moments of what each layer reads in the cut network, if all others give the outputs that they had."""
    both = beside(network, channels, alive, readers)
    requests = [reader.request for reader in readers.values()]
    read = {source for request in requests for source, _ in request.pairs}
    if all(both.kept[source] == both.whole[source] for source in read):
        return gather(network, requests, None)
    return gather(both.network, [_in_both(request, both) for request in requests], None)


def _in_both(request: Request, both: Beside) -> Request:
    """What the layer reads in the network that does not see what is dead, and gives in the whole one."""
    (source, target), *again = ((both.kept[source], both.whole[target]) for source, target in request.pairs)
    return replace(request, source=source, target=target, again=tuple(again))


def _arguments(network: fx.GraphModule, channels: Channels, alive: Tensor) -> dict[str, str]:
    """Weights of no layer that read what is cut, and why they are not solved."""
    layers, found = {f"{layer}.weight" for layer in channels.reads}, {}
    for name, dim in channels.blinding:
        if name.endswith(PACKED) and dim == 1:
            reason = "attention as one module has no moments of what is within"
        elif name in layers or name.endswith(PACKED) or tensor_of(network, name).ndim < 2:
            continue
        else:
            reason = "its weight is an argument of a call, which has no moments"
        if not bool(alive[channels.slots[name, dim]].all()):
            found[name.removesuffix("_weight").removesuffix(".weight")] = reason
    return found


def blind(network: fx.GraphModule, channels: Channels, alive: Tensor) -> fx.GraphModule:
    """A copy of full size that computes what the cut network does: every layer reads zeros in place of what is cut, and
    norms are computed on what stays."""
    return kept_norms(with_layers(network, {}), channels, alive)
