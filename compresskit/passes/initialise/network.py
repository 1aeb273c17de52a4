"""Drawing the weights of a new network as a recipe says, with the masks of those that are sparse."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import RecipeError
from compresskit.graph.chains import weighted
from compresskit.graph.edit import put_two
from compresskit.graph.format.table import shared_names
from compresskit.graph.layers.skew_convolution import SkewConvolution
from compresskit.graph.masks import Masks
from compresskit.graph.selectors import KINDS, select
from compresskit.graph.shapes import node_shapes
from compresskit.numerics.sparse.ramanujan import Blocks, Expansion, expansion
from compresskit.numerics.threads import threads
from compresskit.passes.initialise.options import Halves, Shape, Way
from compresskit.passes.initialise.sparse_options import Ramanujan, Regular, Sparse
from compresskit.shapes import Shape as SampleShape

Weight = nn.Module  # a convolution, a linear layer, or what stands in a convolution's place
_SHOWN = 5  # layers in a message
_ALL = ("re:.*",)


@dataclass(frozen=True)
class DrawnLayer:
    """shape: of the weight. degrees: c and d, outputs an input feeds and inputs an output sees; () if dense.

    expansion: of the mask's graph; None if dense. asked: share of the weights that was to be kept, where the nearest
    that can be was taken.
    """

    name: str
    kind: str
    shape: Shape
    degrees: tuple[int, ...] = ()
    expansion: Expansion | None = None
    asked: float | None = None


@dataclass(frozen=True)
class Initialised:
    """What was drawn. masks: of the sparse layers. others: what no way names or none can draw, left as it was."""

    network: fx.GraphModule
    masks: dict[str, Tensor] = field(default_factory=dict)
    layers: list[DrawnLayer] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def expansion(self, where: Blocks) -> Expansion:
        """Of a mask; one of the same sides and degrees has the same, whatever the order of its rows and columns.

        Raises ValueError for a graph that is not Ramanujan.
        """
        same = (
            layer.expansion for layer in self.layers if (layer.shape[:2], layer.degrees) == (where.shape, where.degrees)
        )
        found = next(filter(None, same), None) or expansion(where.mask())
        if not found.is_ramanujan:
            raise ValueError(f"its graph has a second eigenvalue of {found.second:.4g}, above {found.bound:.4g}")
        return found


def initialise(network: fx.GraphModule, ways: Sequence[Way], input_shape: SampleShape, seed: int) -> Initialised:
    """A copy of the network whose layers are drawn anew, each by the last way that names it; their biases are 0.

    Layers are drawn in the order of the network, from `seed` alone. Raises RecipeError for selectors that mean nothing,
    and for layers that cannot be drawn as they should be, all at once.
    """
    network = copy.deepcopy(network)
    chosen = _chosen(network, ways)
    others = [name for name in dict.fromkeys([*select(network, _ALL), *_with_weights(network)]) if name not in chosen]
    found, problems = Initialised(network, others=others), dict[str, str]()
    maps, shared = _maps(network, input_shape), shared_names(network)
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    generator = torch.Generator().manual_seed(seed)
    with threads(1):  # factorisations by several round otherwise from run to run, and a run that goes on would not fit
        for name, way in chosen.items():
            own = f"{name}.weight" not in shared and calls[name] == 1
            try:
                if isinstance(way, Sparse) and not own:
                    raise ValueError(
                        "it is called twice, or its weights are another layer's, too; name it under `dense`"
                    )
                _draw(found, _remodelled(network, name, way, *maps[name], own=own), way, generator)
            except ValueError as error:
                problems[name] = str(error)
    _refuse(problems, "train.init")
    return found


def _with_weights(network: nn.Module) -> list[str]:
    """Modules with a weight of two sides or more, such as transposed convolutions; a bare one of the root by itself."""
    return [key.rpartition(".")[0] or key for key, weight in network.named_parameters() if weight.ndim > 1]


def regular_masks(network: fx.GraphModule, options: Ramanujan, seed: int) -> Masks:
    """Masks by parameter, as sparse ways have them, for weights that are there already.

    Raises RecipeError for layers that cannot be made so sparse, all at once.
    """
    with _said_of("train.mask"):
        names = select(network, options.layers)
        whole, shared = _whole(network, options), shared_names(network)
    if whole >= set(names):
        raise RecipeError("train.mask: every layer that it names stays dense; set `dense: []`, or name others")
    generator = torch.Generator().manual_seed(seed)
    masks, problems = dict[str, Tensor](), dict[str, str]()
    for name in [name for name in names if name not in whole]:
        weight = weighted(network, name).weight
        try:
            if f"{name}.weight" in shared:
                raise ValueError("its weights are those of another layer, too; name it under `dense`")
            where = options.blocks(weight.shape[0], weight.shape[1], generator)
            masks[f"{name}.weight"] = _of_kernels(where.mask(), weight.shape)
        except ValueError as error:
            problems[name] = str(error)
    _refuse(problems, "train.mask")
    return masks


def _chosen(network: fx.GraphModule, ways: Sequence[Way]) -> dict[str, Way]:
    """The way of each layer, in the order of the network."""
    found: dict[str, Way] = {}
    for way in ways:
        with _said_of("train.init"):
            names = select(network, way.layers)
            whole = _whole(network, way) if isinstance(way, Sparse) else frozenset()
        dense = way.whole if isinstance(way, Sparse) else way
        if isinstance(way, Sparse) and whole >= set(names):
            raise RecipeError(
                f"train.init: every layer that {way.kind} names stays dense; set `dense: []`, or name others"
            )
        found |= {name: dense if name in whole else way for name in names}
    order = select(network, _ALL)
    # The first layer reads no halves of a ReLU; behind the last there is none, and outputs z and -z would say half
    ends: list[tuple[str, Halves]] = [(order[0], "entry"), (order[-1], False)]
    for name, form in ends:
        if name in found and getattr(found[name], "relu", False):
            found[name] = _in_form(found[name], form)
    return {name: found[name] for name in order if name in found}


def _in_form(way: Any, relu: Halves) -> Way:
    """The way with another form for ReLU; it must have one."""
    changed: Way = replace(way, relu=relu)
    return changed


def _whole(network: fx.GraphModule, options: Regular) -> frozenset[str]:
    """Layers that stay dense: those that are named; or the network's first convolution and last linear layer, and
    convolutions in groups, which are sparse already."""
    if options.dense is not None:
        return frozenset(select(network, options.dense) if options.dense else ())
    called = {
        str(node.target): network.get_submodule(str(node.target))
        for node in network.graph.nodes
        if node.op == "call_module"
    }
    convolutions, linear = (
        [name for name, module in called.items() if isinstance(module, kinds)]
        for kinds in ((*KINDS["@conv"], SkewConvolution), KINDS["@linear"])
    )
    grouped = [name for name in convolutions if _groups(called[name]) > 1]
    return frozenset({*convolutions[:1], *linear[-1:], *grouped})


def _maps(network: fx.GraphModule, input_shape: SampleShape) -> dict[str, tuple[Shape, Shape]]:
    """Of each called module the maps that it takes and makes, in its first call; () of what are none."""
    shapes = node_shapes(network, input_shape)
    nodes = [node for node in network.graph.nodes if node.op == "call_module" and node.name in shapes]
    return {
        str(node.target): (shapes[node.all_input_nodes[0].name][2:], shapes[node.name][2:]) for node in reversed(nodes)
    }


def _remodelled(network: fx.GraphModule, name: str, way: Way, size: Shape, made: Shape, *, own: bool) -> str:
    """Name of the layer to be drawn, after what the way wants in its place was put there.

    own: whether the layer is called once, and its weights are its alone.
    """
    layer = weighted(network, name)
    if isinstance(layer, nn.Linear):
        return name
    modules = [module.to(layer.weight) for module in way.remodelled(layer, size, made)]
    if modules and not own:
        raise ValueError("it is called twice, or its weights are another layer's, too; draw it by delta-orthogonal")
    for module in modules:
        module.train(layer.training)
    if len(modules) == 2:
        put_two(network, name, *modules)
        return f"{name}.1"
    if modules:
        network.add_submodule(name, modules[0])
    return name


def _draw(found: Initialised, name: str, way: Way, generator: torch.Generator) -> None:
    """Gives the layer its weight, and its mask where the way is a sparse one."""
    layer: Any = found.network.get_submodule(name)
    weight, shape = layer.weight, tuple(layer.weight.shape)
    described: tuple[tuple[int, ...], Expansion | None, float | None] = ((), None, None)
    if isinstance(way, Sparse):
        if _groups(layer) > 1:
            raise ValueError(f"it has {_groups(layer)} groups, so it is sparse already; name it under `dense`")
        where = way.blocks_for(shape, generator)
        drawn = way.on(where, shape, generator)
        described = (where.degrees, found.expansion(where), way.asked_of(shape) if way.nearest else None)
        found.masks[f"{name}.weight"] = _of_kernels(where.mask(), shape)
    else:
        each = (shape[0] // _groups(layer), *shape[1:])
        if _groups(layer) > 1 and getattr(way, "relu", False):
            way = _in_form(way, False)  # halves of channels would lie in different groups
        drawn = torch.cat([way(each, generator) for _ in range(_groups(layer))])
    with torch.no_grad():
        weight.copy_(drawn)
        if layer.bias is not None:
            layer.bias.zero_()
    found.layers.append(DrawnLayer(name, way.kind, shape, *described))


def _groups(layer: Weight) -> int:
    return int(getattr(layer, "groups", 1))


def _of_kernels(mask: Tensor, shape: Shape) -> Tensor:
    """(outputs, inputs) as the mask of a weight whose kernels stay or go as a whole."""
    return mask.view(*shape[:2], *(1,) * len(shape[2:])).expand(shape).clone()


@contextmanager
def _said_of(section: str) -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{section}: {error}") from error


def _refuse(problems: dict[str, str], where: str) -> None:
    if problems:
        shown = [f"{name}: {text}" for name, text in list(problems.items())[:_SHOWN]]
        more = f"; and {len(problems) - _SHOWN} layers more" if len(problems) > _SHOWN else ""
        raise RecipeError(f"{where}: " + "; ".join(shown) + more)
