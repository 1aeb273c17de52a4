"""Masks in training: zeros stay zero, and the other weights learn as if nothing else were there."""

import pytest
import torch

from compresskit.errors import RunFolderError
from compresskit.training.layer_rates import LayerwiseRates
from compresskit.training.optimizers import OPTIMIZERS, SGD
from compresskit.training.options import Training
from tests.training.tiny_run import dataset, network, run

NAMES = ("0.weight", "4.weight")


def masks() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return {name: torch.rand(network().get_parameter(name).shape, generator=draws) > 0.6 for name in NAMES}


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@pytest.mark.parametrize(
    "changes", [{}, {"clip_norm": 0.1}, {"layerwise_rates": LayerwiseRates()}, {"precision": "bfloat16"}]
)
def test_zeros_stay_zero_and_no_other_weight_does(kind, changes, tmp_path):
    """With momentum and weight decay; the net that is given has no zeros yet."""
    options = Training(epochs=2, batch_size=10, optimizer=OPTIMIZERS[kind](lr=0.02, weight_decay=0.1), **changes)
    net, history = run(tmp_path, options, masks=masks())
    before = network()
    for name, mask in masks().items():
        weight = net.get_parameter(name)
        assert torch.equal(weight != 0, mask)
        assert torch.equal(history.best_state[name] != 0, mask)
        assert not bool((weight[mask] == before.get_parameter(name)[mask]).any())


def test_steps_are_those_of_setting_weights_to_zero_after_each(tmp_path):
    """Against a plain loop, which masks weights where ours masks gradients."""
    options = Training(epochs=1, batch_size=48, optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=0.01))
    found, _ = run(tmp_path, options, net=network(dropout=0.0), masks=masks())
    net, data = network(dropout=0.0).train(), dataset()
    steps = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    def mask() -> None:
        with torch.no_grad():
            for name, kept in masks().items():
                net.get_parameter(name)[~kept] = 0

    mask()
    torch.nn.functional.cross_entropy(net(data.train.inputs), data.train.targets).backward()
    steps.step()
    mask()
    for name, parameter in net.named_parameters():
        assert torch.allclose(found.get_parameter(name), parameter, atol=1e-6), (
            name
        )  # float32, another order of samples


def test_a_run_is_not_resumed_with_other_masks(tmp_path):
    options = Training(epochs=1, batch_size=12)
    run(tmp_path, options, masks=masks())
    with pytest.raises(RunFolderError, match="masks was"):
        run(tmp_path, Training(epochs=1, batch_size=12), resume=True)
