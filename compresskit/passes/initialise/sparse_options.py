"""Ways of drawing layers that are sparse from the start, and all that a recipe's `train.init` can name."""

from math import prod, sqrt
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from compresskit.numerics.orthogonal.fourier_kernels import explicit_kernel
from compresskit.numerics.orthogonal.matrices import delta, orthogonal, unitary
from compresskit.numerics.sparse.ramanujan import Arrangement, Blocks, blocks, nearest, of_degree, of_density
from compresskit.options import option
from compresskit.passes.initialise.options import (
    DeltaOrthogonal,
    Explicit,
    Halves,
    Kaiming,
    Normal,
    Orthogonal,
    Scaled,
    Shape,
    Skew,
    Uniform,
    Way,
    Xavier,
    in_form,
    normal,
    uniform,
)
from compresskit.passes.initialise.remodel import Convolution, cyclic
from compresskit.passes.shares import Amount, only_one, share


@option
class Regular:
    """Sparse layers whose every input feeds c outputs and every output sees d inputs: give one of the first three."""

    GOALS: ClassVar[tuple[str, ...]] = ("degree", "density", "sparsity")

    degree: Annotated[int, Ge(1)] | None = None  # the larger of c and d: neighbours of a node of the shorter side
    density: Amount | None = None  # share of the weights, or kernels, that is kept; 1 / whole number
    sparsity: Amount | None = None  # share that is not: 98.4375%, or 0.984375
    nearest: bool = False  # where a layer's sides do not allow it, the nearest that they do, or dense; else refused
    dense: tuple[str, ...] | None = None  # selectors of layers that stay whole; default: first convolution, last linear
    arrangement: Arrangement = "shuffle"  # shuffle: inputs reach all outputs in the fewest layers; or random

    def __post_init__(self) -> None:
        only_one(self, self.GOALS)

    def blocks(self, outputs: int, inputs: int, generator: torch.Generator, *, relu: Halves = False) -> Blocks:
        """Blocks of a layer; relu: the same for both halves of the outputs, and of the inputs unless it is the entry.

        Raises ValueError where the layer cannot be made so sparse, with what is possible.
        """
        density = self.asked(outputs, inputs, relu=relu)
        if not relu:
            number = self._number(outputs, inputs, self.degree, density)
            return blocks(outputs, inputs, number, self.arrangement, generator)
        both = relu != "entry"
        degree = None if self.nearest else self.degree
        if outputs % 2 or (both and (inputs % 2 or (degree or 0) % 2)):
            raise ValueError(
                f"relu: halves outputs, inputs and degree; {outputs}, {inputs}, {self.degree} are not all even"
            )
        half = (outputs // 2, inputs // 2 if both else inputs)
        number = self._number(*half, degree // 2 if degree is not None and both else degree, density)
        return blocks(*half, number, self.arrangement, generator).doubled(columns=both)

    def _number(self, outputs: int, inputs: int, degree: int | None, density: float) -> int:
        """Of blocks. Raises ValueError where it cannot be had, unless the nearest will do."""
        if self.nearest:
            return nearest(outputs, inputs, density)
        try:
            return of_density(outputs, inputs, density) if degree is None else of_degree(outputs, inputs, degree)
        except ValueError as error:
            raise ValueError(f"{error} (or take `nearest: true`)") from error

    def asked(self, outputs: int, inputs: int, *, relu: Halves = False) -> float:
        """Share of the weights that a layer is to keep, whether it can or not."""
        if self.degree is not None:
            return self.degree / max(outputs // 2 if relu == "entry" else outputs, inputs)
        amount = self.density if self.density is not None else self.sparsity
        assert amount is not None
        part = share(amount) if isinstance(amount, str) else amount
        return part if self.density is not None else 1 - part


@option
class Ramanujan(Regular):
    """Masks of regular graphs, for weights that are there already."""

    kind: Literal["ramanujan"] = "ramanujan"
    layers: tuple[str, ...] = ("re:.*",)  # selectors of the layers that are masked


@option
class Sparse(Scaled, Regular):
    """A way of drawing sparse layers. Called, it draws on the blocks that `blocks_for` chose."""

    def __call__(self, shape: Shape, generator: torch.Generator) -> Tensor:
        return self.on(self.blocks_for(shape, generator), shape, generator)

    def blocks_for(self, shape: Shape, generator: torch.Generator) -> Blocks:
        return self.blocks(shape[0], shape[1], generator)

    def asked_of(self, shape: Shape) -> float:
        """Share of the weights that a layer of this shape is to keep."""
        return self.asked(shape[0], shape[1])

    def on(self, where: Blocks, shape: Shape, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    @property
    def whole(self) -> Way:
        """How layers are drawn that stay dense."""
        raise NotImplementedError


@option
class RamanujanNormal(Sparse):
    """The mask of sao with independent weights from a normal distribution."""

    kind: Literal["rg-n"] = "rg-n"
    variance: Annotated[float, Gt(0)] | None = None  # default: 1 / inputs that an output sees

    def on(self, where: Blocks, shape: Shape, generator: torch.Generator) -> Tensor:
        variance = self.variance or 1 / _seen(where, shape)
        return self.gain * _kernels(where, shape) * normal(shape, variance, generator)

    @property
    def whole(self) -> Way:
        return Normal(gain=self.gain, variance=self.variance)


@option
class RamanujanUniform(Sparse):
    """The mask of sao with independent weights from a uniform distribution about 0."""

    kind: Literal["rg-u"] = "rg-u"
    bound: Annotated[float, Gt(0)] | None = None  # default: sqrt(3 / inputs that an output sees)

    def on(self, where: Blocks, shape: Shape, generator: torch.Generator) -> Tensor:
        bound = self.bound or sqrt(3 / _seen(where, shape))
        return self.gain * _kernels(where, shape) * uniform(shape, bound, generator)

    @property
    def whole(self) -> Way:
        return Uniform(gain=self.gain, bound=self.bound)


@option
class SparseOrthogonal(Sparse):
    """A sparse way whose matrices are orthogonal."""

    relu: Halves = False  # [[H, -H], [-H, H]] of a sparse H, for nets with ReLU; entry: [H, -H], as the first gets

    def blocks_for(self, shape: Shape, generator: torch.Generator) -> Blocks:
        return self.blocks(shape[0], shape[1], generator, relu=self.relu)

    def asked_of(self, shape: Shape) -> float:
        return self.asked(shape[0], shape[1], relu=self.relu)

    def matrix(self, where: Blocks, generator: torch.Generator, *, is_complex: bool = False) -> Tensor:
        """(outputs, inputs) with an orthogonal, or unitary, matrix in each block."""
        draw = unitary if is_complex else orthogonal
        number = len(where.rows)
        return where.filled(in_form(lambda m, n: draw(m, n, generator, batch=number), *where.degrees, self.relu))


@option
class SAO(SparseOrthogonal):
    """Sparse orthogonal matrices, for linear layers."""

    kind: Literal["sao"] = "sao"

    def on(self, where: Blocks, shape: Shape, generator: torch.Generator) -> Tensor:
        if len(shape) > 2:
            raise ValueError("sao is for linear layers; name sao-delta or sao-eco for convolutions")
        return self.gain * self.matrix(where, generator)

    @property
    def whole(self) -> Way:
        return Orthogonal(gain=self.gain, relu=self.relu)


@option
class SAODelta(SparseOrthogonal):
    """Kernels with a sparse orthogonal matrix at their middle tap; kernels that it has no entry for are left out."""

    kind: Literal["sao-delta"] = "sao-delta"

    def on(self, where: Blocks, shape: Shape, generator: torch.Generator) -> Tensor:
        return self.gain * delta(self.matrix(where, generator), shape[2:])

    @property
    def whole(self) -> Way:
        return DeltaOrthogonal(gain=self.gain, relu=self.relu)


@option
class SAOExplicit(SparseOrthogonal):
    """Sparse unitary matrices in the Fourier domain, all on one mask, so that kernels off it are zero."""

    kind: Literal["sao-eco"] = "sao-eco"
    kernel: Annotated[int, Ge(1)] | None = None  # taps a side, a divisor of the map; default: the largest up to its own

    def on(self, where: Blocks, shape: Shape, generator: torch.Generator) -> Tensor:
        def draw(is_complex: bool) -> Tensor:
            return self.matrix(where, generator, is_complex=is_complex)

        return self.gain * explicit_kernel(shape[2:], draw)

    def remodelled(self, layer: Convolution, size: Shape, made: Shape) -> list[nn.Module]:
        return cyclic(layer, size, made, self.kernel)

    @property
    def whole(self) -> Way:
        return Explicit(gain=self.gain, relu=self.relu, kernel=self.kernel)


def _seen(where: Blocks, shape: Shape) -> int:
    """Weights that an output has."""
    return where.degrees[1] * prod(shape[2:])


def _kernels(where: Blocks, shape: Shape) -> Tensor:
    """The mask of whole kernels, to be multiplied with a weight of this shape."""
    return where.mask().view(*shape[:2], *(1,) * len(shape[2:]))


INITIALISATIONS: dict[str, type[Way]] = {
    "normal": Normal,
    "uniform": Uniform,
    "kaiming": Kaiming,
    "xavier": Xavier,
    "orthogonal": Orthogonal,
    "delta-orthogonal": DeltaOrthogonal,
    "eco": Explicit,
    "soc": Skew,
    "rg-n": RamanujanNormal,
    "rg-u": RamanujanUniform,
    "sao": SAO,
    "sao-delta": SAODelta,
    "sao-eco": SAOExplicit,
}
