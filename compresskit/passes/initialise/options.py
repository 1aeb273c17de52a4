"""What a recipe's `train.init` says: how the weights of layers are drawn, each way a class.

A way is called with the shape (outputs, inputs, *taps) of a weight and a generator, and returns a weight in float64;
for a grouped convolution it is called for each group. `remodelled` says what stands in the place of a convolution that
must differ from the model's, [] where it stays. Both raise ValueError where the layer is none of theirs.
"""

from collections.abc import Callable
from math import prod, sqrt
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from compresskit.numerics.orthogonal.fourier_kernels import explicit_kernel
from compresskit.numerics.orthogonal.matrices import delta, looks_linear, looks_linear_entry, orthogonal, unitary
from compresskit.options import option
from compresskit.passes.initialise.remodel import Convolution, cyclic, skewed

Shape = tuple[int, ...]
Halves = bool | Literal["entry"]


@option
class Way:
    """What every way has in common."""

    kind: str
    layers: tuple[str, ...] = ("re:.*",)  # selectors of the layers that are drawn so; of a list the last one counts

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def remodelled(self, layer: Convolution, size: Shape, made: Shape) -> list[nn.Module]:
        """size, made: of the maps that the convolution takes and makes."""
        return []


@option
class Scaled(Way):
    """A way with a factor."""

    gain: Annotated[float, Gt(0)] = 1.0  # factor of the weights; SAO scales those of its dense nets by 1.1


@option
class Normal(Scaled):
    """Independent weights from a normal distribution."""

    kind: Literal["normal"] = "normal"
    variance: Annotated[float, Gt(0)] | None = None  # default: 1 / inputs of an output

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        return self.gain * normal(shape, self.variance or 1 / prod(shape[1:]), generator)


@option
class Uniform(Scaled):
    """Independent weights from a uniform distribution about 0."""

    kind: Literal["uniform"] = "uniform"
    bound: Annotated[float, Gt(0)] | None = None  # default: sqrt(3 / inputs of an output), the variance of `normal`

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        return self.gain * uniform(shape, self.bound or sqrt(3 / prod(shape[1:])), generator)


@option
class Kaiming(Scaled):
    """Variance 2 / inputs of an output (He et al. 2015), which ReLU keeps."""

    kind: Literal["kaiming"] = "kaiming"
    distribution: Literal["normal", "uniform"] = "normal"

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        return self.gain * _drawn(self.distribution, shape, 2 / prod(shape[1:]), generator)


@option
class Xavier(Scaled):
    """Variance 2 / (inputs of an output + outputs of an input) (Glorot and Bengio 2010)."""

    kind: Literal["xavier"] = "xavier"
    distribution: Literal["normal", "uniform"] = "uniform"

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        outputs, inputs, *taps = shape
        return self.gain * _drawn(self.distribution, shape, 2 / ((inputs + outputs) * prod(taps)), generator)


@option
class Orthogonal(Scaled):
    """Weights that are orthogonal as matrices (outputs, inputs x taps): those of linear layers keep lengths."""

    kind: Literal["orthogonal"] = "orthogonal"
    relu: Halves = False  # [[H, -H], [-H, H]] of an orthogonal H, for nets with ReLU; entry: [H, -H], as the first gets

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        outputs, inputs, *taps = shape
        if taps and self.relu:
            raise ValueError("relu: is of linear layers; name delta-orthogonal for convolutions")
        found = matrix(outputs, inputs * prod(taps), generator, relu=self.relu)
        return self.gain * found.reshape(shape)


@option
class DeltaOrthogonal(Scaled):
    """Kernels with an orthogonal matrix at their middle tap and zeros elsewhere, which training may change."""

    kind: Literal["delta-orthogonal"] = "delta-orthogonal"
    relu: Halves = False  # [[H, -H], [-H, H]] of an orthogonal H, for nets with ReLU; entry: [H, -H], as the first gets

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        return self.gain * delta(matrix(shape[0], shape[1], generator, relu=self.relu), shape[2:])


@option
class Explicit(Scaled):
    """Convolutions made orthogonal in the Fourier domain (ECO): cyclic padding, dilated by map / kernel."""

    kind: Literal["eco"] = "eco"
    kernel: Annotated[int, Ge(1)] | None = None  # taps a side, a divisor of the map; default: the largest up to its own
    relu: Halves = False  # [[H, -H], [-H, H]] of a unitary H at each frequency, for nets with ReLU; or entry

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        def draw(is_complex: bool) -> Tensor:
            return matrix(shape[0], shape[1], generator, relu=self.relu, is_complex=is_complex)

        return self.gain * explicit_kernel(shape[2:], draw)

    def remodelled(self, layer: Convolution, size: Shape, made: Shape) -> list[nn.Module]:
        return cyclic(layer, size, made, self.kernel)


@option
class Skew(Way):
    """Convolutions that stay orthogonal in training (SOC): the exponential of a skew-symmetric one."""

    kind: Literal["soc"] = "soc"
    terms: Annotated[int, Ge(1)] = 10  # of the exponential, a convolution each; 10 leave 3e-8 of the input out

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        if len(shape) > 2:
            return normal(shape, 1 / prod(shape[1:]), generator)
        return orthogonal(shape[0], shape[1], generator)

    def remodelled(self, layer: Convolution, size: Shape, made: Shape) -> list[nn.Module]:
        return skewed(layer, size, made, self.terms)


def normal(shape: Shape, variance: float, generator: torch.Generator) -> Tensor:
    return sqrt(variance) * torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(shape: Shape, bound: float, generator: torch.Generator) -> Tensor:
    return bound * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)


def matrix(rows: int, columns: int, generator: torch.Generator, *, relu: Halves, is_complex: bool = False) -> Tensor:
    """(rows, columns), orthogonal, or in the form for ReLU, which for odd columns is its entry.

    Raises ValueError for odd rows in the form for ReLU.
    """
    if relu and rows % 2:
        raise ValueError(f"relu: halves the outputs, which are {rows}; leave it out, or draw this layer otherwise")
    draw = unitary if is_complex else orthogonal
    form: Halves = "entry" if relu and columns % 2 else relu
    return in_form(lambda m, n: draw(m, n, generator), rows, columns, form)


def in_form(draw: Callable[[int, int], Tensor], rows: int, columns: int, relu: Halves) -> Tensor:
    """(..., rows, columns) of what `draw` gives for numbers of rows and columns: for all, or for a half or quarter."""
    if relu == "entry":
        return looks_linear_entry(draw(rows // 2, columns))
    return looks_linear(draw(rows // 2, columns // 2)) if relu else draw(rows, columns)


def _drawn(
    distribution: Literal["normal", "uniform"], shape: Shape, variance: float, generator: torch.Generator
) -> Tensor:
    if distribution == "normal":
        return normal(shape, variance, generator)
    return uniform(shape, sqrt(3 * variance), generator)
