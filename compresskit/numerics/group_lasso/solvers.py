"""The solvers that a recipe can name."""

from compresskit.numerics.group_lasso.admm import Admm
from compresskit.numerics.group_lasso.alternating import Alternating
from compresskit.numerics.group_lasso.fista import Fista
from compresskit.numerics.group_lasso.newton import Newton

Solver = Newton | Admm | Fista | Alternating

SOLVERS: dict[str, type[Newton] | type[Admm] | type[Fista] | type[Alternating]] = {
    "newton": Newton,
    "admm": Admm,
    "fista": Fista,
    "alternating": Alternating,
}
