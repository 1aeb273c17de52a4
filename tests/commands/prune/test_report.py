"""Which of several trials becomes the model of the run."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from compresskit.commands.prune import report


def trial(seed: int, test: float, judged: float):
    after = SimpleNamespace(metrics={"accuracy": test, "mae": test})
    return SimpleNamespace(seed=seed, path=Path(f"{seed}.pt"), after=after, judged={"accuracy": judged, "mae": judged})


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
    trials = [trial(seed, test, value) for seed, (test, value) in enumerate(zip((0.1, 0.2, 0.9), judged, strict=True))]
    said = report._promote(current, trials)
    assert copied == [(Path(f"{best}.pt"), "model.pt")]
    assert said.startswith(f"model.pt is that of seed {best}, the best by {split} ")
