"""What is refused before the first step, and what is not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from compresskit.errors import ConvergenceError, RecipeError
from compresskit.graph.trace import trace
from compresskit.training.loop import check
from compresskit.training.options import Training

CPU = torch.device("cpu")


class World:
    """Of two processes."""

    rank, world, is_main = 0, 2, True


@pytest.mark.parametrize(
    ("samples", "batch_size", "group", "words"),
    [
        (48, 1, None, r"^batch_size: 1 was given, and batch norm 1 needs two samples"),
        (1, 1, None, r"^batch_size: there is one training sample, and batch norm 1 "),
        (1, 10, None, r"^batch_size: there is one training sample, and batch norm 1 "),
        (48, 2, World(), r"^batch_size: 2 for 2 processes leaves one sample to each, and batch norm 1 "),
    ],
)
def test_a_batch_of_one_has_no_variance(tiny, tmp_path, samples, batch_size, group, words):
    options, data = Training(epochs=1, batch_size=batch_size), tiny.dataset(train=samples)
    arguments = (group,) if group else ()
    with pytest.raises(RecipeError, match=words):
        check(tiny.network(), data, options, CPU, *arguments)
    assert check(tiny.network(norm=False), data, options, CPU, *arguments) > 0
    if group is None:
        with pytest.raises(RecipeError, match=words):
            tiny.run(tmp_path, options, data=data)


def test_a_last_batch_of_one_is_left_out_and_maps_have_many_values(tiny, tmp_path):
    _, history = tiny.run(tmp_path, Training(epochs=1, batch_size=10), data=tiny.dataset(train=41))
    assert history.rows[-1]["step"] == 4
    maps = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36 * 4, 3)))
    data = replace(tiny.dataset(), input_shape=(3, 8, 8))
    assert check(maps, data, Training(epochs=1, batch_size=1), CPU) == 48


class Tokens(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.whole, self.words, self.head = whole, nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.words(x.long() if self.whole else x).mean(1))


def test_tokens_are_looked_up_as_they_are_stored(tiny):
    data, options = tiny.dataset(), Training(epochs=1)
    assert check(trace(Tokens(True)), data, options, CPU) > 0
    with pytest.raises(
        RecipeError, match=r"^data: words looks the network's input up as it is stored, and it would be norm"
    ):
        check(trace(Tokens(True)), replace(data, scaled=(True,)), options, CPU)
    network = trace(Tokens(False))  # which makes whole numbers of them by itself
    assert check(network, data, options, CPU) > 0
    (whole,) = (node for node in network.graph.nodes if node.target == "long")
    whole.replace_all_uses_with(whole.args[0])  # as in checkpoints of earlier versions
    with pytest.raises(RecipeError, match=r"^model: words looks the network's input up.*x = x\.long\(\)"):
        check(network, data, options, CPU)


def test_steps_that_all_overflow_are_no_training(tiny, tmp_path, monkeypatch):
    options = Training(epochs=1, batch_size=10)
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda scaler: 2.0**-11)
    with pytest.raises(ConvergenceError, match=r"^training, epoch 1: the gradients overflow in float16"):
        tiny.run(tmp_path, options)
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train", r"^training, epoch 1, step 1: the loss is nan; nothing was learnt yet, so check the data"),
        ("validation", r"^training: val_loss is nan; .* check the data for NaN"),
    ],
)
def test_nan_in_the_data_is_no_fault_of_the_rate(tiny, tmp_path, split, words):
    data = tiny.dataset()
    getattr(data, split).inputs[:] = float("nan")
    with pytest.raises(ConvergenceError, match=words):
        tiny.run(tmp_path, Training(epochs=1, batch_size=10), data=data)
    assert not (tmp_path / "best-weights.pt").exists()
