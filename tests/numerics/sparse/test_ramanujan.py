"""Masks of regular graphs: the document's construction written out, eigenvalues, reach, and what is refused."""

from math import sqrt

import numpy as np
import pytest
import torch

from compresskit.numerics.orthogonal.matrices import orthogonal
from compresskit.numerics.sparse.ramanujan import blocks, divisors, expansion, graph, nearest, of_degree, of_density

SIDES = [(8, 8, 4), (4, 8, 2), (8, 4, 2), (6, 12, 3), (12, 6, 6), (256, 256, 64), (5, 5, 1)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def document(outputs, inputs, number):
    """Section IV-A: copies of M_1, one below the other, or side by side where outputs are no fewer."""
    longer, shorter = max(outputs, inputs), min(outputs, inputs)
    first = np.kron(np.eye(number), np.ones((1, longer // number)))
    mask = np.concatenate([first] * (shorter // number))
    return mask if outputs < inputs else mask.T


@pytest.mark.parametrize(("outputs", "inputs", "number"), SIDES)
def test_shuffle_is_the_documents_construction(outputs, inputs, number, generator):
    mask = blocks(outputs, inputs, number, "shuffle", generator).mask()
    np.testing.assert_array_equal(mask, document(outputs, inputs, number))


@pytest.mark.parametrize("arrangement", ["shuffle", "random"])
@pytest.mark.parametrize(("outputs", "inputs", "number"), SIDES)
def test_masks_are_regular(arrangement, outputs, inputs, number, generator):
    where = blocks(outputs, inputs, number, arrangement, generator)
    c, d = where.degrees
    mask = where.mask()
    assert where.shape == mask.shape == (outputs, inputs)
    assert (c, d) == (outputs // number, inputs // number)
    assert mask.sum(0).tolist() == [c] * inputs
    assert mask.sum(1).tolist() == [d] * outputs


@pytest.mark.parametrize("arrangement", ["shuffle", "random"])
@pytest.mark.parametrize(("outputs", "inputs", "number"), SIDES)
def test_eigenvalues_are_those_of_the_adjacency_matrix(arrangement, outputs, inputs, number, generator):
    mask = blocks(outputs, inputs, number, arrangement, generator).mask().double().numpy()
    found = expansion(torch.from_numpy(mask).bool())
    adjacency = np.block([[np.zeros((outputs,) * 2), mask], [mask.T, np.zeros((inputs,) * 2)]])
    values = np.sort(np.linalg.eigvalsh(adjacency))[::-1]
    c, d = outputs // number, inputs // number
    assert found.first == pytest.approx(values[0], abs=1e-9) == sqrt(c * d)
    assert found.components == number
    np.testing.assert_allclose(values[:number], sqrt(c * d), atol=1e-9)
    assert found.second == pytest.approx(values[number], abs=1e-9) == 0
    assert found.bound == sqrt(c - 1) + sqrt(d - 1)
    assert found.is_ramanujan


def test_eigenvalues_of_other_graphs():
    cycle = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()  # a ring of six nodes: 2, 1, 1, -1, -1, -2
    found = expansion(cycle)
    assert (found.first, found.components) == (pytest.approx(2), 1)
    assert found.second == pytest.approx(1)
    assert found.is_ramanujan  # 1 <= 2 sqrt(2 - 1)
    with pytest.raises(ValueError, match="not regular"):
        expansion(torch.tensor([[1, 0], [1, 1]]).bool())


def test_a_graph_that_is_not_ramanujan():
    """Sixty outputs round a ring, each with five inputs in a row: a long way round, so its gap is small."""
    rows = torch.arange(60)[:, None]
    mask = torch.zeros(60, 60, dtype=torch.bool).scatter(1, (rows + torch.arange(5)) % 60, True)
    found = expansion(mask)
    assert found.second > found.bound
    assert not found.is_ramanujan


@pytest.mark.parametrize("arrangement", ["shuffle", "random"])
@pytest.mark.parametrize(("outputs", "inputs", "number"), SIDES)
def test_orthogonal_blocks_make_an_orthogonal_matrix(arrangement, outputs, inputs, number, generator):
    where = blocks(outputs, inputs, number, arrangement, generator)
    matrix = where.filled(orthogonal(*where.degrees, generator, batch=number))
    assert (torch.linalg.svdvals(matrix) - 1).abs().max() < 1e-12
    assert (matrix != 0).equal(where.mask())


def test_doubled_blocks_are_the_same_in_each_quarter(generator):
    where = blocks(4, 6, 2, "shuffle", generator)
    mask = where.mask()
    assert where.doubled(columns=True).mask().equal(torch.cat([torch.cat([mask, mask], 1)] * 2))
    assert where.doubled(columns=True).degrees == (4, 6)
    assert where.doubled(columns=False).mask().equal(torch.cat([mask, mask]))
    assert where.doubled(columns=False).degrees == (4, 3)


@pytest.mark.parametrize(("width", "degree"), [(256, 4), (96, 4), (60, 2), (60, 10), (100, 5), (7, 7)])
def test_shuffled_layers_connect_all_in_the_fewest_layers(width, degree, generator):
    """An input can reach d^L outputs at most through L layers; all are reached as soon as that is enough."""
    mask = blocks(width, width, width // degree, "shuffle", generator).mask().long()
    reached, layers = mask, 1
    while degree**layers < width:
        assert (reached == 0).any()
        reached, layers = (mask @ reached).clamp(max=1), layers + 1
    assert (reached > 0).all()


@pytest.mark.parametrize(
    ("sides", "degree", "number"),
    [((256, 256), 4, 64), ((512, 1024), 4, 256), ((1024, 512), 4, 256), ((8, 8), 8, 1), ((4, 6), 3, 2), ((6, 4), 3, 2)],
)
def test_number_of_blocks_by_degree(sides, degree, number):
    assert of_degree(*sides, degree) == number


def test_degrees_that_do_not_fit():
    with pytest.raises(ValueError, match=r"degree 3 does not divide 8, the longer side; possible are 2, 4, 8$"):
        of_degree(4, 8, 3)
    text = r"with degree 4 a node of the longer side, 256, would have 10 / 64 neighbours, .* possible are 128, 256$"
    with pytest.raises(ValueError, match=text):
        of_degree(10, 256, 4)
    with pytest.raises(ValueError, match="does not divide"):
        of_degree(8, 8, 16)


def test_number_of_blocks_by_density():
    assert of_density(256, 256, 1 - 0.984375) == 64
    assert of_density(6, 9, 1 / 3) == 3
    assert of_density(8, 8, 1.0) == 1
    text = r"density of 0.016 \(sparsity 0.984\) cannot be had; the nearest are 0.015625 \(sparsity 0.984375\), 0.0"
    with pytest.raises(ValueError, match=text):
        of_density(256, 256, 0.016)
    with pytest.raises(ValueError, match="cannot be had"):
        of_density(10, 256, 0.25)
    with pytest.raises(ValueError, match="cannot be had"):
        of_density(256, 256, 1e-9)


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize("density", [1.0, 0.7, 0.5, 0.3, 0.25, 0.2, 0.1, 1 / 64, 1e-4])
@pytest.mark.parametrize(("outputs", "inputs"), [(300, 784), (100, 300), (256, 256), (12, 18), (7, 9), (1, 5)])
def test_nearest_is_the_nearest_of_all_numbers_of_blocks(outputs, inputs, density):
    """Tried one by one, in integers and hundredths of a millionth."""
    possible = [g for g in range(1, min(outputs, inputs) + 1) if outputs % g == 0 and inputs % g == 0]
    found = nearest(outputs, inputs, density)
    best = min(abs(1 / g - density) for g in possible)
    assert found == max(g for g in possible if abs(1 / g - density) < best + 1e-8)


def test_nearest_takes_the_sparser_of_two():
    assert nearest(10, 10, 1 - 0.85) == 10  # 15 % lie between 10 % and 20 %, and 1 - 0.85 a little above
    assert nearest(4, 4, 0.375) == 4


@pytest.mark.parametrize("sides", [(6, 6), (4, 9), (9, 4), (1, 5)])
def test_graphs_of_any_mask(sides):
    """Eigenvalues of the whole adjacency matrix; means for degrees; the second one of all that differ."""
    mask = torch.rand(sides, generator=torch.Generator().manual_seed(1)) < 0.5
    found, dense = graph(mask), mask.double().numpy()
    m, n = sides
    adjacency = np.block([[np.zeros((m, m)), dense], [dense.T, np.zeros((n, n))]])
    values = np.sort(np.linalg.eigvalsh(adjacency))[::-1]
    np.testing.assert_allclose(found.eigenvalues.numpy(), values, atol=1e-12)
    c, d = dense.sum() / n, dense.sum() / m
    assert found.degrees == pytest.approx((c, d))
    assert found.kept == pytest.approx(dense.mean())
    assert not found.regular
    one = found.expansion
    assert (one.first, one.second) == pytest.approx((values[0], max(v for v in values if v < values[0] - 1e-9)))
    assert one.components == 1
    assert one.bound == pytest.approx(sqrt(max(c - 1, 0)) + sqrt(max(d - 1, 0)))


def test_a_ring_is_no_ramanujan_graph_for_long():
    """2-regular: of n + n nodes in one ring the eigenvalues are 2 cos(pi k / n), the bound is 2."""
    mask = torch.eye(9, dtype=torch.bool) | torch.eye(9, dtype=torch.bool).roll(1, 1)
    found = graph(mask)
    rings = sorted((2 * np.cos(np.pi * k / 9) for k in range(18)), reverse=True)
    np.testing.assert_allclose(found.eigenvalues.numpy(), rings, atol=1e-12)
    assert found.regular
    assert found.expansion.is_ramanujan
    joined = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()
    joined[0, 0], joined[4, 4], joined[0, 4], joined[4, 0] = False, False, True, True  # two blocks, barely connected
    assert graph(joined).regular
    assert not graph(joined).expansion.is_ramanujan
