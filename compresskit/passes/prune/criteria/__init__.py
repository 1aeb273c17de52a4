"""Criteria that a recipe can name: what each channel of a network is worth."""

from typing import Literal

import torch
from torch import Tensor

from compresskit.errors import ConvergenceError
from compresskit.passes.prune.criteria.base import Scored, unit
from compresskit.passes.prune.criteria.makers import Hydra, Magnitude, NormScale, Random, SpectralEnergy, Taylor
from compresskit.passes.prune.criteria.readers import AugPrune, Backward, Fisher

__all__ = [
    "CRITERIA",
    "AugPrune",
    "Backward",
    "Criterion",
    "Fisher",
    "Hydra",
    "Magnitude",
    "NormScale",
    "Random",
    "Scored",
    "SpectralEnergy",
    "Taylor",
    "atom_scores",
]

Criterion = Magnitude | Hydra | NormScale | Taylor | AugPrune | Backward | Fisher | Random | SpectralEnergy


def atom_scores(criterion: Criterion, scored: Scored, combine: Literal["mean", "sum", "max"]) -> Tensor:
    """(n_atoms,) float64: scores of all places that an atom has, combined; 0 where it has none.

    Criteria whose scores do not compare among layers are taken in units of the mean over the place first.
    Raises ConvergenceError, with the layer, for scores that are not finite, by which nothing can be put in order.
    """
    n = scored.channels.n_atoms
    places = torch.zeros(n, dtype=torch.float64)
    found = torch.full((n,), -torch.inf if combine == "max" else 0.0, dtype=torch.float64)
    for atoms, scores in criterion(scored):
        if not bool((finite := scores.isfinite()).all()):
            raise ConvergenceError(
                f"{scored.makers(atoms[~finite.cpu()])}: criterion {criterion.kind} gives NaN or infinity for "
                f"{int((~finite).sum())} of {len(scores)} channels; check the checkpoint and the data"
            )
        values = scores.cpu() if criterion.comparable else (scores / unit(scores)).cpu()
        places.index_add_(0, atoms, torch.ones_like(values))
        if combine == "max":
            found.scatter_reduce_(0, atoms, values, "amax")
        else:
            found.index_add_(0, atoms, values)
    if combine == "mean":
        found = found / places.clamp(min=1)
    return torch.where(places > 0, found, 0.0)


CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "hydra": Hydra,
    "norm-scale": NormScale,
    "taylor": Taylor,
    "augprune": AugPrune,
    "backward": Backward,
    "fisher": Fisher,
    "random": Random,
    "spectral-energy": SpectralEnergy,
}
