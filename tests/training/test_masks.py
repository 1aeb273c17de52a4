"""Masks in training: zeros stay zero, and the other weights learn as if nothing else were there."""

import pytest
import torch

from compresskit.errors import RunFolderError
from compresskit.graph.masks import apply_masks
from compresskit.training.analyses.gradient_confusion import gradient_cosines
from compresskit.training.layer_rates import LayerwiseRates
from compresskit.training.optimization.optimizers import OPTIMIZERS, SGD
from compresskit.training.optimization.schedules import Constant
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
    """Against a plain loop, which masks weights where ours masks gradients; with momentum, over several steps."""
    options = Training(
        epochs=6, batch_size=48, optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=0.01), schedule=Constant()
    )
    found, _ = run(tmp_path, options, net=network(dropout=0.0), masks=masks())
    net, data = network(dropout=0.0).train(), dataset()
    steps = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    def mask() -> None:
        with torch.no_grad():
            for name, kept in masks().items():
                net.get_parameter(name)[~kept] = 0

    mask()
    for _ in range(6):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(net(data.train.inputs), data.train.targets).backward()
        steps.step()
        mask()
    for name, parameter in net.named_parameters():
        assert torch.allclose(found.get_parameter(name), parameter, atol=1e-5), (
            name
        )  # float32, another order of samples


class Stop:
    """Interrupts a run in its second epoch."""

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (2, 2):
            raise KeyboardInterrupt

    def on_epoch(self, row: dict[str, float]) -> None:
        pass


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path):
    options = Training(epochs=3, batch_size=12, optimizer=SGD(lr=0.1, momentum=0.9))
    whole, _ = run(tmp_path / "whole", options, masks=masks())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", options, masks=masks(), progress=Stop())
    again, history = run(tmp_path / "cut", options, masks=masks(), resume=True)
    assert len(history.rows) == 3
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert torch.equal(again.get_parameter("0.weight") != 0, masks()["0.weight"])


def test_cosines_are_of_what_learns():
    net, data = network(dropout=0.0).eval(), dataset()
    apply_masks(net, masks())
    names, parameters = zip(*net.named_parameters(), strict=True)
    batches = list(data.train.batches(12, torch.device("cpu")))

    def loss(inputs, targets):
        return torch.nn.functional.cross_entropy(net(inputs), targets)

    def gradient(batch):
        found = zip(names, torch.autograd.grad(loss(*batch), parameters), strict=True)
        return torch.cat([(g * masks()[name] if name in masks() else g).flatten() for name, g in found])

    kept = {net.get_parameter(name): mask for name, mask in masks().items()}
    (found,) = gradient_cosines(loss, parameters, [(batches[0], batches[1])], kept)
    (whole,) = gradient_cosines(loss, parameters, [(batches[0], batches[1])])
    wanted = torch.nn.functional.cosine_similarity(gradient(batches[0]), gradient(batches[1]), dim=0)
    assert found == pytest.approx(wanted.item(), abs=1e-6)
    assert abs(found - whole) > 1e-3


def test_a_run_is_not_resumed_with_other_masks(tmp_path):
    options = Training(epochs=1, batch_size=12)
    run(tmp_path, options, masks=masks())
    with pytest.raises(RunFolderError, match="masks was"):
        run(tmp_path, Training(epochs=1, batch_size=12), resume=True)
