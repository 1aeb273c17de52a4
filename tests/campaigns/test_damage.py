"""Damaged checkpoints, caches, arrays, state dicts and recipes: an error in one line, or a result that is right."""

import io
import random
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.campaigns.damage import bytes_damaged, content_damaged, text_damaged
from tests.campaigns.harness import MEMORY, Tally, run, same, tensors
from tests.campaigns.verbs import RECIPE, SOURCE

pytestmark = pytest.mark.slow
CANARY = "canary"  # what code in a file would make
FILE = ["damaged.pt"]
ON_CHECKPOINTS = (
    ["inspect", *FILE, "--json"],
    ["show", "layers", "-c", *FILE],
    ["evaluate", "net.yaml", "-c", *FILE],
    ["export", *FILE, "-o", "exported.pt", "--force"],
    ["prune", "net.yaml", "~prune.retrain", "-c", *FILE, "--dry-run"],
    ["finetune", "net.yaml", "-c", *FILE, "--dry-run"],
    ["fuse", "net.yaml", "~fuse.retrain", "-c", *FILE, "--dry-run"],
    ["spectra", "net.yaml", "-c", *FILE, "--dry-run"],
)


class Code:
    """Runs when it is unpickled by who trusts the file."""

    def __reduce__(self):
        return open, (CANARY, "w")


def saved(content: object) -> bytes:
    file, limit = io.BytesIO(), sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)  # for what is nested too deeply for others
    try:
        torch.save(content, file)
    finally:
        sys.setrecursionlimit(limit)
    return file.getvalue()


@pytest.mark.parametrize("part", range(4))
def test_damaged_checkpoints(work, seed, share, part):
    """Half of them by their bytes, half by what is in them."""
    draw, tally = random.Random(4 * seed + part), Tally()
    whole = (work / SOURCE / "model.pt").read_bytes()
    content = torch.load(io.BytesIO(whole), weights_only=True)
    for number in range(int(300 * share)):
        if number % 2:
            damaged, kind = bytes_damaged(whole, draw), "checkpoint, bytes"
        else:
            damaged, kind = saved(content_damaged(content, draw)), "checkpoint, content"
        if number % 50 == 0:
            damaged, kind = saved(content | {"model": Code()}), "checkpoint, code"
        (work / "damaged.pt").write_bytes(damaged)
        arguments = draw.choice(ON_CHECKPOINTS)
        outcome = run(work, arguments, memory=MEMORY)
        fault = "code run" if (work / CANARY).exists() else ""
        tally.add(kind, outcome, f"number {number} of part {part}: {' '.join(arguments)}", fault)
    tally.check("damaged checkpoints", int(300 * share))


def test_damaged_state_dicts(work, seed, share):
    draw, tally = random.Random(seed), Tally()
    state = tensors(work / SOURCE / "model.pt")
    (work / "user_net.py").write_text(
        "from torch import nn\n\n\ndef make(input_shape, outputs):\n"
        "    layers = dict(conv1=nn.Conv2d(1, 4, 3, padding=1), norm1=nn.BatchNorm2d(4), relu1=nn.ReLU(),\n"
        "                  pool=nn.MaxPool2d(4), flat=nn.Flatten(), head=nn.Linear(36, outputs))\n"
        "    return nn.Sequential(__import__('collections').OrderedDict(layers))\n"
    )
    own = {name: tensor for name, tensor in state.items() if name.split(".")[0] in ("conv1", "norm1")}
    own |= {"head.weight": torch.zeros(10, 36), "head.bias": torch.zeros(10)}
    whole = saved(own)
    for number in range(int(300 * share)):
        damaged = bytes_damaged(whole, draw) if number % 2 else saved(content_damaged(dict(own), draw))
        if number % 50 == 0:
            damaged = saved(own | {"conv1.bias": Code()})
        (work / "weights.pt").write_bytes(damaged)
        model = "model={kind: 'torchvision:resnet18'}" if number % 25 == 24 else "model={kind: 'user_net:make'}"
        outcome = run(work, ["finetune", "net.yaml", model, "model.weights=weights.pt", "--dry-run"], memory=MEMORY)
        tally.add("state dict", outcome, f"number {number}", "code run" if (work / CANARY).exists() else "")
    tally.check("damaged state dicts", int(300 * share))


