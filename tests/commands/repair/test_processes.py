"""The ladder in two processes: both choose and match alike, and as one process does."""

import shutil
from pathlib import Path

import pytest
import torch

from compresskit.storage.checkpoint import load
from tests.commands.conftest import RECIPE, program, report
from tests.forked.start import torchrun

PRUNE = """\
prune:
  target: {macs: 50%}
  criterion: backward
  budget: {kind: divergence, images: 63}
  samples: 301
  held_out: 155
  blocks: {layers: 1, images: 100, steps: 1, iterations: 3}
  match: {steps: 20, batch_size: 30}
"""
PROGRAM = """\
import os
import torch
from compresskit.cli.app import app
from compresskit.passes.repair import matching

run = matching.Matching.run

def kept(self, *arguments):
    network = run(self, *arguments)
    torch.save(network.state_dict(), f"matched-{os.environ['RANK']}.pt")
    return network

matching.Matching.run = kept
app()
"""


def test_two_processes_prune_and_match_as_one_does(trained, tmp_path: Path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "net.yaml").write_text(RECIPE + PRUNE)
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = ["prune", "net.yaml", "-c", "runs/net-train", "--device", "cpu"]
    done = torchrun("program.py", *arguments, "--out", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = program(*arguments, "--out", "one", cwd=tmp_path)
    assert one.status == 0, one.err
    first, second = (torch.load(tmp_path / f"matched-{rank}.pt") for rank in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
    of_one, of_two = (load(tmp_path / name / "model.pt").network.state_dict() for name in ("one", "two"))
    for name, tensor in of_two.items():
        assert torch.equal(tensor, first[name])
        # an error is a share of the variance of its own part of the batch
        assert float((tensor - of_one[name]).norm() / of_one[name].norm()) < 0.03
    (rungs, others) = (report(tmp_path / name)["details"]["trials"][0]["steps"][0]["rungs"] for name in ("one", "two"))
    names = ["cut", "parallel", "blocks", "match"]
    assert [rung["name"] for rung in rungs] == [rung["name"] for rung in others] == names
    for rung, other, near in zip(rungs, others, (1e-6, 1e-4, 1e-3, 0.05), strict=True):
        assert rung["taken"] == other["taken"]
        assert rung["divergence"] == pytest.approx(other["divergence"], rel=near)
        assert rung["metrics"]["accuracy"] == pytest.approx(other["metrics"]["accuracy"], abs=0.01)
