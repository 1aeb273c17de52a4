"""Many lam of one problem, each solved from the last."""

from collections.abc import Sequence
from dataclasses import replace

from compresskit.numerics.group_lasso.problem import Problem, Solution, Weights, reduce
from compresskit.numerics.group_lasso.solvers import Solver


class Descent:
    """Solves one problem at one lam after another; from the largest down is quickest. It is reduced once."""

    def __init__(self, problem: Problem, solver: Solver) -> None:
        self._reduction = reduce(problem)
        self._solve = solver(self._reduction.problem)
        self._last: Weights | None = None

    def at(self, lam: float) -> Solution:
        """The solution at `lam` > 0, started from the one before."""
        if lam <= 0:
            raise ValueError(f"lam must be above 0, got {lam}")
        solution = self._solve(lam, self._last)
        self._last = solution.weights
        return replace(solution, weights=self._reduction.restore(solution.weights))


def path(problem: Problem, lams: Sequence[float], solver: Solver) -> list[Solution]:
    """Solutions in the order of `lams`, each the start of the next. Raises ValueError for a lam that is not above 0."""
    descent = Descent(problem, solver)
    return [descent.at(lam) for lam in lams]


def geometric(largest: float, smallest: float, count: int) -> list[float]:
    """`count` lams from `largest` down to `smallest`, each the same share of the last."""
    ratio = (smallest / largest) ** (1 / max(count - 1, 1))
    return [largest * ratio**index for index in range(count)]
