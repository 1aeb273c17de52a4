"""The shape of a sample, which data give and networks take."""

from collections.abc import Sequence

Shape = tuple[int, ...] | tuple[tuple[int, ...], ...]  # of one sample: of its one input, or of each of several


def shapes_of(shape: Shape | Sequence[int] | Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """One for each input."""
    several = bool(shape) and not isinstance(shape[0], int)
    return tuple(tuple(one) for one in shape) if several else (tuple(shape),)  # type: ignore[arg-type]
