from dataclasses import field
from typing import Annotated, Literal

import pytest
from annotated_types import Gt, Lt

from compresskit.options import option
from compresskit.recipes.describe import Row, describe


@option
class Base:
    """What every tree shares."""

    kind: str
    rate: Annotated[float, Gt(0), Lt(1)] = 0.5  # of growth


@option
class Oak(Base):
    """A slow tree.

    It lives long.
    """

    kind: Literal["oak"] = "oak"
    # years that
    # it takes
    age: int


@option
class Birch(Base):
    """A fast tree."""

    kind: Literal["birch"] = "birch"
    rate: Annotated[float, Gt(0)] = 2.0  # at first


@option
class Path:
    """Where to walk."""

    steps: int = 3


@option
class Garden:
    """All there is."""

    tree: Oak | Birch = Birch()  # the one tree
    paths: tuple[Path, ...] = ()
    corners: dict[str, Path] = field(default_factory=dict)  # by a name
    seed: tuple[int, int] | None = None


def test_keys_values_defaults_and_comments_are_listed_for_each_kind():
    @option
    class Forest:
        garden: Garden | None = None  # outside

    assert describe(Forest, "garden") == [
        Row("garden", "a mapping or null", "null", "outside"),
        Row("garden.tree", "of kind oak or birch", "birch", "the one tree"),
        Row("garden.tree[oak]", "", "", "A slow tree."),
        Row("garden.tree[oak].rate", "a number greater than 0 and less than 1", "0.5", "of growth"),
        Row("garden.tree[oak].age", "an integer", "required", "years that it takes"),
        Row("garden.tree[birch]", "", "", "A fast tree."),
        Row("garden.tree[birch].rate", "a number greater than 0", "2.0", "at first"),
        Row("garden.paths", "a list (each: a mapping)", "[]", ""),
        Row("garden.paths.N.steps", "an integer", "3", ""),
        Row("garden.corners", "a mapping", "{}", "by a name"),
        Row("garden.corners.NAME.steps", "an integer", "3", ""),
        Row("garden.seed", "a list of 2 (each: an integer) or null", "null", ""),
    ]


def test_a_class_with_a_section_of_its_own_is_not_listed_again():
    @option
    class House:
        garden: Garden = Garden()

    @option
    class Town:
        garden: Garden | None = None
        house: House | None = None

    assert describe(Town, "house") == [
        Row("house", "a mapping or null", "null", ""),
        Row("house.garden", "as the section 'garden'", "", ""),
    ]


def test_an_unknown_section_is_a_key_error():
    with pytest.raises(KeyError, match="gardne"):
        describe(Garden, "gardne")
