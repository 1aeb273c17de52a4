"""Data sets of the user's own code."""

import sys

import pytest
import torch

from compresskit.code import NO_CODE
from compresskit.data.own import OwnData
from compresskit.errors import DataError, RecipeError

SOURCE = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

class Points(Dataset):
    classes = ["a", "b", "c"]

    def __init__(self, count=12, draws=False, names=False):
        self.count, self.draws, self.names = count, draws, names

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        x = torch.full((2,), float(place)) + (torch.rand(2) if self.draws else 0)
        return {"image": x, "label": place % 3} if self.names else (x, place % 3)

def pair(**options):
    return Points(**options), Points(6, **options)

def three():
    return Points(), Points(4), Points(6)

def mapping():
    return {"train": DataLoader(Subset(Points(), range(8))), "test": DataLoader(Points(5))}

def values():
    x = torch.arange(20.0).view(10, 2)
    return TensorDataset(x, x.sum(1)), TensorDataset(x[:4], x[:4].sum(1))

def images():
    made = [(Image.fromarray(np.full((4, 5, 3), n, np.uint8)), n % 2) for n in range(6)]
    return made, made[:3]

class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

def stream():
    return Stream(), Points()

def nothing():
    return Points(0), Points()

def other():
    return 3

def broken():
    raise ValueError("not today")

class Bad(Points):
    def __getitem__(self, place):
        if place == 3:
            raise OSError("disk")
        return super().__getitem__(place)

def bad():
    return Bad(), Bad()

def collated(pairs):
    inputs, targets = zip(*pairs)
    return torch.stack(inputs) * 10, torch.tensor(targets)
"""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_sets.py").write_text(SOURCE)
    yield
    sys.modules.pop("my_sets", None)


def whole(split, seed=None) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*split.batches(4, CPU, seed=seed), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_pairs_come_in_their_order():
    found = OwnData(target="my_sets:pair").load(0)
    assert (found.task, found.outputs, found.input_shape) == ("classification", 3, (2,))
    inputs, targets = whole(found.train)
    assert inputs[:, 0].tolist() == list(range(12))
    assert targets.tolist() == [n % 3 for n in range(12)]
    assert len(found.test) == 6
    assert found.validation is None
    shuffled, labels = whole(found.train, seed=1)
    assert shuffled[:, 0].tolist() != list(range(12))
    assert sorted(shuffled[:, 0].tolist()) == list(range(12))
    assert labels.tolist() == [int(x) % 3 for x in shuffled[:, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_are_those_of_the_seed_whatever_the_batch(workers):
    found = OwnData(target="my_sets:pair", arguments={"draws": True}, workers=workers).load(0)
    first, again = whole(found.train, seed=3)[0], whole(found.train, seed=3)[0]
    assert torch.equal(first, again)
    rest = torch.cat([x for x, _ in found.train.batches(4, CPU, seed=3, start=2)])
    assert torch.equal(rest, first[8:])
    assert not torch.equal(first.frac(), whole(found.train, seed=4)[0].frac())
    assert torch.equal(whole(found.train)[0], whole(found.train)[0])


def test_parts_loaders_mappings_and_validation():
    three = OwnData(target="my_sets:three").load(0)
    assert three.validation is not None
    assert [len(part) for part in (three.train, three.validation, three.test)] == [12, 4, 6]
    found = OwnData(target="my_sets:mapping", validation=2).load(0)
    assert (len(found.train), len(found.validation), len(found.test), found.outputs) == (6, 2, 5, 3)
    both = torch.cat([whole(found.train)[0], whole(found.validation)[0]])
    assert sorted(both[:, 0].tolist()) == list(range(8))
    named = OwnData(target="my_sets:pair", arguments={"names": True}, inputs="image", targets="label").load(0)
    assert torch.equal(whole(named.train)[0], whole(OwnData(target="my_sets:pair").load(0).train)[0])


def test_values_images_and_batches_of_your_own():
    found = OwnData(target="my_sets:values").load(0)
    assert (found.task, found.outputs) == ("regression", 1)
    assert whole(found.test)[1].tolist() == [[1.0], [5.0], [9.0], [13.0]]
    images = OwnData(target="my_sets:images", outputs=2).load(0)
    assert images.input_shape == (3, 4, 5)
    torch.testing.assert_close(whole(images.train)[0][:, 0, 0, 0], torch.arange(6.0) / 255)
    tenfold = OwnData(target="my_sets:pair", collate="my_sets:collated").load(0)
    assert whole(tenfold.train)[0][:, 0].tolist() == [10.0 * n for n in range(12)]


def test_fingerprints_tell_sets_apart():
    prints = {
        OwnData(target="my_sets:pair", **options).load(0).fingerprint
        for options in (
            {},
            {"arguments": {"count": 11}} and {"limit": 5},
            {"validation": 3},
            {"collate": "my_sets:collated"},
        )
    }
    assert len(prints) == 4
    assert OwnData(target="my_sets:pair").load(0).fingerprint in prints


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("my_sets:stream", DataError, "train part of my_sets:stream is a Stream, which has no length and no positions"),
        ("my_sets:nothing", DataError, "train part of my_sets:nothing is empty"),
        ("my_sets:other", DataError, "my_sets:other returned int; it must return a mapping"),
        ("my_sets:broken", RecipeError, "my_sets:broken raised ValueError: not today"),
        ("my_sets:images", DataError, "my_sets:images does not say how many classes there are; give the number"),
        ("my_sets:gone", RecipeError, "data.target: my_sets has no 'gone'"),
        ("os:listdir", RecipeError, "os is Python's own and makes no data"),
    ],
)
def test_mistakes_are_named(target, error, message):
    with pytest.raises(error, match=message):
        OwnData(target=target).load(0)


def test_a_sample_that_cannot_be_read_is_named():
    with pytest.raises(DataError, match="data: the train sample at 3: OSError: disk"):
        OwnData(target="my_sets:bad").load(0)


def test_where_no_code_may_run_none_is_imported(monkeypatch):
    monkeypatch.setenv(NO_CODE, "1")
    with pytest.raises(RecipeError, match="data.target: my_sets:pair would be imported and run"):
        OwnData(target="my_sets:pair").load(0)
    assert "my_sets" not in sys.modules
