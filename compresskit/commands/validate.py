"""`compresskit validate`: everything that can go wrong later, tried now, and nothing written."""

from dataclasses import replace

from compresskit.commands import finetune, fuse, train
from compresskit.commands.result import Result, Table
from compresskit.commands.session import Arguments, Progress
from compresskit.recipes.load import load_recipe

VERBS = {"train": train.run, "fuse": fuse.run, "finetune": finetune.run}
NEED_CHECKPOINT = ("fuse", "finetune")


def run(arguments: Arguments, progress: Progress) -> Result:
    """A dry run of every verb whose section the recipe has; those on a trained net need --checkpoint."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    arguments = replace(arguments, dry_run=True)
    result = Result("validate", str(arguments.recipe))
    rows = []
    for verb, run_verb in VERBS.items():
        if getattr(recipe, verb) is None:
            continue
        if verb in NEED_CHECKPOINT and arguments.checkpoint is None:
            result.skipped[verb] = "its layers can be checked only with --checkpoint; its keys are right"
            continue
        plan = run_verb(arguments, progress)
        result.tables += plan.tables
        rows.append((verb, "ready"))
    result.tables.insert(0, Table("sections", ("verb", "state"), rows))
    result.notes = ["the recipe is right", "nothing was written"]
    return result
