"""What can be said of fusing; a recipe's `fuse` section adds the retraining to it."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Len, Lt

from compresskit.numerics.least_squares.fusion import Channels
from compresskit.numerics.least_squares.solvers import Cholesky, Solver
from compresskit.options import option
from compresskit.passes.shares import Share, check_share


@option
class Pair:
    """Two layers and all that lies between them, with a kernel size of their own."""

    first: str  # layer that the chain begins with
    last: str  # layer that it ends with
    kernel: Annotated[int, Gt(0)] | tuple[int, ...] | None = None  # default: the `kernel` of the section


@option
class Until:
    """When `layers: auto` stops fusing: every figure that is given must be reached."""

    layers: Annotated[int, Ge(1)] | None = None  # weighted layers (convolutions and linear ones) left
    macs: Share | None = None  # share of the multiply-accumulates left, such as 60%
    params: Share | None = None  # share of the parameters left, such as 60%
    error: Annotated[float, Gt(0), Lt(1)] | None = None  # never fuse where the unexplained share exceeds this

    def __post_init__(self) -> None:
        if all(goal is None for goal in (self.layers, self.macs, self.params, self.error)):
            raise ValueError("it states no goal; give layers, macs, params or error")
        for name in ("macs", "params"):
            check_share(name, getattr(self, name), whole=True)


@option
class Fuse:
    """Fuse neighbouring layers into one by least squares on moments."""

    # [first, last] pairs, [block] names, or mappings with a kernel; fused one after another
    layers: Literal["auto"] | tuple[Annotated[tuple[str, ...], Len(1, 2)] | Pair, ...] = "auto"
    until: Until | None = None  # with `layers: auto`
    among: tuple[str, ...] | None = None  # what `auto` may fuse: names, re:PATTERN, "@conv", "@linear"
    max_layers: Annotated[int, Ge(2)] = 2  # longest chain that `auto` considers, in weighted layers
    # `independent`: each input channel on its own; `document`: Theorem 2 to the letter, with a bias for each position
    channels: Channels = "joint"
    kernel: Annotated[int, Gt(0)] | tuple[int, ...] | None = None  # default: the receptive field of the chain
    solver: Solver = Cholesky()  # of the normal equations
    on_no_convergence: Literal["warn", "fail"] = "warn"  # when `cg` stops before its tolerance

    def __post_init__(self) -> None:
        for name in ("until", "among"):
            if self.layers != "auto" and getattr(self, name) is not None:
                raise ValueError(f"{name}: it steers `layers: auto`, but layers are named; leave one of the two out")
