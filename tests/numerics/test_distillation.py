"""The terms of distillation against loops in numpy, and their laws."""

import numpy as np
import pytest
import torch

from compresskit.numerics.distillation import EPS, hint, probabilistic_transfer, soft_targets


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets(temperature):
    student, teacher = draw(0, 5, 3), draw(1, 5, 3)
    terms = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        terms.append(temperature**2 * sum(p[c] * np.log(p[c] / q[c]) for c in range(3)))
    assert float(soft_targets(student, teacher, temperature)) == pytest.approx(np.mean(terms), abs=1e-13)


def test_soft_targets_of_maps_are_the_mean_over_positions():
    student, teacher = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 4, 5)
    flat = [scores.movedim(1, -1).reshape(-1, 3) for scores in (student, teacher)]
    torch.testing.assert_close(soft_targets(student, teacher, 2.0), soft_targets(*flat, 2.0))


def test_soft_targets_tend_to_the_square_of_centred_differences():
    """For T -> infinity: T^2 KL -> sum over classes of (difference of centred scores)^2 / (2 classes) (Hinton, 2.1)."""
    student, teacher = draw(0, 4, 6), draw(1, 4, 6)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = difference.square().sum(1).mean() / 12
    assert float(soft_targets(student, teacher, 1e4)) == pytest.approx(float(limit), rel=1e-3)  # the next order, 1/T


def test_hint_is_half_the_mean_square():
    one, other = draw(0, 2, 3, 4, 4), draw(1, 2, 3, 4, 4)
    assert float(hint(one, other)) == pytest.approx(float((one - other).square().sum() / (2 * 96)), abs=1e-14)


def slow_similarities(features):
    rows = features.flatten(1).numpy()
    k = [[(1 + a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / 2 for b in rows] for a in rows]
    n = len(rows)
    return [[0 if i == j else k[i][j] / sum(k[i][m] for m in range(n) if m != i) for j in range(n)] for i in range(n)]


def test_probabilistic_transfer():
    student, teacher = draw(0, 5, 3), draw(1, 5, 2, 4)
    p, q = slow_similarities(teacher), slow_similarities(student)
    expected = sum(
        p[i][j] * np.log((p[i][j] + EPS) / (q[i][j] + EPS)) for i in range(5) for j in range(5) if i != j
    ) / 5  # fmt: skip
    assert float(probabilistic_transfer(student, teacher)) == pytest.approx(expected, abs=1e-13)


def test_similarities_know_neither_scale_nor_rotation():
    features = draw(0, 6, 4)
    rotation = torch.linalg.qr(draw(1, 4, 4)).Q
    assert float(probabilistic_transfer(3 * features @ rotation, features)) == pytest.approx(0, abs=1e-13)
    assert float(probabilistic_transfer(draw(2, 6, 4), features)) > 1e-3


@pytest.mark.parametrize("term", [lambda s, t: soft_targets(s, t, 3.0), hint, probabilistic_transfer])
def test_terms_are_least_for_equals_and_pull_towards_the_teacher(term):
    teacher = draw(0, 6, 4)
    assert float(term(teacher.clone(), teacher)) == pytest.approx(0, abs=1e-14)
    student = draw(1, 6, 4).requires_grad_()
    before = term(student, teacher)
    (gradient,) = torch.autograd.grad(before, student)
    assert 0 < term(student - 1e-2 * gradient, teacher) < before


def test_one_sample_has_no_similarities():
    assert float(probabilistic_transfer(draw(0, 1, 3), draw(1, 1, 3))) == 0
