"""Running a command: its report is printed, and the exit status tells how it went."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import typer

from compresskit import process
from compresskit.errors import CompresskitError, JobError, ResourceError, TargetMissed
from compresskit.process import INTERRUPTED

if TYPE_CHECKING:
    from compresskit.commands.result import Result
    from compresskit.commands.session import Progress

RESUME = "; --resume goes on from the last saved state"


def run_command(
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
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    logging.basicConfig(level=level if _is_main_process() else logging.ERROR, format="%(message)s", handlers=[handler])
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
        if result.failed:
            from compresskit.commands.result import shortened

            jobs = "1 job" if len(result.failed) == 1 else f"{len(result.failed)} jobs"
            names = shortened(list(result.failed))
            said = f"{jobs} failed, and the report has all others: {names}; --resume takes up what is missing"
            raise JobError(said) from ExceptionGroup("what stopped them", list(result.failed.values()))
        missed = [target for target in result.targets if not target.met]
        if missed:
            raise TargetMissed("; ".join(f"{t.name}: {t.asked} was asked for, {t.got} was reached" for t in missed))
    except KeyboardInterrupt:
        process.settle()
        lost = _lost_process()
        _end(lost or f"interrupted{RESUME if resumable else ''}", 1 if lost else INTERRUPTED)
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


class _Once(logging.Filter):
    """Lets each warning through once, as jobs beside each other have it: a hundred settings would repeat it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno >= logging.WARNING and text in self._said:
            return False
        self._said.add(text)
        return True


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
    return f"error: process {ended} has ended: {reason}{RESUME}" if ended else ""


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
