"""Targets of any structure: they reach whoever asks as the user's collate made them, on the device."""

import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from compresskit.data.own.factory import Factory
from compresskit.data.own.targets import Targets, is_structured
from compresskit.errors import DataError

CPU = torch.device("cpu")
BOXES = [torch.arange(5.0 * (count + 1)).view(-1, 5) + count for count in (0, 2, 1, 0, 3, 1, 2)]


class Boxed(Dataset):
    def __init__(self, count=7):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((1, 2, 2), float(index)), {"boxes": BOXES[index], "name": f"image {index}"}


class Streamed(IterableDataset):
    def __len__(self):
        return 7

    def __iter__(self):
        return iter([Boxed()[index] for index in range(7)])


def rows(samples):
    """(M, 6): which image of the batch, and the box."""
    boxes = [torch.cat([torch.full((len(t["boxes"]), 1), float(n)), t["boxes"]], 1) for n, (_, t) in enumerate(samples)]
    return torch.stack([image for image, _ in samples]), torch.cat(boxes)


def padded(samples):
    images, most = torch.stack([image for image, _ in samples]), max(len(t["boxes"]) for _, t in samples)
    filled = torch.full((len(samples), most, 5), -1.0)
    for row, (_, target) in zip(filled, samples, strict=True):
        row[: len(target["boxes"])] = target["boxes"]
    return images, filled


def mixed(samples):
    boxes = tuple(target["boxes"] for _, target in samples)
    return torch.stack([image for image, _ in samples]), {"boxes": boxes, "names": [t["name"] for _, t in samples]}


def lost(samples):
    return torch.stack([image for image, _ in samples])[:1], [target for _, target in samples]


MODULE = sys.modules[__name__]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.setitem(sys.modules, "user_boxes", MODULE)

    def made(returned, collate=None, **options):
        monkeypatch.setattr(MODULE, "given", lambda: returned, raising=False)
        return Factory(target="user_boxes:given", collate=collate and f"user_boxes:{collate}", **options).load(0)

    return made


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", ["rows", "padded", "mixed"])
@pytest.mark.parametrize("kind", [Boxed, Streamed])
def test_they_come_as_collate_made_them(load, collate, workers, kind):
    if kind is Streamed and workers:
        pytest.skip("a stream is read without workers")
    data = load((kind(), kind()), collate, workers=workers, task="own" if collate == "rows" else "auto")
    assert (data.task, data.outputs, data.input_shape) == ("own", 0, (1, 2, 2))
    served = list(data.test.batches(3, CPU))
    assert [len(targets) for _, targets in served] == [3, 3, 1]
    for start, (inputs, targets) in zip((0, 3, 6), served, strict=True):
        images, expected = getattr(MODULE, collate)([Boxed()[index] for index in range(7)][start : start + 3])
        assert torch.equal(inputs, images)
        assert str(targets.value) == str(expected)


def test_without_a_collate_they_are_a_list(load):
    (_, targets), *_ = load((Boxed(), Boxed())).test.batches(3, CPU)
    assert [sorted(one) for one in targets.value] == [["boxes", "name"]] * 3
    assert all(torch.equal(one["boxes"], boxes) for one, boxes in zip(targets.value, BOXES, strict=False))


def test_parts_are_held_out_and_shuffled_as_of_any_set(load):
    data = load(Boxed(), "mixed", test_fraction=0.3, validation=1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [4, 1, 2]
    names = [
        [name for _, targets in data.train.batches(3, CPU, seed=seed) for name in targets.value["names"]]
        for seed in (1, 1, 2)
    ]
    assert names[0] == names[1] != names[2]
    assert sorted(names[0]) == sorted(names[2])


def test_processes_share_a_batch(load):
    data = load((Boxed(), Boxed()), "mixed")
    names = [next(data.test.batches(4, CPU, rank=rank, world=2))[1].value["names"] for rank in range(2)]
    assert names == [["image 0", "image 1"], ["image 2", "image 3"]]


def test_other_targets_are_another_set(load, monkeypatch):
    before = load((Boxed(), Boxed()), "mixed").fingerprint
    assert load((Boxed(), Boxed()), "mixed").fingerprint == before
    monkeypatch.setattr(MODULE, "BOXES", [BOXES[0] + 1, *BOXES[1:]])
    assert load((Boxed(), Boxed()), "mixed").fingerprint != before


@pytest.mark.parametrize(
    ("target", "structured"),
    [
        ({"boxes": 1}, True),
        ([torch.ones(2), torch.ones(3)], True),
        ((torch.ones(2, 2), 3), True),
        (torch.ones(3, 5), True),
        (np.ones((1, 3, 5), dtype=np.int64), True),
        (torch.zeros(0, 5), True),
        (None, True),
        (3, False),
        (True, False),
        ("cat", False),
        (np.str_("cat"), False),
        ([1.5, 2.5], False),
        (torch.tensor([True, False]), False),
        (torch.ones(4, 4, dtype=torch.int64), False),
    ],
)
def test_what_no_other_task_takes_is_kept_whole(target, structured):
    assert is_structured(target) is structured


def test_what_else_could_be_meant_is_whole_where_it_is_said(load):
    data = load([(torch.ones(2), torch.ones(4, 4, dtype=torch.int64))] * 5, task="own")
    (_, targets), *_ = data.train.batches(4, CPU)
    assert [one.shape for one in targets.value] == [(4, 4)] * 4


def test_only_tensors_are_moved_and_copied():
    value = {"boxes": [torch.ones(2, requires_grad=False)], "names": ["a"], "rows": np.ones(2)}
    targets = Targets(value, 1)
    copy = targets.clone()
    copy.value["boxes"][0].zero_()
    assert value["boxes"][0].tolist() == [1, 1]
    assert targets.to(torch.device("meta")).value["boxes"][0].is_meta
    assert targets.to(torch.device("meta")).value["rows"] is value["rows"]
    assert len(copy) == 1


@pytest.mark.parametrize(
    ("collate", "options", "message"),
    [
        ("mixed", {"classes": 3}, "data.classes: it is 3, and targets of any structure have none; leave it out"),
        ("lost", {}, r"2 samples became inputs of shape \(1, 1, 2, 2\) in data.collate"),
        ("mixed", {"label_noise": 0.5}, "data.label_noise: 0.5 needs classes, but the task is own"),
        ("rows", {"task": "regression"}, "1 samples became 3 targets in data.collate; set data.task: own where"),
        ("rows", {}, "1 samples became 3 targets in data.collate; set data.task: own where"),
    ],
)
def test_what_cannot_be_meant_is_refused(load, collate, options, message):
    with pytest.raises(DataError, match=message):
        next(load((Boxed(), Boxed()), collate, **options).train.batches(2, CPU))
