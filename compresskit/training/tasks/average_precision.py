"""Mean average precision of a detector, computed by pycocotools."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.numerics.boxes import decode, suppress
from compresskit.training.tasks.detection import Yolo

OVERLAP = 0.5  # IoU at which a detection counts as right: PASCAL VOC's
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


class DetectionTally:
    """map: mean average precision at IoU 0.5. loss: the training loss with its default weights, mean over images."""

    def __init__(self, anchors: Sequence[tuple[float, float]], device: torch.device) -> None:
        """Raises RecipeError if pycocotools is missing."""
        coco_api()
        self._anchors = anchors
        self._found: list[Found] = []
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss and images

    def add(self, output: Tensor, target: Tensor) -> None:
        self._found += detections(output, target, self._anchors)
        self._sums[0] += len(target) * Yolo()(output.double(), target, self._anchors)
        self._sums[1] += len(target)

    def figures(self, group: Group) -> dict[str, float]:
        """Raises ValueError if there were no images."""
        found = group.gather(self._found)
        group.sum_tensors([self._sums])
        loss, count = self._sums.tolist()
        if count == 0:
            raise ValueError("the split holds no samples; give one that does")
        return {"map": mean_average_precision(found), "loss": loss / count}


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
    truths = target[target[:, 0] >= 0]
    return Found(*(tensor.cpu().numpy() for tensor in (boxes[kept], best[kept], labels[kept], truths)))


def mean_average_precision(images: Sequence[Found]) -> float:
    """Mean over the classes that occur among the truths of the average precision at IoU 0.5; 0 without any truth.

    The precision is read at 101 recalls, as COCO does. VOC2007's own rule reads it at 11, later VOC's at every one, so
    that numbers differ by about a point from those of VOC's development kit; objects marked difficult are no truths
    here, and to find one is an error, where VOC counts it neither way.
    Raises RecipeError if pycocotools is missing.
    """
    coco, evaluation = coco_api()
    truths = [(number, *truth) for number, image in enumerate(images, 1) for truth in image.truths.tolist()]
    rows = [
        np.column_stack([np.full(len(image.scores), number), _corners(image.boxes), image.scores, image.labels])
        for number, image in enumerate(images, 1)
    ]
    found = np.concatenate(rows) if rows else np.zeros((0, 7))
    if not truths or not len(found):
        return 0.0
    with redirect_stdout(io.StringIO()):  # it prints its progress
        truth = coco()
        truth.dataset = _dataset(len(images), truths)
        truth.createIndex()
        judge = evaluation(truth, truth.loadRes(found), "bbox")
        judge.params.iouThrs = np.array([OVERLAP])
        judge.params.maxDets = [DETECTIONS]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 2]], ["all"]  # in units of the image's area
        judge.evaluate()
        judge.accumulate()
    return float(judge.eval["precision"].mean())  # (1, 101 recalls, classes with truths, 1, 1)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """(left, top, width, height) of (centre x, centre y, width, height), as COCO writes boxes."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)


def _dataset(images: int, truths: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": int(label),
            "bbox": [x - width / 2, y - height / 2, width, height],
            "area": width * height,
            "iscrowd": 0,
        }
        for number, (image, label, x, y, width, height) in enumerate(truths, 1)
    ]
    return {
        "info": {},
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": label} for label in sorted({int(truth[1]) for truth in truths})],
        "annotations": annotations,
    }


def coco_api() -> tuple[Any, Any]:
    """pycocotools' COCO and COCOeval.  Raises RecipeError if the package is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise RecipeError(
            "data: a detector is judged by its mAP, and the package for it is missing; "
            "pip install 'compresskit[detection]'"
        ) from error
    return COCO, COCOeval
