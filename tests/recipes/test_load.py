from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Len, Lt

from compresskit.errors import RecipeError
from compresskit.options import option
from compresskit.recipes.hints import Kinds
from compresskit.recipes.load import load_typed


@option
class SGD:
    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Gt(0)]
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0


@option
class Adam:
    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.betas[0] >= self.betas[1]:
            raise ValueError(f"betas: {list(self.betas)} must rise")


@option
class Pair:
    first: str
    kernel: Annotated[int, Gt(0)] | tuple[int, ...] | None = None


@option
class Train:
    epochs: Annotated[int, Gt(0)] = 10
    shuffle: bool = True
    note: str | None = None
    mode: Literal["joint", "independent"] = "joint"
    optimizer: SGD | Adam = Adam()
    layers: Literal["auto"] | tuple[Annotated[tuple[str, ...], Len(1, 2)] | Pair, ...] = "auto"
    arguments: dict[str, Any] | None = None
    memory: float | str | None = None

    def __post_init__(self) -> None:
        if self.mode == "independent" and self.epochs > 100:
            raise ValueError("100 epochs suffice for mode: independent")


class Solver:
    """Base of the classes below, as a registry's annotation names it."""


@option
class Exact(Solver):
    kind: Literal["exact"] = "exact"
    ridge: float = 0.0


@option
class Recipe:
    seed: int = 0
    train: Train = Train()
    solver: Annotated[Solver, Kinds({"exact": Exact})] | None = None
    data: Pair | None = None


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str, **options: Any) -> Recipe:
        path = Path("r.yaml")
        path.write_text(text)
        return load_typed(Recipe, path, overrides, **options)

    return load


@pytest.fixture
def lines(load):
    def lines(text: str, *overrides: str, **options: Any) -> list[str]:
        with pytest.raises(RecipeError) as refused:
            load(text, *overrides, **options)
        assert str(refused.value).splitlines() == list(refused.value.problems)
        return list(refused.value.problems)

    return lines


def test_a_recipe_becomes_option_classes(load):
    recipe = load("""
seed: 3
train:
  epochs: 4
  note: no
  optimizer: {kind: sgd, lr: 1}
  layers: [[a, b], [c], {first: d, kernel: [3, 3]}]
  arguments: {a: [1, {b: null}], c: 1e-3}
  memory: 4
solver: exact
""")
    train = Train(
        epochs=4,
        note="no",
        optimizer=SGD(lr=1.0),
        layers=(("a", "b"), ("c",), Pair(first="d", kernel=(3, 3))),
        arguments={"a": [1, {"b": None}], "c": 0.001},
        memory=4.0,
    )
    assert recipe == Recipe(seed=3, train=train, solver=Exact())
    assert isinstance(recipe.train.optimizer.lr, float)


def test_an_empty_section_takes_its_defaults(load):
    assert load("train:\n") == Recipe()


BROKEN = """\
seed: 1.5
trian: {}
train:
  epochs: 0
  epochs: 3
  shuffle: no
  note: 12
  mode: jiont
  optimizer:
    kind: sgd
    lerning_rate: 0.1
    momentum: 1
  layers:
    - [a, b, c]
    - {first: d, kernel: [3, x]}
    - 5
  arguments: {a: [1, .nan]}
  memory: true
solver: {kind: exakt}
data:
  kernel: -1
"""

