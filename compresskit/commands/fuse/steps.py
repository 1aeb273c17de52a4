"""The steps of `fuse`: which chain comes next, what it is fused to, and what retraining makes of it."""

import copy
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import fx

from compresskit.commands.fuse.baselines import baselines, trained_epochs
from compresskit.commands.fuse.records import Baseline, Ranking, Step, read_step
from compresskit.commands.fuse.report import candidate_rows, widths
from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.commands.jobs.job import attempt
from compresskit.commands.moments import gatherer
from compresskit.commands.session import Session
from compresskit.commands.trials import train_network
from compresskit.errors import ConvergenceError
from compresskit.graph.edit import reset_parameters
from compresskit.graph.selectors import select
from compresskit.models.parts.initialisation import Initialisation
from compresskit.numerics.least_squares.fusion import MeanMaps
from compresskit.numerics.moments.moments import Moments
from compresskit.passes.fuse.auto import Candidate, choose, find_candidates, rank, reached, size
from compresskit.passes.fuse.fusible import Fusible, apply, find
from compresskit.passes.fuse.means import mean_maps
from compresskit.passes.fuse.network import FusedLayer, describe, measure, solve
from compresskit.passes.fuse.together import KeptMoments, Passes, Planned, beside, passes, rehearse
from compresskit.training.loop import History
from compresskit.training.options import Training


