"""A budget for the whole network, shared among its sites by what each unit of size costs in accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log, prod

import torch
from torch import Tensor, fx

from compresskit.errors import RecipeError
from compresskit.graph.chains import weighted
from compresskit.graph.counting import count
from compresskit.numerics.selection.allocation import allocate
from compresskit.numerics.selection.cost import Cost
from compresskit.numerics.selection.encoding import FLOAT
from compresskit.passes.reconstruct.options import GOALS, Target
from compresskit.passes.reconstruct.readers import Plan, Site
from compresskit.passes.reconstruct.refitted import mean_behind
from compresskit.passes.reconstruct.selection import Curve
from compresskit.passes.shares import share
from compresskit.shapes import Shape

_COARSE = 64  # points of a curve that are looked at first


@dataclass(frozen=True)
class _Factor:
    """Entries along one dimension of a weight: fixed + sum of amounts[site] x kept[site]."""

    fixed: float
    amounts: Mapping[int, float]


class SizeModel:
    """Parameters, multiply-accumulates and raw bits of the network, by how many inputs each site keeps.

    Exact for static sites whose groups are alike (as those of one layer are). For a dynamic site it counts what the
    reader saves, and nothing of the layers that made its input, which may lose more; products of activations count
    whole.
    """

    def __init__(self, network: fx.GraphModule, plan: Plan, input_shape: Shape, *, centred: bool = True) -> None:
        self._sites = plan.sites
        self._site_of = _static_sites(plan)
        counts = count(network, input_shape)
        parameters = dict(network.named_parameters())
        self._parameters = self._cost([(1.0, self._factors(plan, name, p.shape)) for name, p in parameters.items()])
        macs = []
        for layer in counts.layers:
            name = f"{layer.name}.weight"
            shape = parameters[name].shape if layer.macs and name in parameters else torch.Size()
            macs.append((layer.macs / max(shape.numel(), 1), self._factors(plan, name, shape)))
        self._macs = self._cost(macs)
        self.full = torch.tensor([[site.n_groups for site in plan.sites]], dtype=torch.float64)
        self._new_biases = _new_biases(network, plan) if centred else 0  # else layers keep the biases that they have

    def cost(self, goal: str) -> Cost:
        """`size` (bits), `params` or `macs`, by what each site keeps."""
        if goal == "size":
            whole = self._parameters
            return Cost(FLOAT * whole.constant, FLOAT * whole.linear, FLOAT * whole.coupling, self._selections)
        return self._parameters if goal == "params" else self._macs

    def smallest(self, goal: str, least: int) -> float:
        """The share of `goal` that stays where every site keeps `least` inputs."""
        cost = self.cost(goal)
        return (float(cost(self.full.clamp(max=least))) + self._biases(goal)) / float(cost(self.full))

    def limit(self, goal: str, part: float) -> float:
        """What sites may cost so that the network has at most `part` of `goal`, with the biases that layers may get."""
        return part * float(self.cost(goal)(self.full)) - self._biases(goal)

    def _biases(self, goal: str) -> float:
        return self._new_biases * {"size": FLOAT, "params": 1, "macs": 0}[goal]

    def _selections(self, kept: Tensor) -> Tensor:
        """log2 binomials of the selections that stand before dynamic readers."""
        dynamic = torch.tensor([site.dynamic for site in self._sites])
        bits = torch.lgamma(self.full + 1) - torch.lgamma(kept + 1) - torch.lgamma(self.full - kept + 1)
        return torch.where(dynamic, bits / log(2), 0.0)

    def _cost(self, weights: Iterable[tuple[float, list[_Factor]]]) -> Cost:
        """The sum of coefficient x product of factors, of which two at most depend on what is kept."""
        n, constant = len(self._sites), 0.0
        linear = torch.zeros(n, dtype=torch.float64)
        coupling = torch.zeros(n, n, dtype=torch.float64)
        for coefficient, factors in weights:
            varying = [factor for factor in factors if factor.amounts]
            scale = coefficient * prod(factor.fixed for factor in factors if not factor.amounts)
            first, second, *more = [*varying, _Factor(1.0, {}), _Factor(1.0, {})]
            if any(factor.amounts for factor in more):
                raise ValueError("a weight of which three dimensions can be thinned")
            constant += scale * first.fixed * second.fixed
            for one, other in ((first, second), (second, first)):
                for site, amount in one.amounts.items():
                    linear[site] += scale * amount * other.fixed
                    for neighbour, entries in other.amounts.items():
                        coupling[site, neighbour] += scale * amount * entries / 2
        return Cost(constant, linear, coupling)

    def _factors(self, plan: Plan, name: str, shape: Sequence[int]) -> list[_Factor]:
        factors = []
        for dim, size in enumerate(shape):
            own = {i: s for i, site in enumerate(plan.sites) if dim == 1 and (s := self._share(site, name))}
            if own:  # the inputs of a reader that selects them
                factors.append(_Factor(0.0, own))
            elif (atoms := plan.channels.slots.get((name, dim))) is not None:
                factors.append(self._entries(atoms))
            else:
                factors.append(_Factor(float(size), {}))
        return factors

    def _share(self, site: Site, name: str) -> float:
        """Columns for each group, where `name` is the weight of a reader with a selection of its own."""
        reader = site.readers[0]
        return len(reader.atoms) / site.n_groups if site.dynamic and name == f"{reader.layer}.weight" else 0.0

    def _entries(self, atoms: Tensor) -> _Factor:
        """Along a dimension with these atoms: those that no static site can cut, and those of each group of a site."""
        held = torch.bincount(self._site_of[atoms] + 1, minlength=len(self._sites) + 1).tolist()
        amounts = {site: found / self._sites[site].n_groups for site, found in enumerate(held[1:]) if found}
        return _Factor(float(held[0]), amounts)


def _static_sites(plan: Plan) -> Tensor:
    """(n_atoms,) the static site that may cut an atom, -1 for none; no two share one."""
    found = torch.full((plan.channels.n_atoms,), -1)
    for number, site in enumerate(plan.sites):
        if not site.dynamic and site.atoms is not None:
            found[site.atoms] = number
    return found


def _new_biases(network: fx.GraphModule, plan: Plan) -> int:
    """Numbers in the biases of layers that have none, and no batch norm to take it, but are solved for one."""
    bare = [r.layer for r in plan.readers if weighted(network, r.layer).bias is None]
    return sum(len(weighted(network, layer).weight) for layer in bare if mean_behind(network, layer) is None)


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
    cost, limit = model.cost(goal), model.limit(goal, part)
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
