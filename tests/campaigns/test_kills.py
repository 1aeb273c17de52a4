"""Runs that are killed at each of their file operations, and then resumed, end with the tensors of a whole run."""

import random
import shutil
from pathlib import Path

import pytest

from tests.campaigns.harness import Outcome, Tally, operations, run, same, tensors
from tests.campaigns.verbs import RUNS

pytestmark = pytest.mark.slow
LEAST = 50  # of each of ten runs
PLACES = 12  # where each run is killed, beside the first and last ones, for each way to go on
WAYS = (("--resume",), ("--resume", "--force"), ("--force",))  # the last one over a whole run, which is cleared first


def places(total: int, count: int, seed: int) -> list[int]:
    """The first and last ones, where folders are made and closed, and others between."""
    ends = {*range(1, 6), total - 1, total}
    between = random.Random(seed).sample(range(1, total + 1), min(total, count))
    return sorted((ends | set(between)) & set(range(1, total + 1)))


def result(folder: Path) -> dict:
    return tensors(folder / "model.pt") if (folder / "model.pt").exists() else {}


@pytest.mark.parametrize("name", RUNS)
def test_kills(work, seed, share, name):
    arguments, tally = RUNS[name], Tally()
    whole, out = work / "whole", work / "out"
    total = operations(work, [*arguments, "--out", "whole", "-q"])
    expected = result(whole)
    assert expected or name == "spectra"
    for way in WAYS:
        over = ["--force"] if "--force" in way else []
        for place in places(total, int(PLACES * share), seed):
            shutil.rmtree(out, ignore_errors=True)
            if way == ("--force",):
                shutil.copytree(whole, out)
            killed = run(work, [*arguments, "--out", "out", "-q", *over], kill_at=place)
            assert killed.status in (-9, 0), killed.err
            again = run(work, [*arguments, "--out", "out", "-q", *way])
            what = f"killed before operation {place} of {total}, then {' '.join(way)}"
            tally.add(name, again, what, different(again, expected, out))
    tally.check("kills", int(LEAST * share))


def different(again: Outcome, expected: dict, out: Path) -> str:
    if again.status != 0:
        return f"cannot go on, status {again.status}"
    if not same(result(out), expected):
        return "different tensors"
    rest = [path.name for path in out.rglob("*.tmp")]
    return f"left over: {rest}" if rest else ""
