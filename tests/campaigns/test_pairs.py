"""Two runs at once on one folder, and on one cache of moments: none of them ends with a mixture."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from compresskit.storage.checkpoint import load
from tests.campaigns.harness import Outcome, Tally, run, same, started, tensors
from tests.campaigns.verbs import RUNS, SOURCE

pytestmark = pytest.mark.slow
PAIRS = 50


def at_once(work: Path, first: list[str], second: list[str], delay: float) -> tuple[Outcome, Outcome]:
    runs = [started(work, first, "a")]
    time.sleep(delay)
    runs.append(started(work, second, "b"))
    return runs[0].ended(), runs[1].ended()


@pytest.mark.parametrize("name", ["train", "fuse", "prune", "reconstruct", "expand"])
def test_one_folder(work, seed, share, name):
    """With --force both, seeds apart: the folder holds one of the two runs, whole, and says which."""
    draw, tally = random.Random(seed), Tally()
    for number in range(int(PAIRS * share / 5) + 1):
        shutil.rmtree(work / "out", ignore_errors=True)
        arguments = [*RUNS[name], "--out", "out", "--force"]
        both = at_once(work, [*arguments, "--seed", "1"], [*arguments, "--seed", "2"], draw.random() * 0.4)
        for outcome in both:
            held = outcome.status == 1 and "is writing there; wait for it" in outcome.err
            tally.add(
                name, outcome, f"pair {number}", "" if outcome.status == 0 or held else f"status {outcome.status}"
            )
        record, report, model = (work / "out" / file for file in ("run.json", "report.json", "model.pt"))
        if any(outcome.status == 0 for outcome in both):
            made = json.loads(record.read_text())["made_of"]["seed"]
            kept = load(model).history[-1]["recipe"]["seed"]
            told = json.loads(report.read_text())
            fault = "" if made == kept and told["verb"] == RUNS[name][0] else "mixed"
        else:
            fault = "none of the two ended"
        tally.add(name, both[0], f"folder of pair {number}", fault)
    tally.check("pairs on one folder", int(PAIRS * share / 5))


@pytest.mark.parametrize("name", ["fuse", "prune", "reconstruct"])
def test_one_cache(work, seed, share, name):
    """Of other nets, and of the same one: each ends as it does alone."""
    draw, tally = random.Random(seed), Tally()
    assert run(work, ["train", "net.yaml", "--out", "other", "--seed", "5", "-q"]).status == 0
    sources = {"a": SOURCE, "b": "other"}
    arguments = [part for part in RUNS[name] if part != SOURCE]
    alone = {}
    for key, source in sources.items():
        assert run(work, [*arguments, source, "--out", f"alone-{key}", "-q"]).status == 0
        alone[key] = tensors(work / f"alone-{key}/model.pt")
    for number in range(int(PAIRS * share / 3) + 1):
        shutil.rmtree(work / "cache", ignore_errors=True)
        keys = draw.choice((("a", "b"), ("a", "a")))
        commands = [
            [*arguments, sources[key], "--out", f"out-{place}", "-q", "--force", "moments.cache=cache"]
            for place, key in enumerate(keys)
        ]
        both = at_once(work, *commands, draw.random() * 0.3)
        for place, (key, outcome) in enumerate(zip(keys, both, strict=True)):
            right = outcome.status == 0 and same(tensors(work / f"out-{place}/model.pt"), alone[key])
            tally.add(name, outcome, f"pair {number} of {keys}", "" if right else "other tensors than alone")
    tally.check("pairs on one cache", int(PAIRS * share / 3))
