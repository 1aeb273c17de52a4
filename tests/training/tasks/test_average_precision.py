"""mAP against a slow one by hand, and what counts as a detection."""

import json
import sys

import numpy as np
import pytest
import torch

from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.training.tasks.average_precision import DetectionTally, mean_average_precision
from compresskit.training.tasks.detection import Yolo
from compresskit.training.tasks.eleven_points import eleven_point_precision
from compresskit.training.tasks.found import Found, detections
from tests.forked.start import torchrun

ANCHORS = ((0.3, 0.3), (0.6, 0.5))
CPU = torch.device("cpu")


def overlap(first, second):
    sides = [
        max(0.0, min(a + p / 2, b + q / 2) - max(a - p / 2, b - q / 2))
        for a, p, b, q in ((first[0], first[2], second[0], second[2]), (first[1], first[3], second[1], second[3]))
    ]
    common = sides[0] * sides[1]
    return common / (first[2] * first[3] + second[2] * second[3] - common)


def by_hand(images):
    """Each detection, from the best score down, takes the best truth of its class and image that is still free."""
    precisions = []
    for label in sorted({truth[0] for image in images for truth in image.truths.tolist()}):
        free = [[truth[1:] for truth in image.truths.tolist() if truth[0] == label] for image in images]
        count = sum(map(len, free))
        found = sorted(
            (
                (-score, number, box)
                for number, image in enumerate(images)
                for box, score, its in zip(image.boxes.tolist(), image.scores.tolist(), image.labels, strict=True)
                if its == label
            ),
        )
        right, curve = 0, []
        for rank, (_, number, box) in enumerate(found, 1):
            fits = [(overlap(box, truth), truth) for truth in free[number]]
            best = max(fits, default=(0.0, None))
            if best[0] >= 0.5:
                free[number].remove(best[1])
                right += 1
            curve.append((right / count, right / rank))
        at = [max((p for r, p in curve if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
        precisions.append(sum(at) / 101)
    return sum(precisions) / len(precisions)


def drawn(images=15, classes=4, seed=0):
    """Truths, found again more or less well, and boxes that are nowhere; class 3 has no truth."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(images):
        count = int(random.integers(0, 5))
        places, sizes = random.uniform(0.3, 0.7, (count, 2)), random.uniform(0.1, 0.4, (count, 2))
        truths = np.column_stack([random.integers(0, classes - 1, count), places, sizes])
        near = truths[:, 1:] * random.normal(1, 0.15, (count, 4))
        elsewhere = random.uniform(0.1, 0.6, (3, 4))
        boxes = np.concatenate([near, elsewhere])
        labels = np.concatenate([truths[:, 0], random.integers(0, classes, 3)]).astype(int)
        out.append(Found(boxes, random.random(len(boxes)), labels, truths))
    return out


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_one_by_hand(seed):
    images = drawn(seed=seed)
    found = mean_average_precision(images)
    assert 0.05 < found < 0.95
    assert found == pytest.approx(by_hand(images), rel=1e-9)


def test_limits():
    images = drawn()
    perfect = [Found(i.truths[:, 1:], np.ones(len(i.truths)), i.truths[:, 0].astype(int), i.truths) for i in images]
    assert mean_average_precision(perfect) == pytest.approx(1.0, abs=1e-12)
    wrong = [image._replace(labels=(image.labels + 1) % 4) for image in perfect]
    assert mean_average_precision(wrong) < 0.2  # a few truths of other classes lie close
    nothing = [Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), image.truths) for image in images]
    assert mean_average_precision(nothing) == 0
    assert mean_average_precision([image._replace(truths=np.zeros((0, 5))) for image in images]) == 0


def test_it_prints_nothing(capsys):
    mean_average_precision(drawn())
    assert capsys.readouterr() == ("", "")


def answer(truths, classes=3, rows=4, columns=4):
    """Output whose boxes are exactly these, (anchor, class, x, y, width, height, objectness logit)."""
    output = torch.full((1, len(ANCHORS) * (5 + classes), rows, columns), -20.0)
    fields = output.view(len(ANCHORS), 5 + classes, rows, columns)
    for anchor, label, x, y, width, height, claim in truths:
        row, column = int(y * rows), int(x * columns)
        place = torch.logit(torch.tensor([x * columns - column, y * rows - row]))
        size = torch.tensor([width / ANCHORS[anchor][0], height / ANCHORS[anchor][1]]).log()
        fields[anchor, :4, row, column] = torch.cat([place, size])
        fields[anchor, 4, row, column] = claim
        fields[anchor, 5 + label, row, column] = 0.0
    return output


def test_boxes_found_twice_and_weak_ones_are_dropped():
    target = torch.tensor([[[1.0, 0.6, 0.4, 0.3, 0.3], [-1.0, -1, -1, -1, -1]]])
    boxes = [
        (0, 1, 0.60, 0.40, 0.3, 0.3, 2.0),
        (1, 1, 0.62, 0.40, 0.3, 0.3, 1.0),  # the same again
        (0, 2, 0.80, 0.45, 0.3, 0.3, 0.0),  # of another class
        (0, 0, 0.10, 0.90, 0.3, 0.3, -5.5),  # score 0.0041
        (1, 0, 0.10, 0.10, 0.4, 0.5, -5.0),  # score 0.0067; cut to the image
    ]
    (found,) = detections(answer(boxes), target, ANCHORS)
    assert found.labels.tolist() == [1, 2, 0]
    assert found.scores.tolist() == pytest.approx([1 / (1 + np.exp(-c)) for c in (2, 0, -5)], rel=1e-5)  # float32
    expected = [0.6, 0.4, 0.3, 0.3, 0.8, 0.45, 0.3, 0.3, 0.15, 0.175, 0.3, 0.35]
    assert found.boxes.flatten().tolist() == pytest.approx(expected, abs=1e-6)  # float32
    assert found.truths.tolist() == target[0, :1].tolist()


def test_outputs_beyond_all_bounds_are_survived():
    (found,) = detections(torch.full((1, 16, 2, 2), 1e4), torch.zeros(1, 1, 5), ANCHORS)
    assert np.isfinite(found.boxes).all()


def answered():
    """Six images of random outputs, the first three with their truths among them."""
    random = torch.Generator().manual_seed(0)
    output = torch.randn(6, 16, 4, 4, generator=random)
    places = 0.2 + 0.5 * torch.rand(6, 2, 4, generator=random)
    target = torch.cat([torch.randint(0, 3, (6, 2, 1), generator=random).float(), places], -1)
    target[1, 1] = -1
    output[:3] = torch.cat(
        [answer([(0, int(c), *box, 3.0) for c, *box in rows.tolist() if c >= 0]) for rows in target[:3]]
    )
    return output, target


def test_the_tally_is_that_of_all_batches():
    output, target = answered()
    figures = []
    for batch in (6, 1):
        tally = DetectionTally(ANCHORS, CPU)
        for x, y in zip(output.split(batch), target.split(batch), strict=True):
            tally.add(x, y)
        figures.append(tally.figures(Group()))
    assert 0.1 < figures[0]["map"] < 1
    assert figures[0] == pytest.approx(figures[1], rel=1e-12)
    assert figures[0]["loss"] == pytest.approx(Yolo()(output.double(), target.double(), ANCHORS).item(), rel=1e-6)
    found = [
        image for x, y in zip(output.split(1), target.split(1), strict=True) for image in detections(x, y, ANCHORS)
    ]
    assert figures[0]["map"] == pytest.approx(mean_average_precision(found), rel=1e-12)
    assert figures[0]["map@voc07"] == pytest.approx(eleven_point_precision(found), rel=1e-12)


SHARED = """\
import json, os, sys
import torch
from compresskit.training.tasks.average_precision import DetectionTally
from compresskit.distributed import connect
group = connect("cpu")
output, target = torch.load(sys.argv[1], weights_only=True)
tally = DetectionTally(((0.3, 0.3), (0.6, 0.5)), torch.device("cpu"))
mine = slice(0, 4) if group.rank == 0 else slice(4, 6)
tally.add(output[mine], target[mine])
with open(f"{sys.argv[1]}.{group.rank}.json", "w") as file:
    json.dump(tally.figures(group), file)
group.close()
os._exit(0)  # as the command line ends: see compresskit.cli.app.main
"""


def test_every_process_gets_the_figures_of_all(tmp_path):
    output, target = answered()
    torch.save((output, target), tmp_path / "batch.pt")
    (tmp_path / "shared.py").write_text(SHARED)
    done = torchrun(tmp_path / "shared.py", tmp_path / "batch.pt")
    assert done.returncode == 0, done.stderr
    alone = DetectionTally(ANCHORS, CPU)
    alone.add(output, target)
    expected = alone.figures(Group())
    for rank in (0, 1):
        assert json.loads((tmp_path / f"batch.pt.{rank}.json").read_text()) == pytest.approx(expected, rel=1e-12)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="holds no samples"):
        DetectionTally(ANCHORS, CPU).figures(Group())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(RecipeError, match=r"pip install 'compresskit\[detection\]'"):
        DetectionTally(ANCHORS, CPU)
