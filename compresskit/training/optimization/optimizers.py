"""Optimisers that a recipe can name. Each is called with parameter groups and returns torch's own."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from compresskit.graph.edit import bias_maps
from compresskit.options import option

Share = Annotated[float, Ge(0), Lt(1)]
ParameterGroups = list[dict[str, Any]]


@option
class SGD:
    """Stochastic gradient descent; with momentum m: v = m v + g, w = w - lr v (Nesterov: w - lr (g + m v))."""

    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Gt(0)] = 0.05  # at its highest; the schedule multiplies it
    momentum: Share = 0.9  # m in the formula
    nesterov: bool = False  # the second form
    weight_decay: Annotated[float, Ge(0)] = 0.0  # added to the gradient as weight_decay x w

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs a momentum above 0")

    @property
    def states(self) -> int:
        """Numbers that it keeps of each parameter."""
        return int(self.momentum > 0)

    def __call__(self, groups: ParameterGroups) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=_can_fuse(groups),
        )


@option
class Adam:
    """Adam (Kingma and Ba 2015); its weight decay is added to the gradient."""

    kind: Literal["adam"] = "adam"
    lr: Annotated[float, Gt(0)] = 1e-3  # at its highest; the schedule multiplies it
    betas: tuple[Share, Share] = (0.9, 0.999)  # decay of the mean and of the mean square of the gradient
    eps: Annotated[float, Gt(0)] = 1e-8  # added to the root of the mean square
    weight_decay: Annotated[float, Ge(0)] = 0.0  # added to the gradient as weight_decay x w

    @property
    def states(self) -> int:
        """Numbers that it keeps of each parameter."""
        return 2

    def __call__(self, groups: ParameterGroups) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=_can_fuse(groups),
        )


@option
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): w = w - lr weight_decay w."""

    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Gt(0)] = 1e-3  # at its highest; the schedule multiplies it
    betas: tuple[Share, Share] = (0.9, 0.999)  # decay of the mean and of the mean square of the gradient
    eps: Annotated[float, Gt(0)] = 1e-8  # added to the root of the mean square
    weight_decay: Annotated[float, Ge(0)] = 0.01  # in units of lr, apart from the gradient

    @property
    def states(self) -> int:
        """Numbers that it keeps of each parameter."""
        return 2

    def __call__(self, groups: ParameterGroups) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            groups,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=_can_fuse(groups),
        )


Optimizer = SGD | Adam | AdamW


def parameter_groups(
    network: nn.Module, *, decay_bias_and_norm: bool, owners: Mapping[nn.Parameter, str] | None = None
) -> ParameterGroups:
    """The trainable parameters; without `decay_bias_and_norm`, those of one dimension and biases by position form a
    group without decay.

    owners: the layer of each parameter; every layer has groups of its own then, with its name under "layer" ("" for
    parameters of none), and 1 under "factor", by which its rate is multiplied.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    maps = bias_maps(network)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, is_bias = (owners or {}).get(parameter, ""), parameter.ndim <= 1 or name in maps
        spared = is_bias and not decay_bias_and_norm
        settings: dict[str, Any] = {"weight_decay": 0.0} if spared else {}
        if owners is not None:
            settings |= {"layer": layer, "factor": 1.0, "metric": math.nan}
        groups.setdefault((layer, spared), {"params": [], **settings})["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: "weight_decay" in group)


def _can_fuse(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether torch has one kernel for the whole step: a third of the time of the default on small nets."""
    parameters = [p for group in groups for p in group["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


OPTIMIZERS: dict[str, type[SGD] | type[Adam] | type[AdamW]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
