"""Other people's structured pruning: a trained net and a ratio in, a smaller net out."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rivals.bench import Bench, Refused
from torch import nn

STEPS, BISECTIONS = 16, 6  # of the search for a ratio
MOST = 0.99  # of a layer's channels that may go: a layer without channels would be the end of the net
Pruning = Callable[[Bench, float, bool], nn.Module]  # (net, ratio of channels, all layers together?) -> smaller net


@dataclass(frozen=True)
class TorchPruning:
    """Fang et al. 2023. importance: the name of its class. gradients: of the bench, what it reads as `grad`.

    Its GroupHessianImportance takes the squares of single images' gradients from `accumulate_grad`, which in version
    1.6.1 keeps those of the last image alone; it is given the mean over all of them, as its documentation means it.
    """

    importance: str
    gradients: str | None = None

    def __call__(self, bench: Bench, ratio: float, whole: bool) -> nn.Module:
        import torch_pruning

        model = bench.module()
        if self.gradients is not None:
            found = getattr(bench, self.gradients)
            for name, parameter in model.named_parameters():
                parameter.grad = found[name].clone()
        importance = getattr(torch_pruning.importance, self.importance)()
        torch_pruning.pruner.MetaPruner(
            model, torch.zeros(1, *bench.shape), importance=importance, pruning_ratio=ratio, global_pruning=whole,
            ignored_layers=heads(model, bench), max_pruning_ratio=MOST,
        ).step()  # fmt: skip
        return model


def fasterai(bench: Bench, ratio: float, whole: bool) -> nn.Module:
    """fasterai's Pruner by the absolute values of weights, its usual criterion."""
    from fasterai.core.criteria import large_final
    from fasterai.prune.pruner import Pruner

    model = bench.module()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells which layers it leaves alone
        Pruner(
            model, ratio, "global" if whole else "local", large_final, ignored_layers=heads(model, bench),
            example_inputs=torch.zeros(1, *bench.shape), max_pruning_ratio=MOST,
        ).prune_model()  # fmt: skip
    return model


def heads(model: nn.Module, bench: Bench) -> list[nn.Module]:
    """The layers that give the classes, which packages must be told to leave alone."""
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == bench.data.outputs]


def at_size(bench: Bench, size: float, make: Callable[[float], nn.Module]) -> nn.Module:
    """The largest net of at most this share of the MACs, behind the smallest ratio that leaves so few.

    A larger ratio does not always leave fewer: a layer that would lose everything is left whole by some. So ratios are
    tried from 0 on, and the step that reaches the size is bisected. Raises Refused where none does.
    """
    low, best = 0.0, None
    for number in range(1, STEPS + 1):
        high = MOST * number / STEPS
        if bench.macs(found := make(high)) <= size:
            best = found
            break
        low = high
    if best is None:
        raise Refused(f"no ratio up to {MOST} leaves {size:.0%} of the MACs or less")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if bench.macs(found := make(middle)) <= size:
            best, high = found, middle
        else:
            low = middle
    return best
