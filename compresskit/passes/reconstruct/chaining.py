"""In which order sites are reconstructed, from which inputs to which targets (document 2.7)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from compresskit.errors import ConvergenceError
from compresskit.graph.channels.kept import kept_norms
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.moments import Request
from compresskit.passes.reconstruct.options import Reconstruct
from compresskit.passes.reconstruct.readers import Plan, Reader, Rows, Site, summed
from compresskit.passes.reconstruct.refitted import Layer, fit, with_layers
from compresskit.passes.reconstruct.selection import Choice, Rule, choose
from compresskit.passes.reconstruct.workers import Start, Workers

# (student, requests, teacher): moments of the student's inputs and the teacher's outputs; None: the student's own
Gather = Callable[[fx.GraphModule, Sequence[Request], fx.GraphModule | None], dict[str, Moments]]


@dataclass
class Draft:
    """What was decided so far. choices: by site. layers: new weights, by layer, of full size, but of sites that are
    left as they are. moments: what these were fitted to, or would be."""

    choices: dict[str, Choice] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def choose(self, site: Site, choice: Choice, moments: Mapping[str, Moments]) -> None:
        self.choices[site.name] = choice
        for reader in site.readers:
            self.moments[reader.layer] = moments[reader.request.name]

    def add(self, site: Site, choice: Choice, moments: Mapping[str, Moments], debias: bool, rows: Rows | None) -> None:
        self.choose(site, choice, moments)
        self.layers |= fit(site, choice, moments, debias, rows)


@dataclass(frozen=True)
class Choosing:
    """The inputs of one site."""

    site: Site
    moments: dict[str, Moments]
    rule: Rule
    options: Reconstruct
    rows: Rows | None = None

    @property
    def work(self) -> float:
        return cubes(self.site)

    def __call__(self) -> Choice:
        relative = self.options.lam is None or self.options.lam_scale == "energy"
        problem = self.site.problem(self.moments, self.rows, relative=relative)
        try:
            return choose(problem, self.rule, self.options.chosen_selection, self.options.min_channels)
        except ConvergenceError as error:
            raise ConvergenceError(f"{self.site.name}: {error}") from error


@dataclass(frozen=True)
class Fitting:
    """The layers of one site for each of several choices, with the ridges of the first one that was fitted."""

    site: Site
    moments: dict[str, Moments]
    choices: tuple[Choice, ...]
    debias: bool = True

    @property
    def work(self) -> float:
        return cubes(self.site) * len(self.choices)

    def __call__(self) -> list[dict[str, Layer]]:
        ridges = dict[str, tuple[float, ...]]()
        found = []
        for choice in self.choices:
            found.append(fit(self.site, choice, self.moments, self.debias, None, ridges))
            ridges = {name: layer.ridges for name, layer in found[-1].items()}
        return found


def parallel(
    plan: Plan, rules: Mapping[str, Rule], choices: Mapping[str, Choice], near: Draft, moments: Mapping[str, Moments],
    options: Reconstruct, workers: Workers, start: Start,
) -> Draft:  # fmt: skip
    """Each site on its own, from true inputs to true outputs. choices: those that are made already. near: what some of
    them were fitted in."""
    undecided = [site for site in plan.sites if site.name not in choices]
    jobs = [Choosing(site, own_moments(site, moments), rules[site.name], options) for site in undecided]
    chosen = workers.run("inputs of each site", jobs, start)
    made = dict(choices) | dict(zip((site.name for site in undecided), chosen, strict=True))
    return completed(plan, made, near, moments, options.debias, workers, start)


def completed(
    plan: Plan, choices: Mapping[str, Choice], near: Draft, moments: Mapping[str, Moments], debias: bool,
    workers: Workers, start: Start,
) -> Draft:  # fmt: skip
    """All sites with these choices, each fitted to its own moments, but those that `near` has fitted for as many inputs
    already, and those that are left whole: least squares on all inputs are the weights that they have."""
    draft, left = Draft(), []
    for site in plan.sites:
        choice = choices[site.name]
        draft.choose(site, choice, moments)
        if debias and choice.kept.all():
            continue
        known = near.choices.get(site.name)
        if known is not None and site.readers[0].layer in near.layers and torch.equal(known.kept, choice.kept):
            draft.layers |= {reader.layer: near.layers[reader.layer] for reader in site.readers}
        else:
            left.append(Fitting(site, own_moments(site, moments), (choice,), debias))
    for (layers,) in workers.run("fits of the layers", left, start):
        draft.layers |= layers
    return draft


def bottom_up(plan: Plan, rules: Mapping[str, Rule], moments: Mapping[str, Moments], options: Reconstruct) -> Draft:
    """From the last site to the first; of a layer's outputs only those count that later ones still read."""
    draft = Draft()
    for site in reversed(plan.sites):
        dead = dead_atoms(plan, draft.choices)
        rows = {reader.layer: ~dead[plan.channels.writes[reader.layer]] for reader in site.readers}
        choice = Choosing(site, own_moments(site, moments), rules[site.name], options, rows)()
        draft.add(site, choice, moments, options.debias, rows)
    return draft


