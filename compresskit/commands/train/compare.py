"""Networks that `train` trains beside the recipe's own: every row of `train.compare` with every column."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from compresskit.commands.analyses import draw_layers
from compresskit.commands.recipe import Recipe, variant
from compresskit.commands.result import NONZERO, SPARSE, Figure, Result, Table
from compresskit.commands.session import Session, Start, load_data
from compresskit.commands.train.section import Grid, name_of_cell
from compresskit.data.dataset import DataSet
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.counting import count
from compresskit.graph.masks import kept
from compresskit.plots.training import gains, training_curves
from compresskit.storage.run_folder import RunFolder, slug

FOLDER = "compare"
SECTIONS = ("model", "train", "data.augment")
DIVERGED, FAILED = "diverged", "failed"  # in tables, for figures


@dataclass(frozen=True)
class Cell:
    """One network of the grid. folder: in that of the run. session: that of a recipe of its own.

    own: whether it is the network of the run, which has no folder of its own.
    """

    row: str
    column: str
    folder: str
    session: Session
    own: bool

    @property
    def name(self) -> str:
        return name_of_cell(self.row, self.column)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Says of an error which network it is about."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError(f"train.compare, {self.name}: {error}") from error


def cells(current: Session) -> list[Cell]:
    """Row by row. Raises RecipeError where a cell's recipe is wrong, and for names that share a folder."""
    grid: Grid | None = current.recipe.section("train").compare
    if grid is None:
        return []
    sets = [(current.recipe.data, current.data)]
    columns = grid.changes_of_columns or ("",)
    found = [_cell(current, grid, row, column, sets) for row in grid.rows for column in columns]
    folders = [cell.folder for cell in found]
    if twice := [cell.name for cell in found if folders.count(cell.folder) > 1]:
        raise RecipeError(f"train.compare: {' and '.join(twice)} would share a folder; rename one")
    return found


def _cell(current: Session, grid: Grid, row: str, column: str, sets: list[tuple[Any, DataSet]]) -> Cell:
    """sets: data of the sections that cells before had, to which this one's are added: equal sections share them."""
    name = name_of_cell(row, column)
    changes = grid.rows[row] | grid.changes_of_columns.get(column, {}) | grid.cells.get(name, {})
    for key in changes:
        allowed = any(key == section or key.startswith(f"{section}.") for section in SECTIONS)
        if not allowed or key.startswith(("train.compare", "train.memorisation")):
            raise RecipeError(
                f"train.compare, {name}: it changes {key}; rows and columns change keys of `model`, `train` and "
                "`data.augment`, such as model.depth or train.init, but no comparison or memorisation"
            )
    if not all(slug(part) for part in (row, column) if part):
        raise RecipeError(f"train.compare, {name}: a name needs a letter or a digit, for its folder; rename it")
    overrides = (*current.arguments.changes, "~train.compare")
    recipe = variant(current.arguments.recipe, overrides, changes, f"train.compare, {name}", verb="train")
    data = next((data for section, data in sets if section == recipe.data), None)
    if data is None:
        data = load_data(recipe, current.progress)
        sets.append((recipe.data, data))
    session = replace(current, recipe=recipe, data=data)
    folder = "/".join((FOLDER, *(slug(part) for part in (row, column) if part)))
    return Cell(row, column, folder, session, _plain(recipe) == _plain(current.recipe))


def _plain(recipe: Recipe) -> dict[str, Any]:
    """What trainings depend on."""
    plain = recipe.plain()
    return plain | {"train": plain["train"] | {"compare": None, "memorisation": None}}


def add_plan(result: Result, found: Sequence[Cell], starts: Sequence[Start]) -> None:
    """What would be trained beside: parameters and multiply-accumulates that masks leave."""
    rows: list[tuple[Any, ...]] = []
    for cell, start in zip(found, starts, strict=True):
        counts = count(start.network, cell.session.data.input_shape)
        rows.append((cell.name, *kept(counts, start.masks)))
    result.tables.append(Table("trained beside", ("network", "parameters", "MACs"), rows))


