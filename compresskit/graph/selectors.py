"""The one grammar that names layers in recipes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from compresskit.errors import RecipeError, near_names
from compresskit.graph.layers.grouped_stack import GroupedStack

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "@conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "@linear": (nn.Linear,),
}
_KERNEL = re.compile(r"@conv(\d+(x\d+)*)")  # @conv3x3, @conv9 (one dimension), @conv1x1


@dataclass(frozen=True)
class Layer:
    """What selectors look at. kind: @conv, @linear, ... taps: of the kernel, () where there is none."""

    kind: str
    taps: tuple[int, ...] = ()


def select(
    network: fx.GraphModule, selectors: Sequence[str], kinds: Mapping[str, tuple[type[nn.Module], ...]] = KINDS
) -> list[str]:
    """Names of the convolutions and linear layers that any of the selectors means, in the order of the network.

    kinds: what counts as such. Raises RecipeError as `pick` does.
    """
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    modules = {name: network.get_submodule(name) for name in called}
    layers = {name: layer for name, module in modules.items() if (layer := as_layer(module, kinds))}
    try:
        return pick(layers, selectors, tuple(kinds))
    except RecipeError as error:
        stacks = [name for name, module in modules.items() if isinstance(module, GroupedStack)]
        if not stacks:
            raise
        raise RecipeError(
            f"{error}; the layers that {' and '.join(stacks)} stands for are one layer here: export the net with "
            "--layout masked for what works on each"
        ) from error


def as_layer(module: nn.Module, kinds: Mapping[str, tuple[type[nn.Module], ...]] = KINDS) -> Layer | None:
    """What selectors look at of a module; None where it is of none of `kinds`."""
    found = [kind for kind, types in kinds.items() if isinstance(module, types)]
    return Layer(found[-1], getattr(module, "kernel_size", ())) if found else None


def pick(layers: Mapping[str, Layer], selectors: Sequence[str], kinds: Sequence[str] = tuple(KINDS)) -> list[str]:
    """Names of those layers that any of the selectors means, in their order.

    A selector is an exact name, `re:` and a pattern that the whole name must match, one of `kinds`, or `@conv3x3`: the
    convolutions with that kernel.
    Raises RecipeError for a selector that means nothing, with the nearest names.
    """
    chosen = {name for selector in selectors for name in _matches(selector, layers, kinds)}
    return [name for name in layers if name in chosen]


def _matches(selector: str, layers: Mapping[str, Layer], kinds: Sequence[str]) -> list[str]:
    if kernel := _KERNEL.fullmatch(selector):
        taps = tuple(map(int, kernel[1].split("x")))
        found = [name for name, layer in layers.items() if layer == Layer("@conv", taps)]
    elif selector.startswith("@"):
        if selector not in kinds:
            raise RecipeError(
                f"layer selector {selector!r}: allowed are {', '.join(kinds)}, @conv3x3, re:PATTERN and exact names"
            )
        found = [name for name, layer in layers.items() if layer.kind == selector]
    elif selector.startswith("re:"):
        try:
            pattern = re.compile(selector.removeprefix("re:"))
        except re.error as error:
            raise RecipeError(f"layer selector {selector!r}: no regular expression ({error})") from error
        found = [name for name in layers if pattern.fullmatch(name)]
    else:
        found = [name for name in layers if name == selector]
    if not found:
        nearest = near_names(selector.removeprefix("re:"), layers)
        raise RecipeError(f"layer selector {selector!r}: no convolution or linear layer is named so; {nearest}")
    return found
