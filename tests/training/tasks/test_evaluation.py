import pytest
import torch
from torch import nn

from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.training.tasks.evaluation import METRICS, evaluate
from compresskit.training.tasks.own import OwnTally


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
    assert list(whole) == [name for name, metric in METRICS[task].items() if metric.above < 3]
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


def test_metrics_of_the_users_own_see_the_whole_split_whatever_the_batches_are(tiny):
    seen = []

    def worst(output, target):
        seen.append(len(target))
        return (output.softmax(1).gather(1, target[:, None])).min()

    split, network = tiny.dataset().test, tiny.network().eval()
    expected = min(network(split.inputs).softmax(1)[range(20), split.targets].tolist())
    for size in (3, 20):
        found = evaluate(network, split, task="classification", batch_size=size, metrics={"worst": worst})
        assert found["worst"] == pytest.approx(expected, rel=1e-6)  # float32 forward passes
    assert seen == [20, 20]


def test_of_maps_metrics_of_the_users_own_are_means_over_single_samples():
    output, target = torch.arange(12.0).view(3, 1, 2, 2), torch.zeros(3, 2, 2).long()
    tally = OwnTally({"largest": lambda output, target: output.max()}, "segmentation")
    tally.add(output[:2], target[:2])
    tally.add(output[2:], target[2:])
    assert tally.figures(Group()) == {"largest": (3 + 7 + 11) / 3}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda output, target: float("nan"), "report.metrics: mine returned nan; return a finite number"),
        (lambda output, target: output, "report.metrics: mine returned a Tensor of shape"),
        (lambda output, target: None, "report.metrics: mine returned a NoneType; return one real number"),
    ],
)
def test_a_metric_of_the_users_own_that_is_no_number_is_refused(tiny, metric, message):
    with pytest.raises(RecipeError, match=message):
        evaluate(tiny.network(), tiny.dataset().test, task="classification", metrics={"mine": metric})


@pytest.mark.parametrize("classes", [10, 11])
def test_with_more_than_ten_classes_the_target_may_be_among_the_five_highest(tiny, classes):
    scores = torch.randn(30, classes, generator=torch.Generator().manual_seed(0))
    split = tiny.Split(scores, torch.arange(30) % classes)
    ranked = [sorted(range(classes), key=row.__getitem__, reverse=True)[:5] for row in scores.tolist()]
    found = evaluate(nn.Identity(), split, task="classification", batch_size=7)
    assert ("accuracy@5" in found) == (classes > 10)
    if classes > 10:
        expected = sum(label in best for label, best in zip(split.targets.tolist(), ranked, strict=True)) / 30
        assert found["accuracy@5"] == expected
        assert list(found) == ["accuracy", "accuracy@5", "loss"]
