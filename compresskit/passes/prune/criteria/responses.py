"""How channels respond to images, and to what augmentation makes of them."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, fx

from compresskit.graph.capture import capture
from compresskit.graph.operations import calls_of
from compresskit.graph.shapes import evaluating

# by layer: for each of its inputs, the variance over samples and positions, and the mean square of the change
Responses = dict[str, tuple[Tensor, Tensor]]


def responses(
    network: fx.GraphModule,
    layers: Sequence[str],
    pairs: Iterable[tuple[Tensor, Tensor]],
    on_batch: Callable[[], None] = lambda: None,
) -> Responses:
    """Of the inputs of layers, on the network's device, where criteria multiply them by its weights.

    pairs: images and the same ones augmented, by batch; the network is in eval mode.
    """
    sources = {layer: [node.all_input_nodes[0].name for node in calls_of(network, layer)] for layer in layers}
    names = sorted({name for own in sources.values() for name in own})
    part = capture(network, names)
    sums = {name: [torch.zeros(())] * 4 for name in names}  # count, sum, squares, squares of changes
    last = {layer: -1 if isinstance(network.get_submodule(layer), torch.nn.Linear) else 1 for layer in layers}
    dims = {name: last[layer] for layer, own in sources.items() for name in own}
    with torch.inference_mode(), evaluating(part):
        for images, changed in pairs:
            for name, plain, other in zip(names, part(images), part(changed), strict=True):
                x, y = (_by_channel(value, dims[name]) for value in (plain, other))
                new = (torch.tensor(len(x)), x.sum(0), x.square().sum(0), (y - x).square().sum(0))
                sums[name] = [old + value for old, value in zip(sums[name], new, strict=True)]
            on_batch()
    found = {}
    for layer, own in sources.items():  # of a layer that is called several times, over all its calls
        count, total, squares, changes = (sum(values) for values in zip(*(sums[name] for name in own), strict=True))
        found[layer] = (squares / count - (total / count).square()).clamp(min=0), changes / count
    return found


def _by_channel(values: Tensor, dim: int) -> Tensor:
    """(samples and positions, channels), float64."""
    return values.movedim(dim, -1).flatten(0, -2).double()
