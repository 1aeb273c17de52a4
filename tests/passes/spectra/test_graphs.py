"""Graphs of sparse layers: which there are, and whose eigenvalues are drawn."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from compresskit.graph.trace import trace
from compresskit.graph.weights import weights_of
from compresskit.numerics.sparse.ramanujan import graph
from compresskit.passes.initialise.group import group
from compresskit.passes.initialise.network import initialise
from compresskit.passes.initialise.sparse_options import SAO, SAODelta
from compresskit.passes.spectra.graphs import graphs, sparse_layers
from compresskit.plots import graphs as plots


def layers_of(network, masks):
    return sparse_layers(network, weights_of(network)[0], masks)


def test_masks_of_kernels_and_layers_in_groups():
    network = trace(
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=3), nn.ConvTranspose2d(6, 4, 3, groups=2))
    )
    mask = torch.zeros(6, 4, 3, 3, dtype=torch.bool)
    mask[0, 1, 2, 2] = mask[5, 3] = True
    found = layers_of(network, {"0.weight": mask})
    assert found["0"].nonzero().tolist() == [[0, 1], [5, 3]]
    assert found["1"].equal(torch.block_diag(*[torch.ones(2, 2)] * 3).bool())
    assert found["2"].equal(torch.block_diag(*[torch.ones(3, 2)] * 2).bool())
    assert layers_of(trace(nn.Sequential(nn.Linear(3, 3))), {}) == {}
    half = torch.ones(6, 2, 3, 3, dtype=torch.bool)
    half[0] = False
    assert layers_of(network, {"1.weight": half})["1"].sum() == 10


def test_grouped_or_masked_the_graphs_are_the_same():
    """Layers of a stack, too, which has them under one name."""
    parts = [part for _ in range(4) for part in (nn.Linear(16, 16), nn.Tanh())]
    found = initialise(trace(nn.Sequential(*parts)), [SAO(degree=4, dense=())], (16,), 0)
    grouped = group(found.network, found.masks)
    assert grouped.stacks
    masked, blocks = (graphs(layers_of(*pair)) for pair in ((found.network, found.masks), (grouped.network, {})))
    assert len(masked) == len(blocks) == 4
    for one, other in zip(masked.values(), blocks.values(), strict=True):
        np.testing.assert_allclose(one.eigenvalues.numpy(), other.eigenvalues.numpy(), atol=1e-12)
        assert one.degrees == other.degrees == (4, 4)


def test_the_plot_has_the_eigenvalues_and_the_bounds(monkeypatch, tmp_path):
    """A panel for each kind of mask: bars that sum to one where the eigenvalues lie, and two dashed lines."""
    network = trace(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3)))
    found = initialise(network, [SAODelta(degree=4, dense=(), arrangement="random")], (8, 9, 9), 0)
    layers = graphs(layers_of(found.network, found.masks))
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, _: drawn.append(figure))
    plots.graph_eigenvalues(tmp_path / "graphs.png", layers)
    panels = [panel for panel in drawn[0].axes if panel.patches]
    assert [panel.get_title().split("\n")[0] for panel in panels] == ["0 and 1 more: 8×8", "2: 16×8"]
    for panel, name in zip(panels, ("0", "2"), strict=True):
        shown = graph(found.masks[f"{name}.weight"].flatten(2).any(2))
        bars = {(bar.get_x(), bar.get_x() + bar.get_width()): bar.get_height() for bar in panel.patches}
        for (low, high), share in bars.items():
            inside = ((shown.eigenvalues >= low) & (shown.eigenvalues < high)).double().mean()
            assert abs(share - float(inside)) < 1e-12
        assert abs(sum(bars.values()) - 1) < 1e-12
        bounds = sorted(line.get_xdata()[0] for line in panel.lines)
        np.testing.assert_allclose(bounds, [-shown.expansion.bound, shown.expansion.bound])
