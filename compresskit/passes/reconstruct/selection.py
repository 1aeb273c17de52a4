"""Which inputs a site keeps: along the group lasso's path or the order of elimination, by a rule."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from compresskit.numerics.group_lasso.path import Descent, geometric
from compresskit.numerics.group_lasso.problem import Problem, Solution, Weights, certify
from compresskit.numerics.selection.elimination import eliminate
from compresskit.numerics.selection.refit import refit
from compresskit.passes.reconstruct.options import Backward, GroupLasso, Selection
from compresskit.passes.shares import share

_BISECTIONS = 40  # halvings of the interval of log lambda: a count that no lambda gives is not found by more


@dataclass(frozen=True)
class Rule:
    """How much a site keeps: one of these. lam: the group lasso's. count: inputs. error: relative. None of them: all
    that is worth a look, for a target to choose from."""

    lam: float | None = None
    count: int | None = None
    error: float | None = None

    def __str__(self) -> str:
        if self.lam is not None:
            return f"lambda {self.lam:.4g}"
        return f"{self.count}" if self.count is not None else f"error {self.error:.3g}"


@dataclass(frozen=True)
class Curve:
    """The trade-off of one site, the most inputs first.

    errors: E||y - M x||^2 as a share of the variance, M refitted on the inputs kept. supports: (points, n_groups) bool.
    lams, gaps: of the group lasso's points, else empty.
    """

    kept: tuple[int, ...]
    errors: tuple[float, ...]
    supports: Tensor
    lams: tuple[float, ...] = ()
    gaps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choice:
    """kept: (n_groups,) bool. weights: the group lasso's own, shrunken; None where they must be fitted.

    held: it was kept at the least number of inputs, since the rule asked for fewer.
    """

    kept: Tensor
    curve: Curve
    weights: Weights | None = None
    lam: float | None = None
    gap: float | None = None
    n_iter: int = 0
    converged: bool = True
    held: bool = False


def rule_for(value: float | int | str, kind: str, n_groups: int) -> Rule:
    """The rule that a recipe's `lam`, `keep` or `error` means for a site of `n_groups` inputs; shares round up."""
    if kind == "lam":
        return Rule(lam=float(value))
    if kind == "error":
        return Rule(error=float(value))
    return Rule(count=min(ceil(share(value) * n_groups - 1e-9) if isinstance(value, str) else int(value), n_groups))


def choose(problem: Problem, rule: Rule, selection: Selection, least: int) -> Choice:
    """The inputs that `rule` keeps, never fewer than `least`, and the trade-off that was seen on the way there."""
    least = min(least, problem.n_groups)
    held = rule.count is not None and rule.count < least
    if held:
        rule = Rule(count=least)
    if isinstance(selection, Backward):
        return _by_elimination(problem, rule, least, held)
    return _by_group_lasso(problem, rule, selection, least, held)


def _by_elimination(problem: Problem, rule: Rule, least: int, held: bool) -> Choice:
    found = eliminate(problem)
    errors = (found.errors / max(problem.variance, 1e-300)).tolist()
    total = problem.n_groups
    kept = range(total, least - 1, -1)
    supports = torch.stack([found.kept(count) for count in kept])
    curve = Curve(tuple(kept), tuple(errors[: len(kept)]), supports)
    if rule.error is not None:
        index = max((i for i, error in enumerate(curve.errors) if error <= rule.error), default=0)
    else:
        index = 0 if rule.count is None else total - rule.count
    return Choice(curve.supports[index], curve, held=held or (rule.error is not None and errors[-1] <= rule.error))


