"""The arguments and options that several verbs share, as typer takes them."""

from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[Path, typer.Argument(help="Recipe file, YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the recipe: train.epochs=3, ~fuse.retrain.", show_default=False
    ),
]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", "-c", help="model.pt, or the folder of a run with all its trials.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to.  [runs/NAME-VERB]")]
OutIfAsked = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write a report to.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option("--seed", help="In place of the recipe's.")]
Jobs = Annotated[
    str,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N|auto|ray",
        help="Trials and networks of comparisons at a time: each has a GPU, or its share of the CPU's threads.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in the folder; with --force, start over where it was another."),
]
Force = Annotated[bool, typer.Option("--force", help="Remove the run in the folder first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Neither progress nor table.")]
Json = Annotated[bool, typer.Option("--json", help="The report as JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="The whole traceback of an error.")]
NoCode = Annotated[bool, typer.Option("--no-code", help="Refuse recipes that name code, as a model of your own does.")]

File = Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.", show_default=False)]

REQUIRED = Parameter.empty
# Of the verbs that read a recipe, in the order of --help: the names are those of session.Arguments.
PARAMETERS: dict[str, tuple[Any, Any]] = {  # annotation, default
    "recipe": (Recipe, REQUIRED),
    "overrides": (Overrides, None),
    "checkpoint": (Checkpoint, None),
    "out": (Out, None),
    "device": (Device, "auto"),
    "seed": (Seed, None),
    "jobs": (Jobs, "1"),
    "resume": (Resume, False),
    "force": (Force, False),
    "dry_run": (DryRun, False),
    "quiet": (Quiet, False),
    "json": (Json, False),
    "debug": (Debug, False),
    "no_code": (NoCode, False),
}
