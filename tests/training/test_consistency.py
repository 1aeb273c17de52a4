"""Training on several views of each sample: the loss, and what counts."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from compresskit.numerics.consistency import divergence
from compresskit.training.optimization.optimizers import SGD
from compresskit.training.options import Training
from tests.training.tiny_run import Split, dataset, network, run


class Views(Split):
    """Shuffled batches of three views: the samples, and the same ones disturbed."""

    def batches(self, batch_size, device, *, seed=None, **arguments):
        for inputs, targets in super().batches(batch_size, device, seed=seed, **arguments):
            yield (inputs if seed is None else views(inputs)), targets


def views(inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([inputs, inputs + 0.3, 1.2 * inputs])


def data(weight: float):
    plain = dataset()
    return replace(plain, train=Views(plain.train.inputs, plain.train.targets), consistency=weight)


@pytest.mark.parametrize("weight", [0.5, 12.0])
def test_a_step_is_that_of_both_losses(weight, tmp_path):
    options = Training(epochs=1, batch_size=48, optimizer=SGD(lr=0.1, momentum=0.0))
    found, history = run(tmp_path, options, net=network(dropout=0.0, norm=False), data=data(weight))
    net, train = network(dropout=0.0, norm=False).train(), data(weight).train
    output = net(views(train.inputs))
    loss = functional.cross_entropy(output[:48], train.targets) + weight * divergence(output.view(3, 48, 3))
    loss.backward()
    for name, parameter in net.named_parameters():
        wanted = parameter - 0.1 * parameter.grad
        assert torch.allclose(found.get_parameter(name), wanted, atol=1e-5), name  # float32, another order of samples
    assert history.rows[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    right = (output[:48].argmax(1) == train.targets).double().mean()
    assert history.rows[0]["train_accuracy"] == pytest.approx(float(right))
