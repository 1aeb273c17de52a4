"""Shapes of values against those of a real run."""

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

from compresskit.errors import UnsupportedModelError
from compresskit.graph.counting import count
from compresskit.graph.shapes import Tokens, example, node_shapes, tokens
from compresskit.graph.trace import trace


class Recorder(fx.Interpreter):
    def run_node(self, n):
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            shapes[n.name] = tuple(value.shape)
        return value


shapes: dict[str, tuple[int, ...]] = {}


def really(network: fx.GraphModule, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes.clear()
    with torch.no_grad():
        Recorder(network.eval()).run(torch.zeros(1, *shape))
    return dict(shapes)


LAYERS = [
    (nn.Conv2d(3, 5, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2)), (3, 17, 15)),
    (nn.Conv2d(4, 6, 5, padding="same", groups=2), (4, 9, 7)),
    (nn.Conv2d(3, 5, 3, padding="valid", padding_mode="reflect"), (3, 9, 7)),
    (nn.Conv1d(3, 5, 4, stride=3, padding=2), (3, 20)),
    (nn.Conv3d(2, 3, 3, stride=2, padding=1), (2, 5, 6, 7)),
    (nn.ConvTranspose2d(3, 5, 3, stride=2), (3, 5, 6)),
    (nn.Linear(7, 4), (3, 7)),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (5, 9, 8)),
    (nn.AvgPool3d(2), (2, 4, 5, 6)),
    (nn.AdaptiveAvgPool1d(3), (4, 10)),
    (nn.MaxPool2d(2), (6, 8)),  # without a batch: 1 x 6 x 8 is one image of six rows
    (nn.Upsample(scale_factor=2), (3, 4, 5)),
    (nn.ZeroPad2d((1, 2, 3, 4)), (3, 4, 5)),
    (nn.Sequential(nn.BatchNorm2d(3), nn.PReLU(), nn.Dropout(), nn.MaxPool2d(2), nn.ReLU(inplace=True)), (3, 8, 9)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: type(value).__name__)
def test_layers(layer, shape):
    network = fx.symbolic_trace(nn.Sequential(layer))
    assert node_shapes(network, shape) == really(network, shape)


class Pooled(nn.Module):
    """Calls that need values with memory of their own, behind layers whose shapes are known without them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.pad, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.MaxPool2d(2),
            nn.ZeroPad2d(1),
            nn.Linear(64, 5),
        )

    def forward(self, x):
        x = torch.relu_(self.pool(F.relu(self.conv(x), inplace=True)))
        x = F.relu(self.pool(self.pad(x)), inplace=True).mul_(2)
        return self.head(F.adaptive_avg_pool2d(x, 4).view(x.size(0), -1))


def test_values_behind_known_shapes_can_be_viewed_and_changed():
    network = trace(Pooled())
    assert node_shapes(network, (3, 18, 18)) == really(network, (3, 18, 18))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "densenet121", "mobilenet_v3_small", "vit_b_32"])
def test_networks(name):
    network = trace(torchvision.models.get_model(name, weights=None))
    assert node_shapes(network, (3, 224, 224)) == really(network, (3, 224, 224))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 5, 3), (4, 8, 8)),
        (nn.Conv2d(3, 5, 3), (3, 2, 8)),
        (nn.Linear(7, 4), (6,)),
        (nn.BatchNorm2d(3), (4, 8, 8)),
    ],
    ids=["channels", "size", "features", "norm"],
)
def test_what_does_not_fit_is_named_with_torchs_own_words(layer, shape):
    with pytest.raises((RuntimeError, ValueError)) as torchs:
        layer.eval()(torch.zeros(1, *shape))
    with pytest.raises(UnsupportedModelError, match=r"^0: it cannot run on what it reads, \(1, ") as found:
        node_shapes(fx.symbolic_trace(nn.Sequential(layer)), shape)
    assert str(torchs.value).splitlines()[0] in str(found.value)
    assert "\n" not in str(found.value)


def test_a_norm_without_an_extent_is_named():
    network = trace(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(3)))
    with pytest.raises(UnsupportedModelError, match=r"^1: it cannot run on what it reads, \(1, 3, 1, 1\) with"):
        node_shapes(network, (3, 8, 8))


class Looked(nn.Module):
    """Tokens that forward makes whole numbers of, if asked, looked up in one table or in two."""

    def __init__(self, whole: bool):
        super().__init__()
        self.whole, self.words, self.places = whole, nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.more, self.head = nn.Parameter(torch.randn(7, 6)), nn.Linear(6, 3)

    def forward(self, x):
        if self.whole:
            x = x.long()
        place = self.places(torch.arange(x.shape[1]))
        return self.head((self.words(x) + F.embedding(x, self.more) + place).mean(1))


@pytest.mark.parametrize("whole", [True, False])
def test_tokens_are_whole_numbers_that_all_tables_have(whole):
    network = trace(Looked(whole))
    assert tokens(network) == Tokens("embedding", 7, True, True)  # the trace sees to it; the smaller table is named
    batch = example(network, (5,), 40, torch.Generator().manual_seed(0))
    assert batch.dtype == torch.float32
    assert torch.equal(network(batch), network(batch.long()))
    assert sorted(batch.unique().tolist()) == list(range(7))
    assert network(batch).shape == (40, 3)
    assert node_shapes(network, (5,))["head"] == (1, 3)
    assert count(network, (5,)).macs == 18
    assert tokens(trace(nn.Linear(3, 2))) is None
    assert example(trace(nn.Linear(3, 2)), (3,), 2).tolist() == [[0.0] * 3] * 2