BROKEN_LINES = [
    "r.yaml: the recipe has no 'fuse' section, which 'compresskit fuse' needs",
    "r.yaml:1: seed: must be an integer, given 1.5",
    "r.yaml:2: trian: unknown key; did you mean 'train'? allowed: seed, train, solver, data",
    "r.yaml:4: train.epochs: must be an integer greater than 0, given 0",
    "r.yaml:5: train.epochs: given twice, first on line 4",
    "r.yaml:6: train.shuffle: must be true or false, given 'no'",
    "r.yaml:7: train.note: must be text or null, given 12; put it in quotes",
    "r.yaml:8: train.mode: must be 'joint' or 'independent', given 'jiont'; did you mean 'joint'?",
    "r.yaml:9: train.optimizer: the key 'lr' is missing; it must be a number greater than 0",
    "r.yaml:11: train.optimizer.lerning_rate: unknown key; did you mean 'lr'? allowed: kind, lr, momentum",
    "r.yaml:12: train.optimizer.momentum: must be a number at least 0 and less than 1, given 1",
    'r.yaml:14: train.layers.0: must be a list (each: text) of length 1 to 2, given ["a", "b", "c"]',
    "r.yaml:15: train.layers.1.kernel.1: must be an integer, given 'x'",
    "r.yaml:16: train.layers.2: must be a list (each: text) of length 1 to 2 or a mapping, given 5",
    "r.yaml:17: train.arguments.a.1: must be a finite number, given NaN",
    "r.yaml:18: train.memory: must be a number, text or null, given true",
    "r.yaml:19: solver.kind: unknown kind 'exakt'; did you mean 'exact'? allowed: exact",
    "r.yaml:20: data: the key 'first' is missing; it must be text",
    "r.yaml:21: data.kernel: must be an integer greater than 0, a list (each: an integer) or null, given -1",
]


def test_every_mistake_is_told_at_once_by_line(lines):
    assert lines(BROKEN, verb="fuse", require=["train", "fuse"]) == BROKEN_LINES


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "r.yaml: is empty; a recipe is a mapping of sections"),
        ("# nothing\n", "r.yaml: is empty; a recipe is a mapping of sections"),
        ("- a\n", "r.yaml:1: must be a mapping of sections"),
        ("seed: 010\n", "r.yaml:1: seed: must be an integer, given '010'"),
        ("seed: true\n", "r.yaml:1: seed: must be an integer, given true"),
        ("seed: '3'\n", "r.yaml:1: seed: must be an integer, given '3'"),
        ("seed:\n", "r.yaml:1: seed: must be an integer, given null"),
        ("solver: exakt\n", "r.yaml:1: solver: unknown kind 'exakt'; did you mean 'exact'? allowed: exact"),
        ("solver: 3\n", "r.yaml:1: solver: must be of kind exact or null, given 3"),
        ("train: 3\n", "r.yaml:1: train: must be a mapping, given 3"),
        ("train: {shuffle: 1}\n", "r.yaml:1: train.shuffle: must be true or false, given 1"),
        (
            "train: {optimizer: sdg}\n",
            "r.yaml:1: train.optimizer: unknown kind 'sdg'; did you mean 'sgd'? allowed: sgd, adam",
        ),
        ("train: {optimizer: 3}\n", "r.yaml:1: train.optimizer: must be of kind sgd or adam, given 3"),
        ("train: {optimizer: {lr: 1}}\n", "r.yaml:1: train.optimizer: the key 'kind' is missing; allowed: sgd, adam"),
        ("train: {optimizer: {kind: 3}}\n", "r.yaml:1: train.optimizer.kind: unknown kind 3; allowed: sgd, adam"),
        (
            "train: {optimizer: {kind: [sgd]}}\n",
            "r.yaml:1: train.optimizer.kind: unknown kind [\"sgd\"]; did you mean 'sgd'? allowed: sgd, adam",
        ),
        (
            "train: {optimizer: {kind: sgd, lr: .inf}}\n",
            "r.yaml:1: train.optimizer.lr: must be a finite number, given Infinity",
        ),
        (
            "train: {optimizer: {kind: sgd, lr: 1e999}}\n",
            "r.yaml:1: train.optimizer.lr: must be a finite number, given Infinity",
        ),
        (
            "train: {layers: atuo}\n",
            "r.yaml:1: train.layers: must be 'auto' or a list (each: a list (each: text) "
            "of length 1 to 2 or a mapping), given 'atuo'; did you mean 'auto'?",
        ),
        (
            "train: {optimizer: {kind: adam, betas: [1]}}\n",
            "r.yaml:1: train.optimizer.betas: must be a list of 2 (each: a number), given [1]",
        ),
        ("train: {optimizer: {kind: adam,\nbetas: [1, 0]}}\n", "r.yaml:2: train.optimizer.betas: [1.0, 0.0] must rise"),
        ("train:\n  mode: independent\n  epochs: 101\n", "r.yaml:1: train: 100 epochs suffice for mode: independent"),
        (f"seed: {'x' * 99}\n", f"r.yaml:1: seed: must be an integer, given '{'x' * 56}..."),
    ],
)
def test_one_mistake_gives_exactly_one_line(lines, text, line):
    assert lines(text) == [line]


