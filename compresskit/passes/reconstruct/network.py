"""Reconstructing: layers keep few of their inputs, weights fitted again, and what nobody reads is cut."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from compresskit.errors import ConvergenceError
from compresskit.graph.chains import weighted
from compresskit.graph.channels.cut import cut, select_inputs
from compresskit.graph.channels.plain import plain_layers
from compresskit.graph.trace import trace
from compresskit.numerics.moments.moments import Moments
from compresskit.numerics.selection.encoding import selection_bits
from compresskit.passes.moments import Batches, gather_from
from compresskit.passes.reconstruct.budget import SizeModel, check_target
from compresskit.passes.reconstruct.chaining import (
    Draft,
    Gather,
    bottom_up,
    dead_atoms,
    kept_inputs,
    masked,
    parallel,
    top_down,
)
from compresskit.passes.reconstruct.factorised import factorise_layers
from compresskit.passes.reconstruct.options import GroupLasso, Reconstruct
from compresskit.passes.reconstruct.readers import Plan, Site, plan
from compresskit.passes.reconstruct.refitted import with_layers
from compresskit.passes.reconstruct.selection import Curve, Rule
from compresskit.passes.reconstruct.targets import Judge, Memory, Reached, reach, rules_of
from compresskit.passes.reconstruct.uncentred import uncentred
from compresskit.passes.reconstruct.workers import Start, Workers, silent
from compresskit.shapes import Shape


@dataclass(frozen=True)
class ReconstructedLayer:
    """A row of the report: a layer, what it reads now, and what that cost.

    unit: what was counted, channels or inputs. asked: the rule, in words. rank: of the covariance of the inputs kept,
    None where the layer was left as it is. variance: of the layer's output. error: E||y - M x - b||^2 on the images of
    the moments. held: it was kept at min_channels. low_rank: rank of the two factors, where it was factorised.
    """

    name: str
    site: str
    sampler: str
    unit: str
    inputs: int
    kept: int
    asked: str
    selection: str
    solver: str
    lam: float | None
    gap: float | None
    n_iter: int
    converged: bool
    rank: int | None
    variance: float
    error: float
    held: bool
    weight_shape_before: tuple[int, ...]
    weight_shape: tuple[int, ...]
    low_rank: int | None = None

    @property
    def unexplained(self) -> float:
        """The error as a share of the variance."""
        return self.error / self.variance if self.variance > 0 else 0.0


@dataclass(frozen=True)
class Reconstruction:
    """network: cut. masked: of full size with zeros in place of what was cut, before any factorisation; it computes the
    same. places: by layer, its outputs that are left. curves: trade-off by site. selection_bits: what the selections in
    the net cost to say. seconds: by stage."""

    network: fx.GraphModule
    masked: fx.GraphModule
    cut: fx.GraphModule
    rows: list[ReconstructedLayer]
    places: dict[str, Tensor]
    curves: dict[str, Curve]
    selection_bits: float
    notes: list[str]
    seconds: dict[str, float]


def reconstruct(
    network: fx.GraphModule,
    gather: Gather,
    options: Reconstruct,
    input_shape: Shape,
    judge: Judge | None = None,
    memory: Memory | None = None,
    start: Start = silent,
) -> Reconstruction:
    """`network` with thinned inputs; it stays as it was. judge: what a `target` is corrected by.

    memory: given to several calls on the same network and data, it spares those behind the first the trade-offs. start:
    is told how far long work is.

    Raises RecipeError where nothing can be thinned or a target cannot be met, ConvergenceError where moments are not
    finite, or a solver stops early and the options say `fail`.
    """
    clock = _Clock()
    made = plan(network, input_shape, options)
    gather = _finite(clock.timed("moments", gather))
    if not options.centred:
        gather = uncentred(network, made, gather)
    with Workers(options.workers) as workers:
        if options.target is None:
            found = Reached(rules_of(network, made, options))
            moments = {} if options.chaining == "top-down" else _of_all(network, made, gather)
        else:
            model = SizeModel(network, made, input_shape, centred=options.centred)
            check_target(model, options.target, options.min_channels)
            moments = _of_all(network, made, gather)
            known = {} if memory is None else memory
            found = reach(network, made, options, model, moments, judge, known, workers, start)
        rules = found.rules
        clock.lap("target")
        match options.chaining:
            case "parallel":
                draft = parallel(made, rules, found.choices, found.near, moments, options, workers, start)
            case "bottom-up":
                draft = bottom_up(made, rules, moments, options)
            case "top-down":
                draft = top_down(network, made, rules, gather, options)
    clock.lap("solve")
    notes = found.notes + _doubts(made, draft, options)
    smaller, bits = _cut(with_layers(network, draft.layers), made, draft)
    factorised, ranks = factorise_layers(smaller, made, draft, options.low_rank)
    clock.lap("cut")
    rows = [_row(network, smaller, site, draft, rules[site.name], options, ranks) for site in made.sites]
    curves = {site.name: draft.choices[site.name].curve for site in made.sites}
    flat = [row for site_rows in rows for row in site_rows]
    places = made.channels.places(~dead_atoms(made, draft.choices))
    whole = masked(network, made, draft)
    return Reconstruction(factorised, whole, smaller, flat, places, curves, bits, notes, clock.seconds)


def reconstruct_model(
    model: nn.Module, loader: Batches, **options: Any
) -> tuple[fx.GraphModule, list[ReconstructedLayer]]:
    """New network in which layers keep few of their inputs; and a row for each layer.

    model: any module that torch.fx traces; it stays as it was. loader: an iterable of (inputs, targets) that can be
    read several times: with chaining `top-down` once for each layer. options: the fields of a recipe's `reconstruct`
    section (`keep`, `lam`, `error` or `target`; `selection`, `chaining`, ...), as objects where they are no plain
    values. A target is shared out by the layers' errors alone, since there are no images to judge it by.
    """
    input_shape = tuple(next(iter(loader))[0].shape[1:])
    network, _ = plain_layers(model if isinstance(model, fx.GraphModule) else trace(model, input_shape), input_shape)
    found = reconstruct(network, gather_from(loader), Reconstruct(**options), input_shape)
    return found.network, found.rows


def _of_all(network: fx.GraphModule, made: Plan, gather: Gather) -> dict[str, Moments]:
    """Moments of every reader's input and its own output."""
    return gather(network, [reader.request for reader in made.readers], None)