def _by_group_lasso(problem: Problem, rule: Rule, selection: GroupLasso, least: int, held: bool) -> Choice:
    found = _descend(problem, rule, selection)
    counts = [int(_support(problem, solution).sum()) for solution in found]
    wanted = rule.count or least
    if rule.lam is not None:
        index = len(found) - 1
    elif rule.count is not None:
        index = max((i for i, count in enumerate(counts) if count <= wanted), key=counts.__getitem__, default=0)
    else:
        reached = [i for i in range(len(found)) if _reaches(problem, rule, found[i])]
        index = min(reached, key=counts.__getitem__, default=len(found) - 1)
    chosen = found[index]
    short = counts[index] < max(wanted, least)
    kept = _filled(problem, chosen, max(wanted, least)) if short else _support(problem, chosen)
    weights = None if short else chosen.weights
    held = held or counts[index] < least
    curve = _curve(problem, found, least)
    return Choice(kept, curve, weights, chosen.lam, chosen.gap, chosen.n_iter, chosen.converged, held)


def _descend(problem: Problem, rule: Rule, selection: GroupLasso) -> list[Solution]:
    """The path from lam_max down to where the rule is reached, then nearer and nearer to where that happens.

    Where nothing can be explained (no input varies, or no output does) the path is the one point at which it starts.
    """
    if problem.lam_max == 0 or problem.variance == 0:
        return [Solution(problem.zeros(), rule.lam or 0.0, problem.variance / 2, 0.0, 0, True)]
    descent, largest = Descent(problem, selection.solver), problem.lam_max
    last = selection.smallest * largest if rule.lam is None else rule.lam
    lams = geometric(largest, last, selection.points)[1:] if last < largest else [last]
    found: list[Solution] = []
    for lam in lams:
        found.append(descent.at(lam))
        if _reaches(problem, rule, found[-1]):
            break
    if rule.lam is not None or not _reaches(problem, rule, found[-1]):
        return found
    high, low = found[-2].lam if len(found) > 1 else largest, found[-1].lam
    for _ in range(_BISECTIONS):
        if rule.count is not None and any(int(_support(problem, solution).sum()) == rule.count for solution in found):
            break
        found.append(descent.at((high * low) ** 0.5))
        high, low = (high, found[-1].lam) if _reaches(problem, rule, found[-1]) else (found[-1].lam, low)
    return found


def _reaches(problem: Problem, rule: Rule, solution: Solution) -> bool:
    """Whether a point of the path, which keeps ever more, is as far down as the rule asks for."""
    kept = _support(problem, solution)
    if rule.count is not None:
        return int(kept.sum()) >= rule.count
    return rule.error is not None and relative_error(problem, kept) <= rule.error


def _support(problem: Problem, solution: Solution) -> Tensor:
    return problem.norms(solution.weights) > 0


def _filled(problem: Problem, solution: Solution, count: int) -> Tensor:
    """The groups that `solution` keeps and, up to `count`, those that would come next: of the largest residual."""
    residual = certify(problem, solution.weights, solution.lam).residual_norms
    kept = _support(problem, solution)
    order = torch.where(kept, torch.inf, residual).argsort(descending=True)
    kept[order[:count]] = True
    return kept


def relative_error(problem: Problem, kept: Tensor) -> float:
    """E||y - M x||^2 of least squares on the groups kept, as a share of the variance."""
    explained = sum(float((refit(part, kept)[0] * part.cyx).sum()) for part in problem.parts)
    return max(problem.variance - explained, 0.0) / max(problem.variance, 1e-300)


def _curve(problem: Problem, found: list[Solution], least: int) -> Curve:
    """The best point of each number of inputs; where none keeps enough, the last one filled up."""
    best: dict[int, tuple[float, Solution]] = {}
    for solution in found:
        kept = _support(problem, solution)
        error = relative_error(problem, kept)
        count = int(kept.sum())
        if count >= least and (count not in best or error < best[count][0]):
            best[count] = (error, solution)
    points = sorted(best.items(), reverse=True)
    supports = [_support(problem, s) for _, (_, s) in points]
    if not points:
        supports = [_filled(problem, found[-1], least)]
        points = [(least, (relative_error(problem, supports[0]), found[-1]))]
    return Curve(
        tuple(count for count, _ in points),
        tuple(error for _, (error, _) in points),
        torch.stack(supports),
        tuple(s.lam for _, (_, s) in points),
        tuple(s.gap for _, (_, s) in points),
    )