class FuseSteps:
    """Of one trial. cache: the folder of its moments, where the recipe names none."""

    def __init__(self, current: Session, options: FuseAndRetrain, trial: int, cache: Path) -> None:
        self.start = current.parent(trial)
        self.seed = current.recipe.seed + trial
        self.trained = trained_epochs(self.start)
        self.original = size(self.start.network, current.data.input_shape)
        self._current, self._options = current, options
        self.gather = gatherer(current, cache, options.samples)
        self._kept = KeptMoments()
        self._among = set(select(self.start.network, options.among)) if options.among else None

    def next(self, network: fx.GraphModule, index: int) -> tuple[Candidate | None, Ranking]:
        """The chain to fuse in step `index`, counted from 1, solved, None when all are done; and whom `auto` ranked."""
        options, shape = self._options, self._current.data.input_shape
        if options.layers == "auto":
            assert options.until is not None
            now = size(network, shape)
            if reached(options.until, now, self.original):
                return None, Ranking()
            ranked, skipped = self.rank(network, index)
            return choose(ranked, options.until, now, self.original), Ranking(candidate_rows(ranked), skipped)
        if index > len(options.layers):
            return None, Ranking()
        fusible = find(network, options.layers[index - 1], shape, options.kernel, options.channels)
        moments = self._moments(network, [fusible], index)[fusible.request.name]
        means = self._means(network, [fusible]).get(fusible.request.name)
        return Candidate(fusible, solve(fusible, moments, options, means)), Ranking()

    @cached_property
    def planned(self) -> list[Planned]:
        """The chains that the recipe names; refuses those that cannot be fused."""
        return rehearse(self.start.network, self._current.data.input_shape, self._options)

    def find(self, network: fx.GraphModule) -> tuple[list[Fusible], dict[str, str]]:
        """All chains that could be fused, and what is left alone with the reason."""
        shape = self._current.data.input_shape
        return find_candidates(network, shape, self._options, self.gather.memory, self._among)

    def rank(self, network: fx.GraphModule, index: int) -> tuple[list[Candidate], dict[str, str]]:
        """The same with what would stand in for each, the best explained first."""
        fusibles, skipped = self.find(network)
        moments, means = self._moments(network, fusibles, index), self._means(network, fusibles)
        return rank(fusibles, moments, self._options, means), skipped

    def passes(self) -> Passes:
        """Over the data, to fuse the layers that the recipe names: by the chains whose moments each one takes."""
        if self._options.retrain is None:
            return passes(self.planned, self.gather.memory)
        return [[one.fusible] for one in self.planned]

    def _moments(self, network: fx.GraphModule, wanted: list[Fusible], index: int) -> dict[str, Moments]:
        """Those that an earlier step took, where they still hold; retraining leaves none."""
        requests, gather = [fusible.request for fusible in wanted], self.gather.at(index)
        if self._options.retrain is not None or len(self._options.layers) == 1:
            return gather(network, requests)
        later = [] if self._options.layers == "auto" else beside(self.planned, index - 1)
        return self._kept.get(network, requests, gather, [fusible.request for fusible in later])

    def _means(self, network: fx.GraphModule, wanted: list[Fusible]) -> dict[str, MeanMaps]:
        """Of each position, where the recipe asks for the document's moments; each process takes them all."""
        return mean_maps(
            network, wanted, self.gather.split.batches(self._current.recipe.moments.batch_size, self._current.device)
        )

    def note(self, row: FusedLayer) -> None:
        """A layer that stands in for some that `auto` may fuse may be fused itself."""
        if self._among is not None:
            self._among.add(row.name)

    def fuse(self, network: fx.GraphModule, candidate: Candidate) -> tuple[fx.GraphModule, Step]:
        """A new network with the chain fused, and what is known of it before any training."""
        current = self._current
        row = self._measured(network, candidate)
        fused = apply(network, candidate.fusible, candidate.fusion)
        metrics = current.evaluate(fused)
        said = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        current.progress.log(f"{row.name}: fused {' + '.join(row.layers)}, {said} before retraining")
        return fused, Step(self.seed, row, widths(fused), size(fused, current.data.input_shape).macs, metrics)

    def is_trained(self, record: Path, index: int) -> bool:
        """Whether step `index` was kept behind all of its training: what failed beside it is taken up again."""
        return record.exists() and read_step(record).baselines.keys() == self._beside(index).keys()

    def train(self, fused: fx.GraphModule, step: Step, stage: Path, index: int) -> None:
        """Trains `fused` in place as the recipe says, and random ones beside it; their state is below `stage`."""
        for name in self._beside(index):
            work = partial(self._baseline, fused, step, stage, index, name)
            if (found := attempt(self._current, stage / name, work)) is not None:
                step.baselines[name] = found
        self.retrain(fused, step, stage, index)

    def retrain(self, fused: fx.GraphModule, step: Step, stage: Path, index: int) -> None:
        """Trains `fused` alone, in place."""
        current, retrain, original = self._current, self._options.retrain, self.start.network
        step.epochs = self.trained
        if retrain is not None:
            monitored = current.evaluate(fused, current.data.validation)
            told = f"retrain seed {self.seed}, {step.widths}"
            history = train_network(current, fused, retrain, self.seed, stage / "retrain", told, original=original)
            step.retrained, step.monitor = current.evaluate(fused), history.monitor
            step.curve = [monitored[history.monitor.partition("_")[2]], *(row[history.monitor] for row in history.rows)]
            step.epochs = self.trained and self.trained + index * retrain.epochs
        step.monitored = (
            current.evaluate(fused, current.data.validation)[step.main] if current.data.validation else None
        )

    def train_beside(
        self, fused: fx.GraphModule, step: Step, stage: Path, index: int, name: str
    ) -> tuple[fx.GraphModule, History]:
        """A network like `fused`, trained from random weights as that baseline is."""
        random, settings = copy.deepcopy(fused), self._beside(index)[name]
        step.not_random = reset_parameters(random, self.seed, self._initialisation())
        told = f"{name} seed {self.seed}, {step.widths}"
        original = self.start.network
        history = train_network(self._current, random, settings, self.seed, stage / name, told, original=original)
        return random, history

    def _baseline(self, fused: fx.GraphModule, step: Step, stage: Path, index: int, name: str) -> Baseline:
        random, history = self.train_beside(fused, step, stage, index, name)
        curve = [row[history.monitor] for row in history.rows]
        return Baseline(self._beside(index)[name].epochs, self._current.evaluate(random), curve)

    def _beside(self, index: int) -> dict[str, Training]:
        return baselines(self._options, self.trained, index)

    def _measured(self, network: fx.GraphModule, candidate: Candidate) -> FusedLayer:
        """The row of a fused layer with its error on held-out images; refuses weights that are no use."""
        current, (fusible, fusion) = self._current, (candidate.fusible, candidate.fusion)
        if not torch.isfinite(fusion.weight).all():
            raise ConvergenceError(
                f"{fusible.chain}: the activations are not finite; check the checkpoint and the data"
            )
        if not fusion.converged:
            residual = max(solution.residual for solution in fusion.solutions)
            text = f"{fusible.chain}: the solver stopped at a residual of {residual:.1e}; raise max_iter or ridge"
            if self._options.on_no_convergence == "fail":
                raise ConvergenceError(text)
            current.progress.log(text)
        split = current.held_out.sample(self._options.held_out)
        batches = split.batches(current.recipe.moments.batch_size, current.device)
        error, share = measure(network, fusible, fusion, batches)
        return replace(describe(network, fusible, fusion), measured_error=error, measured_unexplained=share)

    def _initialisation(self) -> Initialisation:
        """How the net that is fused was drawn, where its model says so."""
        made_as = (
            self.start.checkpoint.model if self.start.checkpoint else asdict(self._current.recipe.section("model"))
        )
        return "gaussian" if made_as.get("initialisation") == "gaussian" else "torch"