def top_down(
    network: fx.GraphModule, plan: Plan, rules: Mapping[str, Rule], gather: Gather, options: Reconstruct
) -> Draft:
    """From the first site to the last, from what the layers reconstructed before give to the original's outputs.

    So a layer makes up for the errors before it. It takes one pass over the data for each site; and a second one where
    norms or attention sum over what the site drops, so that its inputs are others once it is dropped.
    """
    draft = Draft()
    for site in plan.sites:
        chained = _renamed(site, "chained")
        moments = gather(masked(network, plan, draft), [reader.request for reader in chained.readers], network)
        choice = Choosing(chained, moments, rules[site.name], options)()
        draft.add(chained, choice, moments, options.debias, None)
        if not site.dynamic and bool(summed(plan.channels)[site.atoms].any()):
            chained = _renamed(site, "dropped")
            moments = gather(masked(network, plan, draft), [reader.request for reader in chained.readers], network)
            draft.add(chained, choice, moments, options.debias, None)
    return draft


def _renamed(site: Site, stage: str) -> Site:
    """The same, with other names for its moments."""
    readers = [replace(r, request=replace(r.request, name=f"{r.request.name}--{stage}")) for r in site.readers]
    return replace(site, readers=tuple(readers))


def masked(network: fx.GraphModule, plan: Plan, draft: Draft) -> fx.GraphModule:
    """A network of full size that computes what the draft's cut one does."""
    return kept_norms(with_layers(network, draft.layers), plan.channels, ~dead_atoms(plan, draft.choices))


def cubes(site: Site) -> float:
    """Work that a factorisation or an elimination of its layers is."""
    return sum(cube(reader.request) for reader in site.readers)


def cube(request: Request) -> float:
    """Work that a factorisation or an elimination of a layer is, by the cube of its inputs."""
    return request.groups * float(request.features) ** 3


def own_moments(site: Site, moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Those of the site's own readers, which is all that a worker process should be sent."""
    return {reader.request.name: moments[reader.request.name] for reader in site.readers}


def dead_atoms(plan: Plan, choices: Mapping[str, Choice]) -> Tensor:
    """(n_atoms,) bool: those that some layer reads, that none needs any more, and that may go."""
    channels = plan.channels
    needed = torch.zeros(channels.n_atoms, dtype=torch.bool)
    read = torch.zeros_like(needed)
    kept = {
        reader.layer: kept_inputs(reader, choices[site.name])
        for site in plan.sites
        if site.name in choices
        for reader in site.readers
    }
    for layer, atoms in channels.reads.items():
        read[atoms] = True
        needed[atoms[kept[layer]] if layer in kept else atoms] = True
    return read & ~needed & ~plan.lasting


def kept_inputs(reader: Reader, choice: Choice) -> Tensor:
    """(in,) bool: the inputs of the layer that are kept."""
    taps = reader.groups.numel() // len(reader.atoms)
    return choice.kept.cpu()[reader.groups.flatten()[::taps]]
