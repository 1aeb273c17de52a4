"""Boxes of a detector: their overlap, what a grid of outputs says of them, and suppression of what is found twice.

A box is (centre x, centre y, width, height), as fractions of the image's width and height.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DIFFICULT = -2.0  # class 0 of an object that is difficult, -3 class 1, ...: no truth, nor padding, which is -1


def as_difficult(objects: Tensor) -> Tensor:
    """Objects (..., 5), class and box, with the class c written as DIFFICULT - c, or back again."""
    return torch.cat([DIFFICULT - objects[..., :1], objects[..., 1:]], -1)


class Predictions(NamedTuple):
    """Of N images with P boxes each. Box p = (anchor * rows + row) * columns + column."""

    boxes: Tensor  # (N, P, 4)
    objectness: Tensor  # (N, P) logits
    classes: Tensor  # (N, P, classes) logits


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Area of the overlap divided by the area of the union, 0 where neither box has an area.

    first, second: (..., 4), broadcast against each other. Returns (...).
    """
    half_first, half_second = first[..., 2:] / 2, second[..., 2:] / 2
    upper = torch.minimum(first[..., :2] + half_first, second[..., :2] + half_second)
    lower = torch.maximum(first[..., :2] - half_first, second[..., :2] - half_second)
    overlap = (upper - lower).clamp(min=0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - overlap
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


def per_anchor(output: Tensor, anchors: Tensor) -> Tensor:
    """A detector's output map as (N, anchors, 5 + classes, rows, columns).

    output: (N, anchors * (5 + classes), rows, columns); for each anchor the x and y logits, the logarithms of width and
    height relative to the anchor's, the objectness logit and the class logits.
    anchors: (anchors, 2), width and height as fractions of the image's.
    Raises ValueError if the channels do not fit the anchors.
    """
    count = len(anchors)
    if output.dim() != 4 or output.shape[1] % count or output.shape[1] < 6 * count:
        raise ValueError(
            f"output has shape {tuple(output.shape)}; {count} anchors need a map of {count} * (5 + classes) channels"
        )
    return output.view(len(output), count, -1, *output.shape[2:])


def decode(output: Tensor, anchors: Tensor) -> Predictions:
    """The boxes that an output map stands for, with their objectness and class logits.

    In cell (row, column) and with anchor (p_w, p_h):
    x = (column + sigmoid(t_x)) / columns,  y = (row + sigmoid(t_y)) / rows,  w = p_w exp(t_w),  h = p_h exp(t_h).
    output, anchors: see `per_anchor`. Source: Redmon and Farhadi 2016 (YOLO9000), section 2, "Direct location
    prediction"; their lengths are in cells, ours are fractions of the image.
    """
    x, y, width, height, objectness, *classes = per_anchor(output, anchors).unbind(2)
    rows, columns = output.shape[2:]
    along, down = (torch.arange(count, device=output.device, dtype=output.dtype) for count in (columns, rows))
    sizes = anchors.to(output)
    boxes = torch.stack(
        [
            (x.sigmoid() + along) / columns,
            (y.sigmoid() + down[:, None]) / rows,
            width.exp() * sizes[:, 0, None, None],
            height.exp() * sizes[:, 1, None, None],
        ],
        dim=-1,
    )
    return Predictions(boxes.flatten(1, 3), objectness.flatten(1), torch.stack(classes, -1).flatten(1, 3))


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Which detections greedy non-maximum suppression keeps, each class on its own: (K,) bool.

    From the highest score down (of equal ones the lower index first) a box is kept unless one of its class that is kept
    overlaps it by more than `threshold` (IoU).  boxes: (K, 4). scores: (K,). labels: (K,), the classes.

    Instead of one box at a time: keep = those that no kept one beats, repeated until it stands. Each repetition settles
    at least the next box of the greedy order, and what stands can be the greedy choice alone.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    beats = (intersection_over_union(boxes[:, None], boxes) > threshold) & (labels[:, None] == labels)
    earlier = beats.tril(-1).to(boxes.dtype)  # row: a box; column: one of higher score that would beat it
    keep = torch.ones_like(labels, dtype=torch.bool)
    while True:
        settled = earlier @ keep.to(boxes.dtype) == 0
        if torch.equal(settled, keep):
            return torch.empty_like(keep).index_copy(0, order, keep)
        keep = settled
