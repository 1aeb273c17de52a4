"""The second-order term of a network's divergence from itself, against autograd's Hessians and finite differences."""

import itertools
from functools import partial

import pytest
import torch
from torch.nn import functional

from compresskit.numerics.distillation import soft_targets
from compresskit.numerics.moments.moments import MomentSums
from compresskit.numerics.pruning.fisher import in_units_of_loss, root_of_classes, root_of_squares

ROOTS = {
    "classes": (root_of_classes, partial(soft_targets, temperature=1.0), (4,)),
    "pixels": (root_of_classes, partial(soft_targets, temperature=1.0), (2, 2)),
    "squares": (root_of_squares, functional.mse_loss, (4,)),
    "maps of squares": (root_of_squares, functional.mse_loss, (2, 2)),
}


@pytest.mark.parametrize("name", ROOTS)
def test_roots_square_to_the_hessian_of_the_divergence(name):
    """The mean of R e e^T R^T over all signs e, against autograd's second derivative at the network's own outputs."""
    root, divergence, shape = ROOTS[name]
    own = 2 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = own.numel()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64)
    found = torch.stack([root(own, e.view_as(own)).flatten() for e in signs])
    expected = torch.autograd.functional.hessian(lambda f: divergence(f.view_as(own), own), own.flatten())
    torch.testing.assert_close(found.T @ found / len(signs), expected)
    together = root(own.expand(len(signs), *shape), signs.view(-1, *shape))
    torch.testing.assert_close(together.flatten(1), found)


@pytest.mark.parametrize("name", ["classes", "pixels"])
def test_signs_have_the_mean_square_of_drawn_classes(name):
    """Fisher's matrix: of the gradients of -log p_c, c drawn from p, here each with its probability."""
    root, _, shape = ROOTS[name]
    own = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    size = own.numel()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64)
    found = torch.stack([root(own, e.view_as(own)).flatten() for e in signs])
    p, expected = own.softmax(1), torch.zeros(size, size, dtype=torch.float64)
    places = shape[1] if len(shape) > 1 else 1
    for drawn in itertools.product(range(shape[0]), repeat=places):
        chance, target = 1.0, torch.tensor(drawn).view(1, *shape[1:])
        for place, c in enumerate(drawn):
            chance *= float(p[0, c, place] if len(shape) > 1 else p[0, c])
        scores = own.clone().requires_grad_()
        (g,) = torch.autograd.grad(functional.cross_entropy(scores, target, reduction="sum") / places**0.5, scores)
        expected += chance * g.flatten()[:, None] * g.flatten()
    torch.testing.assert_close(found.T @ found / len(signs), expected)


def test_errors_count_by_the_curvature():
    """E e^T C e / 2 of any new weights, on samples in the place of moments."""
    torch.manual_seed(0)
    x = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    weight, bias = torch.randn(2, 2, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    y = torch.cat([x[:, :3] @ weight[0].T, x[:, 3:] @ weight[1].T], 1) + bias
    half = torch.randn(2, 2, 2, dtype=torch.float64)
    curvature = half @ half.mT
    for group in range(2):
        sums = MomentSums.zeros(3, 2)
        sums.add(x[:, 3 * group : 3 * group + 3], y[:, 2 * group : 2 * group + 2])
        found = in_units_of_loss(sums.finish(), weight[group : group + 1], curvature[group : group + 1])
        own = x[:, 3 * group : 3 * group + 3]
        for new in (torch.zeros(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)):
            errors = (own - own.mean(0)) @ (weight[group] - new).T
            expected = (errors @ curvature[group] * errors).sum(1).mean() / 2
            values, vectors = torch.linalg.eigh(curvature[group] / 2)
            turned = (vectors * values.sqrt()).T @ new
            lost = found.cyy.sum() - 2 * (turned * found.cyx[0]).sum() + (turned @ found.cxx[0] * turned).sum()
            assert float(lost) == pytest.approx(float(expected), rel=1e-9)
