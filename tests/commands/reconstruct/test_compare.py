"""Settings that a recipe's `compare` names, and their points behind an interruption."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from compresskit.commands.reconstruct.compare import Comparison, Point, combinations, lines, table
from compresskit.commands.reconstruct.section import Compare, ReconstructAndRetrain
from compresskit.commands.reconstruct.sparse_rows import check_sparse_rows, sparse_rows
from compresskit.errors import RecipeError
from compresskit.graph.trace import trace
from compresskit.passes.reconstruct.options import Backward, GroupLasso, Target


def point(asked: str, accuracy: float, size: float, **changes) -> Point:
    settings = {"selection": "backward", "chaining": "parallel", "debias": True} | changes
    found = {"metrics": {"accuracy": accuracy}, "training": {"accuracy": accuracy + 0.05}}
    return Point(**settings, asked=asked, size=size, **found, kept={"a": 3}, unexplained={})


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
    assert [row[6] for row in rows] == [pytest.approx((0.95, 0.97)), pytest.approx((0.85, 0.75))]
    for images, off in (("test", 0.0), ("training", 0.05)):
        (line,) = lines(trials, images).items()
        assert line[0] == "backward, parallel"
        expected = [0.205, 0.75 + off, 0.39, 0.91 + off]
        assert [number for mark in line[1] for number in mark] == pytest.approx(expected, rel=1e-12)


def test_a_grid_is_every_amount_of_a_layer_with_every_other():
    compare = Compare(grid={"a": (2.0, 3.0), "b": ("50%",)}, chaining=("parallel", "top-down"))
    found, impossible = combinations(ReconstructAndRetrain(keep={"a": 1, "b": 1}, compare=compare))
    assert [(s.chaining, s.keep) for s in found] == [
        (way, {"a": count, "b": "50%"}) for way in ("parallel", "top-down") for count in (2, 3)
    ]
    assert impossible == []
    with pytest.raises(ValueError, match=r"compare.grid: it names amounts by layer"):
        ReconstructAndRetrain(target=Target(size="40%"), compare=Compare(grid={"a": (2.0,)}))
    with pytest.raises(ValueError, match=r"compare.grid, a: 2.5 cannot stand for `keep`"):
        ReconstructAndRetrain(keep=3, compare=Compare(grid={"a": (2.5,)}))
    with pytest.raises(ValueError, match=r"compare.grid: a has no amounts"):
        ReconstructAndRetrain(keep=3, compare=Compare(grid={"a": ()}))


@pytest.mark.parametrize("part", [0.5, 0.2, 0.05])
def test_sparse_rows_take_the_bytes_that_they_may(part):
    """a (log2 n + 32) + m log2 n bits of m rows of n weights, a of them not zero; the largest stay."""
    torch.manual_seed(0)
    net = trace(nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)))
    found = sparse_rows(net, (40,), part)
    whole = 32 * sum(p.numel() for p in net.parameters())
    kept = {name: int(weight.count_nonzero()) for name, weight in found.named_parameters()}

    def bits(more: int) -> float:
        rows = [(30, 40, kept["0.weight"] + more), (5, 30, kept["2.weight"])]
        return sum(a * (math.log2(n) + 32) + m * math.log2(n) for m, n, a in rows) + 32 * 35

    assert bits(0) <= part * whole < bits(1)
    left = torch.cat([p[p != 0].abs() for n, p in found.named_parameters() if "weight" in n])
    gone = torch.cat([p[found.get_parameter(n) == 0].abs() for n, p in net.named_parameters() if "weight" in n])
    assert left.min() > gone.max()
    check_sparse_rows(net, (40,), "5%")
    with pytest.raises(RecipeError, match="1% of the bytes do not hold what sparse rows take without a single weight"):
        check_sparse_rows(net, (40,), "1%")