def test_damaged_caches(work, seed, share):
    """Of 200 inputs that are taken again from a damaged cache, none may end with other tensors."""
    draw, tally = random.Random(seed), Tally()
    arguments = ["fuse", "net.yaml", "~fuse.retrain", "-c", SOURCE, "moments.cache=cache", "--force", "-q"]
    assert run(work, [*arguments, "--out", "out"]).status == 0
    expected = tensors(work / "out/model.pt")
    shutil.copytree(work / "cache", work / "whole")
    for number in range(int(250 * share)):
        shutil.rmtree(work / "cache")
        shutil.copytree(work / "whole", work / "cache")
        (file,) = (work / "cache").rglob("*.h5")
        damage_hdf5(file, draw) if number % 3 == 0 else file.write_bytes(bytes_damaged(file.read_bytes(), draw))
        outcome = run(work, [*arguments, "--out", "out"], memory=MEMORY)
        right = outcome.status == 0 and same(tensors(work / "out/model.pt"), expected)
        tally.add("cache", outcome, f"number {number}", "" if right else "different tensors")
    tally.check("damaged caches", int(250 * share))


def damage_hdf5(path: Path, draw: random.Random) -> None:
    """Changes what the file holds, not its bytes."""
    with h5py.File(path, "r+") as file:
        name = draw.choice(sorted(file))
        values = file[name][()]
        kind = draw.randrange(6)
        if kind == 0:
            del file[name]
        elif kind == 1:
            values.reshape(-1)[draw.randrange(values.size)] = draw.choice((np.nan, np.inf))
            file[name][...] = values
        elif kind in (2, 3):
            del file[name]
            file[name] = values[..., :-1] if kind == 2 else values.astype("S8")
        elif kind == 4:
            file.attrs["identity"] = draw.choice(("", "{}", "[]", "null", '{"weights": "x"}'))
        else:
            file.attrs["count"] = draw.choice((-1, 0, "x"))


def test_damaged_arrays(work, seed, share):
    """Flipped bits of numbers cannot be seen in a file without checksums; all else must be."""
    draw, tally = random.Random(seed), Tally()
    parts = dict(np.load(work / "digits.npz"))
    np.savez(work / "whole.npz", **parts)
    with h5py.File(work / "whole.h5", "w") as file:
        for name, values in parts.items():
            file[name.replace("_", "/")] = values
    for number in range(int(450 * share)):
        end = draw.choice(("npz", "h5"))
        path = work / f"damaged.{end}"
        path.write_bytes(bytes_damaged((work / f"whole.{end}").read_bytes(), draw))
        data_is = f"data={{kind: arrays, path: {path.name}}}"
        outcome = run(work, ["train", "net.yaml", data_is, "train.epochs=1", "--dry-run"], memory=MEMORY)
        tally.add(f"arrays, {end}", outcome, f"number {number}")
    tally.check("damaged arrays", int(450 * share))


@pytest.mark.parametrize("part", range(2))
def test_damaged_recipes(work, seed, share, part):
    draw, tally = random.Random(2 * seed + part), Tally()
    for number in range(int(500 * share)):
        text = text_damaged(RECIPE, draw)
        for _ in range(draw.randrange(2)):
            text = text_damaged(text, draw) if text.strip() else text
        (work / "damaged.yaml").write_text(text)
        verb = draw.choice(("train", "finetune", "fuse", "prune", "reconstruct", "spectra", "expand", "evaluate"))
        source = [] if verb == "train" else ["-c", SOURCE]
        dry = [] if verb == "evaluate" else ["--dry-run"]
        outcome = run(work, [verb, "damaged.yaml", *source, *dry], memory=MEMORY)
        tally.add("recipe", outcome, f"number {number} of part {part}, {verb}:\n{text[:1500]}\n")
    tally.check("damaged recipes", int(500 * share))
