"""Sections that say only what is different of another one, and where their mistakes are told."""

import pytest

from compresskit.commands.recipe import load_recipe
from compresskit.errors import RecipeError
from compresskit.recipes.inheritance import over
from compresskit.recipes.yaml_reader import read_yaml
from compresskit.training.optimization.optimizers import Adam
from compresskit.training.optimization.schedules import Cosine, MultiStep

BASE = "{epochs: 5, optimizer: {kind: sgd, lr: 0.1}, schedule: cosine, list: [1, 2], by: {a: {b: 1, c: 2}}}"
RECIPE = """\
model: {kind: smallnet, kernel: 5}
train:
  epochs: 9
  init: expandnet
  optimizer: {kind: sgd, lr: 0.3}
  schedule: {kind: multi-step, milestones: [3, 6], gamma: 0.2}
expand:
  compare:
    long:
      strategy: none
      train:
        epochs: 20
        schedule: {milestones: [7, 14]}
    other: {rate: 2, train: {optimizer: {kind: adam}, schedule: cosine}}
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text=RECIPE):
        path = tmp_path / "net.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("{}", {}),
        ("{epochs: 7}", {"epochs": 7}),
        ("{optimizer: {lr: 0.2}}", {"optimizer": {"kind": "sgd", "lr": 0.2}}),
        ("{optimizer: {kind: sgd, lr: 0.2}}", {"optimizer": {"kind": "sgd", "lr": 0.2}}),
        ("{optimizer: {kind: adam}}", {"optimizer": {"kind": "adam"}}),
        ("{schedule: {final: 0.1}}", {"schedule": {"kind": "cosine", "final": 0.1}}),
        ("{schedule: {kind: step}}", {"schedule": {"kind": "step"}}),
        ("{schedule: null, list: [3]}", {"schedule": None, "list": [3]}),
        ("{list: {a: 1}}", {"list": {"a": 1}}),
        ("{by: {a: {c: 3}, d: 4}}", {"by": {"a": {"b": 1, "c": 3}, "d": 4}}),
        ("{new: 1}", {"new": 1}),
    ],
)
def test_mappings_are_merged_and_the_rest_replaced(own, expected):
    base = read_yaml(BASE)[0]
    before = base.plain()
    assert over(base, read_yaml(own)[0]).plain() == before | expected
    assert base.plain() == before


def test_what_is_no_mapping_stays():
    assert over(read_yaml(BASE)[0], read_yaml("null")[0]).value is None


def test_entries_of_a_comparison_take_the_rest_from_train(recipe):
    found = load_recipe(recipe()).expand.compare
    assert (found["long"].train.epochs, found["long"].train.optimizer.lr) == (20, 0.3)
    assert found["long"].train.schedule == MultiStep(milestones=(7, 14), gamma=0.2)
    assert (found["other"].train.epochs, found["other"].train.optimizer) == (9, Adam())
    assert found["other"].train.schedule == Cosine()


def test_the_command_line_reaches_entries_through_train(recipe):
    changes = ["train.epochs=8", "expand.compare.long.train.optimizer.lr=0.5", "train.optimizer.momentum=0.5"]
    found = load_recipe(recipe(), changes).expand.compare
    assert (found["long"].train.epochs, found["other"].train.epochs) == (20, 8)
    assert (found["long"].train.optimizer.lr, found["long"].train.optimizer.momentum) == (0.5, 0.5)
    assert load_recipe(recipe(), ["~expand.compare.long.train"]).expand.compare["long"].train is None


def mistakes(path, changes=()):
    with pytest.raises(RecipeError) as refusal:
        load_recipe(path, changes)
    return [line.partition("net.yaml:")[2] or line for line in refusal.value.problems]


def test_a_mistake_is_told_once_where_it_stands_and_all_at_once(recipe):
    text = RECIPE.replace("epochs: 9", "epochs: 0").replace("epochs: 20", "epochs: -1").replace("rate: 2", "rate: 0")
    text = text.replace("{kind: adam}", "{kind: adam, momentum: 1}").replace("lr: 0.3", "lr: -1")
    text = text.replace("[3, 6]", "[6, 3]")
    assert [line.split(", given")[0].split(";")[0] for line in mistakes(recipe(text))] == [
        "3: train.epochs: must be an integer greater than 0",
        "5: train.optimizer.lr: must be a number greater than 0",
        "6: train.schedule.milestones: [6, 3] do not rise",
        "12: expand.compare.long.train.epochs: must be an integer greater than 0",
        "14: expand.compare.other.rate: must be a number greater than 0, 'auto', a mapping or null",
        "14: expand.compare.other.train.optimizer.momentum: unknown key",
    ]


def test_keys_of_new_networks_are_for_all(recipe):
    (line,) = mistakes(recipe(), ["expand.compare.long.train.init=expandnet"])
    assert line.startswith("command line: expand.compare.long.train.init: unknown key; allowed: epochs, batch_size")


def test_a_change_that_does_not_go_with_the_rest_is_the_entrys_mistake(recipe):
    text = RECIPE.replace("gamma: 0.2}", "gamma: 0.2, warmup: 4}").replace("epochs: 20", "epochs: 4")
    (line,) = mistakes(recipe(text))
    assert line.startswith("11: expand.compare.long.train: schedule.warmup: 4 epochs do not fit before the end of 4")
