"""Every error that a user can meet.

CompresskitError          exit status 1 unless said otherwise
├── RecipeError           the recipe or the arguments are wrong (exit 2)
├── CheckpointError       a checkpoint cannot be read, or holds what we refuse
├── DataError             a data set is missing, empty or damaged
├── UnsupportedModelError the structure of the model is one we refuse
├── ConvergenceError      numerics did not reach their tolerance
├── CacheError            cached moments belong to other weights, data or options
├── RunFolderError        an output folder cannot be used
├── ResourceError         disk or memory will not do
├── JobError              jobs of a run failed, or were killed, beside others that did not
└── TargetMissed          the work is done, but a stated target was not reached (exit 3)

A message says where, what was given, what is allowed and what to do next, in one line.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class CompresskitError(Exception):
    """Base of all errors that are the user's to act on; the command line prints it as one line."""

    exit_status = 1


class RecipeError(CompresskitError):
    """The recipe or the command line is wrong: carries every mistake found, one line each."""

    exit_status = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CheckpointError(CompresskitError):
    """A checkpoint cannot be read, is damaged, or asks for something outside the closed lists."""


class DataError(CompresskitError):
    """A data set is missing, empty, damaged or of another shape than was stated."""


class UnsupportedModelError(CompresskitError):
    """The structure of the model is one that cannot be traced or edited."""


class ConvergenceError(CompresskitError):
    """An iterative method stopped before its certificate reached the tolerance, or a loss became NaN."""


class CacheError(CompresskitError):
    """Cached moments do not fit this run, and the recipe asked for them to be used as they are."""


class RunFolderError(CompresskitError):
    """An output folder exists already, is the input's, or cannot be written."""


class ResourceError(CompresskitError):
    """Disk or memory will not do for what was asked."""


class JobError(CompresskitError):
    """Of the jobs of a run (trials, networks compared) some failed; the others are done, saved and reported."""


class TargetMissed(CompresskitError):
    """The work is done and saved, but a target stated in the recipe was not reached."""

    exit_status = 3


@contextmanager
def within(place: str) -> Iterator[None]:
    """Notes of any error that comes through here at which layer or file it was, for the line that the user sees."""
    try:
        yield
    except Exception as error:
        error.add_note(place)
        raise


def near_names(name: str, known: Iterable[str]) -> str:
    """What a message says behind an unknown name: the nearest names, or the first few where none is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def first_line(error: BaseException) -> str:
    """What an error of a library says, which may go on for pages; its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
