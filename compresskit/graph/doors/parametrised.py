"""Layers that compute their weights of others in each call (weight_norm, spectral_norm), and how they become plain."""

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_OF_BEFORE = {WeightNorm: "remove_weight_norm", SpectralNorm: "remove_spectral_norm"}  # hooks, by what takes them off
_SHOWN = 3  # names of layers in a message


def how_plain(module: nn.Module) -> str:
    """An end for the message of a module that does not come in, with the calls that may help; "" where none would."""
    layers: dict[str, list[str]] = {}
    for path, layer in module.named_modules():
        for call in _calls(layer):
            layers.setdefault(f"torch.nn.utils.{call}", []).append(path or "the module itself")
    told = [f"{call} for {_some(names)}" for call, names in layers.items()]
    return f"; weights are computed in forward: once they are loaded, call {' and '.join(told)}" if told else ""


def _calls(layer: nn.Module) -> list[str]:
    if parametrize.is_parametrized(layer):
        names = [name for name, _ in layer.get_submodule("parametrizations").named_children()]
        return [f'parametrize.remove_parametrizations(layer, "{name}")' for name in names]
    hooks = (type(hook) for hook in layer._forward_pre_hooks.values())
    return [f"{_OF_BEFORE[kind]}(layer)" for kind in hooks if kind in _OF_BEFORE]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
