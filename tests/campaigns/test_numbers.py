"""NaN, infinity, zeros and huge numbers in weights, data and options: a finite result, or an error in one line."""

import random

import numpy as np
import pytest
import torch

from compresskit.storage.checkpoint import load, save
from tests.campaigns.harness import Outcome, Tally, run, tensors
from tests.campaigns.verbs import RUNS, SOURCE

pytestmark = pytest.mark.slow

FAULTS = {  # by name, what becomes of a tensor
    "nan": lambda t, draw: t.view(-1).__setitem__(draw.randrange(t.numel()), torch.nan),
    "infinity": lambda t, draw: t.view(-1).__setitem__(draw.randrange(t.numel()), torch.inf),
    "zeros": lambda t, draw: t.zero_(),
    "ones": lambda t, draw: t.fill_(1),
    "huge": lambda t, draw: t.mul_(1e30),
    "tiny": lambda t, draw: t.mul_(1e-30),
    "one row": lambda t, draw: t.copy_(t[:1].expand_as(t)) if t.ndim else None,
    "negative": lambda t, draw: t.neg_(),
}


@pytest.mark.parametrize("name", [name for name in RUNS if SOURCE in RUNS[name]])
def test_weights(work, seed, name):
    draw, tally = random.Random(seed), Tally()
    checkpoint = work / SOURCE / "model.pt"
    whole = checkpoint.read_bytes()
    for fault, change in FAULTS.items():
        for _ in range(3):
            checkpoint.write_bytes(whole)
            found = load(checkpoint)
            where, tensor = draw.choice(
                [(n, t) for n, t in found.network.state_dict().items() if t.is_floating_point()]
            )
            change(tensor, draw)
            save(found, checkpoint)
            outcome = run(work, [*RUNS[name], "--out", "out", "-q", "--force"])
            tally.add(name, outcome, f"{fault} in {where}", wrong(work, name, fault, where, outcome))
    tally.check("faults in weights", 3 * len(FAULTS))


def wrong(work, name: str, fault: str, where: str, outcome: Outcome) -> str:
    if fault in ("nan", "infinity"):
        if name == "spectra":
            return "" if outcome.status == 0 else f"status {outcome.status}"
        return "" if outcome.status == 1 and where in outcome.err else "NaN is not refused by name"
    if outcome.status == 0 and name != "spectra":
        finite = all(bool(t.isfinite().all()) for t in tensors(work / "out/model.pt").values())
        return "" if finite else "a net of NaN"
    return "" if outcome.status in (0, 1, 2, 3) else f"status {outcome.status}"


CHANGES = {  # by name, what becomes of the arrays
    "nan": lambda a: a["train_inputs"].__setitem__((3, 0, 2, 2), np.nan),
    "infinity": lambda a: a["test_inputs"].__setitem__((3, 0, 2, 2), np.inf),
    "constant images": lambda a: a["train_inputs"].fill(0.5),
    "constant pixels": lambda a: a["train_inputs"][..., :6].fill(0.0),
    "huge": lambda a: a["train_inputs"].__imul__(1e18),
    "tiny": lambda a: a["train_inputs"].__imul__(1e-30),
    "one class": lambda a: a["train_targets"].fill(1),
    "from 1": lambda a: [a[f"{part}_targets"].__iadd__(1) for part in ("train", "test")],
    "ids": lambda a: [a[f"{part}_targets"].__imul__(100_000) for part in ("train", "test")],
    "negative": lambda a: a["train_targets"].__setitem__(0, -1),
    "all alike": lambda a: a["train_inputs"].__setitem__(slice(None), a["train_inputs"][:1]),
}


@pytest.mark.parametrize("name", RUNS)
def test_data(work, name):
    tally = Tally()
    whole = dict(np.load(work / "digits.npz"))
    for change, apply in CHANGES.items():
        arrays = {key: values.copy() for key, values in whole.items()}
        apply(arrays)
        np.savez(work / "digits.npz", **arrays)
        outcome = run(work, [*RUNS[name], "--out", "out", "-q", "--force"])
        fault = "" if outcome.status in (0, 1, 2, 3) else f"status {outcome.status}"
        if outcome.status == 0 and name != "spectra":
            finite = all(bool(t.isfinite().all()) for t in tensors(work / "out/model.pt").values())
            fault = "" if finite else "a net of NaN"
        tally.add(name, outcome, change, fault)
    tally.check("faults in data", len(CHANGES))
