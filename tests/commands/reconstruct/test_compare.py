"""Settings that a recipe's `compare` names, and their points behind an interruption."""

import json
from dataclasses import asdict

import pytest

from compresskit.commands.reconstruct.compare import Comparison, Point, combinations, lines, table
from compresskit.commands.reconstruct.section import Compare, ReconstructAndRetrain
from compresskit.passes.reconstruct.options import Backward, GroupLasso, Target


def point(asked: str, accuracy: float, size: float, **changes) -> Point:
    settings = {"selection": "backward", "chaining": "parallel", "debias": True} | changes
    return Point(**settings, asked=asked, size=size, metrics={"accuracy": accuracy}, kept={"a": 3}, unexplained={})


@pytest.mark.parametrize(
    ("amount", "at", "expected"),
    [
        ({"target": Target(macs="50%")}, "30%", {"target": Target(macs="30%")}),
        ({"target": Target(accuracy_drop=1.0)}, 0.2, {"target": Target(accuracy_drop=0.2)}),
        ({"keep": {"a": 3, "b": "50%"}}, 2.0, {"keep": {"a": 2, "b": 2}}),
        ({"keep": 3}, "25%", {"keep": "25%"}),
        ({"error": 0.1}, 0.3, {"error": 0.3}),
    ],
)
def test_a_value_takes_the_place_of_the_amount(amount, at, expected):
    (found,), impossible = combinations(ReconstructAndRetrain(**amount, compare=Compare(at=(at,))))
    assert {name: getattr(found, name) for name in expected} == expected
    assert [getattr(found, name) for name in ("lam", "keep", "error", "target")].count(None) == 3
    assert impossible == []


def test_what_is_not_compared_stays_as_it_is_kept():
    solver = GroupLasso(points=7)
    options = ReconstructAndRetrain(
        keep=3, selection=solver, min_channels=2, compare=Compare(selection=("group-lasso", "backward"))
    )
    first, second = combinations(options)[0]
    assert (first.selection, first.keep, first.min_channels) == (solver, 3, 2)
    assert (second.selection, second.keep, second.min_channels) == (Backward(), 3, 2)


def test_backward_knows_neither_lambda_nor_shrinkage():
    compare = Compare(selection=("backward", "group-lasso"), debias=(True, False))
    found, impossible = combinations(ReconstructAndRetrain(keep=3, compare=compare))
    assert [(s.chosen_selection.kind, s.debias) for s in found] == [
        ("backward", True),
        ("group-lasso", True),
        ("group-lasso", False),
    ]
    assert len(impossible) == 1
    assert impossible[0].startswith("left out of the comparison: backward, debias false (debias: only the group lasso")
    by_lambda, impossible = combinations(ReconstructAndRetrain(lam=1.0, compare=compare))
    assert {s.chosen_selection.kind for s in by_lambda} == {"group-lasso"}
    assert len(impossible) == 2


def test_points_are_read_back_as_they_were(tmp_path):
    comparison = Comparison([point("size 40%", 0.9, 0.39), point("size 20%", 0.8, 0.2, debias=False)])
    (tmp_path / "comparison.json").write_text(json.dumps(asdict(comparison)))
    assert Comparison.read(tmp_path / "comparison.json") == comparison
    assert Comparison.read(tmp_path / "none.json") == Comparison()


def test_trials_meet_in_one_row_and_one_mark():
    sizes, accuracies = ((0.40, 0.38), (0.20, 0.21)), ((0.9, 0.92), (0.8, 0.7))
    trials = [
        Comparison([point(f"size {at}", accuracies[at][trial], sizes[at][trial]) for at in (0, 1)]) for trial in (0, 1)
    ]
    rows = table(trials).rows
    assert [row[3:6] for row in rows] == [("size 0", "39.0%", (0.9, 0.92)), ("size 1", "20.5%", (0.8, 0.7))]
    (line,) = lines(trials).items()
    assert line[0] == "backward, parallel"
    assert [number for mark in line[1] for number in mark] == pytest.approx([0.205, 0.75, 0.39, 0.91], rel=1e-12)
