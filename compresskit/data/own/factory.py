"""Data sets of the user's own, from a function or class named in the recipe."""

import logging
import uuid
from collections.abc import Iterable
from dataclasses import field, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Len, Lt

from compresskit import user_code
from compresskit.data.dataset import AnySet, DataSet, corrupt, digest, generator, partition
from compresskit.data.own.classes import meant
from compresskit.data.own.draws import Draws
from compresskit.data.own.form import Form
from compresskit.data.own.returned import Part, parts_of
from compresskit.data.own.splits import FIXED, KEPT, Numbered, Pass, Stream, named
from compresskit.data.own.targets import Targets
from compresskit.errors import DataError
from compresskit.options import option

log = logging.getLogger("compresskit")

Piece = Numbered | Stream
CHUNK = 256  # samples of a stream that are counted at a time
TOLD = 100_000  # of them, and ten times as many each time, are told while they are counted
ENDLESS = "data.limit (of training samples), or itertools.islice"
LOOKED_AT = 8  # samples of a part that its identity is made of
TWICE = "its samples differ each time they are read, so no run can be resumed and no moments are kept; draw from the "
TWICE += "global generators of torch, numpy or random, which are seeded"


@option
class Factory(AnySet):
    """What a function or class of yours returns: `kind: package.module:factory` for short."""

    kind: Literal["factory"] = "factory"
    target: str  # "package.module:factory", looked for in the current directory too
    arguments: dict[str, Any] = field(default_factory=dict)  # of the factory
    # Key of the input in samples that are mappings, number in tuples; several: the network gets a tuple of them
    inputs: str | int | Annotated[tuple[str | int, ...], Len(2, 8)] | None = None
    targets: str | int | None = None  # key of the target in samples that are mappings, number in tuples
    # auto: by the first target; own: targets of any structure, for a loss and metrics of yours
    task: Literal["auto", "classification", "regression", "segmentation", "own"] = "auto"
    # How many, or their names in their order; default: what the data set has as `classes` or `targets`
    classes: Annotated[int, Ge(2)] | Annotated[tuple[str, ...], Len(2)] | None = None
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2  # without a test part: what is held out, drawn by split_seed
    collate: str | None = None  # "package.module:function" of yours, from a list of samples to a batch of them
    workers: Annotated[int, Ge(0)] | None = None  # processes that read samples; default: the DataLoader's, or none

    def load(self, seed: int) -> DataSet:
        """The set as the factory returns it; samples are read when they are served, but for a few.

        Raises RecipeError for a target that cannot be found or called, DataError for what is no data set.
        """
        parts = parts_of(user_code.made(self.target, self.arguments, "data", "data sets"), self.target)
        parts = {role: self._with_options(part) for role, part in parts.items()}
        if self.validation and "validation" in parts:
            raise DataError(f"data.validation: {self.target} returns a validation part; leave one of them out")
        first = _first(self._where("train"), parts["train"])
        form = meant(self._where("train"), first, parts, Form(self.inputs, self.targets), self.task, self.classes)
        known = {role: self._piece(role, part, form) for role, part in parts.items()}
        notes = [note for part in parts.values() for note in part.notes]
        notes += [f"{piece.where}: {TWICE}" for piece, steady in known.values() if not steady]
        pieces = _held_out({role: piece for role, (piece, _) in known.items()}, self)
        if self.label_noise:
            pieces["train"] = _corrupted(pieces["train"], self.label_noise, seed)
        splits = {role: piece.split() for role, piece in pieces.items()}
        inputs, _ = pieces["train"].looked_at(1)[0]
        several = inputs if isinstance(inputs, tuple) else (inputs,)
        shapes, tokens = (
            tuple(tuple(one.shape[1:]) for one in several),
            tuple(one.dtype == torch.int64 for one in several),
        )
        channels = shapes[0][0] if len(shapes) == 1 and shapes[0] and not tokens[0] else 0
        return DataSet(
            splits["train"],
            splits.get("validation"),
            splits["test"],
            task=form.task,
            outputs=form.outputs,
            input_shape=shapes if isinstance(inputs, tuple) else shapes[0],
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            fingerprint=digest(*(split.fingerprint for split in splits.values())),
            tokens=tokens,
            scaled=tuple(one.dtype == torch.uint8 for one in several),
            of_bytes=tuple(one.dtype == torch.uint8 for one in several),
            classes=form.names,
            notes=tuple(notes),
        )

    def _where(self, role: str) -> str:
        return f"data.target: {self.target}, {role}"

    def _with_options(self, part: Part) -> Part:
        collate = part.collate if self.collate is None else user_code.find(self.collate, "data.collate", "batches")
        return replace(part, collate=collate, workers=part.workers if self.workers is None else self.workers)

    def _piece(self, role: str, part: Part, form: Form) -> tuple[Piece, bool]:
        """All samples of a part, and whether they are the same each time that they are read.

        Two parts are believed to be the same if factory, arguments and length are, and the samples that are looked at.
        """
        where, form = self._where(role), replace(form, collate=part.collate)
        most = self.limit if role == "train" else None
        count, whole = _length(where, part, most)
        labels = torch.full((count,), KEPT)
        if part.streams:
            piece: Piece = Stream(where, part.dataset, form, labels, whole)
        else:
            piece = Numbered(where, part.dataset, form, part.workers, torch.arange(count), labels)
        seen = [digest(*_parts(piece.looked_at(LOOKED_AT))) for _ in range(2)]
        steady = seen[0] == seen[1]
        told = (self.target, sorted(self.arguments.items()), self.collate, role, replace(form, collate=None), count)
        return replace(piece, identity=digest(*told, seen[0] if steady else uuid.uuid4())), steady


