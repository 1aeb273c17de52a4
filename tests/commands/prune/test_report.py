"""Which of several trials becomes the model of the run."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from compresskit.commands.prune import report
from compresskit.commands.prune.section import PruneAndRetrain
from compresskit.commands.prune.stages import PruneStep
from compresskit.passes.prune.options import PruneTarget


def trial(seed: int, test: float, judged: float, name: str):
    after = SimpleNamespace(metrics={"accuracy": test, "mae": test})
    return SimpleNamespace(seed=seed, path=Path(f"{seed}.pt"), after=after, judged={name: judged})


@pytest.mark.parametrize(
    ("task", "judged", "best"),
    [
        ("classification", (0.7, 0.8, 0.6), 1),
        ("classification", (math.nan, 0.8, 0.6), 1),
        ("regression", (0.7, 0.8, 0.6), 2),
        ("regression", (math.nan, 0.8, 0.6), 2),
    ],
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_best_is_picked_by_images_that_nobody_has_seen(task, judged, best, split):
    copied = []
    current = SimpleNamespace(
        folder=SimpleNamespace(copy=lambda path, name: copied.append((path, name))),
        data=SimpleNamespace(task=task, validation="images" if split == "validation" else None),
        group=SimpleNamespace(is_main=True),
    )
    name = "accuracy" if task == "classification" else "mae"  # what the evaluation gives first
    trials = [
        trial(seed, test, value, name) for seed, (test, value) in enumerate(zip((0.1, 0.2, 0.9), judged, strict=True))
    ]
    said = report._promote(current, trials)
    assert copied == [(Path(f"{best}.pt"), "model.pt")]
    assert said.startswith(f"model.pt is that of seed {best}, the best by {split} ")


def test_a_target_that_is_met_shows_no_more_than_was_asked():
    """1,151.9999999 asked, 1,152 left: met, by rounding, and it must look so."""
    step = PruneStep("params", 1152 * (1 - 1e-10), 1152.0, 2304.0, [], [], {})
    options = PruneAndRetrain(target=PruneTarget(params="50%"))
    target = report._target(options, [SimpleNamespace(steps=[step])])
    assert (target.asked, target.got, target.met) == ("1,152 parameters (50.00%)", "1,152 parameters (50.00%)", True)


def test_a_latency_within_its_tolerance_says_so():
    step = PruneStep("latency", 1.0, 1.03, 2.0, [], [], {})
    options = PruneAndRetrain(target=PruneTarget(latency=1.0))
    target = report._target(options, [SimpleNamespace(steps=[step])])
    assert target.met
    assert target.got.endswith("5 % more being allowed")
