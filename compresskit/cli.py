"""The command line: the verbs and their options. Home of typer. Nothing here imports torch before a verb runs."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import ExitStack
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from compresskit import __version__, process
from compresskit.errors import CompresskitError, ResourceError, TargetMissed
from compresskit.process import INTERRUPTED

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
_RESUME = "; --resume goes on from the last saved state"

_Recipe = Annotated[Path, typer.Argument(help="Recipe file, YAML.", show_default=False)]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the recipe: train.epochs=3, ~fuse.retrain.", show_default=False
    ),
]
_Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", "-c", help="model.pt, or the folder of a run with all its trials.")
]
_Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to.  [runs/NAME-VERB]")]
_OutIfAsked = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write a report to.")]
_Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
_Seed = Annotated[int | None, typer.Option("--seed", help="In place of the recipe's.")]
_Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in the folder; with --force, start over where it was another."),
]
_Force = Annotated[bool, typer.Option("--force", help="Remove the run in the folder first.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Neither progress nor table.")]
_Json = Annotated[bool, typer.Option("--json", help="The report as JSON on standard output.")]
_Debug = Annotated[bool, typer.Option("--debug", help="The whole traceback of an error.")]
_NoCode = Annotated[bool, typer.Option("--no-code", help="Refuse recipes that name code, as a model of your own does.")]

_File = Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.", show_default=False)]

_REQUIRED = Parameter.empty
# Of the verbs that read a recipe, in the order of --help: the names are those of session.Arguments.
PARAMETERS: dict[str, tuple[Any, Any]] = {  # annotation, default
    "recipe": (_Recipe, _REQUIRED),
    "overrides": (_Overrides, None),
    "checkpoint": (_Checkpoint, None),
    "out": (_Out, None),
    "device": (_Device, "auto"),
    "seed": (_Seed, None),
    "resume": (_Resume, False),
    "force": (_Force, False),
    "dry_run": (_DryRun, False),
    "quiet": (_Quiet, False),
    "json": (_Json, False),
    "debug": (_Debug, False),
    "no_code": (_NoCode, False),
}


def _add_verb(verb: str, does: str, *, without: Collection[str] = ()) -> None:
    """Adds a command that runs commands.VERB.verb with the shared parameters, but for those that it goes without."""

    def command(quiet: bool, json: bool, debug: bool, no_code: bool, overrides: list[str] | None, **given: Any) -> None:
        def run(progress: "Progress", held: ExitStack) -> "Result":
            with process.importing():
                from compresskit.commands.session import Arguments
                from compresskit.user_code import NO_CODE

            if no_code:
                os.environ[NO_CODE] = "1"
            arguments = Arguments(overrides=tuple(overrides or ()), held=held, **given)
            with process.importing():
                module = import_module(f"compresskit.commands.{verb}.verb")
            found: Result = module.run(arguments, progress)
            return found

        resumable = "resume" in given and not given["dry_run"]
        _run(verb, run, quiet, json, debug, resumable=resumable)

    taken = {name: kind for name, kind in PARAMETERS.items() if name not in without}
    if verb == "evaluate":
        taken["out"] = (_OutIfAsked, None)
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
_add_verb("spectra", "Spectra of the weights of each layer: power laws, norms, ranks, random bulks.")
_add_verb("finetune", "Train a checkpoint further.")
_add_verb(
    "evaluate",
    "Test metric, size and latency of a checkpoint; writes only where --out says.",
    without=["seed", "resume", "dry_run"],
)
_add_verb(
    "validate",
    "Check a recipe: keys, data, model, one batch of every verb.",
    without=["out", "seed", "resume", "force", "dry_run"],
)


@app.command()
def inspect(file: _File, quiet: _Quiet = False, json: _Json = False, debug: _Debug = False) -> None:
    """What a checkpoint holds and how it came to be."""

    def run(progress: "Progress", held: ExitStack) -> "Result":
        from compresskit.commands.inspect import verb as command

        return command.run(file)

    _run("inspect", run, quiet, json, debug)


@app.command()
def show(
    topic: Annotated[str, typer.Argument(help="models, datasets, recipes or layers.", show_default=False)],
    section: Annotated[str | None, typer.Argument(help="Of recipes: one section.", show_default=False)] = None,
    checkpoint: _Checkpoint = None, quiet: _Quiet = False, json: _Json = False, debug: _Debug = False,
) -> None:  # fmt: skip
    """What a recipe can name, and the layers of a checkpoint."""

    def run(progress: "Progress", held: ExitStack) -> "Result":
        from compresskit.commands.show import verb as command

        return command.run(topic, section, checkpoint)

    _run("show", run, quiet, json, debug)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .pt, .pt2 or .onnx.", show_default=False)],
    layout: Annotated[
        str, typer.Option("--layout", help="masked: as it is. grouped: sparse layers of blocks as grouped layers.")
    ] = "masked",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    quiet: _Quiet = False, json: _Json = False, debug: _Debug = False,
) -> None:  # fmt: skip
    """Write a checkpoint in another layout, or as a file that torch or ONNX alone can run."""

    def run(progress: "Progress", held: ExitStack) -> "Result":
        from compresskit.commands.export import verb as command

        return command.run(model, out, layout, force=force)

    _run("export", run, quiet, json, debug)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"compresskit {__version__}")
        raise typer.Exit


def _run(
    verb: str,
    command: "Callable[[Progress, ExitStack], Result]",
    quiet: bool,
    as_json: bool,
    debug: bool,
    *,
    resumable: bool = False,
) -> None:
    """Runs a command, publishes its result, and ends with the exit status that tells how it went.

    The command puts on the stack what must be held until its report is written.
    """
    quiet = quiet or not _is_main_process()
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level if _is_main_process() else logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.raiseExceptions = False
    try:
        with process.importing():
            from compresskit.report import TerminalProgress, publish

        with ExitStack() as held:
            with TerminalProgress(quiet=quiet) as progress, process.warnings() as warned:
                result = command(progress, held)
            told = dict.fromkeys([*progress.notes, *warned])
            result.notes = [*(text for text in told if text not in result.notes), *result.notes]
            if _is_main_process():
                _print(lambda: publish(result, as_json=as_json, quiet=quiet))
        missed = [target for target in result.targets if not target.met]
        if missed:
            raise TargetMissed("; ".join(f"{t.name}: {t.asked} was asked for, {t.got} was reached" for t in missed))
    except KeyboardInterrupt:
        process.settle()
        lost = _lost_process()
        _end(lost or f"interrupted{_RESUME if resumable else ''}", 1 if lost else INTERRUPTED)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        process.settle()
        if debug:
            traceback.print_exc()
        if isinstance(error, CompresskitError):
            _end(f"error: {error}", error.exit_status)
        from compresskit.mishaps import explained

        text, status = explained(error, verb)
        lost = _lost_process()
        _end(lost or f"error: {text}", 1 if lost else status)


def _print(publish: Callable[[], None]) -> None:
    """To standard output, where nobody may be reading any more (`| head`), which is no error, or nobody can."""
    try:
        publish()
        sys.stdout.flush()
    except BrokenPipeError:
        process.abandon_stdout()
    except OSError as error:
        if error.filename is not None:
            raise
        process.abandon_stdout()
        raise ResourceError(f"standard output cannot be written ({error.strerror}); the files are all there") from error


def _is_main_process() -> bool:
    """Of those that torchrun started, the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def _lost_process() -> str:
    """What to say where another process of the run has ended, for which torchrun stops this one; "" where none has."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    from compresskit.distributed import ended_peers

    ended = ", ".join(f"{peer.rank} of {os.environ['WORLD_SIZE']} (pid {peer.pid})" for peer in ended_peers(patience=1))
    reason = "it was killed, ran out of memory, or says above what stopped it"
    return f"error: process {ended} has ended: {reason}{_RESUME}" if ended else ""


def _end(text: str, status: int) -> NoReturn:
    """Says why, once for all processes, and ends."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        typer.echo(text, err=True)
        sys.exit(status)
    from compresskit.distributed import speaker

    rank, first = int(os.environ["RANK"]), speaker()
    if rank != (first.rank if first else 0):
        time.sleep(1)
        if first is None or first.has_ended:  # all met the same error, and it has said so
            sys.exit(status)
        text = f"process {rank}: {text}"
    typer.echo(text, err=True)
    sys.exit(status)


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
