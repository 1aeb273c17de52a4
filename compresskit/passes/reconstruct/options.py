"""What can be said of reconstructing; a recipe's `reconstruct` section adds retraining and comparisons to it."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from compresskit.numerics.group_lasso.newton import Newton
from compresskit.numerics.group_lasso.solvers import Solver
from compresskit.options import option
from compresskit.passes.shares import Share, check_share, share

Chaining = Literal["parallel", "top-down", "bottom-up"]
Positive = Annotated[float, Gt(0)]
Part = Annotated[float, Gt(0), Lt(1)]
Count = Annotated[int, Gt(0)] | str
GOALS = ("size", "params", "macs")
AMOUNTS = ("lam", "keep", "error")


@option
class GroupLasso:
    """Inputs whose weights the group lasso makes zero; the document's choice."""

    kind: Literal["group-lasso"] = "group-lasso"
    solver: Solver = Newton()  # all reach the same minimum, to a certified gap
    points: Annotated[int, Gt(1)] = 40  # lambdas of the path that a target or the plot is taken from
    smallest: Annotated[float, Gt(0), Lt(1)] = 1e-4  # the last lambda of that path, as a share of lambda_max


@option
class Backward:
    """Inputs leave one at a time, each time the one whose loss is least when all others are fitted again."""

    kind: Literal["backward"] = "backward"


Selection = Backward | GroupLasso


@option
class Target:
    """What the whole network is to reach, at the least loss: one of these."""

    size: Share | None = None  # share of the raw bits (32 a parameter, and the choice of channels), such as 40%
    params: Share | None = None  # share of the parameters
    macs: Share | None = None  # share of the multiply-accumulates
    accuracy_drop: Positive | None = None  # the smallest network that loses no more points on held-out images

    def __post_init__(self) -> None:
        given = [name for name in (*GOALS, "accuracy_drop") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of size, params, macs and accuracy_drop, not {len(given)}")
        for name in GOALS:
            check_share(name, getattr(self, name), whole=False)


@option
class LowRank:
    """Factorise a layer that is left where that makes it smaller."""

    error: Annotated[float, Gt(0), Lt(1)] = 1e-3  # share of the variance of its output that may be lost


@option
class Reconstruct:
    """Drop input channels and neurons of layers, and fit their weights again to give the same outputs."""

    # whose inputs are thinned: names, re:PATTERN, "@conv", "@linear"; default all
    layers: tuple[str, ...] = ("re:.*",)
    # default: group-lasso with `lam`, backward otherwise, which loses less at the same size
    selection: Selection | None = None
    # penalty of the group lasso, for all layers or by selector; give one of lam, keep, error and target
    lam: Positive | dict[str, Positive] | None = None
    # inputs that are kept, as a number or a share such as 50%, for all layers or by selector
    keep: Count | dict[str, Count] | None = None
    # share of the variance of the output that may be lost, for all layers or by selector
    error: Part | dict[str, Part] | None = None
    target: Target | None = None  # what the whole network is cut to; layers share it out by what each loses
    lam_scale: Literal["none", "energy"] = "none"  # energy: lambda is in units of tr(W R W^T), layer by layer
    # parallel: true inputs to true outputs; top-down: inputs as the compressed layers before give them; bottom-up: only
    # outputs that later layers still read count
    chaining: Chaining = "parallel"
    debias: bool = True  # least squares on the inputs kept; false leaves the group lasso's shrunken weights
    centred: bool = True  # false: moments about zero, as the document has them, and the layers' own biases
    sampler: Literal["auto", "static", "dynamic"] = "auto"  # where several layers read the same activation
    input_sampler: bool = False  # thin the network's own input, too
    min_channels: Annotated[int, Ge(1)] = 1  # never keep fewer
    low_rank: LowRank | None = None  # behind it
    # processes that choose inputs of layers and fit them; auto: one a thread, at most 8, where that is worth it
    workers: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    on_no_convergence: Literal["warn", "fail"] = "warn"  # when a solver stops before its tolerance

    def __post_init__(self) -> None:
        given = [name for name in (*AMOUNTS, "target") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of lam, keep, error and target, which say how much is kept; not {len(given)}")
        if self.lam is not None and isinstance(self.selection, Backward):
            raise ValueError("selection: backward knows no lambda; use group-lasso, or keep, error or target")
        if not self.debias and not isinstance(self.chosen_selection, GroupLasso):
            raise ValueError("debias: only the group lasso has weights of its own; set selection: group-lasso")
        counts = self.keep.values() if isinstance(self.keep, dict) else [self.keep]
        for text in counts:
            if isinstance(text, str) and not 0 < share(text) <= 1:
                raise ValueError(f"keep: {text!r} is no share; write it as 50%, or give a number of inputs")

    @property
    def told_layers(self) -> tuple[str, ...] | None:
        """The selectors of the mapping that says how much is kept; None where one value is for all."""
        told = None if self.target is not None else getattr(self, self.amount)
        return tuple(told) if isinstance(told, dict) else None

    @property
    def amount(self) -> str:
        """The key that says how much is kept: of the target, where there is one."""
        where, names = (self, AMOUNTS) if self.target is None else (self.target, (*GOALS, "accuracy_drop"))
        return next(name for name in names if getattr(where, name) is not None)

    @property
    def chosen_selection(self) -> Selection:
        """The selection, or the default that suits how much is kept."""
        return self.selection or (GroupLasso() if self.lam is not None else Backward())
