import pytest
import torch
from torch import nn

from compresskit.errors import RecipeError
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.models.scenes.yolo_lite import YoloLite


def test_yolo_lite_is_the_papers():
    """482 million FLOPs, two to a multiply-accumulate, for 20 classes and 5 anchors at 224 x 224."""
    net = YoloLite().build((3, 224, 224), 125)
    counts = count(trace(net), (3, 224, 224))
    assert 2 * counts.macs == pytest.approx(482e6, rel=0.01)  # the paper gives three digits
    widths = [16, 32, 64, 128, 128, 256]
    weights = sum(9 * a * b for a, b in zip([3, *widths], widths, strict=False)) + 256 * 125
    assert counts.parameters == weights + sum(widths) + 125
    layers = [name for name, layer in net.named_children() if isinstance(layer, nn.Conv2d)]
    assert layers == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "head"]
    assert net(torch.zeros(2, 3, 224, 224)).shape == (2, 125, 7, 7)
    assert net.act6.negative_slope == 0.1


def test_batch_norm_takes_the_place_of_biases():
    net = YoloLite(batch_norm=True).build((3, 64, 96), 12)
    names = [name for name, _ in net.named_children()]
    assert names[:4] == ["conv1", "norm1", "act1", "pool1"]
    assert names[-4:] == ["conv6", "norm6", "act6", "head"]
    assert net.conv6.bias is None
    assert net.head.bias is not None
    assert net(torch.zeros(2, 3, 64, 96)).shape == (2, 12, 2, 3)


@pytest.mark.parametrize("shape", [(3, 31, 64), (40,)])
def test_images_must_hold_a_cell(shape):
    with pytest.raises(RecipeError, match=r"yolo-lite takes images of 32 x 32 or more, the data's have shape"):
        YoloLite().build(shape, 75)
