"""What a recipe's `spectra.isometry` says."""

from typing import Annotated

from annotated_types import Ge, Gt

from compresskit.options import option


@option
class Isometry:
    """Singular values of the Jacobians of layers, alone and through the depth, and which inputs reach which outputs."""

    images: Annotated[int, Gt(0)] = 16  # test images that Jacobians are taken at; all where there are fewer
    layers: tuple[str, ...] = ("re:.*",)  # selectors of the layers looked at, each with its norm and activation
    # layer whose input the Jacobians through the depth start from; default: the network's input. Reachability is from
    # its inputs, too; default: from those of the first layer that has as many outputs
    start: str | None = None
    # Jacobians with a shorter side of at most so many are formed and decomposed; larger ones are estimated from
    # products alone, by stochastic Lanczos quadrature
    exact: Annotated[int, Ge(0)] = 1024
    probes: Annotated[int, Gt(0)] = 8  # random vectors of an estimate, shared out among the images; one each at least
    steps: Annotated[int, Gt(1)] = 64  # products with each of them
    reachability: bool = True  # which inputs have a path of kept weights to which outputs
