"""What a detector finds in images, beside what is there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compresskit.numerics.boxes import DIFFICULT, as_difficult, decode, suppress

SCORE = 0.005  # detections below are dropped: darknet's -thresh of `detector valid`
SUPPRESSION = 0.45  # IoU above which a lower score of the same class is dropped: darknet's
CANDIDATES = 400  # the highest scores of an image that enter suppression: SSD's
DETECTIONS = 100  # the highest scores of an image that count: COCO's


class Found(NamedTuple):
    """Of one image; boxes are (centre x, centre y, width, height) as fractions of the image."""

    boxes: np.ndarray  # (K, 4) detections
    scores: np.ndarray  # (K,)
    labels: np.ndarray  # (K,) int
    truths: np.ndarray  # (T, 5): class and box
    difficult: np.ndarray = np.zeros((0, 5))  # (D, 5), likewise: objects that the annotations call so


def detections(output: Tensor, target: Tensor, anchors: Sequence[tuple[float, float]]) -> list[Found]:
    """What a network finds in each image of a batch, beside the truth.

    Each box is a detection of each class, with score sigmoid(objectness) softmax(classes), if that is above SCORE;
    boxes are cut to the image; then non-maximum suppression within each class. As darknet's validation does it, but for
    the bounds on what an untrained net would find, CANDIDATES and DETECTIONS.
    output, target: as the loss takes them.
    """
    boxes, objectness, classes = decode(output.float(), output.new_tensor(anchors, dtype=torch.float32))
    scores = objectness.sigmoid()[..., None] * classes.softmax(-1)
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    boxes = torch.cat([(low + high) / 2, high - low], -1)
    return [_found(*image) for image in zip(boxes, scores, target, strict=True)]


def _found(boxes: Tensor, scores: Tensor, target: Tensor) -> Found:
    best, order = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    order, best = order[best > SCORE], best[best > SCORE]
    boxes, labels = boxes[order // scores.shape[1]], order % scores.shape[1]
    kept = suppress(boxes, best, labels, SUPPRESSION).nonzero().flatten()[:DETECTIONS]  # topk has sorted them
    truths, difficult = target[target[:, 0] >= 0], as_difficult(target[target[:, 0] <= DIFFICULT])
    return Found(*(tensor.cpu().numpy() for tensor in (boxes[kept], best[kept], labels[kept], truths, difficult)))
