"""What embeddings of a network look up, against what data give: whole numbers, as they are stored, of their tables."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from compresskit.data.dataset import DataSet, Split
from compresskit.errors import DataError, RecipeError
from compresskit.graph.shapes import Tokens, tokens
from compresskit.shapes import shapes_of

LOOKED_AT = 1000  # samples of a part that does not lie in memory
_BATCH = 1000


def check_inputs(network: fx.GraphModule, data: DataSet) -> None:
    """As `check_types`; and DataError for a number that a table does not have, or that is no whole one.

    All samples of a set in memory are looked at, of other sets LOOKED_AT of each part. Numbers that forward picks or
    clamps before they are looked up are its own affair.
    """
    check_types(network, data)
    looked_up = {n: found for n, found in enumerate(_looked_up(network, data)) if found is not None and found.all}
    if not looked_up:
        return
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    for name, part in parts.items():
        for inputs in _batches(part) if part is not None else ():
            for place, found in looked_up.items():
                _check_values(inputs[place], found, f"data: {_which(place, data)}, {name} part")


def check_types(network: fx.GraphModule, data: DataSet) -> None:
    """Raises RecipeError where an embedding looks up what data do not give: whole numbers, as they are stored."""
    for place, found in enumerate(_looked_up(network, data)):
        which, given = _which(place, data), data.tokens[place]
        if given and found is None:
            raise RecipeError(
                f"data: {which} is of whole numbers, which no embedding of the model looks up; give them as float32"
            )
        if given or found is None:
            continue
        if not found.whole:
            raise RecipeError(
                f"model: {found.layer} looks {which} up, and data give numbers with a point; write "
                "x = x.long() at the beginning of forward, or give whole numbers from data of your own"
            )
        if data.scaled[place]:
            raise RecipeError(
                f"data: {found.layer} looks {which} up as it is stored, and it would be normalised, or divided by 255 "
                "where it is of bytes; name it in data.tokens (kind: arrays), or return int64 from data of your own"
            )


def _looked_up(network: fx.GraphModule, data: DataSet) -> list[Tokens | None]:
    """Of each input."""
    count = len(shapes_of(data.input_shape))
    return [tokens(network, place if count > 1 else None) for place in range(count)]


def _which(place: int, data: DataSet) -> str:
    return f"input {place + 1}" if len(shapes_of(data.input_shape)) > 1 else "the network's input"


def _batches(part: Split) -> Iterator[tuple[Tensor, ...]]:
    few = part if part.in_memory else part.sample(LOOKED_AT)
    for inputs, _ in few.batches(_BATCH, torch.device("cpu")):
        yield inputs if isinstance(inputs, tuple) else (inputs,)


def _check_values(values: Tensor, found: Tokens, where: str) -> None:
    broken = values != values.floor() if values.is_floating_point() else torch.zeros_like(values, dtype=torch.bool)
    if broken.any():
        raise DataError(
            f"{where}: {found.layer} looks it up, and it holds {values[broken][0].item():.6g}; give whole numbers from "
            f"0 to {found.count - 1}"
        )
    outside = (values < 0) | (values >= found.count)
    if outside.any():
        raise DataError(
            f"{where}: {found.layer} has entries from 0 to {found.count - 1}, and the data hold "
            f"{int(values[outside][0])}; mend the data, or give the model a table of more entries"
        )
