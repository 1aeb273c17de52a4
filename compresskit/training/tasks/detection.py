"""The loss that trains a detector on a grid of anchors."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional

from compresskit.numerics.boxes import decode, intersection_over_union, per_anchor
from compresskit.options import option

Weight = Annotated[float, Ge(0)]


@option
class Yolo:
    """The loss of YOLOv2, summed over the boxes of an image and averaged over images.

    A truth belongs to the cell that holds its centre and, there, to the anchor whose shape is nearest to its own (IoU
    of the two about one centre). With s = sigmoid, o the objectness logit and q the class probabilities (softmax):

        1/2 coordinate (2 - w h) [(s(t_x) - x)^2 + (s(t_y) - y)^2 + (t_w - log w/p_w)^2 + (t_h - log h/p_h)^2]
        + 1/2 object (1 - s(o))^2 - classes log q_class,   summed over the truths,
        + 1/2 no_object s(o)^2,   summed over boxes that no truth belongs to and that overlap none by `ignore_above`;

    x, y are the centre within its cell, in cells; (p_w, p_h) is the anchor.
    Source: Redmon and Farhadi 2016 (YOLO9000), in the form of darknet's region layer, whose gradients these are. The
    weights are those of YOLO-LITE (Huang et al. 2018, cfg/tiny-yolov2-trial3-noBatch.cfg). Left out: darknet's pull of
    all boxes towards their anchors during the first 12,800 images. Where two truths share a cell and an anchor both
    count; darknet drops the first.
    """

    kind: Literal["yolo"] = "yolo"
    coordinate: Weight = 1.0  # of place and size; small boxes count up to twice as much
    object: Weight = 5.0  # of the objectness where a truth is
    no_object: Weight = 1.0  # of the objectness where none is
    classes: Weight = 1.0  # of the cross-entropy of the class
    ignore_above: Annotated[float, Ge(0), Le(1)] = (
        0.5  # overlap (IoU) with a truth from which a box may claim to be one
    )

    def __call__(self, output: Tensor, target: Tensor, anchors: Sequence[tuple[float, float]]) -> Tensor:
        """The loss, shape ().

        output: (N, anchors * (5 + classes), rows, columns), see `per_anchor`. target: (N, boxes, 5) of class, centre x
        and y, width and height as fractions of the image; class -1 is padding. anchors: widths and heights, likewise.
        """
        output = output.to(torch.promote_types(output.dtype, torch.float32))  # squares of half precision are coarse
        shapes = output.new_tensor(anchors)
        present = target[..., 0] >= 0
        truths = torch.where(present[..., None], target[..., 1:], 0.5).to(output.dtype)  # any box does for padding
        of_anchors = per_anchor(output, shapes)
        owner = _owners(truths, shapes, output.shape[2:])
        image, anchor, row, column = owner
        predicted = of_anchors[image, anchor, :, row, column]  # (N, boxes, 5 + classes)
        errors = self._coordinates(predicted, truths, shapes[anchor], (row, column), output.shape[2:])
        errors = errors + self.object / 2 * (1 - predicted[..., 4].sigmoid()).square()
        labels = target[..., 0].long().clamp(min=0)
        errors = errors + self.classes * functional.cross_entropy(predicted[..., 5:].mT, labels, reduction="none")
        empty = self._empty(output.detach(), truths, present, shapes, owner)
        claims = (of_anchors[:, :, 4].sigmoid().square() * empty).sum()
        return ((errors * present).sum() + self.no_object / 2 * claims) / len(output)

    def _coordinates(
        self, predicted: Tensor, truths: Tensor, shapes: Tensor, cell: tuple[Tensor, Tensor], grid: Sequence[int]
    ) -> Tensor:
        """Of each truth, (N, boxes)."""
        row, column = cell
        within = torch.stack([truths[..., 0] * grid[1] - column, truths[..., 1] * grid[0] - row], -1)
        place = (predicted[..., :2].sigmoid() - within).square().sum(-1)
        size = (predicted[..., 2:4] - (truths[..., 2:] / shapes).log()).square().sum(-1)
        return self.coordinate / 2 * (2 - truths[..., 2] * truths[..., 3]) * (place + size)

    def _empty(
        self, output: Tensor, truths: Tensor, present: Tensor, shapes: Tensor, owner: tuple[Tensor, ...]
    ) -> Tensor:
        """(N, anchors, rows, columns) bool: where no object is."""
        overlap = intersection_over_union(decode(output, shapes).boxes[:, :, None], truths[:, None])
        largest = torch.where(present[:, None], overlap, 0.0).amax(-1)
        taken = torch.zeros(len(output), len(shapes), *output.shape[2:], dtype=torch.int32, device=output.device)
        taken.index_put_(owner, present.int(), accumulate=True)  # padding may point where a truth does
        return (taken == 0) & (largest <= self.ignore_above).view_as(taken)


def _owners(truths: Tensor, shapes: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, anchor, row and column to which each truth belongs, (N, boxes) int64 (images: (N, 1))."""
    rows, columns = grid
    column = (truths[..., 0] * columns).long().clamp(0, columns - 1)  # a centre on the right edge is in the last cell
    row = (truths[..., 1] * rows).long().clamp(0, rows - 1)
    centred = (torch.cat([torch.zeros_like(sizes), sizes], -1) for sizes in (truths[..., None, 2:], shapes))
    anchor = intersection_over_union(*centred).argmax(-1)
    return torch.arange(len(truths), device=truths.device)[:, None], anchor, row, column
