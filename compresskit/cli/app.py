"""The command line: the verbs and their options. Nothing here imports torch before a verb runs."""

import os
from collections.abc import Collection
from contextlib import ExitStack
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compresskit import __version__, process
from compresskit.cli.parameters import PARAMETERS, Checkpoint, Debug, File, Json, OutIfAsked, Quiet
from compresskit.cli.running import run_command
from compresskit.errors import RecipeError
from compresskit.user_code import NO_CODE

if TYPE_CHECKING:
    from compresskit.commands.result import Result
    from compresskit.commands.session import Progress

app = typer.Typer(
    name="compresskit",
    help="Compress neural networks from YAML recipes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add_verb(verb: str, does: str, *, without: Collection[str] = ()) -> None:
    """Adds a command that runs commands.VERB.verb with the shared parameters, but for those that it goes without."""

    def command(quiet: bool, json: bool, debug: bool, no_code: bool, overrides: list[str] | None, **given: Any) -> None:
        module = f"compresskit.commands.{verb}.verb"
        if no_code:
            os.environ[NO_CODE] = "1"
        if given.get("jobs", "1") != "1" and not given["dry_run"]:
            from compresskit.jobs.cluster import is_cluster
            from compresskit.jobs.processes import prepare

            if not is_cluster(given["jobs"]):
                prepare(module)

        def run(progress: "Progress", held: ExitStack) -> "Result":
            with process.importing():
                from compresskit.commands.session import Arguments

            arguments = Arguments(overrides=tuple(overrides or ()), held=held, **given)
            with process.importing():
                program = import_module(module)
            found: Result = program.run(arguments, progress)
            return found

        resumable = "resume" in given and not given["dry_run"]
        run_command(verb, run, quiet, json, debug, resumable=resumable)

    taken = {name: kind for name, kind in PARAMETERS.items() if name not in without}
    if verb == "evaluate":
        taken["out"] = (OutIfAsked, None)
    command.__doc__ = does
    command.__signature__ = Signature(  # type: ignore[attr-defined]  # what typer makes the options from
        [
            Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in taken.items()
        ]
    )
    app.command(verb)(command)


_add_verb("train", "Train a new network.", without=["checkpoint"])
_add_verb("fuse", "Fuse neighbouring layers of a trained network into one, and retrain.")
_add_verb("expand", "Train a compact network as an over-parameterised one, and multiply it back.")
_add_verb("reconstruct", "Drop inputs of layers, fit the rest to give the same outputs, and cut.")
_add_verb("prune", "Take out channels that are worth least, repair what is left, and retrain.")
_add_verb("spectra", "Spectra of the weights of each layer: power laws, norms, ranks, random bulks.", without=["jobs"])
_add_verb("finetune", "Train a checkpoint further.")
_add_verb(
    "evaluate",
    "Test metric, size and latency of a checkpoint; writes only where --out says.",
    without=["seed", "jobs", "resume", "dry_run"],
)
_add_verb(
    "validate",
    "Check a recipe: keys, data, model, one batch of every verb.",
    without=["out", "seed", "jobs", "resume", "force", "dry_run"],
)


@app.command()
def inspect(file: File, quiet: Quiet = False, json: Json = False, debug: Debug = False) -> None:
    """What a checkpoint holds and how it came to be."""

    def run(progress: "Progress", held: ExitStack) -> "Result":
        from compresskit.commands.inspect import verb as command

        return command.run(file)

    run_command("inspect", run, quiet, json, debug)


@app.command()
def show(
    topic: Annotated[str, typer.Argument(help="models, datasets, recipes, layers or runs.", show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(help="Of recipes: one section. Of runs: folders.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = None,
    sort: Annotated[str | None, typer.Option("--sort", help="Runs by a column; -COLUMN: downwards.")] = None,
    verb: Annotated[str | None, typer.Option("--verb", help="Runs of this verb.")] = None,
    net: Annotated[str | None, typer.Option("--net", help="Runs with this in their network or name.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Page of the runs to write.")] = None,
    quiet: Quiet = False, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """What a recipe can name, the layers of a checkpoint, and runs beside each other."""

    def run(progress: "Progress", held: ExitStack) -> "Result":
        if topic == "runs":
            if checkpoint is not None:
                raise RecipeError("show runs: --checkpoint is for show layers alone; name the folders")
            from compresskit.commands.show.overview import verb as overview

            return overview.run([Path(name) for name in names or ["runs"]], overview.Asked(sort, verb, net, html))
        from compresskit.commands.show import verb as command

        of_runs = {"sort": sort, "verb": verb, "net": net, "html": html}
        return command.run(topic, names or [], checkpoint, [name for name, value in of_runs.items() if value])

    run_command("show", run, quiet, json, debug)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Its ending says what it will be.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to --recipe.", show_default=False)
    ] = None,
    layout: Annotated[
        str, typer.Option("--layout", help="masked: as it is. grouped: sparse layers of blocks as grouped layers.")
    ] = "masked",
    fold_norms: Annotated[
        bool, typer.Option("--fold-norms", help="Take batch norms into the layers behind or before which they stand.")
    ] = False,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Take images as they are stored, and normalise them inside.")
    ] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Of a classifier: softmax inside.")] = False,
    quantize: Annotated[str | None, typer.Option("--quantize", help="int8, of an .onnx file.")] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Whose data --quantize goes by; whose model a state dict is for.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    quiet: Quiet = False, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Write a checkpoint in another layout, or as a file that torch or ONNX alone can run."""

    def run(progress: "Progress", held: ExitStack) -> "Result":
        from compresskit.commands.export import verb as command
        from compresskit.commands.export.options import Options

        inside, changes = (with_preprocessing, probabilities), tuple(overrides or ())
        options = Options(model, out, layout, fold_norms, *inside, quantize, recipe, changes, force)
        return command.run(options, progress)

    run_command("export", run, quiet, json, debug)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"compresskit {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the shell command.

    One process of several ends without tearing torch down: a thread of torch's that still runs then aborts the process
    now and then, and torchrun takes the whole run for failed.
    """
    try:
        app()
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") == "1" or not isinstance(end.code, int | None):
            raise
        process.leave(end.code or 0)
