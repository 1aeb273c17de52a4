"""The report of `spectra`: a table of the layers, and what the table needs beside it to be read rightly."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskit.commands.result import Figure, Result, Table, by
from compresskit.commands.spectra.section import SpectraOfNetwork
from compresskit.graph.weights import Weight
from compresskit.passes.spectra.matrices import matrices_of, skipped
from compresskit.passes.spectra.spectrum import OVER, RELIABLE, UNDER, Spectrum

COLOURS = {"over-trained": "red", "well-trained": "green", "under-trained": "yellow", "": "dim"}
SHOWN = {  # columns of the table, by their heads; spectra.csv has them all
    "alpha": "alpha",
    "D": "D",
    "tail": "num_pl_spikes",
    "of": "num_evals",
    "weighted alpha": "alpha_weighted",
    "stable rank": "stable_rank",
    "entropy": "entropy",
    "from random": "rand_distance",
    "log norm": "log_spectral_norm",
    "spikes": "num_spikes",
}


def plan_result(title: str, weights: Sequence[Weight], others: Mapping[str, str], options: SpectraOfNetwork) -> Result:
    """What a dry run says: the matrices whose eigenvalues will be found."""
    reasons = skipped(weights, options)
    rows: list[tuple[Any, ...]] = []
    for weight in weights:
        if weight.name not in reasons:
            count, longer, shorter = matrices_of(weight, options)
            rows.append((weight.name, weight.kind, by(tuple(weight.tensor.shape)), count, f"{longer}×{shorter}"))
    result = Result("spectra", f"{title} (dry run)")
    result.tables = [Table("matrices", ("layer", "kind", "weight", "matrices", "of"), rows)]
    result.skipped = dict(others) | reasons
    result.notes = ["nothing was written"]
    return result


def spectra_result(
    title: str,
    folder: Path,
    found: Sequence[Spectrum],
    reasons: Mapping[str, str],
    options: SpectraOfNetwork,
    history: Mapping[int, Sequence[Spectrum]],
) -> Result:
    result = Result("spectra", title, folder)
    fitted = [row for row in found if math.isfinite(row.alpha)]
    alphas = [row.alpha for row in fitted]
    result.figures = [
        Figure("layers", (), (len(found),), "count"),
        *([Figure("mean alpha", (), (statistics.fmean(alphas),))] if alphas else []),
        *([Figure("median alpha", (), (statistics.median(alphas),))] if alphas else []),
        *(
            Figure(f"{regime} layers", (), (sum(row.regime == regime for row in found),), "count")
            for regime in ("over-trained", "well-trained", "under-trained")
        ),
    ]
    result.tables = [_layers(found, options)]
    if history:
        result.tables.append(_training(history))
    result.skipped = dict(reasons) | {row.name: row.status for row in found if row.status != "success"}
    result.notes = _notes(found, options)
    result.details = {
        "layers": [_plain(row) for row in found],
        "alpha by epoch": {epoch: {row.name: row.alpha for row in rows} for epoch, rows in history.items()},
    }
    return result


def _layers(found: Sequence[Spectrum], options: SpectraOfNetwork) -> Table:
    """Sorted from the smallest figure; layers without one are last."""
    ordered = list(found)
    if options.sort != "network":
        ordered.sort(key=lambda row: _last_if_missing(getattr(row, options.sort)))
    rows = []
    for row in ordered:
        doubt = " ?" if row.regime and not row.reliable else ""
        cells = ("" if _missing(value) else value for value in (getattr(row, name) for name in SHOWN.values()))
        rows.append((row.name, by(row.shape), *cells, row.regime.removesuffix("-trained") + doubt))
    return Table("layers", ("layer", "weight", *SHOWN, "trained"), rows, [COLOURS[row.regime] for row in ordered])


def _training(history: Mapping[int, Sequence[Spectrum]]) -> Table:
    rows: list[tuple[Any, ...]] = []
    for epoch, layers in history.items():
        alphas = [row.alpha for row in layers if math.isfinite(row.alpha)]
        if alphas:
            rows.append((epoch, statistics.fmean(alphas), min(alphas), max(alphas)))
    return Table("alpha through training", ("epoch", "mean", "smallest", "largest"), rows)


def _notes(found: Sequence[Spectrum], options: SpectraOfNetwork) -> list[str]:
    unsure = sum(1 for row in found if row.regime and not row.reliable)
    notes = [f"definitions: {options.definitions}; regimes: alpha below {OVER:g}, from {OVER:g} to {UNDER:g}, above"]
    if unsure:
        notes.append(f"?: a tail of fewer than {RELIABLE} values ({unsure} layers); its alpha says little")
    return notes


def _plain(row: Spectrum) -> dict[str, Any]:
    plain = {key: value for key, value in vars(row).items() if key != "eigenvalues"}
    return plain | {"Q": row.Q}


def _missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _last_if_missing(value: float) -> float:
    return math.inf if math.isnan(value) else value
