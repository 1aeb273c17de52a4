"""The weights that layers run with, whatever they are made of."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import compresskit
from compresskit.graph.weights import weights_of

NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("name", NORMS)
def test_a_parametrised_layer_has_the_weight_that_it_runs_with(name):
    net = nn.Sequential(NORMS[name](nn.Linear(20, 30)), nn.ReLU(), nn.Linear(30, 10)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found, others = weights_of(net)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)  # spectral_norm turns its vectors in training
    assert net[0].training
    torch.testing.assert_close(found[0].tensor, net.eval()[0].weight.detach(), rtol=0, atol=0)
    assert [weight.name for weight in found] == ["0", "2"]
    assert others == {}
    assert [row.name for row in compresskit.spectra(net)] == ["0", "2"]


def test_weights_without_numbers_of_their_own_are_left_alone_by_name():
    net = nn.Sequential(nn.Linear(20, 30, dtype=torch.complex64), nn.Linear(20, 30, device="meta"), nn.Linear(20, 30))
    found, others = weights_of(net)
    assert [weight.name for weight in found] == ["2"]
    assert others == {"0": "its weights are complex", "1": "its weights are on no device"}


def test_scalars_and_odd_names_are_no_trouble():
    net = nn.ModuleDict({"file": nn.Linear(20, 30), "weight": nn.Linear(20, 30)})
    net.gain = nn.Parameter(torch.tensor(1.0))
    assert [row.name for row in compresskit.spectra(net)] == ["file", "weight"]