def _first(where: str, part: Part) -> Any:
    """A sample. Raises DataError where there is none."""
    if part.streams:
        found = Pass(where, part.dataset, FIXED).take(1)
    else:
        with named(where), Draws(FIXED).used():
            found = [part.dataset[0]] if len(part.dataset) else []
    if not found:
        raise DataError(f"{where}: it holds no samples; return at least one")
    return found[0]


def _length(where: str, part: Part, most: int | None) -> tuple[int, bool]:
    """How many samples, and whether these are all; a stream that does not tell is gone through once, to `most`."""
    whole = True
    with named(where):
        try:
            count = len(part.dataset)
        except TypeError:
            log.info("%s: its samples are counted, since it has no length", where)
            count, whole = _counted(where, part, most)
    if count == 0:
        raise DataError(f"{where}: it holds no samples; return at least one")
    return count, whole


def _counted(where: str, part: Part, most: int | None) -> tuple[int, bool]:
    walk, count, told = Pass(where, part.dataset, FIXED), 0, TOLD
    while found := len(walk.take(CHUNK if most is None else min(CHUNK, most - count))):
        count += found
        if count == most:
            return count, False
        if count >= told:
            log.info("%s: %s samples and no end; one without an end needs %s", where, f"{told:,}", ENDLESS)
            told *= 10
    return count, True


def _held_out(pieces: dict[str, Piece], options: Factory) -> dict[str, Piece]:
    """By role, with a test part, a validation part where one is asked for, and the rest of the training part."""
    train, found = pieces["train"], dict(pieces)
    if isinstance(train, Stream):
        if "test" not in pieces or options.validation:
            lacks = "a validation part (and leave data.validation out)" if "test" in pieces else "a test part"
            raise DataError(f"{train.where}: an iterable data set cannot be divided; return {lacks} as well")
        return found | {"train": train.first(options.limit or len(train))}
    if "test" not in found:
        held = max(1, round(options.test_fraction * len(train)))
        order = torch.randperm(len(train), generator=generator("test split", options.split_seed))
        found["test"], train = train.take(order[:held].sort().values), train.take(order[held:].sort().values)
    kept, held_out = partition(len(train), options)
    if len(held_out):
        found["validation"] = train.take(held_out)
    return found | {"train": train.take(kept)}


def _corrupted(train: Piece, fraction: float, seed: int) -> Piece:
    form = train.form
    if form.task != "classification":
        raise DataError(f"data.label_noise: {fraction} needs classes, but the task is {form.task}; leave it out")
    return replace(train, labels=corrupt(train.labels, fraction, form.outputs, seed))


def _parts(batches: Iterable[tuple[Any, Any]]) -> list[Any]:
    """What tells batches apart."""
    return [
        part
        for inputs, targets in batches
        for part in (
            *(inputs if isinstance(inputs, tuple) else (inputs,)),
            *(targets.parts() if isinstance(targets, Targets) else (targets,)),
        )
    ]
