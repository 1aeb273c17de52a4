"""Arrays of the user's as what sets hold: finite numbers of the types that batches are made of, or whole ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskit.errors import DataError

_HELD = (np.uint8, np.int8, np.int16, np.int32, np.int64, np.bool_)  # as torch indexes them, on every device


def plain(where: str, array: NDArray[Any], *, names: bool) -> NDArray[Any]:
    """The array, texts decoded. names: texts are allowed. Raises DataError for other types, and for an empty array."""
    kind = array.dtype.kind
    if kind == "S" and names:
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: its texts are not UTF-8; store np.char.decode(array, encoding)") from error
    known = kind in "iub" or array.dtype.newbyteorder("=") in (np.float16, np.float32, np.float64)
    if not known and not (names and kind in "SU"):
        hint = _HINTS.get(kind, "")
        raise DataError(f"{where}: of type {array.dtype}; give integers, truth values or floats {hint}".rstrip())
    if array.size == 0:
        raise DataError(f"{where}: empty, of shape {array.shape}; give at least one sample")
    return array


_HINTS = {"c": "(complex numbers as two channels)", "f": "(array.astype('float32'))"}
_HINTS |= dict.fromkeys("SUOT", "(texts can only be targets, of type str)")


def numbers(where: str, inputs: NDArray[Any]) -> NDArray[Any]:
    """Bytes and truth values as they are, float16 as such, all else float32. Raises DataError for NaN and infinity."""
    if inputs.dtype in (np.uint8, np.bool_):
        return inputs
    half = inputs.dtype.newbyteorder("=") == np.float16
    return finite(where, inputs, np.float16 if half else np.float32)


def whole(where: str, inputs: NDArray[Any]) -> NDArray[Any]:
    """Tokens, in the type that they are stored in where torch has it, or int64. Raises DataError for what are none."""
    if inputs.dtype.kind == "f":
        raise DataError(f"{where}: of type {inputs.dtype}, and tokens are whole numbers; store array.astype('int64')")
    if (inputs < 0).any():
        raise DataError(f"{where}: it holds {inputs.min()}, and tokens are numbers from 0, as tables have them")
    native = inputs.astype(inputs.dtype.newbyteorder("="), copy=False)
    return native if native.dtype in _HELD else native.astype(np.int64)


def check_channels(where: str, inputs: NDArray[Any]) -> list[str]:
    """Raises DataError for pictures that surely have their channels last, and has a note for those that may.

    They would pass for (width, 3) pictures of `height` channels. Square ones and those of bytes are no signals.
    """
    _, channels, height, width = inputs.shape if inputs.ndim == 4 else (0, 0, 0, 0)
    if width not in (1, 3, 4) or min(channels, height) <= 4:
        return []
    if channels == height or inputs.dtype == np.uint8:
        raise DataError(
            f"{where}: of shape {inputs.shape}, with channels last; they come first: store inputs.transpose(0, 3, 1, 2)"
        )
    return [f"{where}: read as {channels} channels of {height} x {width}; if channels come last, transpose them"]


def finite(where: str, array: NDArray[Any], dtype: Any = np.float32) -> NDArray[Any]:
    """The array as float32 (or float16), all of whose values are finite."""
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is reported as such
        array = array.astype(dtype, copy=False)
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        raise DataError(
            f"{where}: {bad.sum()} of {bad.size} values are NaN or infinite in {array.dtype}, the first at "
            f"{list(first)}; mend or leave out those samples"
        )
    return array
