"""What a network returns, in lists, tuples and mappings, for files that hold a plain row of tensors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from compresskit.graph.format.values import decode, encode


def structure_of(value: Any) -> Any:
    """As `graph.format.values` has it, with the number of each tensor in its place; None for a tensor alone, and for
    what is more than tensors."""
    leaves, form = pytree.tree_flatten(value)
    if isinstance(value, Tensor) or not all(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    return encode(pytree.tree_unflatten(list(range(len(leaves))), form))


def in_structure(tensors: Sequence[Tensor], structure: Any) -> Any:
    """The value that `structure_of` told of. Raises ValueError where it told of other tensors."""
    places = places_of(structure)
    if len(pytree.tree_leaves(places)) != len(tensors):
        raise ValueError(f"it does not tell where {len(tensors)} tensors stand")
    return pytree.tree_map(lambda place: tensors[place], places)


def places_of(structure: Any) -> Any:
    """The value with a number in the place of each tensor. Raises ValueError for what `structure_of` does not give."""
    places = decode(structure, {})
    if pytree.tree_leaves(places) != list(range(len(pytree.tree_leaves(places)))):
        raise ValueError("its tensors are not numbered in their order")
    return places
