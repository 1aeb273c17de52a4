"""The last net: an error that no place of its own has caught, in one line that says where, what, and what next."""

import errno
import traceback
from pathlib import Path

from compresskit.errors import CompresskitError

INTERNAL = 70  # exit status of an error in compresskit itself, as sysexits.h has it
_PACKAGE = Path(__file__).parent
_NEXT = {
    errno.ENOSPC: "free some space or write elsewhere with --out",
    errno.EDQUOT: "free some space or write elsewhere with --out",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
_NO_MEMORY = ("OutOfMemoryError", "MemoryError")
_NUMERICS = ("LinAlgError", "_LinAlgError")
_NO_ENTRY = ("index out of range in self", "device-side assert")  # of an embedding, as the CPU and CUDA say it


def told(error: BaseException, doing: str) -> str:
    """A line on an error of any kind: what it says of itself where it is one of ours, else `explained`."""
    return str(error) if isinstance(error, CompresskitError) else explained(error, doing)[0]


def explained(error: BaseException, doing: str) -> tuple[str, int]:
    """A line, and the exit status. doing: the verb. What `errors.within` noted of the place goes in front."""
    where = ": ".join([doing, *reversed(getattr(error, "__notes__", []))])
    said = (str(error).strip().splitlines() or [""])[0]
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {*_NO_MEMORY} or "not enough memory" in said or "t allocate memory" in said:
        advice = "use a smaller batch_size (train, moments), or lower moments.memory"
        return f"{where}: the device has too little memory ({said or 'none is left'}); {advice}", 1
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename is not None else ""
        advice = _NEXT.get(error.errno or 0, "check the path, its permissions and its disk")
        return f"{where}: {file}{error.strerror or said}; {advice}", 1
    if names & {*_NUMERICS}:
        return f"{where}: a factorisation failed ({said}); check the weights and the data for NaN and constants", 1
    if any(words in said for words in _NO_ENTRY):
        advice = "check in all samples that tokens are from 0 to below the entries of the model's embeddings"
        return f"{where}: a table was asked for an entry that it lacks ({said}); {advice}", 1
    if isinstance(error, RuntimeError) and _raised_by_torch(error):
        return f"{where}: torch cannot do it ({said}), at {_place(error)}; --debug shows where in full", 1
    kind = type(error).__name__
    return (
        f"{where}: internal error, {kind}: {said}, at {_place(error)}; this is a fault of compresskit: please report "
        "it with the output of --debug",
        INTERNAL,
    )


def _raised_by_torch(error: BaseException) -> bool:
    """Whether the innermost frame is torch's, or the call of one of its functions, which have no frames."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and ("torch" in Path(frames[-1].filename).parts or "torch" in (frames[-1].line or ""))


def _place(error: BaseException) -> str:
    """The innermost line of our own that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents and frame.name != "_run"]
    frame = (own or list(frames))[-1] if frames else None
    if frame is None:
        return "an unknown place"
    path = Path(frame.filename)
    name = path.relative_to(_PACKAGE.parent) if _PACKAGE in path.parents else path.name
    return f"{name}:{frame.lineno}"
