"""In which order sites are reconstructed, from which inputs to which targets (document 2.7)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

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

# (label, the work of each step in any unit) -> what is called behind each step
Start = Callable[[str, Sequence[float]], Callable[[], None]]
# (student, requests, teacher): moments of the student's inputs and the teacher's outputs; None: the student's own
Gather = Callable[[fx.GraphModule, Sequence[Request], fx.GraphModule | None], dict[str, Moments]]


@dataclass
class Draft:
    """What was decided so far. choices: by site. layers: new weights, by layer, of full size, but of sites that are
    left as they are. moments: what these were fitted to, or would be."""

    choices: dict[str, Choice] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)

    def add(
        self, site: Site, choice: Choice, moments: Mapping[str, Moments], debias: bool, rows: Rows | None,
        ridges: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.choices[site.name] = choice
        for reader in site.readers:
            self.moments[reader.layer] = moments[reader.request.name]
        self.layers |= fit(site, choice, moments, debias, rows, ridges)

    def leave(self, site: Site, choice: Choice, moments: Mapping[str, Moments]) -> None:
        """The site as it is: least squares of its own outputs on all its inputs are the weights that it has."""
        self.choices[site.name] = choice
        for reader in site.readers:
            self.moments[reader.layer] = moments[reader.request.name]


@dataclass(frozen=True)
class Job:
    """One site to choose the inputs of, which a worker process can do."""

    site: Site
    moments: dict[str, Moments]
    rule: Rule
    options: Reconstruct
    rows: Rows | None = None

    def __call__(self) -> Choice:
        relative = self.options.lam is None or self.options.lam_scale == "energy"
        problem = self.site.problem(self.moments, self.rows, relative=relative)
        try:
            return choose(problem, self.rule, self.options.chosen_selection, self.options.min_channels)
        except ConvergenceError as error:
            raise ConvergenceError(f"{self.site.name}: {error}") from error


def parallel(
    plan: Plan, rules: Mapping[str, Rule], choices: Mapping[str, Choice], moments: Mapping[str, Moments],
    options: Reconstruct, start: Start,
) -> Draft:  # fmt: skip
    """Each site on its own, from true inputs to true outputs. choices: those that are made already."""
    open_sites = [site for site in plan.sites if site.name not in choices]
    jobs = [Job(site, own_moments(site, moments), rules[site.name], options) for site in open_sites]
    chosen = run_jobs(jobs, options.workers, start)
    made = dict(choices) | dict(zip((site.name for site in open_sites), chosen, strict=True))
    draft = Draft()
    for site in plan.sites:
        if made[site.name].kept.all() and options.debias:
            draft.leave(site, made[site.name], moments)
        else:
            draft.add(site, made[site.name], moments, options.debias, None)
    return draft


def bottom_up(plan: Plan, rules: Mapping[str, Rule], moments: Mapping[str, Moments], options: Reconstruct) -> Draft:
    """From the last site to the first; of a layer's outputs only those count that later ones still read."""
    draft = Draft()
    for site in reversed(plan.sites):
        dead = dead_atoms(plan, draft.choices)
        rows = {reader.layer: ~dead[plan.channels.writes[reader.layer]] for reader in site.readers}
        choice = Job(site, own_moments(site, moments), rules[site.name], options, rows)()
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
        choice = Job(chained, moments, rules[site.name], options)()
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


def run_jobs(jobs: Sequence[Job], workers: int, start: Start) -> list[Choice]:
    """The choices in the order of the jobs, from `workers` processes where that is more than one. Moments that lie on a
    GPU stay in this process, which is not the one to share it."""
    on_cpu = all(m.cyx.device.type == "cpu" for job in jobs for m in job.moments.values())
    if not jobs:
        return []
    done = start("inputs of each site", [cubes(job.site) for job in jobs])
    if min(workers, len(jobs)) < 2 or not on_cpu:
        return [_told(job(), done) for job in jobs]
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(
        min(workers, len(jobs)), torch.set_num_threads, (max(1, torch.get_num_threads() // workers),)
    ) as pool:
        return [_told(choice, done) for choice in pool.imap(_run, jobs)]


def _run(job: Job) -> Choice:
    return job()


def _told(choice: Choice, done: Callable[[], None]) -> Choice:
    done()
    return choice


def cubes(site: Site) -> float:
    """Work that a factorisation or an elimination of its layers is, by the cube of their inputs."""
    return sum(reader.request.groups * float(reader.request.features) ** 3 for reader in site.readers)


def silent(label: str, work: Sequence[float]) -> Callable[[], None]:
    """A Start that tells nobody."""
    return lambda: None


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
