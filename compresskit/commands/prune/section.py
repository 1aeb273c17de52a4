"""The section `prune` of a recipe: passes/prune/options.py or mask_options.py, with steps, retraining, comparisons."""

from dataclasses import asdict
from typing import Annotated, Any

from annotated_types import Ge, Gt

from compresskit.options import option
from compresskit.passes.prune.budgets import Budget, MaskBudget
from compresskit.passes.prune.criteria import Criterion
from compresskit.passes.prune.mask_options import Mask, MaskCriterion
from compresskit.passes.prune.options import Prune, Repair
from compresskit.passes.repair.blocks import Blocks
from compresskit.passes.repair.matching import Match
from compresskit.passes.shares import Amount
from compresskit.training.distillation import Distill
from compresskit.training.layer_rates import LayerwiseRates
from compresskit.training.options import Training


@option
class PruneCompare:
    """Settings tried beside the one that is kept: every combination, pruned and retrained as the section says."""

    at: tuple[Amount, ...] = ()  # in the place of the target's value
    criterion: tuple[Criterion, ...] = ()
    budget: tuple[Budget, ...] = ()
    repair: tuple[Repair, ...] = ()
    blocks: tuple[Blocks | None, ...] = ()  # null: none
    match: tuple[Match | None, ...] = ()  # null: none
    layerwise_rates: tuple[LayerwiseRates | None, ...] = ()  # of retraining; null: the same rate for all layers
    distill: tuple[Distill | None, ...] = ()  # of retraining; null: no teacher


@option
class MaskCompare:
    """Settings tried beside the one that is kept: every combination, masked and retrained as the section says."""

    at: tuple[Amount, ...] = ()  # in the place of the target's value
    criterion: tuple[MaskCriterion, ...] = ()
    budget: tuple[MaskBudget, ...] = ()
    repair: tuple[Repair, ...] = ()
    blocks: tuple[Blocks | None, ...] = ()  # null: none
    match: tuple[Match | None, ...] = ()  # null: none
    layerwise_rates: tuple[LayerwiseRates | None, ...] = ()  # of retraining; null: the same rate for all layers
    distill: tuple[Distill | None, ...] = ()  # of retraining; null: no teacher


@option
class Stepwise:
    """Pruning in one go or in several, with repairs and retraining in between."""

    samples: Annotated[int, Gt(1)] = 10000  # training images that layers are repaired and norms estimated by
    # behind the repair, all weights of one block after another, towards what the original gives behind that block; {}
    # takes its defaults
    blocks: Blocks | None = None
    # behind that, all weights together by gradients, towards the outputs of the network before the first step, on
    # training images without labels; {} takes its defaults
    match: Match | None = None
    # images that judge every repair: of the validation split, or of the training images where there is none
    held_out: Annotated[int, Gt(0)] = 2000
    steps: Annotated[int, Ge(1)] = 1  # each takes the same share of what is left, and matches or retrains
    retrain: Training | None = None  # behind each step; default: none


@option
class PruneAndRetrain(Prune, Stepwise):
    """Take out channels, repair what is left, and retrain, in one go or in several."""

    images: Annotated[int, Gt(1)] = 1024  # training images that criteria look at
    compare: PruneCompare | None = None  # other settings, each pruned, repaired and retrained

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_pruning(self)


@option
class MaskAndRetrain(Mask, Stepwise):
    """Set single weights, or kernels (the taps that one output has of one input), to zero, repair, and retrain."""

    compare: MaskCompare | None = None  # other settings, each masked, repaired and retrained

    def __post_init__(self) -> None:
        _check_pruning(self)


PRUNINGS: dict[str, type[PruneAndRetrain] | type[MaskAndRetrain]] = {
    "channels": PruneAndRetrain,
    "weights": MaskAndRetrain,
    "kernels": MaskAndRetrain,
}


def _check_pruning(options: "PruneAndRetrain | MaskAndRetrain") -> None:
    """Raises ValueError for steps and rates without retraining, and for a comparison of nothing, or of no targets."""
    compare, target = options.compare, options.target
    if options.steps > 1 and options.retrain is None and options.match is None and options.blocks is None:
        raise ValueError(
            "steps: several steps match or retrain in between; add `match`, `blocks` or `retrain`, or leave steps out"
        )
    if compare is None:
        return
    if not any(asdict(compare).values()):
        raise ValueError("compare: it names nothing; list values under at, criterion or budget, or leave it out")
    for at in compare.at:
        given: dict[str, Any] = {target.goal: at}
        try:
            type(target)(**given)
        except ValueError as error:
            raise ValueError(f"compare.at: {error}") from error
    tried = [None in (getattr(compare, key) or (getattr(options, key),)) for key in ("blocks", "match")]
    if all(tried) and options.steps > 1 and options.retrain is None:
        raise ValueError(
            "compare: a setting has neither `blocks` nor `match`, and several steps need one of them or `retrain`; add "
            "`retrain`, or leave null out"
        )
    if options.retrain is None:
        for key, told in (("layerwise_rates", "rates are"), ("distill", "teachers are")):
            if getattr(compare, key):
                raise ValueError(f"compare.{key}: {told} of retraining; add `retrain`, or leave them out")
