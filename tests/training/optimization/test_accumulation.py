"""Batches in parts: the same gradients as whole, products formed once, and parts that a batch norm can take."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compresskit.distributed import Group
from compresskit.errors import RecipeError
from compresskit.graph.layers.expanded import Expanded
from compresskit.passes.expand.network import expand
from compresskit.passes.expand.options import Expand
from compresskit.training.optimization.accumulation import micro_batches
from compresskit.training.optimization.optimizers import SGD
from compresskit.training.options import Training

DOUBLE = Training(epochs=3, batch_size=10, optimizer=SGD(lr=0.1, momentum=0.9), clip_norm=0.5)


def double(tiny, task="classification"):
    """48 samples in float64: four batches of 10 and one of 8."""
    data = tiny.dataset(task)
    parts = {
        name: replace(
            split,
            inputs=split.inputs.double(),
            targets=split.targets.double() if task == "regression" else split.targets,
        )
        for name in ("train", "validation", "test")
        if (split := getattr(data, name)) is not None
    }
    return replace(data, **parts)


def networks(tiny, *, expanded: bool):
    net = tiny.network(norm=False, dropout=0.0).double()
    return expand(net, Expand(strategy="fc", rate=2)).network if expanded else net


@pytest.mark.parametrize("parts", [2, 3, 4, 10])
@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_parts_train_as_the_whole_batch_does(tiny, tmp_path, task, expanded, parts):
    data = double(tiny, task)
    whole, history = tiny.run(tmp_path / "whole", DOUBLE, net=networks(tiny, expanded=expanded), data=data)
    options = replace(DOUBLE, accumulate=parts)
    split, other = tiny.run(tmp_path / "parts", options, net=networks(tiny, expanded=expanded), data=data)
    torch.testing.assert_close(split.state_dict(), whole.state_dict(), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(other.rows, history.rows, strict=True):
        times = ("seconds", "images_per_second")
        assert {k: v for k, v in ours.items() if k not in times} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in times}, rel=1e-12
        )


def test_the_product_is_formed_once_a_step(tiny, tmp_path, monkeypatch):
    formed, contracted = [], Expanded.contracted

    def counted(layer: Expanded) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled():
            formed.append(layer)
        return contracted(layer)

    monkeypatch.setattr(Expanded, "contracted", counted)
    options = replace(DOUBLE, accumulate=5, epochs=2)
    net, _ = tiny.run(tmp_path, options, net=networks(tiny, expanded=True), data=double(tiny))
    assert len(formed) == 2 * 2 * 5  # layers, epochs, steps
    assert all(layer.product is None for layer in formed)


def test_a_step_that_fails_leaves_no_product_behind(tiny, tmp_path):
    net = networks(tiny, expanded=True)
    data = double(tiny)
    wrong = replace(data, train=replace(data.train, targets=torch.full((48,), 9)))
    with pytest.raises(IndexError):
        tiny.run(tmp_path, replace(DOUBLE, accumulate=2), net=net, data=wrong)
    assert all(layer.product is None for layer in net.modules() if isinstance(layer, Expanded))


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_mixed_precision_takes_parts(tiny, tmp_path, precision):
    net = expand(tiny.network(norm=False, dropout=0.0), Expand(strategy="fc", rate=2)).network
    _, history = tiny.run(tmp_path, replace(DOUBLE, accumulate=3, precision=precision), net=net)
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("samples", "largest", "sizes"),
    [
        (10, 3, [3, 3, 2, 2]),
        (8, 3, [3, 3, 2]),
        (10, 10, [10]),
        (3, 2, [3]),
        (5, 2, [3, 2]),
        (3, 1, [1, 1, 1]),
        (1, 4, [1]),
    ],
)
def test_parts_are_alike_and_none_is_alone(samples, largest, sizes):
    inputs, targets = torch.arange(2 * samples).view(samples, 2), torch.arange(samples)
    parts = micro_batches(inputs, targets, largest)
    assert [len(t) for _, t in parts] == sizes
    assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
    assert torch.equal(torch.cat([t for _, t in parts]), targets)


def test_views_and_several_inputs_keep_to_their_samples():
    targets = torch.arange(4)
    views = torch.cat([10 * view + targets for view in range(3)])  # three views, one behind the other
    parts = micro_batches((views, targets + 100), targets, 2)
    assert [x[0].tolist() for x, _ in parts] == [[0, 1, 10, 11, 20, 21], [2, 3, 12, 13, 22, 23]]
    assert [x[1].tolist() for x, _ in parts] == [[100, 101], [102, 103]]


def test_refusals(tiny, tmp_path):
    with pytest.raises(RecipeError, match="accumulate: 11 parts cannot be made of 10 samples, .* use 10 or less"):
        tiny.run(tmp_path, replace(tiny.OPTIONS, accumulate=11))
    with pytest.raises(RecipeError, match="accumulate: 6 parts cannot be made of 5 samples"):
        tiny.run(tmp_path, replace(tiny.OPTIONS, accumulate=6), group=Group(rank=0, world=2))
    with pytest.raises(RecipeError, match="10 in 10 parts has one sample in each, and batch norm"):
        tiny.run(tmp_path, replace(tiny.OPTIONS, accumulate=10))
