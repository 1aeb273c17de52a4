"""Mean average precision by the rule of PASCAL VOC2007, which reads the precision at eleven recalls."""

from collections.abc import Sequence

import numpy as np
import torch

from compresskit.numerics.boxes import intersection_over_union
from compresskit.training.tasks.found import Found

OVERLAP = 0.5  # IoU above which a detection fits an object
RECALLS = 10  # steps between recall 0 and recall 1


def eleven_point_precision(images: Sequence[Found]) -> float:
    """Mean over the classes that occur among the truths of VOC2007's average precision; 0 without any truth.

    AP = 1/11 sum over r in 0, 0.1, ..., 1 of the largest precision at a recall of r or more, 0 where none is reached.
    A detection belongs to the object of its class that it overlaps most, if by more than 0.5 (IoU). Of those that
    belong to a truth the highest score is right and the others are errors, as is one that belongs to nothing; one that
    belongs to a difficult object counts neither way, and such objects are no truths. Of equal scores the earlier comes
    first. Source: Everingham et al. 2010, section 4.2, with the matching of VOC2007's development kit (VOCevaldet).
    """
    counts: dict[int, int] = {}
    for label in np.concatenate([image.truths[:, 0] for image in images]).astype(int) if images else ():
        counts[label] = counts.get(label, 0) + 1
    if not counts:
        return 0.0
    scores, labels, right = (np.concatenate(column) for column in zip(*map(_judged, images), strict=True))
    order = np.argsort(-scores, kind="stable")
    labels, right = labels[order], right[order]
    return float(np.mean([_precision(right[labels == label], count) for label, count in counts.items()]))


def _judged(image: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and classes of the detections that count, and whether they are right, highest score first."""
    order = np.argsort(-image.scores, kind="stable")
    boxes, scores, labels = image.boxes[order], image.scores[order], image.labels[order]
    objects = np.concatenate([image.truths, image.difficult])
    right = np.zeros(len(scores), bool)
    if not len(objects) or not len(scores):
        return scores, labels, right
    first, second = (torch.from_numpy(np.asarray(rows, float)) for rows in (boxes, objects[:, 1:]))
    overlaps = intersection_over_union(first[:, None], second).numpy() * (labels[:, None] == objects[:, 0])
    belongs = np.where(overlaps.max(1) > OVERLAP, overlaps.argmax(1), -1)
    owners, firsts = np.unique(belongs, return_index=True)  # the first of an object has the highest score
    right[firsts[(owners >= 0) & (owners < len(image.truths))]] = True
    counting = belongs < len(image.truths)
    return scores[counting], labels[counting], right[counting]


def _precision(right: np.ndarray, truths: int) -> float:
    """Average precision of one class. right: (K,) bool, by falling score."""
    hits = np.cumsum(right)
    precisions = hits / np.arange(1, len(right) + 1)
    # recalls are compared in whole numbers: as a float 3 of 10 objects is not step 3 of 10
    steps = [precisions[RECALLS * hits >= step * truths].max(initial=0.0) for step in range(RECALLS + 1)]
    return float(np.mean(steps))
