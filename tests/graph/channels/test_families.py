"""The law for every family of nets, and how much of them may go."""

import pytest
import torch
from torch import nn
from torchvision.models import swin_transformer

from compresskit.graph.channels.walk import find_channels
from compresskit.graph.trace import trace
from tests.graph.channels import families
from tests.graph.channels.law import check_law


def swin(block: type[nn.Module], merging: type[nn.Module]) -> nn.Module:
    """Torchvision's, whose attention in windows is one call with weights as arguments."""
    return swin_transformer.SwinTransformer(
        [2, 2], 8, [2, 1], [2, 4], [2, 2], num_classes=5, block=block, downsample_layer=merging
    )


IMAGES = {
    "vit": families.ViT,
    "vit by hand": lambda: families.ViT(by_hand=True),
    "vit of one head": lambda: families.ViT(heads=1),
    "vit with norms of query and key": lambda: families.ViT(qk_norm=True),
    "windows": families.Windows,
    "swin": lambda: swin(swin_transformer.SwinTransformerBlock, swin_transformer.PatchMerging),
    "swin v2": lambda: swin(swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2),
    "convnext": families.ConvNeXt,
    "groups": families.Grouped,
    "unet": families.UNet,
    "multihead": families.Multihead,
    "multihead, batch second, dropout": lambda: families.Multihead(batch_first=False, dropout=0.2),
    "mixer": families.Mixer,
    "llama": families.Llama,
    "shared": families.Shared,
}
SIZES = {"vit": 8, "windows": 8, "swin": 8, "unet": 8}


def image(name: str) -> torch.Tensor:
    size = SIZES.get(name.split()[0], 6)
    return torch.randn(2, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("heads", ["positions", "whole"])
@pytest.mark.parametrize("name", IMAGES)
def test_families(name, heads, seed):
    torch.manual_seed(seed)
    assert check_law(IMAGES[name](), image(name), seed, heads) > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("heads", ["positions", "whole"])
def test_a_net_that_reads_tokens(heads, seed):
    torch.manual_seed(seed)
    assert check_law(families.Gpt(), torch.randint(10, (2, 6)), seed, heads) > 0


@pytest.mark.parametrize("heads", ["positions", "whole"])
@pytest.mark.parametrize("name", IMAGES)
def test_what_may_go_may_go_together(name, heads):
    torch.manual_seed(0)
    assert check_law(IMAGES[name](), image(name), 0, heads, gone=0.95) > 5


TOKENS = {f"tokens.fc{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}
IN_HEADS = {"attention.q_norm.weight", "attention.q_norm.bias", "attention.k_norm.weight"}
BLOCKS = [f"features.{block}.attn" for block in ("1.0", "1.1", "3.0")]
WHOLE = {  # parameters of which nothing may be cut, next to the bias of the outputs
    ("windows", "positions"): {"table"},  # an entry for each head
    ("swin", "positions"): {f"{block}.relative_position_bias_table" for block in BLOCKS},
    ("swin v2", "positions"): {f"{block}.logit_scale" for block in BLOCKS},
    ("vit with norms of query and key", "whole"): IN_HEADS,
    ("mixer", "positions"): TOKENS,
    ("mixer", "whole"): TOKENS,
}


@pytest.mark.parametrize("heads", ["positions", "whole"])
@pytest.mark.parametrize("name", IMAGES)
def test_next_to_everything_may_go(name, heads):
    network = trace(IMAGES[name]().double().eval())
    channels = find_channels(network, tuple(image(name).shape[1:]), heads)
    free = {slot[0] for slot, atoms in channels.slots.items() if set(atoms.tolist()) - channels.frozen.keys()}
    whole = {parameter for parameter, _ in network.named_parameters()} - free
    assert whole == {"head.bias"} | WHOLE.get((name, heads), set())
