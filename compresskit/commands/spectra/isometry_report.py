"""The report of `spectra.isometry`: a row a network, a row a layer, and all figures as CSV."""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compresskit.commands.result import Result, Table, by
from compresskit.graph.reachability import Reachability
from compresskit.numerics.orthogonal.isometry import SingularValues
from compresskit.passes.isometry.network import LayerIsometry, NetworkIsometry
from compresskit.passes.isometry.options import Isometry
from compresskit.passes.isometry.plan import Plan

OUTPUT = "output"  # in the place of a layer: the network's output
SIGNIFICANT = 0.01  # p-value below which a spectrum differs from that of the orthogonal layer; SAO, Table 6
SHOWN = 20  # layers in the table
_FIGURES = ("mean", "variance", "smallest", "largest")
_COLUMNS = (
    *("network", "layer", "number", "outputs", "inputs", "estimated", *_FIGURES, "orthogonal mean"),
    *("statistic", "p", "depth estimated", *(f"depth {figure}" for figure in _FIGURES), "disconnected"),
)


@dataclass(frozen=True)
class Measured:
    """All that was found of one network. unknown: why its reachability is not known."""

    isometry: NetworkIsometry
    reachability: Reachability | None
    unknown: str

    @property
    def p_values(self) -> list[float]:
        return [layer.p for layer in self.isometry.layers if not math.isnan(layer.p)]

    @property
    def differing(self) -> int:
        return sum(p < SIGNIFICANT for p in self.p_values)


def plan_table(name: str, plan: Plan) -> Table:
    """The Jacobians of a network that will be looked at."""
    rows: list[tuple[Any, ...]] = [
        (name, part.name, *_planned(plan, part.sides), *_planned(plan, part.depth)) for part in plan.parts
    ]
    rows.append((name, OUTPUT, "", "", *_planned(plan, plan.end)))
    return Table("isometry", ("network", "layer", "Jacobian", "how", "by depth", "how"), rows)


def _planned(plan: Plan, sides: tuple[int, int]) -> tuple[str, str]:
    return by(sides), "exact" if plan.forms(sides) else "estimated"


def add_isometry(result: Result, found: Mapping[str, Measured], options: Isometry, images: int) -> None:
    """Tables, notes and details."""
    first, measured = next(iter(found.items()))
    result.tables += [_networks(found), _layers(first, measured.isometry.layers)]
    result.notes += _notes(found, options, images)
    result.skipped |= {f"reachability of {name}": one.unknown for name, one in found.items() if one.unknown}
    result.details["isometry"] = {
        name: {
            "output": _plain(one.isometry.end),
            "layers": [_plain_layer(layer) for layer in one.isometry.layers],
            "differing layers": one.differing,
            "reachability": one.reachability
            and {"start": one.reachability.start, "disconnected": one.reachability.disconnected},
        }
        for name, one in found.items()
    }


def _networks(found: Mapping[str, Measured]) -> Table:
    rows = []
    for name, one in found.items():
        tested = f"{one.differing} of {len(one.p_values)}" if one.p_values else ""
        smallest = min(one.p_values) if one.p_values else ""
        figures = (getattr(one.isometry.end, figure) for figure in _FIGURES)
        rows.append((name + _doubt(one.isometry.end), *figures, tested, smallest, _connected(one.reachability)))
    columns = ("network", *_FIGURES, "layers that differ", "smallest p", "connected from")
    return Table("isometry: output by input", columns, rows)


def _connected(paths: Reachability | None) -> str:
    if paths is None:
        return ""
    if paths.connected_from is None:
        *_, (name, missing) = paths.disconnected.items()
        return f"never; {missing} pairs missing at {name}"
    number, name = paths.connected_from
    return f"{number}: {name}"


def _layers(name: str, layers: list[LayerIsometry]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for layer in layers[:SHOWN]:
        own, depth = layer.own, layer.depth
        through = (depth.mean, depth.variance) if depth is not None else ("", "")
        tested = ("", "") if math.isnan(layer.p) else (layer.statistic, layer.p)
        figures = (getattr(own, figure) for figure in _FIGURES)
        rows.append((layer.name + _doubt(own), by(layer.sides), *figures, *tested, *through))
    columns = ("layer", "Jacobian", *_FIGURES, "KS", "p", "mean by depth", "variance by depth")
    more = f", the first {SHOWN} layers of {len(layers)}" if len(layers) > SHOWN else ""
    return Table(f"isometry: layers of {name}{more}", columns, rows)


def _notes(found: Mapping[str, Measured], options: Isometry, images: int) -> list[str]:
    notes = [
        f"singular values at {images} test images; KS: against a dense orthogonal layer at the same inputs, "
        f"layers differ where p < {SIGNIFICANT:g}; all figures are in isometry.csv"
    ]
    spectra = [one for each in found.values() for one in _all(each.isometry)]
    if any(one.estimated for one in spectra):
        notes.append(
            f"~: estimated, since a Jacobian's sides are both above {options.exact}; smallest and largest lie inside "
            "the true range, and there is no KS test"
        )
    if any(math.isnan(one.mean) for one in spectra):
        notes.append("nan: a Jacobian is not finite, its values overflow")
    starts = dict.fromkeys(one.reachability.start for one in found.values() if one.reachability is not None)
    if starts:
        notes.append(f"connected from: layer at which all inputs of {', '.join(starts)}, number 1, reach all outputs")
    return notes


def _all(measured: NetworkIsometry) -> Iterator[SingularValues]:
    for layer in measured.layers:
        yield layer.own
        if layer.depth is not None:
            yield layer.depth
    yield measured.end


def _doubt(values: SingularValues) -> str:
    return " ~" if values.estimated else ""


def figures_of(found: Mapping[str, Measured]) -> str:
    """CSV of every figure, a row for each network and layer, and one for the network's output."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, one in found.items():
        missing = one.reachability.disconnected if one.reachability is not None else {}
        for number, layer in enumerate(one.isometry.layers, 1):
            row = {"network": name, "number": number, "disconnected": missing.get(layer.name, "")}
            writer.writerow(row | _row(layer))
        writer.writerow({"network": name, "layer": OUTPUT} | _prefixed("depth ", one.isometry.end))
    return text.getvalue()


def _row(layer: LayerIsometry) -> dict[str, Any]:
    row = {"layer": layer.name, "outputs": layer.sides[0], "inputs": layer.sides[1]} | _prefixed("", layer.own)
    if layer.orthogonal is not None:
        row |= {"orthogonal mean": layer.orthogonal.mean, "statistic": layer.statistic, "p": layer.p}
    return row | (_prefixed("depth ", layer.depth) if layer.depth is not None else {})


def _prefixed(prefix: str, values: SingularValues) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in _plain(values).items()}


def _plain(values: SingularValues) -> dict[str, Any]:
    return {"estimated": values.estimated} | {figure: getattr(values, figure) for figure in _FIGURES}


def _plain_layer(layer: LayerIsometry) -> dict[str, Any]:
    return {
        "name": layer.name,
        "own": _plain(layer.own),
        "statistic": layer.statistic,
        "p": layer.p,
        "depth": layer.depth and _plain(layer.depth),
    }
