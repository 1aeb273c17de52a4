"""What a recipe's `prune` section says of structured pruning: criteria, budgets, target and repair."""

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from compresskit.graph.channels.kinds import Kind
from compresskit.options import option
from compresskit.passes.prune.budgets import Budget, Uniform
from compresskit.passes.prune.criteria import Criterion, Magnitude
from compresskit.passes.shares import Amount, only_one, share

GOALS = ("params", "macs", "channels", "latency")
Repair = Literal["none", "parallel", "top-down"]


@option
class PruneTarget:
    """How much of the network is left: one of these, as a share such as 50%, or as a number."""

    ELSEWHERE: ClassVar = {"sparsity": "it is of masks: write `kind: weights`, or `kind: kernels`, in `prune`"}

    params: Amount | None = None  # parameters of the whole network
    macs: Amount | None = None  # multiply-accumulates of one sample
    channels: Amount | None = None  # outputs of convolutions and linear layers
    latency: Amount | None = None  # milliseconds of a forward pass, measured; at `report.latency_batch` samples

    def __post_init__(self) -> None:
        only_one(self, GOALS)

    @property
    def goal(self) -> str:
        return next(name for name in GOALS if getattr(self, name) is not None)

    def limit(self, whole: float) -> float:
        """What is asked for, in the unit of `whole`."""
        amount = getattr(self, self.goal)
        return share(amount) * whole if isinstance(amount, str) else float(amount)

    def at(self, limit: float) -> "PruneTarget":
        """The same goal with another limit."""
        return PruneTarget(**{self.goal: limit})


@option
class Prune:
    """Take channels out of a network, by what they are worth and by how much each layer may lose."""

    kind: Literal["channels"] = "channels"
    target: PruneTarget  # how much of the network is left
    criterion: Criterion = Magnitude()  # what a channel is worth
    budget: Budget = Uniform()  # how much each group of layers loses
    layers: tuple[str, ...] = ("re:.*",)  # selectors of the layers whose channels may go
    # kinds of channels that may go: channels (of convolutions and plain layers), hidden (units between two linear
    # layers), head-dim (positions in the heads of attention) or heads (whole ones), width (what norms over channels
    # see: the stream of a transformer). auto: the first of them, and the others as far as the target needs them
    groups: tuple[Kind, ...] | Literal["auto"] = "auto"
    # of an atom whose channels several layers make: the mean, the sum or the largest of their scores
    combine: Literal["mean", "sum", "max"] = "mean"
    min_channels: Annotated[int, Ge(1)] = 1  # of each group
    round_to: Annotated[int, Ge(1)] = 1  # keep multiples of so many channels
    # the layers behind the cut, solved again by least squares for the outputs that they had: all at once, or one after
    # another from what is left before them, with a pass over the data for each
    repair: Repair = "parallel"
    norms: bool = True  # estimate the means and variances of batch norms again
    # measure what each group alone costs when shares of it go, for the report; `budget: divergence` does it anyway
    sensitivity: bool = False

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("groups: it names none; name kinds of channels that may go, or write auto")
        if {"heads", "head-dim"} <= set(self.groups):
            raise ValueError(
                f"groups: {', '.join(self.groups)} was given; heads and head-dim go one after the other: "
                "name one of them, and the other in a second run"
            )