def _cut(network: fx.GraphModule, made: Plan, draft: Draft) -> tuple[fx.GraphModule, float]:
    """The network without what nobody reads, with a selection before each reader that reads less than there is."""
    dead = dead_atoms(made, draft.choices)
    selected, bits = dict[str, Tensor](), 0.0
    for site in made.sites:
        (reader, *_) = site.readers
        left = ~dead[reader.atoms]
        kept = kept_inputs(reader, draft.choices[site.name])[left]
        if site.dynamic and not bool(kept.all()):
            selected[reader.layer] = kept.nonzero(as_tuple=True)[0]
            bits += selection_bits(len(kept), int(kept.sum()))
    return select_inputs(cut(network, made.channels, ~dead), selected), bits


def _row(
    network: fx.GraphModule, smaller: fx.GraphModule, site: Site, draft: Draft, rule: Rule, options: Reconstruct,
    ranks: Mapping[str, int],
) -> list[ReconstructedLayer]:  # fmt: skip
    choice, selection = draft.choices[site.name], options.chosen_selection
    return [
        ReconstructedLayer(
            name=reader.layer,
            site=site.name,
            sampler="dynamic" if site.dynamic else "static",
            unit=site.unit,
            inputs=site.n_groups,
            kept=int(choice.kept.sum()),
            asked=str(rule),
            selection=selection.kind,
            solver=selection.solver.kind if isinstance(selection, GroupLasso) else "",
            lam=choice.lam,
            gap=choice.gap,
            n_iter=choice.n_iter,
            converged=choice.converged,
            rank=layer.rank if (layer := draft.layers.get(reader.layer)) else None,
            variance=layer.variance if layer else float(draft.moments[reader.layer].cyy.sum()),
            error=layer.error if layer else 0.0,
            held=choice.held,
            weight_shape_before=tuple(weighted(network, reader.layer).weight.shape),
            weight_shape=tuple(weighted(smaller, reader.layer).weight.shape),
            low_rank=ranks.get(reader.layer),
        )
        for reader in site.readers
    ]


def _doubts(made: Plan, draft: Draft, options: Reconstruct) -> list[str]:
    """What the user should know of the choices; raises ConvergenceError where the options ask for that."""
    notes = []
    for site in made.sites:
        choice = draft.choices[site.name]
        if not choice.converged:
            text = f"{site.name}: the solver stopped at a relative gap of {choice.gap:.1e}; raise max_iter or tol"
            if options.on_no_convergence == "fail":
                raise ConvergenceError(text)
            notes.append(text)
        if choice.held:
            asked = f"lambda {choice.lam:.4g}" if options.lam is not None else "what was asked"
            notes.append(f"{site.name}: {asked} would leave fewer than {options.min_channels}; held at min_channels")
    return notes


def _finite(gather: Gather) -> Gather:
    def checked(student: fx.GraphModule, requests: Any, teacher: fx.GraphModule | None) -> dict[str, Moments]:
        moments = gather(student, requests, teacher)
        for name, found in moments.items():
            if not found.finite:
                raise ConvergenceError(f"{name}: its moments are not finite; check the checkpoint and the data for NaN")
        return moments

    return checked


class _Clock:
    """Seconds by stage; what `timed` functions take is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since, self._inner = time.perf_counter(), 0.0

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._since - self._inner
        self._since, self._inner = now, 0.0

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = work(*arguments)
            taken = time.perf_counter() - start
            self._inner += taken
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken
            return result

        return measured
