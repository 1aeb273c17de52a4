"""What class numbers give away: labels that cannot be meant are refused, odd ones are said."""

import logging

import pytest
import torch

from compresskit.data.labels import check_labels
from compresskit.errors import DataError


def checked(train, test=(0, 1), classes=None, **options) -> None:
    parts = {"train": torch.tensor(train), "test": torch.tensor(test)}
    count = classes or 1 + max(int(part.max()) for part in parts.values())
    check_labels("set.npz", parts, count, counted=classes is None)


def test_good_labels_pass_in_silence(caplog):
    checked([0, 1, 2, 0], [0, 2])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([3, 3, 3], {}, "all 3 training labels are 3; nothing can be learnt from one class"),
        ([0, 1000, 2000], {}, "the labels go up to 2,000, but only 4 numbers occur; number the classes from 0 on"),
        ([0, 200], {"classes": 10}, "1 labels of train are none of the 10 classes, the first 200"),
        ([0, -1], {"classes": 10}, "1 labels of train are none of the 10 classes, the first -1"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(train, options, message):
    with pytest.raises(DataError, match=message):
        checked(train, **options)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([1, 2, 3], [1, 2], "labels start from 1, so that output 0 of the net has nothing to learn; subtract 1"),
        ([0, 1, 4], [0], "no sample of class 2, 3, so that those outputs of the net have nothing to learn"),
        ([0, 1, 1], [2, 2, 0], "no training sample of class 2, which 2 others have: a net cannot know them"),
    ],
)
def test_odd_labels_are_said(caplog, train, test, message):
    with caplog.at_level(logging.WARNING):
        checked(train, test)
    assert message in caplog.text


def test_numbers_that_are_to_come_are_no_news(caplog):
    checked([0, 1, 1000], classes=2001)
    assert caplog.text == ""
