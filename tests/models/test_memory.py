"""A model that does not fit into memory is stopped while it is made."""

import pytest
import torch
from torch import nn

from compresskit import user_code
from compresskit.errors import RecipeError
from compresskit.models import memory
from compresskit.models.memory import within_memory


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 40_000.0 / memory.SHARE)


def test_the_layer_that_is_too_much_is_not_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: drawn.append(layer))
    said = r"model: it has 14,980 parameters so far, 0.0 GB, and weights may take 0.0 GB on this machine; lower"
    with pytest.raises(RecipeError, match=said), within_memory():
        nn.Sequential(*(nn.Linear(70, 70, bias=False) for _ in range(2)), nn.Linear(74, 70, bias=False))
    assert len(drawn) == 2


def test_layers_that_are_gone_again_and_tied_ones_do_not_count():
    with within_memory():
        for _ in range(5):
            net = nn.Linear(70, 70)
        tied = nn.Sequential(net)
        for _ in range(5):
            tied.append(nn.Identity())
            tied[-1].weight, tied[-1].bias = net.weight, net.bias
        nn.Linear(1000, 1000, device="meta")
        nn.LazyLinear(10)


def test_outside_nothing_is_stopped():
    with within_memory():
        pass
    assert nn.Linear(200, 200).weight.numel() == 40_000


def test_a_users_factory_is_stopped_with_the_same_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large_nets.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(200, 200)\n")
    with pytest.raises(RecipeError, match=r"^model: it has 40,000 parameters so far"), within_memory():
        user_code.made("large_nets:net", {}, "model", "models")


def test_models_that_fit_are_made_as_always():
    torch.manual_seed(0)
    expected = nn.Linear(70, 70).weight
    torch.manual_seed(0)
    with within_memory():
        assert torch.equal(nn.Linear(70, 70).weight, expected)
