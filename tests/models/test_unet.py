import pytest
import torch
from torch import nn

from compresskit.errors import RecipeError
from compresskit.graph.counting import count
from compresskit.graph.trace import trace
from compresskit.models.scenes.unet import UNet


def convolutions(channels, outputs, width, depth):
    """Weights of the paper's net: pairs of 3x3, 2x2 transposed, 1x1; and the numbers of biases in each kind."""
    widths = [width * 2**level for level in range(depth + 1)]
    pairs = list(zip([channels, *widths], widths, strict=False)) + [(2 * w, w) for w in widths[:-1]]
    threes = sum(9 * (a * b + b * b) for a, b in pairs)
    grown = sum(4 * 2 * w * w + w for w in widths[:-1])
    return threes, grown + width * outputs + outputs, 2 * sum(b for _, b in pairs)


@pytest.mark.parametrize(("channels", "outputs", "width", "depth"), [(1, 2, 64, 4), (3, 21, 8, 2), (2, 3, 4, 1)])
def test_unet_is_the_papers(channels, outputs, width, depth):
    threes, others, biases = convolutions(channels, outputs, width, depth)
    net = UNet(width=width, depth=depth, batch_norm=False).build((channels, 32, 64), outputs)
    assert sum(p.numel() for p in net.parameters()) == threes + others + biases
    assert net(torch.zeros(2, channels, 32, 64)).shape == (2, outputs, 32, 64)
    if (channels, outputs, width, depth) == (1, 2, 64, 4):
        assert threes + others + biases == 31_030_658  # 31.0 million, as the paper's net is usually given
        assert sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in net.modules()) == 23  # the paper's


def test_names_follow_the_levels():
    net = UNet(width=4, depth=2).build((3, 16, 16), 5)
    assert {name for name, _ in net.named_children()} == {
        *("down1", "down2", "pool", "bottom", "grow1", "grow2", "up1", "up2", "head")
    }
    assert [name for name, _ in net.up1.named_children()] == ["conv1", "norm1", "act1", "conv2", "norm2", "act2"]
    assert net.bottom.conv2.weight.shape == (16, 16, 3, 3)
    assert net.up1.conv1.weight.shape == (4, 8, 3, 3)


def test_the_fine_maps_reach_the_output():
    """Without what is kept of full size, a pixel could not change the scores of its neighbours alone."""
    torch.manual_seed(0)
    net = UNet(width=4, depth=3).build((1, 32, 32), 2).double().eval()
    for level in (1, 2, 3):
        nn.init.zeros_(getattr(net, f"grow{level}").weight)
    inputs = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    before = net(inputs)
    inputs[0, 0, 16, 16] = 1
    changed = (net(inputs) - before).abs().amax((0, 1)) > 0
    rows, columns = changed.nonzero().T
    assert 0 < len(rows)
    assert max(abs(int(p) - 16) for p in (*rows, *columns)) <= 4  # four 3x3 convolutions see no further


def test_a_trace_computes_and_counts_the_same():
    torch.manual_seed(0)
    net = UNet(width=4, depth=2).build((3, 16, 24), 5).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    inputs = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    traced = trace(net)
    assert torch.equal(traced.eval()(inputs), net.eval()(inputs))
    macs = {layer.name: layer.macs for layer in count(traced, (3, 16, 24)).layers}
    assert macs["down1.conv1"] == 9 * 3 * 4 * 16 * 24
    assert macs["grow1"] == 4 * 8 * 4 * 8 * 12
    assert macs["head"] == 4 * 5 * 16 * 24


@pytest.mark.parametrize("shape", [(3, 24, 32), (3, 32, 24), (48,)])
def test_sizes_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(RecipeError, match=r"unet of depth 4 takes images .* multiples of 16, .*; change data\.size"):
        UNet().build(shape, 2)
