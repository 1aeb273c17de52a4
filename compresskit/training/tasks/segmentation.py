"""Metrics of segmentation: all from one matrix that counts pixels by true and by predicted class."""

import torch
from torch import Tensor
from torch.nn import functional

from compresskit.distributed import Group

IGNORED = 255  # class of pixels that are not counted


class SegmentationTally:
    """miou, recall and precision: means over the classes that the targets hold; accuracy and loss: over the pixels.

    With n_ij pixels of class i predicted as j: IoU_i = n_ii / (sum_j n_ij + sum_j n_ji - n_ii), recall_i = n_ii / sum_j
    n_ij, precision_i = n_ii / sum_j n_ji, 0 for a class that is never predicted. Counts are exact, sums float64.
    """

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(0, 0, dtype=torch.float64, device=device)
        self._loss = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, output: Tensor, target: Tensor) -> None:
        """output: (N, classes, H, W) scores. target: (N, H, W) int64, IGNORED where no class is given."""
        classes = output.shape[1]
        if not len(self._counts):
            self._counts = self._counts.new_zeros(classes, classes)
        known = target != IGNORED
        pairs = target[known] * classes + output.argmax(1)[known]
        self._counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        for scores, labels in zip(output, target, strict=True):  # one by one: float64 takes room
            rows = scores.double().flatten(1).T  # of maps, CUDA has no deterministic sum
            self._loss += functional.cross_entropy(rows, labels.flatten(), reduction="sum", ignore_index=IGNORED)

    def figures(self, group: Group) -> dict[str, float]:
        """Raises ValueError if no pixel of the split has a class."""
        seen = group.gather([self._counts.cpu()] if len(self._counts) else [])  # a process may have had no batch
        group.sum_tensors([self._loss])
        total = sum(float(counts.sum()) for counts in seen)
        if total == 0:
            raise ValueError("the split holds no labelled pixels; give one that does")
        counts = torch.stack(seen).sum(0)
        hits = counts.diagonal()
        true, predicted = counts.sum(1), counts.sum(0)
        present = true > 0
        union = true + predicted - hits
        return {
            "miou": float((hits / union)[present].mean()),
            "recall": float((hits / true)[present].mean()),
            "precision": float((hits / predicted.clamp_min(1))[present].mean()),
            "accuracy": float(hits.sum()) / total,
            "loss": float(self._loss) / total,
        }
