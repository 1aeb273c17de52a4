"""Beside several GPUs, of which a run uses one: the others are not waited for, and random numbers stay as they were."""

from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
import torch
from torch import fx, nn

from compresskit.graph.edit import reset_parameters
from compresskit.graph.trace import trace
from compresskit.passes.expand.network import expand
from compresskit.passes.expand.options import Expand
from compresskit.training.distillation import Distiller, Hint
from tests.pretended_gpu import pretended_gpu
from tests.pretended_tensor import GPU


def net(width: int = 4) -> fx.GraphModule:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3)
        return trace(nn.Sequential(*layers), (1, 8, 8))


def reset(network: fx.GraphModule) -> nn.Module:
    reset_parameters(network, 7)
    return network


def distilled(network: fx.GraphModule) -> nn.Module:
    return Distiller(network, net(6), Hint(layers=(("0", "0"),)), (1, 8, 8), 7).regressors


DRAWN: dict[str, Callable[[fx.GraphModule], nn.Module]] = {
    "layers": reset,
    "factors": lambda network: expand(network, Expand(), seed=7).network,
    "regressors": distilled,
}


@pytest.fixture
def asked() -> Iterator[list[torch.device]]:
    """Of two GPUs those whose random state is asked for; torch warns anew where nobody has chosen among them."""
    found: list[torch.device] = []

    def state(device: torch.device) -> torch.Tensor:
        found.append(device)
        return torch.get_rng_state()

    with (
        pretended_gpu(),
        patch.multiple(torch.cuda, device_count=lambda: 2, get_rng_state=state),
        patch.object(torch.random, "_fork_rng_warned_already", False),
    ):
        yield found


@pytest.mark.parametrize("what", DRAWN)
def test_a_network_of_the_cpu_asks_no_gpu(asked, what):
    network = net()
    before = torch.get_rng_state()
    with patch.object(torch.cuda, "manual_seed_all") as seeded:
        made = DRAWN[what](network)
    assert asked == []
    seeded.assert_not_called()
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(parameter.numel() for parameter in made.parameters()) > 0


@pytest.mark.parametrize("what", DRAWN)
def test_a_network_on_a_gpu_asks_that_alone(asked, what):
    expected = [value.clone() for value in DRAWN[what](net()).state_dict().values()]
    network = net().to(GPU)
    before = torch.get_rng_state()
    found = [value.cpu() for value in DRAWN[what](network).state_dict().values()]
    assert asked == ([] if what == "regressors" else [GPU])  # which are made on the CPU
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
