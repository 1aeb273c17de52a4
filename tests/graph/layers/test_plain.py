"""Values that are known without running a layer: as torch has them, and none where torch refuses."""

import warnings

import pytest
import torch
from torch import nn

from compresskit.graph import counting
from compresskit.graph.counting import count
from compresskit.graph.layers.plain import known_value
from compresskit.graph.trace import trace
from tests.graph.nets import INPUTS, Depthwise, Plain, Residual, make

SHAPES = [(1, 4), (2, 4), (1, 3), (1, 4, 9), (1, 4, 1), (1, 4, 9, 8), (2, 4, 2, 2), (1, 2, 9, 8), (1, 4, 5, 5, 5), (4,)]
LAYERS = [
    *(nn.Linear(4, 3), nn.Linear(8, 2, bias=False), nn.Flatten(), nn.Flatten(2), nn.ReLU(), nn.Dropout(), nn.GELU()),
    *(
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm3d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
    ),
    *(nn.Conv1d(4, 6, 3), nn.Conv1d(4, 6, 4, padding="same"), nn.Conv2d(4, 4, 3, 2, 1, groups=2), nn.Conv3d(4, 2, 2)),
    *(nn.Conv2d(4, 2, (3, 1), dilation=(2, 1)), nn.Conv2d(4, 2, 3, padding=4, padding_mode="reflect")),
    *(nn.Conv2d(4, 2, 3, padding=-1), nn.Conv2d(4, 2, 3, stride=0), nn.Conv2d(4, 2, 3, padding="valid")),
    *(nn.MaxPool1d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, dilation=2)),
    *(nn.MaxPool2d(2, padding=2), nn.MaxPool2d((2, 3)), nn.AvgPool2d(2), nn.AvgPool3d(2), nn.AvgPool1d(3, 1, 1)),
    *(nn.MaxPool2d(2, return_indices=True), nn.LayerNorm(4), nn.Softmax(1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_known_values_have_the_shape_and_type_of_what_torch_makes(dtype):
    known = 0
    for layer in LAYERS:
        for shape in SHAPES:
            x = torch.ones(shape, dtype=dtype)
            if isinstance(layer, nn.Flatten) and len(shape) <= layer.start_dim and dtype.is_floating_point:
                with pytest.raises(IndexError, match="Dimension out of range"):  # torch's own words
                    known_value(layer.eval(), (x,), {})
                continue
            value = known_value(layer.eval(), (x,), {})
            if value is not None:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch's, for padding "same" with an even kernel
                    made = layer(x)
                assert (value.shape, value.dtype) == (made.shape, made.dtype), (layer, shape)
                known += 1
    assert (known > 20) == dtype.is_floating_point


def test_what_is_in_training_or_given_otherwise_is_run():
    x = torch.ones(1, 4)
    assert known_value(nn.Linear(4, 3).train(), (x,), {}) is None
    assert known_value(nn.Linear(4, 3).eval(), (), {"input": x}) is None
    assert known_value(nn.ReLU().eval(), (3,), {}) is None


@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise])
def test_counts_are_those_of_torch_s_counter(kind, monkeypatch):
    network = trace(make(kind))
    found = count(network, INPUTS[kind])
    monkeypatch.setattr(counting, "known_value", lambda module, args, kwargs: None)
    expected = count(network, INPUTS[kind])
    assert (found.macs, found.layers) == (expected.macs, expected.layers)
    assert found.uses.keys() == expected.uses.keys()
    weights = network.state_dict()
    for name, uses in expected.uses.items():
        for own, use in zip(found.uses[name], uses, strict=True):
            assert own.macs == use.macs
            entries, counted = (one.of(weights[name]).flatten().sort().values for one in (own, use))
            torch.testing.assert_close(entries, counted, rtol=0, atol=0)