def add_comparison(current: Session, result: Result, found: Sequence[Cell], train: Callable[[Session], Result]) -> None:
    """Trains the cells, each in a folder of its own, and adds their tables and learning curves.

    result: of the run's own network. Where one fails the tables say so, and the next one is trained; if all do, it
    raises what stopped the first.
    """
    results = {(cell.row, cell.column): _train(current, cell, result, train) for cell in found}
    done = [one for one in (result, *results.values()) if not isinstance(one, str) and one.figures]
    if not done:
        raise next(iter(current.failed.values()))
    metric = done[0].figures[0].name
    rows, columns = dict.fromkeys(cell.row for cell in found), list(dict.fromkeys(cell.column for cell in found))
    for title, value in _quantities(metric).items():
        cells_of = {row: [_value(results[row, column], value) for column in columns] for row in rows}
        headings = columns if columns != [""] else [title]
        result.tables.append(Table(title, ("network", *headings), [(row, *values) for row, values in cells_of.items()]))
    result.details["compare"] = [_details(cell, results[cell.row, cell.column], metric) for cell in found]
    if current.group.is_main and current.recipe.report.plots and current.folder is not None:
        _draw(current, found, results)


def in_cell(current: Session, cell: Cell) -> Session:
    """The session that trains a cell in its folder."""
    assert current.folder is not None
    folder = RunFolder(current.folder.path / cell.folder)
    return replace(cell.session, folder=folder, arguments=current.arguments, several=current.several)


def _train(current: Session, cell: Cell, own: Result, train: Callable[[Session], Result]) -> Result | str:
    """What came of a cell, or that nothing did."""
    if cell.own:
        return own if own.figures else FAILED
    inside = in_cell(current, cell)
    assert inside.folder is not None
    current.group.in_main(partial(inside.folder.path.mkdir, parents=True, exist_ok=True))
    current.progress.log(f"compare: {cell.name}")
    try:
        return train(inside)
    except Exception as error:
        if error not in current.failed.values():
            raise
        return DIVERGED if isinstance(error, ConvergenceError) else FAILED


def _quantities(metric: str) -> dict[str, Callable[[Result], Any]]:
    return {
        metric: lambda result: result.figures[0].after,
        f"{metric}, best epoch": lambda result: tuple(row[2] for row in result.tables[0].rows),
        NONZERO: lambda result: _figure(result, NONZERO, "parameters").after[0],
        SPARSE: lambda result: _figure(result, SPARSE, "MACs").after[0],
        "seconds": lambda result: tuple(row[4] for row in result.tables[0].rows),
    }


def _figure(result: Result, name: str, otherwise: str) -> Figure:
    """The figure of that name, which only masked networks have."""
    by_name = {figure.name: figure for figure in result.figures}
    return by_name.get(name) or by_name[otherwise]


def _value(result: Result | str, value: Callable[[Result], Any]) -> Any:
    return result if isinstance(result, str) else value(result)


def _details(cell: Cell, result: Result | str, metric: str) -> dict[str, Any]:
    """For report.json: every quantity, one value a trial where trials differ, and the epochs."""
    values = {title: _value(result, value) for title, value in _quantities(metric).items()}
    where = {"folder": "." if cell.own else cell.folder, "trained": not isinstance(result, str)}
    named = {"row": cell.row, "column": cell.column, **where}
    return {**named, **values, **({} if isinstance(result, str) else result.details)}


def _last(result: Result, monitor: str) -> dict[str, list[float]]:
    """The monitored metric after the last epoch, on the training images and on those that were held out; by trial."""
    split, _, metric = monitor.partition("_")
    columns = {"training": f"train_{metric}", split: monitor}
    ends = [trial["rows"][-1] for trial in result.details["trials"]]
    return {name: [end[column] for end in ends] for name, column in columns.items() if column in ends[0]}


def _draw(current: Session, found: Sequence[Cell], results: dict[tuple[str, str], Result | str]) -> None:
    """Learning curves, a panel for each column, gains, and what was measured of layers; nothing of what diverged."""
    trained = {place: result for place, result in results.items() if not isinstance(result, str)}
    if not trained or current.folder is None:
        return
    monitor = next(iter(trained.values())).details["monitor"]
    panels: dict[str, dict[str, list[list[float]]]] = {}
    for (row, column), result in trained.items():
        curves = [[epoch[monitor] for epoch in trial["rows"]] for trial in result.details["trials"]]
        panels.setdefault(column, {})[row] = curves
    training_curves(current.folder.path / "comparison.png", panels, monitor.replace("_", " "))
    rows, first = {row for row, _ in trained}, found[0].row
    if len(rows) > 1 and len(panels) > 1 and first in rows:
        ends = {place: _last(result, monitor) for place, result in trained.items()}
        gains(current.folder.path / "comparison-gains.png", ends, first, monitor.partition("_")[2])
    asked = [cell.session.recipe.section("train").layerwise_rates for cell in found]
    rows_of = {
        name_of_cell(*place): [trial["rows"] for trial in result.details["trials"]] for place, result in trained.items()
    }
    draw_layers(current.folder.path, rows_of, asked)
