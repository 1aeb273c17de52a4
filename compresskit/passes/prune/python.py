"""Structured pruning from Python: a module and a loader in, a smaller network out."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from compresskit.data.augmentation.augmix import AugMix
from compresskit.errors import RecipeError, near_names
from compresskit.graph.channels.cut import cut
from compresskit.graph.channels.plain import plain_layers
from compresskit.graph.trace import trace
from compresskit.numerics.distillation import soft_targets
from compresskit.numerics.pruning.fisher import root_of_classes, root_of_squares
from compresskit.passes.held_out import Divergence, loss_of
from compresskit.passes.moments import Batches, gather_from
from compresskit.passes.prune.budgets import BUDGETS
from compresskit.passes.prune.channels import Data, Pruner
from compresskit.passes.prune.criteria import CRITERIA
from compresskit.passes.prune.criteria.gradients import curvatures, mean_gradients
from compresskit.passes.prune.criteria.responses import Responses
from compresskit.passes.prune.groups import Group
from compresskit.passes.prune.options import Prune, PruneTarget
from compresskit.passes.repair.layers import repair
from compresskit.passes.repair.norms import estimate_norms


def prune_model(
    model: nn.Module,
    loader: Batches,
    *,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    divergence: Divergence | None = None,
    **options: Any,
) -> tuple[fx.GraphModule, list[tuple[Group, int]]]:
    """New network without the channels that are worth least, repaired; and the groups with what each kept.

    Of the repairs, that is taken whose outputs diverge least from those of `model`, over the loader.

    model: any module that torch.fx traces; it stays as it was. loader: an iterable of (inputs, targets) that can be
    read several times. loss: for the criterion `taylor`; `fisher` takes
    the outputs for class scores where it is cross-entropy. divergence: of outputs from those of `model`, which judges
    repairs; by default that of Kullback and Leibler for classes (where `loss` is cross-entropy), else the mean square.
    options: the fields of a recipe's `prune` section; target as a mapping, criterion and budget by name or as objects.
    Raises RecipeError as the recipe would, and ValueError for a target of latency and for augprune, which know of
    devices and of images.
    """
    chosen = _options(options)
    classes = loss is nn.functional.cross_entropy
    if divergence is None:
        divergence = partial(soft_targets, temperature=1.0) if classes else nn.functional.mse_loss
    shape = tuple(next(iter(loader))[0].shape[1:])
    network, _ = plain_layers(model if isinstance(model, fx.GraphModule) else trace(model, shape), shape)
    data = Data(
        gradients=lambda net: mean_gradients(net, loader, loss),
        responses=_no_images,
        moments=gather_from(loader),
        held_out=lambda count: _first_inputs(loader, count),
        divergence=divergence,
        curvatures=lambda net, layers: curvatures(
            net, layers, loader, root_of_classes if classes else root_of_squares, seed
        ),
    )
    pruned = Pruner(network, chosen, shape).prune(data, seed)
    candidates = [cut(network, pruned.channels, pruned.alive)]
    if chosen.repair != "none":
        chained = chosen.repair == "top-down"
        found = repair(network, pruned.channels, pruned.alive, gather_from(loader), shape, chained=chained)
        candidates.append(cut(found.network, pruned.channels, pruned.alive))
    if chosen.norms:
        candidates += copy.deepcopy(candidates)
        for candidate in candidates[len(candidates) // 2 :]:
            estimate_norms(candidate, loader)

    def loss_of_outputs(candidate: fx.GraphModule) -> float:
        found = loss_of(candidate, network, (inputs for inputs, _ in loader), divergence)
        return found if math.isfinite(found) else math.inf

    smaller = min(candidates, key=loss_of_outputs) if len(candidates) > 1 else candidates[0]
    return smaller, list(zip(pruned.groups, pruned.kept, strict=True))


def _options(given: Mapping[str, Any]) -> Prune:
    """With objects in the place of words."""
    found, known = dict(given), [key.name for key in fields(Prune)]
    for key in given:
        if key not in known:
            raise RecipeError(f"prune has no option {key!r}; {near_names(key, known)}")
    if "target" not in found:
        raise RecipeError("prune: it needs a target; give target={'macs': '50%'}, for example")
    if isinstance(target := found["target"], Mapping):
        found["target"] = PruneTarget(**target)
    registries: dict[str, Mapping[str, type]] = {"criterion": CRITERIA, "budget": BUDGETS}
    for key, registry in registries.items():
        if isinstance(kind := found.get(key), str):
            if kind not in registry:
                raise RecipeError(f"{key}: {kind!r} was given; {near_names(kind, registry)}")
            found[key] = registry[kind]()
    chosen = Prune(**found)
    if chosen.target.goal == "latency":
        raise ValueError("target: latency is measured by the command line alone; give params, macs or channels")
    return chosen


def _first_inputs(loader: Batches, count: int) -> Iterable[Any]:
    for inputs, _ in loader:
        if count <= 0:
            return
        yield inputs[:count]
        count -= len(inputs)


def _no_images(network: fx.GraphModule, layers: Sequence[str], augmix: AugMix) -> Responses:
    raise ValueError("criterion: augprune augments the bytes of images, which the command line alone has")
