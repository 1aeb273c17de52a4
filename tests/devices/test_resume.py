"""Runs on a GPU that were stopped go on there, and end with the tensors of one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compresskit.commands import cached_moments
from compresskit.storage.checkpoint import load
from compresskit.storage.moment_cache import MomentCache
from compresskit.training import state
from tests.devices.conftest import TRAIN

RETRAIN: dict[str, Any] = TRAIN | {"epochs": 2}
SECTIONS: dict[str, dict[str, Any]] = {
    "train": {"train": RETRAIN},
    "finetune": {"finetune": RETRAIN},
    "expand": {"expand": {"strategy": "cl", "rate": 2, "init": "standard"}, "train": RETRAIN},
    "fuse": {"fuse": {"layers": [["conv2", "head"]], "samples": 200, "held_out": 100, "retrain": RETRAIN}},
    "prune": {"prune": {"target": {"macs": "60%"}, "samples": 200, "images": 100, "retrain": RETRAIN}},
    "reconstruct": {"reconstruct": {"keep": "60%", "samples": 200, "retrain": RETRAIN}},
}


class Stopped(Exception):
    """What stands for a kill."""


def stopping(work: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """`work`, which is no more after so many calls."""
    left = iter(range(calls))

    def work_or_stop(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise Stopped
        return work(*args, **kwargs)

    return work_or_stop


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder / "model.pt").network.state_dict())


def goes_on(on_gpu, verb: str, monkeypatch, owner: Any, name: str, calls: int) -> None:
    """Stops `verb` at a call of `owner.name`, and resumes it."""
    whole, stopped = on_gpu.folder / "whole", on_gpu.folder / "stopped"
    on_gpu(verb, SECTIONS[verb], "--out", whole)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping(getattr(owner, name), calls))
        done, _ = on_gpu.tried(verb, SECTIONS[verb], "--out", stopped)
    assert "Stopped" in done.stderr
    on_gpu(verb, SECTIONS[verb], "--out", stopped, "--resume")
    expected, found = weights(whole), weights(stopped)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("verb", SECTIONS)
def test_training_goes_on(on_gpu, monkeypatch, verb):
    goes_on(on_gpu, verb, monkeypatch, state, "save", 1)


@pytest.mark.parametrize("verb", ["fuse", "reconstruct"])
def test_moments_go_on_behind_the_last_batch(on_gpu, monkeypatch, verb):
    monkeypatch.setattr(cached_moments, "SAVE_EVERY", -1.0)
    goes_on(on_gpu, verb, monkeypatch, MomentCache, "write_part", 1)
