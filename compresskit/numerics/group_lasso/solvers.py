"""The solvers that a recipe can name."""

from compresskit.numerics.group_lasso.newton import Newton

Solver = Newton

SOLVERS: dict[str, type[Newton]] = {"newton": Newton}
