"""Layers as strategies see them, and which strategies of a recipe are for them."""

from torch import fx, nn

from compresskit.graph.layers.expanded import Layer
from compresskit.graph.operations import calls_of
from compresskit.passes.expand.options import Expand
from compresskit.passes.expand.strategies import STRATEGIES, LayerShape, Unfit


def layer_shape(network: fx.GraphModule, name: str) -> LayerShape:
    """What strategies must know of the layer. Raises Unfit where others have its weight, too."""
    layer = network.get_submodule(name)
    assert isinstance(layer, Layer)
    if _is_shared(network, name, layer):
        raise Unfit("its weight is used elsewhere, too")
    return _shape(network, name, layer)


def fitting(shape: LayerShape, options: Expand) -> list[str]:
    """The strategies for such a layer, in the recipe's order; they may still refuse it."""
    return [name for name in options.strategies if STRATEGIES[name].linear == (not shape.taps)]


def unfit(shape: LayerShape, options: Expand) -> Unfit:
    """The reason where no strategy fits."""
    return Unfit(f"{options.strategy} is not for {'convolutions' if shape.taps else 'linear layers'}")


def _is_shared(network: fx.GraphModule, name: str, layer: Layer) -> bool:
    """Whether another module is it or has its weight, or the network reads the weight itself."""
    others = [other for other, module in network.named_modules(remove_duplicate=False) if module is layer]
    modules = [module for module in network.modules() if module is not layer]
    weights = {id(p) for module in modules for p in module.parameters(recurse=False)}
    read = any(node.op == "get_attr" and str(node.target).startswith(f"{name}.") for node in network.graph.nodes)
    return len(others) > 1 or read or any(id(p) in weights for p in layer.parameters())


def _shape(network: fx.GraphModule, name: str, layer: Layer) -> LayerShape:
    reads_input = any(node.all_input_nodes[0].op == "placeholder" for node in calls_of(network, name))
    if isinstance(layer, nn.Linear):
        return LayerShape(layer.in_features, layer.out_features, 1, (), reads_input)
    groups = layer.groups
    return LayerShape(layer.in_channels // groups, layer.out_channels // groups, groups, layer.kernel_size, reads_input)
