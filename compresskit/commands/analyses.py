"""What `train` and `expand` can find out about training beside its result: ExpandNets' Figures 3 and 4."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskit.commands.result import Result, Table
from compresskit.commands.session import Session
from compresskit.commands.train.section import FreshTraining
from compresskit.storage.atomic import write_json
from compresskit.storage.checkpoint import load
from compresskit.storage.moment_cache import fingerprint
from compresskit.training.analyses.landscape import Landscape, landscape
from compresskit.training.layer_rates import METRIC, RATE, SECONDS, WATCHED, LayerwiseRates
from compresskit.training.loop import History
from compresskit.training.options import Training

_IMAGES = {"train": "training images", "val": "validation images", "test": "test images"}  # by column of rows
Rows = Sequence[Mapping[str, float]]  # of the epochs
Surfaces = dict[str, list[list[float]]]  # by metric


def analyse(
    current: Session, result: Result, histories: Mapping[str, Sequence[History]], models: Mapping[str, Path]
) -> None:
    """Adds to the result, and draws, what the training measured, and the landscape if `train` asks for it.

    The plot of layerwise rates is that of the first network's first trial.

    histories: by network, one for each trial. models: by network, the checkpoint whose surroundings are drawn.
    """
    first = next(iter(histories.values()))[0]
    training: Training = current.recipe.section("finetune" if current.verb == "finetune" else "train")
    if SECONDS in first.rows[0] and training.layerwise_rates is not None:
        add_rates(current, result, first, training.layerwise_rates)
        if current.folder is not None:
            draw_rates(current, current.folder.path, first, training.layerwise_rates)
    measured = {name: trials for name, trials in histories.items() if trials[0].cosines}
    if measured:
        _confusion(current, result, measured)
    train: FreshTraining | None = current.recipe.train
    if current.verb != "finetune" and train is not None and train.landscape is not None:
        _landscapes(current, result, train.landscape, models)


def draw_learning_curves(current: Session, trials: Sequence[History]) -> None:
    """learning-curves.png: what training measured of training and of held-out images, by epoch, over all trials."""
    if current.group.is_main and current.recipe.report.plots and current.folder is not None:
        from compresskit.plots.training import training_curves  # a quarter of a second, for those that draw

        training_curves(current.folder.path / "learning-curves.png", by_quantity(trials))


def by_quantity(trials: Sequence[History]) -> dict[str, dict[str, list[list[float]]]]:
    """By quantity (loss, accuracy), by images that it was measured on, a curve for each trial."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for column in trials[0].rows[0]:
        split, _, quantity = column.partition("_")
        if split in _IMAGES:
            curves = [[row[column] for row in trial.rows] for trial in trials]
            found.setdefault(quantity.replace("_", " "), {})[_IMAGES[split]] = curves
    return found


def add_rates(current: Session, result: Result, history: History, options: LayerwiseRates) -> None:
    """Of layerwise rates: each layer's last metric and factor, what was watched, and what measuring took."""
    if options.steers is not None:
        measured, factors = _columns(history.rows, METRIC), _columns(history.rows, RATE)
        rows = [(name, measured[name][0], measured[name][-1], factors[name][-1]) for name in factors]
        columns = ("layer", f"{options.steers}, first epoch", "last epoch", "rate by the schedule's, last epoch")
        result.tables.append(Table("layerwise rates", columns, rows))
        missing = [name for name, values in measured.items() if not math.isfinite(values[-1])]
        if missing:
            result.notes.append(
                f"layerwise rates: {', '.join(missing)} keep the schedule's, having no {options.steers} of their own"
            )
    if options.watch:
        result.tables.append(_watched(history, options))
    names = ", ".join(dict.fromkeys(name for name in (options.steers, *options.watch) if name))
    seconds = sum(row[SECONDS] for row in history.rows)
    share = seconds / history.seconds
    result.notes.append(f"layerwise rates: measuring {names} took {100 * share:.1f} % of the time ({seconds:.1f} s)")


def _watched(history: History, options: LayerwiseRates) -> Table:
    rows = []
    for metric, layers in watched_in(history.rows, options.watch).items():
        last = [values[-1] for values in layers.values() if math.isfinite(values[-1])]
        spread = (min(last), statistics.fmean(last), max(last)) if last else (math.nan,) * 3
        rows.append((metric, len(last), *spread))
    return Table("watched, behind the last epoch", ("metric", "layers", "least", "mean", "largest"), rows)


def draw_rates(current: Session, folder: Path, history: History, options: LayerwiseRates) -> None:
    """layer-rates.png: metric and rate of each layer through the epochs; layer-metrics.png: what was watched."""
    if current.group.is_main and current.recipe.report.plots:
        from compresskit.plots.layers import watched
        from compresskit.plots.spectra import layer_rates  # a quarter of a second, for those that draw

        if options.steers is not None:
            layer_rates(
                folder / "layer-rates.png", options.steers, _columns(history.rows, METRIC), _columns(history.rows, RATE)
            )
        if options.watch:
            watched(folder / "layer-metrics.png", watched_in(history.rows, options.watch))


