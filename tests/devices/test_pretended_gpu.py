"""The pretended GPU refuses what a real one refuses, does what it does, and counts."""

import copy

import pytest
import torch
from torch import nn

from tests.pretended_gpu import pretended_gpu
from tests.pretended_tensor import GPU, OnGpu


@pytest.fixture
def transfers():
    with pretended_gpu() as counted:
        yield counted


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: here.add_(there[0]),  # a tensor of the CPU is not written by the GPU
        lambda here, there: torch.nn.functional.linear(there, here[:, None]),
        lambda here, there: torch.stack([here, there]),
        lambda here, there: there.index_select(0, torch.tensor([0])),
    ],
)
def test_devices_do_not_mix(transfers, mixed):
    with pytest.raises(RuntimeError, match="same device"):
        mixed(torch.ones(3), torch.ones(3, device="cuda"))


def test_numbers_and_indices_mix(transfers):
    there = torch.arange(3.0, device="cuda")
    assert (there + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0]
    assert there[torch.tensor([2, 0])].tolist() == [2.0, 0.0]


def test_numpy_and_generators_are_of_the_cpu(transfers):
    with pytest.raises(TypeError, match="to numpy"):
        torch.ones(1, device="cuda").numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(1, device="cuda", generator=torch.Generator())


def test_it_is_gone_afterwards():
    before = torch.cuda.is_available()
    with pretended_gpu():
        assert torch.cuda.is_available()
    assert torch.cuda.is_available() == before
    assert not torch.__future__.get_overwrite_module_params_on_conversion()


def test_networks_move_learn_and_come_back(transfers):
    torch.manual_seed(0)
    here = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(3))
    inputs = torch.randn(4, 1, 5, 5)
    here(inputs)
    there = copy.deepcopy(here).to("cuda")
    assert {parameter.device for parameter in there.parameters()} == {GPU}
    for network, given in ((here, inputs), (there, inputs.to(GPU))):
        network(given).square().sum().backward()
        torch.optim.SGD(network.parameters(), 0.1).step()
    copied = copy.deepcopy(there)
    assert all(type(p) is OnGpu and p.requires_grad for p in copied.parameters())
    for name, tensor in copied.cpu().state_dict().items():
        assert type(tensor) is not OnGpu
        torch.testing.assert_close(tensor, here.state_dict()[name])


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.equal(x),
        lambda x: x[x[0].long()],  # an index of no dimension becomes a number first
        lambda x: torch.zeros(3).copy_(x),
    ],
)
def test_what_the_host_waits_for_is_counted(transfers, reads):
    x = torch.ones(3, device="cuda")
    reads(x)
    assert transfers.to_host.total() == 1
    assert not transfers.to_device


@pytest.mark.parametrize(
    "sends",
    [
        lambda x: torch.ones(3).to("cuda"),
        lambda x: torch.ones(3).cuda(),
        lambda x: torch.ones(3).to(x),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x[torch.tensor([0])],
    ],
)
def test_what_goes_to_the_device_is_counted(transfers, sends):
    sends(torch.zeros(3, device="cuda"))
    assert transfers.to_device.total() == 1
    assert not transfers.to_host


def test_what_stays_on_the_device_is_free(transfers):
    x = torch.zeros(3, device="cuda")
    x.to("cuda", torch.float64).add_(1.0)
    x[x == 0] = 2.0
    x[1] = torch.tensor(3.0)
    torch.where(x > 0, x, 0.0).masked_fill_(x > 1, 1.0)
    assert not transfers.to_device
    assert not transfers.to_host
