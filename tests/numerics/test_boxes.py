import math

import pytest
import torch

from compresskit.numerics.boxes import decode, intersection_over_union, suppress

ANCHORS = torch.tensor([[0.2, 0.3], [0.5, 0.1], [0.9, 0.8]], dtype=torch.float64)


def drawn(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0.2, 0.2, 0.05, 0.05]), torch.tensor([0.8, 0.8, 0.6, 0.6])
    return (low + (high - low) * torch.rand(count, 4, generator=random)).double()


def iou_by_hand(first: list[float], second: list[float]) -> float:
    """From edges, and areas of rectangles, one pair at a time."""
    sides = []
    for axis in (0, 1):
        ends = [(box[axis] - box[axis + 2] / 2, box[axis] + box[axis + 2] / 2) for box in (first, second)]
        sides.append(max(0.0, min(end for _, end in ends) - max(start for start, _ in ends)))
    common = sides[0] * sides[1]
    return common / (first[2] * first[3] + second[2] * second[3] - common)


def test_overlap_equals_the_one_by_hand():
    first, second = drawn(12, 0), drawn(9, 1)
    found = intersection_over_union(first[:, None], second)
    expected = torch.tensor([[iou_by_hand(a, b) for b in second.tolist()] for a in first.tolist()], dtype=torch.float64)
    assert 0 < (expected > 0).sum() < expected.numel()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_laws_of_the_overlap():
    first, second = drawn(50, 2), drawn(50, 3)
    there, back = intersection_over_union(first, second), intersection_over_union(second, first)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-14)
    torch.testing.assert_close(intersection_over_union(first, first), torch.ones(50).double(), rtol=0, atol=1e-14)
    shift, scale = torch.tensor([0.3, -0.2, 0, 0]).double(), torch.tensor([2.0, 0.5, 2.0, 0.5]).double()
    moved = intersection_over_union((first + shift) * scale, (second + shift) * scale)
    torch.testing.assert_close(moved, there, rtol=0, atol=1e-12)
    aside = first + torch.tensor([2.0, 0, 0, 0]).double()
    assert not intersection_over_union(first, aside).any()
    assert intersection_over_union(torch.zeros(4), torch.zeros(4)) == 0


def test_decoding_one_cell_at_a_time():
    random = torch.Generator().manual_seed(4)
    rows, columns, classes = 2, 4, 5
    output = torch.randn(2, 3 * (5 + classes), rows, columns, generator=random, dtype=torch.float64)
    found = decode(output, ANCHORS)
    assert (found.boxes.shape, found.classes.shape) == ((2, 24, 4), (2, 24, 5))
    for image in range(2):
        for anchor, (width, height) in enumerate(ANCHORS.tolist()):
            for row in range(rows):
                for column in range(columns):
                    logits = output[image, anchor * 10 : (anchor + 1) * 10, row, column].tolist()
                    place = (anchor * rows + row) * columns + column
                    expected = [
                        (column + 1 / (1 + math.exp(-logits[0]))) / columns,
                        (row + 1 / (1 + math.exp(-logits[1]))) / rows,
                        width * math.exp(logits[2]),
                        height * math.exp(logits[3]),
                    ]
                    assert found.boxes[image, place].tolist() == pytest.approx(expected, rel=1e-12)
                    assert found.objectness[image, place].item() == logits[4]
                    assert found.classes[image, place].tolist() == logits[5:]


@pytest.mark.parametrize("shape", [(1, 29, 2, 2), (1, 15, 2, 2), (1, 30)])
def test_channels_that_do_not_fit_the_anchors(shape):
    with pytest.raises(ValueError, match=r"3 anchors need a map of 3 \* \(5 \+ classes\) channels"):
        decode(torch.zeros(shape), ANCHORS)


def kept_one_by_one(boxes, scores, labels, threshold):
    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(iou_by_hand(boxes[index], boxes[other]) <= threshold for other in rivals):
            kept.append(index)
    return set(kept)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_suppression_equals_the_greedy_loop(threshold):
    random = torch.Generator().manual_seed(6)
    boxes, labels = drawn(150, 5), torch.randint(0, 3, (150,), generator=random)
    scores = (torch.rand(150, generator=random) * 20).round() / 20  # with ties
    boxes[1::10] = boxes[::10]  # IoU 1, which is not above 1
    keep = suppress(boxes, scores, labels, threshold)
    expected = kept_one_by_one(boxes.tolist(), scores.tolist(), labels.tolist(), threshold)
    assert set(keep.nonzero().flatten().tolist()) == expected
    assert (len(expected) < 150) == (threshold < 1)


def test_a_box_that_is_suppressed_suppresses_nothing():
    boxes = torch.tensor([[0.30, 0.5, 0.2, 0.2], [0.38, 0.5, 0.2, 0.2], [0.46, 0.5, 0.2, 0.2]])
    keep = suppress(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3), 0.3)
    assert keep.tolist() == [True, False, True]


def test_nothing_to_suppress():
    assert suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.5).shape == (0,)
