"""The detection loss against the same sums taken one box at a time."""

import math
from dataclasses import replace

import pytest
import torch

from compresskit.training.tasks.detection import Yolo
from compresskit.training.tasks.losses import loss_for

ANCHORS = ((0.2, 0.35), (0.5, 0.15), (0.7, 0.8))
CLASSES, ROWS, COLUMNS = 4, 3, 2
LOSSES = [
    Yolo(),
    Yolo(coordinate=3.0, object=0.5, no_object=2.0, classes=0.7, ignore_above=0.2),
    Yolo(coordinate=0, object=0, no_object=0),
    Yolo(ignore_above=0.0),
    Yolo(ignore_above=1.0),
]


def drawn(images=8, boxes=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    output = torch.randn(images, 3 * (5 + CLASSES), ROWS, COLUMNS, generator=random, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (images, boxes, 1), generator=random).double()
    places = torch.rand(images, boxes, 2, generator=random, dtype=torch.float64)
    sizes = 0.1 + 0.6 * torch.rand(images, boxes, 2, generator=random, dtype=torch.float64)
    target = torch.cat([labels, places, sizes], -1)
    target[0, 2:] = -1.0
    target[-1] = -1.0  # an image without objects
    return output, target


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def overlap(first, second):
    sides = [
        max(0.0, min(a + p / 2, b + q / 2) - max(a - p / 2, b - q / 2))
        for a, p, b, q in ((first[0], first[2], second[0], second[2]), (first[1], first[3], second[1], second[3]))
    ]
    common = sides[0] * sides[1]
    return common / (first[2] * first[3] + second[2] * second[3] - common)


def by_hand(loss, output, target):
    total = 0.0
    for image, rows in zip(output, target, strict=True):
        truths = [row for row in rows.tolist() if row[0] >= 0]
        fields = image.reshape(len(ANCHORS), 5 + CLASSES, ROWS, COLUMNS)
        taken = set()
        for label, x, y, width, height in truths:
            column, row = int(x * COLUMNS), int(y * ROWS)
            fits = [overlap((0, 0, width, height), (0, 0, *anchor)) for anchor in ANCHORS]
            best = fits.index(max(fits))
            taken.add((best, row, column))
            t_x, t_y, t_w, t_h, claim, *logits = fields[best, :, row, column].tolist()
            errors = [
                sigmoid(t_x) - (x * COLUMNS - column),
                sigmoid(t_y) - (y * ROWS - row),
                t_w - math.log(width / ANCHORS[best][0]),
                t_h - math.log(height / ANCHORS[best][1]),
            ]
            total += loss.coordinate / 2 * (2 - width * height) * sum(error**2 for error in errors)
            total += loss.object / 2 * (1 - sigmoid(claim)) ** 2
            total += loss.classes * (math.log(sum(map(math.exp, logits))) - logits[int(label)])
        for anchor, (width, height) in enumerate(ANCHORS):
            for row in range(ROWS):
                for column in range(COLUMNS):
                    t_x, t_y, t_w, t_h, claim, *_ = fields[anchor, :, row, column].tolist()
                    place = (column + sigmoid(t_x)) / COLUMNS, (row + sigmoid(t_y)) / ROWS
                    box = (*place, width * math.exp(t_w), height * math.exp(t_h))
                    near = max((overlap(box, truth[1:]) for truth in truths), default=0.0)
                    if (anchor, row, column) not in taken and near <= loss.ignore_above:
                        total += loss.no_object / 2 * sigmoid(claim) ** 2
    return total / len(output)


@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_sums_by_hand(loss):
    output, target = drawn()
    assert loss(output, target, ANCHORS).item() == pytest.approx(by_hand(loss, output, target), rel=1e-12)


def test_the_options_matter():
    output, target = drawn()
    found = [loss(output, target, ANCHORS).item() for loss in LOSSES]
    assert len({round(value, 9) for value in found}) == len(LOSSES)


def test_padding_is_nothing():
    output, target = drawn()
    longer = torch.cat([target, torch.full((len(target), 3, 5), -1.0, dtype=torch.float64)], 1)
    assert Yolo()(output, longer, ANCHORS).item() == pytest.approx(Yolo()(output, target, ANCHORS).item(), rel=1e-14)


def test_a_perfect_answer_costs_nothing_and_has_no_gradient():
    target = torch.tensor([[[2.0, 0.3, 0.9, *ANCHORS[1]]]], dtype=torch.float64)
    output = torch.full((1, 27, ROWS, COLUMNS), -40.0, dtype=torch.float64)
    fields = output.view(3, 9, ROWS, COLUMNS)[1, :, 2, 0]
    within = torch.tensor([0.3 * COLUMNS, 0.9 * ROWS - 2], dtype=torch.float64)
    fields[:5] = torch.tensor([*torch.logit(within), 0, 0, 40], dtype=torch.float64)
    fields[7] = 40.0
    output.requires_grad_()
    loss = Yolo()(output, target, ANCHORS)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert output.grad.abs().max().item() < 1e-14


def test_gradients_are_darknets():
    """Of a box alone in its image: coord_scale (2 - w h) (s - x) s', object_scale (s - 1) s', softmax - onehot."""
    loss = replace(Yolo(), coordinate=1.5, no_object=0)
    output, target = drawn(images=2, boxes=1, seed=3)
    output.requires_grad_()
    loss(output, target, ANCHORS).backward()
    label, x, y, width, height = target[0, 0].tolist()
    column, row = int(x * COLUMNS), int(y * ROWS)
    gradients = output.grad.view(2, 3, 9, ROWS, COLUMNS)[0, :, :, row, column]
    (best,) = gradients.abs().sum(1).nonzero().flatten().tolist()
    fields = output.detach().view(2, 3, 9, ROWS, COLUMNS)[0, best, :, row, column]
    s, scale = fields.sigmoid(), 1.5 * (2 - width * height)
    slope = s * (1 - s)
    onehot = torch.eye(CLASSES, dtype=torch.float64)[int(label)]
    expected = [
        scale * (s[0] - (x * COLUMNS - column)) * slope[0],
        scale * (s[1] - (y * ROWS - row)) * slope[1],
        scale * (fields[2] - math.log(width / ANCHORS[best][0])),
        scale * (fields[3] - math.log(height / ANCHORS[best][1])),
        5 * (s[4] - 1) * slope[4],
        *(fields[5:].softmax(0) - onehot),
    ]
    torch.testing.assert_close(2 * gradients[best], torch.stack(expected), rtol=0, atol=1e-12)  # 2: mean over images


def test_half_precision_is_taken_to_float32():
    output, target = drawn()
    coarse = output.bfloat16()
    assert Yolo()(coarse, target.float(), ANCHORS).dtype == torch.float32
    exact = Yolo()(coarse.double(), target, ANCHORS).item()
    assert Yolo()(coarse, target.float(), ANCHORS).item() == pytest.approx(exact, rel=1e-5)  # float32


def test_the_task_binds_the_anchors():
    output, target = drawn()
    assert torch.equal(loss_for("detection", None, ANCHORS)(output, target), Yolo()(output, target, ANCHORS))
