"""Layers that have a matrix of weights, of a network or of a bare state dict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskit.graph import selectors
from compresskit.graph.layers.expanded import Expanded
from compresskit.graph.layers.grouped import GroupedLinear
from compresskit.graph.layers.grouped_stack import GroupedStack
from compresskit.graph.shapes import evaluating

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (*selectors.KINDS["@linear"], GroupedLinear),
    "conv": selectors.KINDS["@conv"],
    "transposed": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
}


@dataclass(frozen=True)
class Weight:
    """Of one layer. tensor: (out, in / groups, *taps); (in, out / groups, *taps) of a transposed convolution."""

    name: str
    kind: str
    tensor: Tensor
    groups: int = 1


def weights_of(network: nn.Module) -> tuple[list[Weight], dict[str, str]]:
    """Weights of the layers, in the order of the modules, and why other parameters of two dimensions have none.

    An expanded layer has the weight that its factors make, or, with activations between them, one for each. Layers of a
    stack are NAME.0, NAME.1, ... A parametrised layer (weight_norm, orthogonal, ...) has the weight that it runs with.
    Query, key and value that one matrix makes are one layer: attn.qkv, or attn.in_proj in torch's attention; where they
    have matrices of their own there, attn.q_proj, attn.k_proj and attn.v_proj.
    """
    found, others = [], {}
    for name, module in _layers("", network):
        kind = next((kind for kind, types in KINDS.items() if isinstance(module, types)), None)
        if isinstance(module, Expanded) and not module.nonlinear:
            kind = "linear" if module.kind == "Linear" else "conv"
            weight, _ = module.contracted()
            found.append(Weight(name, kind, weight.detach(), module.groups))
        elif isinstance(module, GroupedStack):
            layers = enumerate(module.weight.detach())
            found += [Weight(f"{name}.{number}", "linear", tensor, module.groups) for number, tensor in layers]
        elif kind is not None:
            tensor = _effective(module)
            if tensor.is_complex() or tensor.device.type == "meta":
                others[name] = "its weights are complex" if tensor.is_complex() else "its weights are on no device"
            else:
                found.append(Weight(name, kind, tensor, getattr(module, "groups", 1)))
        else:
            for label, parameter in module.named_parameters(recurse=False):
                if _is_inner(module, label, parameter):
                    own = f"{name}.{label}".removesuffix("weight").rstrip("._")
                    found.append(Weight(own, "linear", parameter.detach()))
                elif parameter.ndim > 1:
                    others[f"{name}.{label}".lstrip(".")] = "a parameter that is no layer's weight"
    return found, others


def _is_inner(module: nn.Module, label: str, parameter: Tensor) -> bool:
    """Whether it is the weight of a linear layer within attention: of torch's as one module, or an argument of ours."""
    within = isinstance(module, nn.MultiheadAttention) and label.endswith("_proj_weight")
    return within or (type(module) is nn.Module and label == "weight" and parameter.ndim == 2)


def weights_in(state: Mapping[str, Tensor]) -> tuple[list[Weight], dict[str, str]]:
    """As `weights_of`, of a state dict, which knows neither groups nor what is transposed: 2 dimensions are linear."""
    found, others = [], {}
    for name, tensor in state.items():
        layer, _, last = name.rpartition(".")
        if tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        if last == "weight" and tensor.ndim <= 5:
            found.append(Weight(layer or name, "linear" if tensor.ndim == 2 else "conv", tensor))
        else:
            others[name] = "not named as the weight of a layer"
    return found, others


def chosen(weights: Sequence[Weight], wanted: Sequence[str]) -> list[Weight]:
    """Those that any of the selectors means. Raises RecipeError as selectors do."""
    layers = {weight.name: selectors.Layer(f"@{weight.kind}", tuple(weight.tensor.shape[2:])) for weight in weights}
    names = set(selectors.pick(layers, wanted, [f"@{kind}" for kind in KINDS]))
    return [weight for weight in weights if weight.name in names]


def parameter_of(network: nn.Module, layer: str) -> str:
    """The name of the weight of a layer that `weights_of` names."""
    packed = f"{layer}_weight"  # of query, key and value in torch's attention
    path, _, name = packed.rpartition(".")
    owner = network.get_submodule(path)
    return packed if isinstance(owner, nn.MultiheadAttention) and name in owner._parameters else f"{layer}.weight"


def filters(layer: nn.Module) -> Tensor:
    """(out, in / groups, *taps) the weight of a linear layer or a convolution, transposed ones as well."""
    return by_filter(layer, layer.get_parameter("weight").detach())


def by_filter(layer: nn.Module, tensor: Tensor) -> Tensor:
    """(out, in / groups, *taps) of a tensor that has the shape of the layer's weight."""
    if not isinstance(layer, KINDS["transposed"]):
        return tensor
    groups = layer.groups
    assert isinstance(groups, int)
    rearranged: Tensor = tensor.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return rearranged


def _effective(module: nn.Module) -> Tensor:
    """The weight that it runs with in eval mode, in which what makes it does not change."""
    with torch.no_grad(), evaluating(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module and, where it is no layer by itself, all below it."""
    yield name, module
    if not (isinstance(module, Expanded) and not module.nonlinear):
        for child, below in module.named_children():
            if parametrize.is_parametrized(module) and child == "parametrizations":
                continue  # what its weight is made of
            yield from _layers(f"{name}.{child}".lstrip("."), below)
