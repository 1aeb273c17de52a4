"""`compresskit validate`: everything that can go wrong later, tried now, and nothing written."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from compresskit.commands.expand import verb as expand
from compresskit.commands.expand.section import ExpandAndTrain
from compresskit.commands.finetune import verb as finetune
from compresskit.commands.fuse import verb as fuse
from compresskit.commands.parents import built
from compresskit.commands.prune import verb as prune
from compresskit.commands.recipe import load_recipe
from compresskit.commands.reconstruct import verb as reconstruct
from compresskit.commands.result import Result, Table
from compresskit.commands.session import Arguments, Progress, load_data
from compresskit.commands.spectra import verb as spectra
from compresskit.commands.train import verb as train

# ranking the candidates of `layers: auto` would take a pass over the data: that is what `fuse --dry-run` is for
VERBS: dict[str, Callable[[Arguments, Progress], Result]] = {
    "train": train.run,
    "fuse": partial(fuse.run, ranked=False),
    "expand": expand.run,
    "prune": prune.run,
    "reconstruct": reconstruct.run,
    "spectra": spectra.run,
    "finetune": finetune.run,
}
NEED_CHECKPOINT = ("fuse", "prune", "reconstruct", "finetune")


def run(arguments: Arguments, progress: Progress) -> Result:
    """A dry run of every verb whose section the recipe has; those on a trained net need --checkpoint.

    Where no verb can be tried, the data and the model are.
    """
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    arguments = replace(arguments, dry_run=True)
    result = Result("validate", str(arguments.recipe))
    rows = []
    for verb, run_verb in VERBS.items():
        if getattr(recipe, verb) is None:
            continue
        weights = getattr(recipe.model, "weights", None)
        needs = verb in NEED_CHECKPOINT or (verb == "expand" and _goes_on(recipe.section("expand")))
        needs |= verb == "spectra" and recipe.model is None
        if needs and arguments.checkpoint is None and weights is None:
            result.skipped[verb] = "its layers can be checked only with --checkpoint; its keys are right"
            continue
        plan = run_verb(arguments, progress)
        result.tables += plan.tables
        result.skipped |= {f"{verb}: {name}": reason for name, reason in plan.skipped.items()}
        rows.append((verb, "ready"))
    if not rows and recipe.data is not None:
        data = load_data(recipe, progress)
        rows.append(("data", "ready"))
        if recipe.model is not None:
            built(recipe, data, 0)
            rows.append(("model", "ready"))
    result.tables.insert(0, Table("sections", ("verb", "state"), rows))
    result.notes = ["the recipe is right", "nothing was written"]
    return result


def _goes_on(options: ExpandAndTrain) -> bool:
    """Whether `expand` starts from a trained net, as later stages do."""
    starts = [options.init, *(variant.init for variant in options.compare.values())]
    return options.stages[0] != "expand" or "from_checkpoint" in starts
