"""`channels: document` against Theorem 2 written out sample by sample, position by position, in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import UnsupportedModelError
from compresskit.graph.counting import count
from compresskit.graph.edit import reset_parameters
from compresskit.graph.trace import trace
from compresskit.numerics.least_squares.solvers import Cholesky
from compresskit.passes.fuse.fusible import find
from compresskit.passes.fuse.means import mean_maps
from compresskit.passes.fuse.network import fuse, measure, solve
from compresskit.passes.fuse.options import Fuse
from compresskit.passes.moments import gather_from
from compresskit.training.optimization.optimizers import parameter_groups

PLAIN = Cholesky(ridge=0.0)
PAIR = ("first", "second")


class Chain(nn.Module):
    """Two convolutions of 1-D maps with an activation and a pooling between, as section II-C has them."""

    def __init__(self, stride: int = 1, kernel: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.pool = nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)
        self.second = nn.Conv1d(3, 4, kernel, stride=stride, padding=kernel // 2)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.pool(self.act(self.first(x)))))


def images(length: int, count: int = 300) -> Tensor:
    """Whose mean and spread differ from position to position and from channel to channel."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 2, length, generator=generator, dtype=torch.float64)
    slope = torch.linspace(-1, 2, length, dtype=torch.float64)
    return noise * (1.5 + slope.abs()) + slope + torch.tensor([[0.5], [-1.0]], dtype=torch.float64)


def batches(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in x.split(70)]


