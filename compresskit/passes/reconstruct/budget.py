"""A budget for the whole network, shared among its sites by what each unit of size costs in accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.counting import count
from compresskit.numerics.selection.allocation import allocate
from compresskit.numerics.selection.encoding import FLOAT
from compresskit.passes.reconstruct.options import GOALS, Target
from compresskit.passes.reconstruct.readers import Plan, Site
from compresskit.passes.reconstruct.selection import Curve
from compresskit.passes.shares import share
from compresskit.shapes import Shape

_COARSE = 64  # points of a curve that are looked at first


@dataclass(frozen=True)
class _Term:
    """What one weight counts: coefficient x product over its dimensions of (fixed + amounts . kept)."""

    coefficient: float
    dimensions: list[tuple[float, Tensor]] = field(default_factory=list)

    def __call__(self, kept: Tensor) -> Tensor:
        value = torch.full((len(kept),), self.coefficient, dtype=torch.float64)
        for fixed, amounts in self.dimensions:
            value *= fixed + kept @ amounts
        return value


class SizeModel:
    """Parameters, multiply-accumulates and raw bits of the network, by how many inputs each site keeps.

    Exact for static sites whose groups are alike (as those of one layer are). For a dynamic site it counts what the
    reader saves, and nothing of the layers that made its input, which may lose more; products of activations count
    whole.
    """

    def __init__(self, network: fx.GraphModule, plan: Plan, input_shape: Shape) -> None:
        self._sites = plan.sites
        counts = count(network, input_shape)
        parameters = dict(network.named_parameters())
        self._parameters = [self._term(plan, name, tuple(p.shape), 1.0) for name, p in parameters.items()]
        self._macs = []
        for layer in counts.layers:
            name = f"{layer.name}.weight"
            shape = tuple(parameters[name].shape) if layer.macs and name in parameters else ()
            self._macs.append(self._term(plan, name, shape, layer.macs / max(torch.Size(shape).numel(), 1)))
        self.full = torch.tensor([[site.n_groups for site in plan.sites]], dtype=torch.float64)

    def cost(self, goal: str) -> Callable[[Tensor], Tensor]:
        """(m, sites) kept -> (m,) of `size` (bits), `params` or `macs`."""
        if goal == "size":
            return lambda kept: FLOAT * self._sum(self._parameters, kept) + self._selections(kept)
        terms = self._parameters if goal == "params" else self._macs
        return lambda kept: self._sum(terms, kept)

    def smallest(self, goal: str, least: int) -> float:
        """The share of `goal` that stays where every site keeps `least` inputs."""
        cost = self.cost(goal)
        return float(cost(self.full.clamp(max=least)) / cost(self.full))

    def _sum(self, terms: Sequence[_Term], kept: Tensor) -> Tensor:
        return torch.stack([term(kept) for term in terms]).sum(0)

    def _selections(self, kept: Tensor) -> Tensor:
        """log2 binomials of the selections that stand before dynamic readers."""
        dynamic = torch.tensor([site.dynamic for site in self._sites])
        inputs, chosen = self.full[:, dynamic], kept[:, dynamic]
        bits = torch.lgamma(inputs + 1) - torch.lgamma(chosen + 1) - torch.lgamma(inputs - chosen + 1)
        return bits.sum(1) / torch.log(torch.tensor(2.0, dtype=torch.float64))

    def _term(self, plan: Plan, name: str, shape: tuple[int, ...], coefficient: float) -> _Term:
        term = _Term(coefficient)
        for dim, size in enumerate(shape):
            own = [self._share(site, name) if dim == 1 else 0.0 for site in plan.sites]
            if any(own):  # the inputs of a reader that selects them
                term.dimensions.append((0.0, torch.tensor(own, dtype=torch.float64)))
            elif (atoms := plan.channels.slots.get((name, dim))) is not None:
                term.dimensions.append(_amounts(plan.sites, atoms))
            else:
                term.dimensions.append((float(size), torch.zeros(len(plan.sites), dtype=torch.float64)))
        return term

    def _share(self, site: Site, name: str) -> float:
        """Columns for each group, where `name` is the weight of a reader with a selection of its own."""
        reader = site.readers[0]
        return len(reader.atoms) / site.n_groups if site.dynamic and name == f"{reader.layer}.weight" else 0.0


def _amounts(sites: Sequence[Site], atoms: Tensor) -> tuple[float, Tensor]:
    """Entries along a dimension: those that no static site can cut, and those for each group of every static site."""
    held = [
        torch.isin(atoms, site.atoms).sum() if not site.dynamic and site.atoms is not None else torch.tensor(0)
        for site in sites
    ]
    per_group = torch.stack([entries / site.n_groups for entries, site in zip(held, sites, strict=True)])
    return float(len(atoms) - sum(int(entries) for entries in held)), per_group.double()


def check_target(model: SizeModel, target: Target, least: int) -> None:
    """Raises RecipeError where the target lies below what `least` inputs a site leave."""
    goal = goal_of(target)
    if goal is None:
        return
    smallest = model.smallest(goal, least)
    asked = share(getattr(target, goal))
    if asked < smallest:
        raise RecipeError(
            f"reconstruct.target.{goal}: {asked:.1%} cannot be reached: with min_channels ({least}) left in each layer "
            f"that can be thinned, {smallest:.1%} remain; ask for more, or thin more layers"
        )


def goal_of(target: Target) -> str | None:
    """size, params or macs; None for a drop of accuracy."""
    return next((goal for goal in GOALS if getattr(target, goal) is not None), None)


def shared_out(
    curves: Sequence[Curve], losses: Sequence[Tensor], model: SizeModel, goal: str, part: float
) -> list[int]:
    """How many inputs each site keeps so that `goal` is at most `part` of the whole network's, at the least loss.

    losses: of every curve's points. First among points that lie apart, then among all those around the ones found.
    Raises ValueError where the curves' last points leave more.
    """
    cost = model.cost(goal)
    limit = part * float(cost(model.full))
    places = [torch.linspace(0, len(curve.kept) - 1, min(_COARSE, len(curve.kept))).round().long() for curve in curves]
    for _ in range(2):
        kept = [torch.tensor(curve.kept)[place] for curve, place in zip(curves, places, strict=True)]
        chosen = allocate(kept, [loss[place] for loss, place in zip(losses, places, strict=True)], cost, limit)
        found = [int(place[index]) for place, index in zip(places, chosen, strict=True)]
        places = [_around(place, index) for place, index in zip(places, chosen, strict=True)]
    return [curve.kept[place] for curve, place in zip(curves, found, strict=True)]


def _around(places: Tensor, index: int) -> Tensor:
    """All points from the neighbour before to the one behind."""
    return torch.arange(int(places[max(index - 1, 0)]), int(places[min(index + 1, len(places) - 1)]) + 1)
