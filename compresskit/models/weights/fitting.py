"""Weights of a file into a model from outside: what they are called there, what may lack, and what does not fit."""

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from compresskit.errors import CheckpointError, RecipeError, near_names
from compresskit.models.weights.files import Found, read_state, told
from compresskit.models.weights.renamed import parts_of_norm, renamed
from compresskit.models.weights.values import (
    check_made,
    check_numbers,
    check_ties,
    own_tensors,
    twins,
    unstored_buffers,
)

_SHOWN = 5  # names of tensors in a message
_FIT = 0.9  # share of a model's tensors that must be found under a prefix
# What a net in eval mode has no use for, or what newer libraries do not store.
_SPARE = re.compile(
    r"(.*\.)?(num_batches_tracked|n_averaged|relative_position_index|attn_mask|attention_bias_idxs|inv_freq|position_ids)"
    r"|(aux\d*|AuxLogits|aux_classifier|aux_head)\..*"
)
logger = logging.getLogger(__name__)


@dataclass
class Fitted:
    """A state dict by the names of a model. notes: what was renamed, converted or left out, a sentence each.

    missing, surplus, wrong, kinds: what does not fit; wrong: by name in the model, the shape for the wanted one.
    """

    state: dict[str, Tensor]
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problems(self) -> str:
        """What does not fit, in words; "" where all does."""
        all_kinds = {
            "missing": self.missing,
            "not in the model": self.surplus,
            "wrong shape": [f"{name} {told}" for name, told in self.wrong.items()],
            "wrong type": self.kinds,
        }
        return "; ".join(f"{what}: {_some(names)}" for what, names in all_kinds.items() if names)


def load_weights(model: nn.Module, path: Path, *, fresh: Collection[str] = (), finite: bool = True) -> None:
    """Copies the state dict of a file into `model`; what was renamed, converted or left out is a warning.

    fresh: layers of the model that keep their own weights, whatever the file has. Takes what `read_state` reads, names
    with or without a prefix (module., model., backbone., ...), without num_batches_tracked, in half precision.
    Of a tensor with two names one is enough. finite: whether numbers must be so.
    Raises CheckpointError for a file that cannot be read, for names or shapes that differ, and for numbers that are not
    finite in the model's types, or differ between two names of one tensor.
    """
    put_weights(model, read_state(path), path, fresh=fresh, finite=finite)


def put_weights(
    model: nn.Module, found: Found, path: Path, *, fresh: Collection[str] = (), finite: bool = True
) -> dict[str, Tensor]:
    """As `load_weights`, with what was read from the file at `path`. Returns it by the names of the model."""
    check_made(model)
    layers = [name for name, _ in model.named_modules() if name]
    if unknown := [name for name in fresh if name not in layers]:
        raise RecipeError(f"fresh: the model has no layer {unknown[0]!r}; {near_names(unknown[0], layers)}")
    fitted = fit(model, found.state, fresh)
    if problems := fitted.problems():
        raise CheckpointError(f"{path}: the weights do not fit the model; {problems}{_advice(fitted)}")
    if finite:
        check_numbers(own_tensors(model), fitted.state, path)
    check_ties(model, fitted.state, path)
    copy_into(model, fitted.state)
    if notes := [*found.notes, *fitted.notes]:
        logger.warning("%s: %s", path, "; ".join(notes))
    return fitted.state


def copy_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies a state dict whose names and shapes are the model's; what it lacks stays. Some classes ask which of their
    versions a state dict is of, which files of tensors alone do not tell: it is of this one."""
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=False)


def fit(model: nn.Module, state: Mapping[str, Tensor], fresh: Collection[str] = ()) -> Fitted:
    """The tensors of a file by the names of the model."""
    starts = tuple(f"{name}." for name in fresh)
    wanted = {name: t for name, t in own_tensors(model).items() if not name.startswith(starts)}
    first = twins(model)
    state, notes = renamed(wanted, state)
    cut, put = _prefixes(wanted, state, sum(name not in first and not _SPARE.fullmatch(name) for name in wanted))
    fitted = Fitted({f"{put}{name.removeprefix(cut)}": t for name, t in state.items() if name.startswith(cut)})
    fitted.notes += notes
    if cut or put:
        fitted.notes.append(f"{f'{cut} was taken off' if cut else f'{put} was put before'} {len(fitted.state)} names")
    parts = [name for name in state if not name.startswith(cut)]
    skipped = [name for name in fitted.state if name.startswith(starts)]
    unstored = unstored_buffers(model)
    spare = [
        name
        for name, tensor in fitted.state.items()
        if name not in wanted and name not in skipped and (_SPARE.fullmatch(name) or unstored.get(name) == tensor.shape)
    ]
    if left_out := [*parts, *spare]:
        fitted.notes.append(f"left out, since the model has no place for them: {_some(left_out)}")
    gone = {*skipped, *spare}
    fitted.state = {name: t for name, t in fitted.state.items() if name not in gone}
    fitted.surplus = [name for name in fitted.state if name not in wanted]
    both = [name for name in wanted if name in fitted.state]
    there = {first.get(name, name) for name in fitted.state}
    fitted.missing = [name for name in wanted if first.get(name, name) not in there and not _SPARE.fullmatch(name)]
    for name in both:
        given, own = fitted.state[name], wanted[name]
        if given.shape != own.shape:
            fitted.wrong[name] = f"{tuple(given.shape)} for {tuple(own.shape)}"
        if given.is_floating_point() != own.is_floating_point():
            fitted.kinds.append(f"{name} {given.dtype} for {own.dtype}")
    halves = [name for name in both if fitted.state[name].dtype in (torch.float16, torch.bfloat16)]
    if half := [name for name in halves if fitted.state[name].dtype is not wanted[name].dtype]:
        fitted.notes.append(f"{len(half)} tensors of 16 bits became {told(wanted[half[0]]).partition(',')[0]}")
    return fitted


def _prefixes(wanted: Collection[str], state: Collection[str], needed: int) -> tuple[str, str]:
    """(what to take off the names of the file, what to put before them): where most of the model's names are found then
    and not without; ("", "") else. needed: how many of them there are at least."""
    found = sum(name in wanted for name in state)
    cut, put = _best(state, wanted), _best(wanted, state)
    count, prefix = max(cut, put, key=lambda one: one[0])
    if count <= found or count < _FIT * needed:
        return "", ""
    return (prefix, "") if cut[0] == count else ("", prefix)


def _best(names: Collection[str], others: Collection[str]) -> tuple[int, str]:
    """How many of the names are among the others without a prefix, and that prefix; the shortest where several do."""
    counts = Counter(
        name[: at + 1] for name in names for at, letter in enumerate(name) if letter == "." and name[at + 1 :] in others
    )
    return min(((count, prefix) for prefix, count in counts.items()), key=_rank, default=(0, ""))


def _rank(found: tuple[int, str]) -> tuple[int, int, str]:
    count, prefix = found
    return -count, len(prefix), prefix


def _advice(fitted: Fitted) -> str:
    """What to do where the head alone stands in the way, or where names are near."""
    layers = {name.rpartition(".")[0] for name in fitted.wrong}
    if fitted.wrong and not (fitted.missing or fitted.surplus or fitted.kinds) and len(layers) <= 2:
        return "; for another number of classes write model.head: fresh"
    if said := parts_of_norm(fitted.missing, fitted.surplus):
        return said
    if fitted.missing and fitted.surplus:
        return f"; for {fitted.missing[0]}: {near_names(fitted.missing[0], fitted.surplus)}"
    return ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
