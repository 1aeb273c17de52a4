"""The table of the documents' tables and figures against the recipes that there are."""

import re
from pathlib import Path

import pytest

from compresskit.commands.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/documents.md").read_text()
OWN = {"quickstart", "choose", "docs-pictures"}  # recipes of the documentation itself
OWN |= {f"rivals/{path.stem}" for path in (ROOT / "configs" / "rivals").glob("*.yaml")}  # of scripts/compare_rivals.py
TEACHERS = {"expand/table1-teacher", "expand/table3-teacher"}
ROW = re.compile(
    r"^\| .+ \| \[(?P<name>[^\]]+)\]\(\.\./configs/(?P<path>\S+)\.yaml\) \| (?P<commands>.+) \| (?P<state>.+) \|$"
)
ROWS = [match for line in PAGE.splitlines() if (match := ROW.match(line))]
STATES = ("whole", "reduced")


def test_every_recipe_has_its_place():
    named = set(re.findall(r"configs/(\S+?)\.yaml", PAGE)) | TEACHERS
    there = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert named == there - OWN
    assert all(teacher in PAGE for teacher in TEACHERS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_commands_are_those_that_the_recipe_can_follow(row):
    assert row["name"] == row["path"]
    for command in re.findall(r"`([^`]+)`", row["commands"]):
        verb, recipe, *changes = command.split()
        assert recipe in "RT"
        if recipe == "R":
            load_recipe(ROOT / "configs" / f"{row['path']}.yaml", changes, verb=verb, require=(verb,))


def test_states_are_said_in_the_same_words():
    assert len(ROWS) > 40
    for row in ROWS:
        assert row["state"].startswith(STATES), row["state"]
