"""Problems of the group lasso that its tests share, with the samples that a slow reference starts from."""

from dataclasses import dataclass

import numpy as np
import torch

from compresskit.numerics.group_lasso.problem import Part, Problem


@dataclass(frozen=True)
class Layer:
    """x: (samples, in). y: (samples, out). groups: (in,)."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray


def layer(count, groups, outputs, seed, dead=(), decades=1.0):
    """Correlated inputs whose spectrum spans `decades` powers of ten, and outputs that some of them explain."""
    random = np.random.default_rng(seed)
    inputs = len(groups)
    basis = np.linalg.qr(random.normal(size=(inputs, inputs)))[0]
    x = random.normal(size=(count, inputs)) * np.logspace(0, -decades / 2, inputs) @ basis
    x[:, list(dead)] = 0
    true = random.normal(size=(inputs, outputs)) * (random.random(inputs) < 0.6)[:, None]
    return Layer(x, x @ true + 0.2 * random.normal(size=(count, outputs)), np.asarray(groups))


def problem_of(layers, n_groups):
    parts, variance = [], 0.0
    for one in layers:
        x, y = torch.from_numpy(one.x), torch.from_numpy(one.y)
        parts.append(Part(x.T @ x / len(x), y.T @ x / len(x), torch.from_numpy(one.groups)))
        variance += float(y.square().sum() / len(x))
    return Problem(tuple(parts), variance, n_groups)


def objective(layers, weights, lam):
    """1/2 mean ||y - M x||^2 + lam sum of the norms, added up sample by sample and group by group."""
    fit = sum(
        0.5 * float(np.sum((y - weight @ x) ** 2)) / len(one.x)
        for one, weight in zip(layers, weights, strict=True)
        for x, y in zip(one.x, one.y, strict=True)
    )
    squares: dict[int, float] = {}
    for one, weight in zip(layers, weights, strict=True):
        for column, group in zip(weight.T, one.groups, strict=True):
            squares[int(group)] = squares.get(int(group), 0.0) + float(column @ column)
    return fit + lam * sum(square**0.5 for square in squares.values())


def with_copies(one):
    """Every input twice, each in a group of its own."""
    return Layer(np.hstack([one.x, one.x]), one.y, np.concatenate([one.groups, one.groups + 1 + one.groups.max()]))


LAYERS = {  # name: layers, groups
    "single inputs": ([layer(200, range(8), 3, 0)], 8),
    "groups of three": ([layer(200, np.arange(12) // 3, 4, 1)], 4),
    "unequal groups, out of order": ([layer(200, [3, 0, 1, 1, 2, 3, 0, 0, 4, 2], 3, 2)], 5),
    "several layers": (
        [layer(200, [0, 1, 2, 3], 5, 3), layer(150, [0, 0, 2, 2, 1, 3, 4], 2, 4), layer(90, [4, 3], 3, 5)],
        5,
    ),
    "dead inputs": ([layer(200, np.arange(10) // 2, 3, 6, dead=(1, 4, 5))], 5),
    "fewer samples than inputs": ([layer(6, range(10), 2, 7)], 10),
    "more outputs than inputs": ([layer(200, [0, 0, 1, 2], 9, 8)], 3),
    "a group without inputs": ([layer(200, [0, 1, 3, 3], 2, 9)], 4),
    "groups twice": ([with_copies(layer(200, [0, 0, 1, 2], 3, 11))], 6),
    "badly conditioned": ([layer(400, range(10), 3, 10, decades=3.0)], 10),
}
PROBLEMS = {name: problem_of(*entry) for name, entry in LAYERS.items()}
