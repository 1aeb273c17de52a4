"""Mean average precision of a detector, computed by pycocotools."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.training.tasks.detection import Yolo
from compresskit.training.tasks.eleven_points import eleven_point_precision
from compresskit.training.tasks.found import DETECTIONS, Found, detections

VOC07 = "map@voc07"
OVERLAP = 0.5  # IoU at which a detection counts as right: PASCAL VOC's


class DetectionTally:
    """map: mean average precision at IoU 0.5, by COCO's rule. map@voc07: by that of VOC2007.

    loss: the training loss with its default weights, mean over images.
    """

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
        precisions = {"map": mean_average_precision(found), VOC07: eleven_point_precision(found)}
        return precisions | {"loss": loss / count}


def mean_average_precision(images: Sequence[Found]) -> float:
    """Mean over the classes that occur among the truths of the average precision at IoU 0.5; 0 without any truth.

    The precision is read at 101 recalls, as COCO does. VOC2007's own rule, `eleven_point_precision`, reads it at 11,
    later VOC's at every one, so that numbers differ by about a point; objects marked difficult are no truths here, and
    to find one is an error, where VOC counts it neither way.
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
