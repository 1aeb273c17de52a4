"""Labels without copies are the labels with them."""

import itertools

import pytest
import torch

from compresskit.graph.channels.labels import (
    Labels,
    along,
    broadcast,
    compact,
    concatenated,
    repeats,
    spread,
    unite_rows,
)


def views() -> list[torch.Tensor]:
    """Labels of one shape that repeat along none, some or all dimensions, by stride or by value."""
    vectors = [spread(torch.arange(size), dim, (1, 4, 3, 2)) for dim, size in ((1, 4), (2, 3), (3, 2))]
    return [*vectors, torch.tensor(7).expand(1, 4, 3, 2), torch.arange(24).view(1, 4, 3, 2), vectors[0].contiguous()]


@pytest.mark.parametrize("dim", [1, 2, -1])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_concatenated_is_cat(dim, count):
    for chosen in itertools.product(views(), repeat=count):
        found = concatenated(chosen, dim)
        assert torch.equal(found, torch.cat(chosen, dim))


def test_concatenated_labels_repeat_where_all_did():
    channels, *_ = views()
    assert concatenated([channels, channels], 1).stride()[2:] == (0, 0)


@pytest.mark.parametrize("dim", range(4))
def test_repeats_looks_at_values_where_strides_say_nothing(dim):
    for labels in views():
        rows = labels.contiguous().movedim(dim, 0)
        assert repeats(labels, dim) == all(torch.equal(row, rows[0]) for row in rows)


def test_compact_loses_repetition_alone():
    for labels in views():
        assert torch.equal(compact(labels).expand(labels.shape), labels)
        assert all(size == 1 or not repeats(labels, dim) for dim, size in enumerate(compact(labels).shape))


def test_along_is_none_where_labels_differ_elsewhere():
    channels, rows, *_, every, _ = views()
    assert torch.equal(along(channels, 1), torch.arange(4))
    assert along(rows, 1) is None
    assert along(every, 1) is None


@pytest.mark.parametrize("as_list", [False, True])
def test_united_rows_are_one_channel_by_position(as_list):
    labels = Labels()
    rows = labels.fresh(12).view(3, 4)
    assert torch.equal(unite_rows(labels, list(rows) if as_list else rows), rows[0])
    assert labels.atoms().view(3, 4).tolist() == [[0, 1, 2, 3]] * 3


def test_broadcast_gives_the_common_shape():
    assert broadcast([torch.empty(2, 3), torch.empty(2, 3)]) == (2, 3)
    assert broadcast([torch.empty(2, 1), torch.empty(4, 1, 3)]) == (4, 2, 3)
