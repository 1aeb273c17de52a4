"""The weights that expanded layers stand for, formed once a step, and on a GPU in two calls."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compresskit.graph.layers.expanded import Expanded

Product = tuple[Tensor, Tensor | None]  # weight and bias
Context = Callable[[], AbstractContextManager[None]]


def online_layers(network: nn.Module) -> list[Expanded]:
    """Those whose factors are multiplied at each step."""
    return [layer for layer in network.modules() if isinstance(layer, Expanded) and layer.mode == "online"]


class Products:
    """The products of expanded layers, formed once for all micro-batches of a step.

    Micro-batches but the last read a copy that gathers their gradients. The last one reads the products themselves:
    its backward pass adds what was gathered, and carries the sum to the factors, once. So the factors' gradients come
    in a single backward pass, where DistributedDataParallel expects them.

    recorded: replay the kernels that form the products, and those of the backward pass, from a recording; else a step
    of a single micro-batch leaves it to each layer to form its own. The layers must lie on the GPU, and it is recorded
    at once: while data are read, their threads ask CUDA for memory, which breaks a recording.
    """

    def __init__(self, layers: Sequence[Expanded], *, recorded: bool) -> None:
        self._layers = layers
        trained = any(p.requires_grad for layer in layers for p in layer.parameters())
        self._form = _recording(layers) if recorded and trained else None
        self._formed: list[Product] = []

    def form(self, parts: int) -> None:
        """To be called before the first of a step's `parts` micro-batches, outside of autocast."""
        if self._form is not None:
            self._formed = self._form()
        elif parts > 1:
            self._formed = [layer.contracted() for layer in self._layers]
        if parts > 1:
            for layer, (weight, bias) in zip(self._layers, self._formed, strict=True):
                layer.product = _leaf(weight), None if bias is None else _leaf(bias)

    def before_last(self) -> None:
        """To be called before the forward pass of the last micro-batch."""
        if not self._formed:
            return
        for layer, product in zip(self._layers, self._formed, strict=True):
            for value, leaf in zip(product, layer.product or (None, None), strict=True):
                if value is not None and leaf is not None and value.requires_grad:
                    value.register_hook(partial(_gathered, leaf))
            layer.product = product

    def release(self) -> None:
        """Lets every layer form its own product again."""
        self._formed = []
        for layer in self._layers:
            layer.product = None


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _gathered(leaf: Tensor, gradient: Tensor) -> Tensor:
    return gradient if leaf.grad is None else gradient + leaf.grad


def _recording(layers: Sequence[Expanded]) -> Callable[[], list[Product]]:
    """What forms the products of `layers`, in their order, by CUDA graphs: one call each way launches all kernels.

    There are hundreds, most of them so short that the GPU waits for the next. Products of convolutions are rounded as
    torch lets convolutions be (TF32, by default), as they would be with the factors one after another; those of linear
    layers are not.
    """
    kinds = [[layer for layer in layers if (layer.kind == "Linear") == linear] for linear in (False, True)]
    contexts: tuple[Context, ...] = (_rounded_as_convolutions, nullcontext)
    replays = [_recorded(some, context) for some, context in zip(kinds, contexts, strict=True) if some]

    def form() -> list[Product]:
        found: dict[Expanded, Product] = {}
        for replay in replays:
            found |= replay()
        return [found[layer] for layer in layers]

    return form


def _recorded(layers: list[Expanded], context: Context) -> Callable[[], dict[Expanded, Product]]:
    forming = _Forming(layers)
    names, parameters = zip(*forming.named_parameters(), strict=True)

    def formed(*values: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = functional_call(forming, dict(zip(names, values, strict=True)), ())
        return found

    # they lie where the parameters do, so that replays read those; torch copies values that have moved elsewhere
    standing = tuple(p.detach().requires_grad_(p.requires_grad) for p in parameters)
    with context():
        replay: Any = torch.cuda.make_graphed_callables(formed, standing, allow_unused_input=True)

    def products() -> dict[Expanded, Product]:
        values = iter(replay(*parameters))
        return {layer: (next(values), next(values) if layer.biased else None) for layer in layers}

    return products


class _Forming(nn.Module):
    """Weight and, where there is one, bias of each layer, one behind the other."""

    def __init__(self, layers: list[Expanded]) -> None:
        super().__init__()
        self.expanded = layers
        self.layers = nn.ModuleList(layers)

    def forward(self) -> tuple[Tensor, ...]:
        products = [layer.contracted() for layer in self.expanded]
        return tuple(value for product in products for value in product if value is not None)


@contextmanager
def _rounded_as_convolutions() -> Iterator[None]:
    """Matrix products on a GPU round as convolutions do; left as it is where torch's newer switches were used, which do
    not mix with these."""
    matmul = torch.backends.cuda.matmul
    try:
        kept, asked = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:
        yield
        return
    matmul.allow_tf32 = asked
    try:
        yield
    finally:
        matmul.allow_tf32 = kept
