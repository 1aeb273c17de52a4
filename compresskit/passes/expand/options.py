"""What can be said of expanding a network; a recipe's `expand` section adds training and comparisons to it."""

from typing import Annotated, Literal

from annotated_types import Gt

from compresskit.options import option
from compresskit.passes.expand.strategies import STRATEGIES

Rate = Annotated[float, Gt(0)]
Factors = Literal[2, 3]
First = Literal["keep", "expand"]


@option
class Expand:
    """Write layers as products of factors, which train better than the layers alone and are multiplied afterwards."""

    # cl, ck, acnet or acnet-bn for convolutions, fc for linear layers, or one of each: ck+fc. The first to fit counts
    strategy: str = "cl"
    # channels between factors, as multiples of the layer's; or {selector: rate}; auto: by layer from 1 to 4, so that
    rate: Rate | Literal["auto"] | dict[str, Rate] = 4.0  # a step stays below `limit`
    # multiply-adds of a step over the compact net's: auto stays below, more is noted
    limit: Annotated[float, Gt(1)] = 1.5
    # names, re:PATTERN, "@conv", "@conv3x3", "@linear"; those that fit are expanded
    layers: tuple[str, ...] = ("re:.*",)
    # matrices of a linear layer; or {selector: matrices}, and linear layers that none names are left
    factors: Factors | dict[str, Factors] = 2
    # of a convolution that reads images: keep: its first factor keeps their channels; expand: it has `rate` times them
    first: First = "keep"
    # online: the factors are multiplied at each step and one layer runs; sequential: they run one after another.
    mode: Literal["online", "sequential"] | None = None  # Default: online, where it can be
    nonlinear: bool = False  # ReLU between factors: a net that cannot be contracted, only lend its weights (`init`)
    # standard: each factor as torch draws it; from_checkpoint: factors whose product is the trained layer; nonlinear:
    # the net is trained with ReLU between factors first, and its weights are taken.
    # Default: from_checkpoint where there is a trained net, standard otherwise
    init: Literal["standard", "from_checkpoint", "nonlinear"] | None = None

    def __post_init__(self) -> None:
        for name in self.strategies:
            if name not in STRATEGIES:
                raise ValueError(f"strategy: {name!r} was given; allowed: {', '.join(STRATEGIES)}, or some joined by +")
        if not all(rate > 0 for rate in self.rates):
            raise ValueError(f"rate: {self.rate} was given; it must be greater than 0")
        if self.limit <= 1:
            raise ValueError(f"limit: {self.limit:g} was given; it must be greater than 1, the compact net's step")
        if self.rate == "auto" and self.chosen_mode == "sequential":
            raise ValueError("rate: auto weighs the products of mode: online; give rates for mode: sequential")
        if self.norms and (self.mode == "online" or self.nonlinear or self.init in ("from_checkpoint", "nonlinear")):
            raise ValueError(
                "strategy: acnet-bn has batch norms, which train from scratch and run one by one; leave out mode: "
                "online and nonlinear, set init: standard, or use acnet"
            )
        if not self.layers:
            raise ValueError("layers: none are named; name some, or leave the key out for all")
        if isinstance(self.layers, str):
            raise ValueError(f"layers: {self.layers!r} is one selector; give a list, [{self.layers!r}]")
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError(f"strategy: {self.strategy!r} names one twice; give each once")
        if self.nonlinear and self.mode == "online":
            raise ValueError("mode: online multiplies the factors, which `nonlinear` parts; set mode: sequential")
        if self.nonlinear and self.init == "from_checkpoint":
            raise ValueError("init: from_checkpoint keeps the function of the net, which `nonlinear` changes; drop one")

    @property
    def rates(self) -> list[float]:
        """The numbers in `rate`."""
        rate = self.rate
        return list(rate.values()) if isinstance(rate, dict) else [] if isinstance(rate, str) else [rate]

    @property
    def strategies(self) -> tuple[str, ...]:
        """The names in `strategy`."""
        return tuple(self.strategy.split("+"))

    @property
    def norms(self) -> bool:
        """Whether a strategy has batch norms behind its branches."""
        return any(STRATEGIES[name].norms for name in self.strategies)

    @property
    def separate(self) -> str | None:
        """Why the factors have no product in training, which `mode: online` needs; None where they have."""
        return (
            "`nonlinear` parts them"
            if self.nonlinear
            else "acnet-bn has batch norms behind them"
            if self.norms
            else None
        )

    @property
    def chosen_mode(self) -> str:
        """`mode`, or its default."""
        return self.mode or ("sequential" if self.separate else "online")
