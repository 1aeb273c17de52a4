"""Layers as strategies see them, and which strategies of a recipe are for them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from compresskit.errors import RecipeError
from compresskit.graph.layers.expanded import Layer
from compresskit.graph.operations import calls_of
from compresskit.graph.selectors import select
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.strategies import STRATEGIES, LayerShape, Unfit


def by_name(network: fx.GraphModule, options: Expand) -> Expand:
    """`options` with names of layers in the place of selectors, wherever they give one value to each layer.

    Of several selectors that mean a layer the last one counts. Raises RecipeError for a selector that means none.
    """
    rate = options.rate if options.rate == "auto" else _by_name(network, options, "rate")
    return replace(options, rate=rate, factors=_by_name(network, options, "factors"))


def selected(network: fx.GraphModule, selectors: Sequence[str], key: str) -> list[str]:
    """The layers that selectors of the recipe's `expand.key` name. Raises RecipeError with the key."""
    try:
        return select(network, selectors)
    except RecipeError as error:
        raise RecipeError(f"expand.{key}: {error}") from error


def layer_shape(network: fx.GraphModule, name: str, options: Expand) -> LayerShape:
    """What strategies must know of the layer. options: by name. Raises Unfit where others have its weight, too."""
    layer = network.get_submodule(name)
    assert isinstance(layer, Layer)
    if _is_shared(network, name, layer):
        raise Unfit("its weight is used elsewhere, too")
    if isinstance(layer, nn.Linear):
        factors = options.factors if isinstance(options.factors, dict) else {name: options.factors}
        return LayerShape(layer.in_features, layer.out_features, 1, (), False, factors.get(name))
    keeps = options.first == "keep" and any(
        node.all_input_nodes[0].op == "placeholder" for node in calls_of(network, name)
    )
    groups = layer.groups
    return LayerShape(layer.in_channels // groups, layer.out_channels // groups, groups, layer.kernel_size, keeps)


def fitting(shape: LayerShape, options: Expand) -> list[str]:
    """The strategies for such a layer, in the recipe's order; they may still refuse it."""
    return [name for name in options.strategies if STRATEGIES[name].linear == (not shape.taps)]


def unfit(shape: LayerShape, options: Expand) -> Unfit:
    """The reason where no strategy fits."""
    return Unfit(f"{options.strategy} is not for {'convolutions' if shape.taps else 'linear layers'}")


def _by_name(network: fx.GraphModule, options: Expand, key: str) -> dict[str, Any]:
    given = getattr(options, key)
    if not isinstance(given, dict):
        return dict.fromkeys(selected(network, options.layers, "layers"), given)
    return {name: value for selector, value in given.items() for name in selected(network, [selector], key)}


def _is_shared(network: fx.GraphModule, name: str, layer: Layer) -> bool:
    """Whether another module is it or has its weight, or the network reads the weight itself."""
    others = [other for other, module in network.named_modules(remove_duplicate=False) if module is layer]
    modules = [module for module in network.modules() if module is not layer]
    weights = {id(p) for module in modules for p in module.parameters(recurse=False)}
    read = any(node.op == "get_attr" and str(node.target).startswith(f"{name}.") for node in network.graph.nodes)
    return len(others) > 1 or read or any(id(p) in weights for p in layer.parameters())
