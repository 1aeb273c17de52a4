"""The law for every family of nets, and how much of them may go."""

import pytest
import torch

from compresskit.graph.channels.walk import find_channels
from compresskit.graph.trace import trace
from tests.graph.channels import families
from tests.graph.channels.law import check_law

IMAGES = {
    "vit": families.ViT,
    "vit by hand": lambda: families.ViT(by_hand=True),
    "vit of one head": lambda: families.ViT(heads=1),
    "vit with norms of query and key": lambda: families.ViT(qk_norm=True),
    "windows": families.Windows,
    "convnext": families.ConvNeXt,
    "groups": families.Grouped,
    "unet": families.UNet,
    "multihead": families.Multihead,
    "multihead, batch second, dropout": lambda: families.Multihead(batch_first=False, dropout=0.2),
    "mixer": families.Mixer,
    "llama": families.Llama,
}
SIZES = {"vit": 8, "windows": 8, "unet": 8}


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
WHOLE = {  # parameters of which nothing may be cut, next to the bias of the outputs
    ("windows", "positions"): {"table"},  # an entry for each head
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
