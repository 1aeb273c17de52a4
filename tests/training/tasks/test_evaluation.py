import pytest
import torch
from torch import nn

from compresskit.training.tasks.evaluation import METRICS, evaluate


def test_classification_equals_a_loop(tiny):
    split, network = tiny.dataset().test, tiny.network().eval()
    correct = loss = 0.0
    for x, label in zip(split.inputs, split.targets.tolist(), strict=True):
        log_probabilities = network(x.unsqueeze(0))[0].double().log_softmax(0).tolist()
        correct += max(range(3), key=lambda c, p=log_probabilities: p[c]) == label
        loss -= log_probabilities[label]
    network.train()
    found = evaluate(network, split, task="classification", batch_size=7)
    # 1e-6: the forward pass is float32, and batches sum it in another order
    assert found == pytest.approx({"accuracy": correct / 20, "loss": loss / 20}, rel=1e-6)


def test_regression_equals_a_loop(tiny):
    split, network = tiny.dataset("regression").test, tiny.network().eval()
    errors = [
        abs(a - b)
        for x, target in zip(split.inputs, split.targets.tolist(), strict=True)
        for a, b in zip(network(x.unsqueeze(0))[0].tolist(), target, strict=True)
    ]
    expected = {"mae": sum(errors) / 60, "mse": sum(e * e for e in errors) / 60}
    assert evaluate(network, split, task="regression", batch_size=7) == pytest.approx(expected, rel=1e-6)  # as above


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_batch_size_does_not_matter(tiny, task):
    split, network = tiny.dataset(task).test, tiny.network()
    whole, single = (evaluate(network, split, task=task, batch_size=size) for size in (20, 1))
    assert list(whole) == list(METRICS[task])
    assert whole == pytest.approx(single, rel=1e-6)  # float32 forward passes


def test_leaves_modes_and_buffers_as_they_were(tiny):
    network = tiny.network().train()
    batch_norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm1d)).eval()
    before = [m.training for m in network.modules()]
    mean = batch_norm.running_mean.clone()
    evaluate(network, tiny.dataset().test, task="classification")
    assert [m.training for m in network.modules()] == before
    assert torch.equal(batch_norm.running_mean, mean)


def test_an_empty_split_is_refused(tiny):
    empty = tiny.Split(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="holds no samples"):
        evaluate(tiny.network(), empty, task="classification")