def test_a_missing_file_is_told_with_its_path():
    with pytest.raises(RecipeError, match=r"^nowhere/r\.yaml: no such file$"):
        load_typed(Recipe, Path("nowhere/r.yaml"))


def test_overrides_are_typed_like_the_recipe_and_applied_in_order(load):
    text = "seed: 1\ntrain: {note: x, optimizer: sgd, layers: [[a], [b], [c]]}\n"
    recipe = load(
        text,
        "seed=2",
        "seed=3",
        "train.optimizer.lr=1e-3",
        "train.note=a=b",
        "train.layers.1=[d, e]",
        "~train.layers.0",
        "train.arguments.deep.key={x: no}",
        "solver=exact",
    )
    train = Train(
        note="a=b",
        optimizer=SGD(lr=0.001),
        layers=(("d", "e"), ("c",)),
        arguments={"deep": {"key": {"x": "no"}}},
    )
    assert recipe == Recipe(seed=3, train=train, solver=Exact())


def test_an_override_can_set_a_key_below_a_section_that_is_empty_or_absent(load):
    assert load("train:\n", "train.epochs=2", "data.first=a") == Recipe(train=Train(epochs=2), data=Pair(first="a"))
    assert load("seed: 1\ntrain: {note: a}\n", "train.note=") == Recipe(seed=1)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sede=3", "command line: sede: unknown key; did you mean 'seed'? allowed: seed, train, solver, data"),
        ("seed=0.5", "command line: seed: must be an integer, given 0.5"),
        (
            "train.optimizer={kind: sgd}",
            "command line: train.optimizer: the key 'lr' is missing; it must be a number greater than 0",
        ),
        (
            "train.optimizer.kind=adm",
            "command line: train.optimizer.kind: unknown kind 'adm'; did you mean 'adam'? allowed: sgd, adam",
        ),
        ("train.arguments={a: 1, a: 2}", "command line: train.arguments.a: given twice"),
        (
            "train.note=@x",
            "command line: train.note: not valid YAML: found character '@' that cannot start "
            "any token; put the text in quotes",
        ),
        ("train", "command line: train: an override is written key=value, or ~key to drop a key"),
        ("=3", "command line: =3: a part of the key is empty"),
        ("~", "command line: ~: a part of the key is empty"),
        ("~train.nose", "command line: train.nose: cannot be dropped: not in the recipe; did you mean 'note'?"),
        ("seed.x=1", "command line: seed.x: 'seed' is 1, which has no keys"),
        ("~train.note.x", "command line: train.note.x: 'train.note' is 'a', which has no keys"),
        ("train.layers.2=[a]", "command line: train.layers.2: no such item; 'train.layers' has 2, counted from 0"),
        ("~train.layers.-1", "command line: train.layers.-1: no such item; 'train.layers' has 2, counted from 0"),
    ],
)
def test_a_wrong_override_is_told_as_of_the_command_line(lines, override, line):
    text = "seed: 1\ntrain: {note: a, layers: [[a], [b]]}\n"
    assert lines(text, override) == [line]


def test_the_command_lines_mistakes_come_last_and_lines_follow_the_items(lines):
    text = "seed: x\ntrain:\n  layers:\n    - [a]\n    - 5\n"
    assert lines(text, "train.epochs=0", "~train.layers.0") == [
        "r.yaml:1: seed: must be an integer, given 'x'",
        "r.yaml:5: train.layers.0: must be a list (each: text) of length 1 to 2 or a mapping, given 5",
        "command line: train.epochs: must be an integer greater than 0, given 0",
    ]


def test_an_alias_is_changed_by_an_override_in_one_place_only(load):
    recipe = load("train:\n  layers:\n    - &a [x, y]\n    - *a\n", "train.layers.1.0=z")
    assert recipe.train.layers == (("x", "y"), ("z", "y"))
