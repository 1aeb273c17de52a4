"""Eigenvalues of the graphs of sparse layers: `spectra.graphs`."""

from torch import nn

from compresskit.commands.result import Result, Table, alike, by
from compresskit.commands.session import Progress
from compresskit.errors import RecipeError
from compresskit.graph.masks import Masks
from compresskit.graph.weights import Weight
from compresskit.numerics.sparse.ramanujan import Graph
from compresskit.passes.spectra.graphs import graphs, sparse_layers
from compresskit.plots.graphs import graph_eigenvalues
from compresskit.storage.atomic import write_arrays
from compresskit.storage.run_folder import RunFolder

COLUMNS = ("layers", "number", "mask", "c", "d", "kept", "lambda 1", "times", "lambda 2", "bound", "Ramanujan")


class Graphs:
    """Of the masks of a network; checked before any work."""

    def __init__(self, network: nn.Module | None, weights: list[Weight], masks: Masks) -> None:
        if network is None:
            raise RecipeError("spectra.graphs: a state dict has no masks; name a model.pt or the folder of a run")
        self._layers = sparse_layers(network, weights, masks)
        if not self._layers:
            raise RecipeError(
                "spectra.graphs: no layer has a mask or runs in groups; draw some by train.init: sao, mask some by "
                "train.mask, or name a checkpoint that has masks"
            )

    def measure(self, folder: RunFolder, progress: Progress, result: Result, *, drawn: bool) -> None:
        """Adds to the report; writes graph-eigenvalues.npz, and draws graph-eigenvalues.png."""
        progress.log(f"graphs of {len(self._layers)} masks")
        found = graphs(self._layers)
        result.tables.append(Table("graphs of masks", COLUMNS, alike((name, _row(one)) for name, one in found.items())))
        if any(not one.regular for one in found.values()):
            result.notes.append("graphs: c and d are means where outputs, or inputs, differ in them")
        result.details["graphs"] = {name: _plain(one) for name, one in found.items()}
        write_arrays(
            folder.path / "graph-eigenvalues.npz", {name: one.eigenvalues.numpy() for name, one in found.items()}
        )
        if drawn:
            graph_eigenvalues(folder.path / "graph-eigenvalues.png", found)


def _row(graph: Graph) -> tuple[object, ...]:
    found, (c, d) = graph.expansion, graph.degrees
    degrees = (int(c), int(d)) if graph.regular else (c, d)
    figures = (round(found.first, 9), found.components, round(found.second, 9), found.bound)
    return by(graph.sides), *degrees, f"{graph.kept:.2%}", *figures, "yes" if found.is_ramanujan else "no"


def _plain(graph: Graph) -> dict[str, object]:
    return {"degrees": graph.degrees, "regular": graph.regular, **vars(graph.expansion)} | {
        "ramanujan": graph.expansion.is_ramanujan
    }
