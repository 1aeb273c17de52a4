"""VOC2007's rule against a slow one, object by object, and its laws."""

import numpy as np
import pytest
import torch

from compresskit.training.tasks.eleven_points import eleven_point_precision
from compresskit.training.tasks.found import Found, detections
from tests.training.tasks.test_average_precision import ANCHORS, answer, drawn, overlap


def with_difficult(seed):
    """As `drawn`, with about a third of the truths called difficult."""
    random = np.random.default_rng(100 + seed)
    images = []
    for image in drawn(seed=seed):
        hard = random.random(len(image.truths)) < 0.35
        images.append(image._replace(truths=image.truths[~hard], difficult=image.truths[hard]))
    return images


def by_hand(images):
    """As the text of VOC2007 has it: one detection after another, each with all objects of its image."""
    means = []
    for label in {int(truth[0]) for image in images for truth in image.truths}:
        ranked = [
            (score, number, box)
            for number, image in enumerate(images)
            for box, score, its in zip(image.boxes.tolist(), image.scores.tolist(), image.labels, strict=True)
            if its == label
        ]
        ranked.sort(key=lambda entry: -entry[0])
        truths = sum(truth[0] == label for image in images for truth in image.truths)
        taken, right, wrong, curve = set(), 0, 0, []
        for _, number, box in ranked:
            objects = [(False, *truth) for truth in images[number].truths.tolist()]
            objects += [(True, *truth) for truth in images[number].difficult.tolist()]
            best, which = 0.0, None
            for index, (_, its, *other) in enumerate(objects):
                if its == label and overlap(box, other) > best:
                    best, which = overlap(box, other), index
            if best > 0.5 and objects[which][0]:
                continue
            if best > 0.5 and (number, which) not in taken:
                taken.add((number, which))
                right += 1
            else:
                wrong += 1
            curve.append((right, right / (right + wrong)))
        total = 0.0
        for step in range(11):
            total += max((precision for hits, precision in curve if hits * 10 >= step * truths), default=0.0)
        means.append(total / 11)
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_one_by_hand(seed):
    for images in (drawn(seed=seed), with_difficult(seed)):
        found = eleven_point_precision(images)
        assert 0.05 < found < 0.95
        assert found == pytest.approx(by_hand(images), rel=1e-12)


def perfect(images):
    return [Found(i.truths[:, 1:], np.ones(len(i.truths)), i.truths[:, 0].astype(int), i.truths) for i in images]


def test_limits():
    images = drawn()
    assert eleven_point_precision(perfect(images)) == 1
    nothing = [Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), image.truths) for image in images]
    assert eleven_point_precision(nothing) == 0
    assert eleven_point_precision([image._replace(truths=np.zeros((0, 5))) for image in images]) == 0
    assert eleven_point_precision([]) == 0


def one_class(right, truths):
    """An image with so many objects apart from each other, and detections of falling score that are right or not."""
    objects = np.array([[0, (number + 0.5) / truths, 0.1, 0.5 / truths, 0.1] for number in range(truths)])
    places = iter(objects[:, 1:])
    boxes = np.array([next(places) if fits else [0.5, 0.9, 0.1, 0.1] for fits in right])
    return Found(boxes, np.linspace(1, 0.5, len(right)), np.zeros(len(right), int), objects)


@pytest.mark.parametrize(
    ("right", "truths", "expected"),
    [
        ([True], 10, 2 / 11),  # recalls 0 and 0.1 are reached
        ([True] * 3, 10, 4 / 11),  # 0.3 itself is reached
        ([False, True], 1, 0.5),  # precision 1/2 at every recall
        ([True, False, True], 2, (6 * 1 + 5 * 2 / 3) / 11),  # recall 0.5 at precision 1, then 1 at 2/3
    ],
)
def test_curves_worked_out(right, truths, expected):
    assert eleven_point_precision([one_class(right, truths)]) == pytest.approx(expected, rel=1e-12)


def test_found_twice_is_an_error_even_where_another_object_is_near():
    """COCO gives the second detection the other object; VOC asks only for the one that it overlaps most."""
    truths = np.array([[0, 0.5, 0.5, 0.4, 0.4], [0, 0.58, 0.5, 0.4, 0.4]])
    boxes = np.array([[0.5, 0.5, 0.4, 0.4], [0.53, 0.5, 0.4, 0.4]])
    image = Found(boxes, np.array([0.9, 0.8]), np.zeros(2, int), truths)
    assert eleven_point_precision([image]) == pytest.approx(6 / 11, rel=1e-12)


def test_half_an_overlap_is_too_little():
    truths = np.array([[0, 0.5, 0.5, 0.5, 0.5]])
    for height, expected in ((0.25, 0), (0.26, 1)):
        image = Found(np.array([[0.5, 0.5, 0.5, height]]), np.ones(1), np.zeros(1, int), truths)
        assert eleven_point_precision([image]) == expected


def test_difficult_objects_count_neither_way():
    """Neither to miss them nor to find them, once or twice, changes anything; of another class they are no excuse."""
    images = perfect(drawn())
    hard = np.array([[0, 0.05, 0.05, 0.1, 0.1]])
    missed = [image._replace(difficult=hard) for image in images]
    assert eleven_point_precision(missed) == 1
    twice = [
        image._replace(
            boxes=np.concatenate([hard[:, 1:], hard[:, 1:], image.boxes]),
            scores=np.concatenate([[2.0, 2.0], image.scores]),
            labels=np.concatenate([[0, 0], image.labels]),
        )
        for image in missed
    ]
    assert eleven_point_precision(twice) == 1
    assert eleven_point_precision([image._replace(difficult=np.zeros((0, 5))) for image in twice]) < 1
    others = [image._replace(difficult=np.array([[1, *hard[0, 1:]]])) for image in twice]
    assert eleven_point_precision(others) < 1


def test_detections_know_the_difficult_ones():
    target = torch.tensor([[[1.0, 0.6, 0.4, 0.3, 0.3], [-4.0, 0.3, 0.4, 0.2, 0.1], [-1.0, -1, -1, -1, -1]]])
    (found,) = detections(answer([(0, 1, 0.6, 0.4, 0.3, 0.3, 2.0)]), target, ANCHORS)
    assert found.truths.tolist() == target[0, :1].tolist()
    assert found.difficult.tolist() == [[2.0, *target[0, 1, 1:].tolist()]]