def theorem_2(a0: np.ndarray, target: np.ndarray, kernel: int, stride: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(filters h^{m,p} (P, M, k) as a correlation has them, bias map (P, L2), C-MSE summed over p and averaged over
    positions) by (13) to (19): a0 (T, M, L0), target (T, P, L2), the output of the second layer before its activation.
    """
    samples, channels, length = a0.shape
    positions = range(0, length, stride)
    before, behind = kernel // 2, (kernel - 1) // 2
    centred = np.pad(a0 - a0.mean(0), ((0, 0), (0, 0), (before, behind)))
    means = np.pad(a0.mean(0), ((0, 0), (before, behind)))
    v = target - target.mean(0)
    filters = np.zeros((target.shape[1], channels, kernel))
    for m in range(channels):
        u, z = np.zeros((kernel, kernel)), np.zeros((target.shape[1], kernel))
        for t in range(samples):
            for place, i in enumerate(positions):
                window = centred[t, m, i : i + kernel]
                u += np.outer(window, window) / samples
                z += np.outer(v[t, :, place], window) / samples
        filters[:, m] = z @ np.linalg.inv(u)
    bias = target.mean(0).copy()
    error = 0.0
    for place, i in enumerate(positions):
        bias[:, place] -= np.einsum("pmk,mk->p", filters, means[:, i : i + kernel])
        left = v[:, :, place] - np.einsum("pmk,tmk->tp", filters, centred[:, :, i : i + kernel])
        error += (left**2).sum(1).mean() / len(positions)
    return filters, bias, error


@pytest.mark.parametrize(("stride", "kernel", "length"), [(1, 4, 12), (1, 3, 12), (2, 5, 16), (1, None, 10)])
def test_filters_bias_map_and_error_are_those_of_theorem_2(stride, kernel, length):
    net, x = trace(Chain(stride)), images(length)
    options = Fuse(layers=(PAIR,), channels="document", kernel=kernel, solver=PLAIN)
    fusible = find(net, PAIR, (2, length), kernel, "document")
    moments = gather_from(batches(x))(net, [fusible.request], None)[fusible.request.name]
    fusion = solve(fusible, moments, options, mean_maps(net, [fusible], batches(x))[fusible.request.name])
    taps = fusible.weight_shape[-1]
    with torch.no_grad():
        target = net.second(net.pool(net.act(net.first(x))))
    filters, bias, error = theorem_2(x.numpy(), target.numpy(), taps, 2 * stride)
    np.testing.assert_allclose(fusion.weight.reshape(fusible.weight_shape).numpy(), filters, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(fusion.bias.numpy(), bias, rtol=1e-8, atol=1e-10)
    assert fusion.error == pytest.approx(error, rel=1e-9)
    assert measure(net, fusible, fusion, batches(x))[0] == pytest.approx(error, rel=1e-9)


def test_the_fused_network_has_the_map_and_gives_what_the_theorem_says():
    net, x = Chain(), images(12)
    fused, (row,) = fuse(net, batches(x), [PAIR], channels="document", kernel=4, solver=PLAIN)
    with torch.no_grad():
        target = net.second(net.pool(net.act(net.first(x))))
        found = fused(x)
    filters, bias, _ = theorem_2(x.numpy(), target.numpy(), 4, 2)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 1)))
    expected = np.stack([np.einsum("pmk,tmk->tp", filters, padded[:, :, i : i + 4]) for i in range(0, 12, 2)], axis=-1)
    np.testing.assert_allclose(found.numpy(), np.maximum(expected + bias, 0), rtol=1e-8, atol=1e-10)
    assert dict(fused.named_parameters())["second_bias"].shape == (4, 6)
    before, after = count(trace(net), (2, 12)).parameters, count(fused, (2, 12)).parameters
    assert row.saved_params == before - after


def test_two_dimensions_and_uncorrelated_channels_are_as_good_as_a_joint_solution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1)).double().eval()
    x = torch.randn(200, 1, 7, 6, dtype=torch.float64)
    joint, document = (
        fuse(net, batches(x), [("0", "2")], channels=how, solver=PLAIN)[1][0] for how in ("joint", "document")
    )
    assert document.error < joint.error  # one channel: the same filters, and a bias for each position
    assert document.variance == pytest.approx(joint.variance)


def test_a_linear_layer_has_one_position():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double().eval()
    x = torch.randn(200, 6, dtype=torch.float64)
    rows = [fuse(net, batches(x), [("0", "2")], channels=how)[1][0] for how in ("joint", "document")]
    assert rows[0].error == rows[1].error


def test_chains_that_definition_1_does_not_fit_are_refused():
    net = trace(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 4, 3)))
    with pytest.raises(UnsupportedModelError, match=r"12 positions become 8, and 12 with Definition 1's padding"):
        find(net, ("0", "2"), (2, 12), None, "document")


def test_means_take_one_batch_at_least():
    net = trace(Chain())
    with pytest.raises(ValueError, match="no samples"):
        mean_maps(net, [find(net, PAIR, (2, 12), 4, "document")], [])


def chains() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv1d(3, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv1d(4, 5, 3, padding=1)).double().eval()


def test_a_map_goes_with_its_layer_when_that_is_fused_again():
    x = images(12)
    fused, rows = fuse(chains(), batches(x), [("0", "2"), ("2", "4")], channels="document", solver=PLAIN)
    assert [name for name, _ in fused.named_parameters()] == ["4_bias", "4.weight"]
    assert [node.op for node in fused.graph.nodes].count("get_attr") == 1
    count_of = count(trace(chains()), (2, 12)).parameters
    assert sum(row.saved_params for row in rows) == count_of - count(fused, (2, 12)).parameters


def test_a_random_baseline_has_a_map_of_zeros_and_no_decay_where_biases_have_none():
    fused, _ = fuse(chains(), batches(images(12)), [("0", "2")], channels="document", solver=PLAIN)
    groups = parameter_groups(fused, decay_bias_and_norm=False)
    spared = {id(p) for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    names = {name for name, parameter in fused.named_parameters() if id(parameter) in spared}
    assert names == {"2_bias", "4.bias"}
    assert fused.get_parameter("2_bias").abs().max() > 0
    assert reset_parameters(fused, 0) == []
    assert not fused.get_parameter("2_bias").any()