def draw_layers(
    folder: Path,
    networks: Mapping[str, Sequence[Rows]],
    asked: Iterable[LayerwiseRates | None],
    ending: str = "",
) -> None:
    """What several networks measured of their layers: comparison-rates.png, the rates; comparison-metrics.png, means of
    what was watched; and, of each metric, comparison-METRIC.png of the layers whose rates differ most.

    networks: by name the epochs of each trial; of those that measured nothing there are no lines. asked: what they were
    to measure. ending: of the names.
    """
    from compresskit.plots.layers import layers_apart, means, rates

    factors = {name: own for name, trials in networks.items() if (own := _columns(trials[0], RATE))}
    if factors:
        last = {name: {layer: values[-1] for layer, values in own.items()} for name, own in factors.items()}
        rates(folder / f"comparison-rates{ending}.png", last)
    metrics = list(dict.fromkeys(metric for one in asked if one is not None for metric in one.watch))
    found: dict[str, dict[str, list[dict[str, list[float]]]]] = {}
    for name, trials in networks.items():
        for rows in trials:
            for metric, layers in watched_in(rows, metrics).items():
                if layers:
                    found.setdefault(metric, {}).setdefault(name, []).append(layers)
    if found:
        means(folder / f"comparison-metrics{ending}.png", found)
    for metric, lines in found.items() if factors else ():
        path = folder / f"comparison-{metric.replace('_', '-')}{ending}.png"
        layers_apart(path, metric, lines, next(iter(factors.values())))


def watched_in(rows: Rows, metrics: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """By metric and layer, a value for each epoch."""
    return {metric: _columns(rows, WATCHED.format(metric=metric, layer="")) for metric in metrics}


def _columns(rows: Rows, prefix: str) -> dict[str, list[float]]:
    names = [key.removeprefix(prefix) for key in (rows[0] if rows else ()) if key.startswith(prefix)]
    return {name: [row[prefix + name] for row in rows] for name in names}


def _confusion(current: Session, result: Result, histories: Mapping[str, Sequence[History]]) -> None:
    columns = ("network", "smallest cosine", "mean", "share below 0")
    rows: list[tuple[Any, ...]] = []
    for name, trials in histories.items():
        cosines = [trial.cosines for trial in trials]
        rows.append(
            (
                name,
                tuple(min(values) for values in cosines),
                tuple(statistics.fmean(values) for values in cosines),
                tuple(sum(value < 0 for value in values) / len(values) for values in cosines),
            )
        )
    result.tables.append(Table("cosines of gradients of pairs of batches after the last epoch", columns, rows))
    result.details["gradient cosines"] = {name: [t.cosines for t in trials] for name, trials in histories.items()}
    if current.group.is_main and current.recipe.report.plots and current.folder is not None:
        smallest = {
            name: [[row["gradient_cosine_min"] for row in trial.rows] for trial in trials]
            for name, trials in histories.items()
        }
        together = {name: [value for trial in trials for value in trial.cosines] for name, trials in histories.items()}
        from compresskit.plots.training import gradient_cosines  # a quarter of a second, for those that draw

        gradient_cosines(current.folder.path / "gradient-confusion.png", smallest, together)


def _landscapes(current: Session, result: Result, options: Landscape, models: Mapping[str, Path]) -> None:
    """Computed by the main process alone: it is a few hundred evaluations of a small sample."""
    if not current.group.is_main or current.folder is None:
        return
    drawn = _Drawn(current, options)
    surfaces = {name: drawn.surface(name, path) for name, path in models.items()}
    if options.drawn == "error":
        for surface in surfaces.values():
            surface["error"] = [[1 - value for value in row] for row in surface["accuracy"]]
    metric = options.drawn if options.drawn in (first := next(iter(surfaces.values()))) else next(iter(first))
    rows: list[tuple[Any, ...]] = []
    for name, surface in surfaces.items():
        values = surface[metric]
        middle = len(values) // 2
        steps = range(len(values))
        border = [values[i][j] for i in steps for j in steps if {i, j} & {0, len(values) - 1}]
        rows.append((name, values[middle][middle], statistics.fmean(border), max(border)))
    columns = ("network", f"{metric} in the middle", "mean on the border", "largest on the border")
    result.tables.append(Table(f"{metric} around the trained nets, training images", columns, rows))
    if current.recipe.report.plots:
        chosen = {name: surface[metric] for name, surface in surfaces.items()}
        from compresskit.plots.training import landscapes  # a quarter of a second, for those that draw

        landscapes(current.folder.path / "landscape.png", chosen, options.extent, metric)


class _Drawn:
    """Surfaces in landscape.json, by network; a resumed run takes those of the same weights from there."""

    def __init__(self, current: Session, options: Landscape) -> None:
        assert current.folder is not None
        self.current, self.options = current, options
        self.path = current.folder.path / "landscape.json"
        self.plain: dict[str, Any] = {"extent": options.extent, "weights": {}, "surfaces": {}}
        if current.arguments.resume and self.path.exists():
            self.plain = json.loads(self.path.read_text())

    def surface(self, name: str, path: Path) -> Surfaces:
        """Of each metric, around a checkpoint; null in the file is what is not finite."""
        network = load(path, self.current.device).network
        weights = fingerprint(network)
        if self.plain["weights"].get(name) != weights:
            self.current.progress.log(f"{name}: loss around {path}")
            found = landscape(
                network,
                self.current.data,
                self.options,
                seed=self.current.recipe.seed,
                device=self.current.device,
                batch_size=self.current.recipe.moments.batch_size,
            )
            self.plain["weights"][name] = weights
            self.plain["surfaces"][name] = _each(found, lambda value: value if math.isfinite(value) else None)
            write_json(self.path, self.plain)
        return _each(self.plain["surfaces"][name], lambda value: math.nan if value is None else value)


def _each(surfaces: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {metric: [[change(value) for value in row] for row in rows] for metric, rows in surfaces.items()}
