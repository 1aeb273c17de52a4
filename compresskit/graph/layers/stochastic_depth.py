"""Stochastic depth (Huang et al. 2016) as a module of our own, so that a checkpoint loads without torchvision."""

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """In training, zeroes its input with probability p and divides what is left by 1 - p; else the input itself.

    mode: "row" draws for each sample, "batch" once for all. scale: whether it divides.
    """

    def __init__(self, p: float, mode: str, scale: bool = True) -> None:
        super().__init__()
        if not 0 <= p <= 1 or mode not in ("row", "batch"):
            raise ValueError(f"StochasticDepth takes 0 <= p <= 1 and mode 'row' or 'batch', given p={p}, mode={mode!r}")
        self.p = p
        self.mode = mode
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = x.new_empty([len(x) if self.mode == "row" else 1] + [1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * (kept.div_(1 - self.p) if self.scale and self.p < 1 else kept)

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode}, scale={self.scale}"
