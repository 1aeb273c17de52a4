"""Any module to a graph that trains and evaluates like it, or the module and the line that stand in the way."""

import copy
import time

import torch
from torch import fx, nn
from torch.nn import functional

from compresskit.errors import UnsupportedModelError
from compresskit.graph.doors.entry import Entry
from compresskit.graph.doors.exported import exported
from compresskit.graph.doors.forms import keep_forms
from compresskit.graph.doors.owned import own_layers
from compresskit.graph.doors.parametrised import how_plain
from compresskit.graph.doors.prepared import prepared
from compresskit.graph.doors.self_check import check_eval, check_training
from compresskit.graph.doors.symbolic import replace_calls, symbolic, training_trace, trains_alike, writes_shared
from compresskit.graph.format.table import to_table
from compresskit.graph.layers.sample_shape import SampleShape
from compresskit.graph.shapes import is_part, tokens
from compresskit.models.calling import batch_for, names_of, types_for
from compresskit.shapes import Shape, shapes_of

_COUNTS = (2, 3)  # samples in the batches that are compared


def trace(
    module: nn.Module,
    shape: Shape | None = None,
    *,
    output: str | int | None = None,
    lossy_training: bool = False,
    whole: bool = False,
) -> fx.GraphModule:
    """The network that `module` computes in eval mode, and that trains as it does: one input, one output tensor.

    shape: of one sample; of several inputs a tuple of shapes, and the network takes one tuple. Where torch.fx cannot
    follow forward, torch.export does, for which it is needed. output: which of the values that forward returns, by name
    or number. lossy_training: what forward does in training mode alone may get lost; else it is an error, but for
    further outputs. whole: the network returns all that forward returns, tensors in lists, tuples and dicts; in
    training mode what forward returns there, unless that may get lost.
    The network shares its tensors with `module` (16-bit weights become float32 in a copy), which is left as it was.
    Dropout and stochastic depth written as functions become modules. node.meta["scope"] is the path of the submodule
    whose forward made the call, network.meta["entry"] an `Entry`. Where the graph alone does not show that it is
    faithful, it is run beside the module, in both modes.
    Raises UnsupportedModelError with the submodule and the line that stopped it, the call that a checkpoint could not
    hold, or the difference that was found.
    """
    started = time.monotonic()
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        module = copy.deepcopy(module).float()
    source = _Source(module, shape, output, lossy_training, whole)
    try:
        network = source.through_fx()
    except UnsupportedModelError as refusal:
        if shape is None:
            raise UnsupportedModelError(f"{refusal}{how_plain(module)}") from refusal
        try:
            network = source.through_export()
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{error} (and {refusal}){how_plain(module)}") from error
    _set_modes(network, module)
    network.meta["entry"].seconds = time.monotonic() - started
    return network


def traced(module: nn.Module) -> fx.GraphModule:
    """The module itself where it is a graph already."""
    return module if isinstance(module, fx.GraphModule) else trace(module)


class _Source:
    """A module that is to come in, and what was asked of it."""

    def __init__(
        self, module: nn.Module, shape: Shape | None, output: str | int | None, lossy: bool, whole: bool
    ) -> None:
        self._module, self._shape, self._output, self._lossy, self._whole = module, shape, output, lossy, whole

    def through_fx(self) -> fx.GraphModule:
        module = self._copy()
        network = symbolic(module)
        if self._whole:
            keep_forms(network, None if self._lossy else training_trace(self._copy())[0])
        is_proved = not self._whole and trains_alike(module, network) and not writes_shared(network)
        replace_calls(network)
        own_layers(network, module)
        is_proved &= not any(node.target is functional.batch_norm for node in network.graph.nodes)
        _make_whole(network, self._inputs)
        _finish(network)
        network.meta["entry"] = Entry("fx")
        if not is_proved:
            self._compare(network)
        return network

    def through_export(self) -> fx.GraphModule:
        assert self._shape is not None
        module = self._copy()
        batch = batch_for(module, self._shape, types_for(self._copy(), self._shape), _COUNTS[0])
        network = exported(module, batch)
        if self._whole:
            keep_forms(network, None if self._lossy else exported(self._copy().train(), batch))
        own_layers(network, module)
        entry = Entry("export", assumed=[f"samples of shape {self._shape}: numbers that follow from it are written in"])
        _assert_shapes(network, shapes_of(self._shape))
        _make_whole(network, self._inputs)
        _finish(network)
        network.meta["entry"] = entry
        self._compare(network)
        return network

    @property
    def _inputs(self) -> int:
        return len(shapes_of(self._shape)) if self._shape else 1

    def _copy(self) -> nn.Module:
        return prepared(self._module, self._inputs, self._output)

    def _compare(self, network: fx.GraphModule) -> None:
        entry: Entry = network.meta["entry"]
        if self._shape is None:
            entry.assumed.append("it was not compared with the module, since no sample shape was given")
            return
        module = self._copy()
        types = types_for(module, self._shape)
        batches = [batch_for(module, self._shape, types, count) for count in _COUNTS]
        network.eval()
        entry.assumed += check_eval(module, network, batches, self._whole)
        if self._lossy:
            entry.assumed.append("what forward does in training mode alone is lost, as was allowed (lossy_training)")
        else:
            entry.assumed += check_training(module, network, batches[0], self._whole)


def _finish(network: fx.GraphModule) -> None:
    """Refuses what could not be saved."""
    network.recompile()
    value = next(node for node in network.graph.nodes if node.op == "output").args[0]
    if not isinstance(value, fx.Node):
        kind = type(value).__name__.removeprefix("immutable_")
        raise UnsupportedModelError(
            f"{type(network).__name__}: forward returns a {kind} in eval mode; a network must return one tensor: "
            f"choose it with model.output, {names_of(value)}"
        )
    to_table(network)


def _make_whole(network: fx.GraphModule, inputs: int) -> None:
    """Behind an input that is looked up in tables, whole numbers of what data give."""
    for node in list(network.graph.nodes):
        place = node.args[1] if inputs > 1 and len(node.args) == 2 else None
        is_input = node.op == "placeholder" if inputs == 1 else is_part(node, place)
        found = tokens(network, place) if is_input else None
        if found is None or found.whole:
            continue
        with network.graph.inserting_after(node):
            whole = network.graph.call_method("long")
        whole.meta["scope"] = ""
        node.replace_all_uses_with(whole)
        whole.args = (node,)


def _set_modes(network: fx.GraphModule, module: nn.Module) -> None:
    """Each submodule as it is in the module; what was made on the way as the whole."""
    modes = {path: each.training for path, each in module.named_modules(remove_duplicate=False)}
    for path, each in network.named_modules(remove_duplicate=False):
        each.training = modes.get(path, module.training)
        for below in each.modules():
            below.training = each.training


def _assert_shapes(network: fx.GraphModule, shapes: tuple[tuple[int, ...], ...]) -> None:
    """A layer behind each input that stops samples of another shape."""
    (placeholder,) = (node for node in network.graph.nodes if node.op == "placeholder")
    inputs = list(placeholder.users) if len(shapes) > 1 else [placeholder]
    for number, node in enumerate(inputs):
        place = node.args[1] if len(shapes) > 1 else 0
        path = "sample_shape" if len(shapes) == 1 else f"sample_shape_{number}"
        while hasattr(network, path):
            path += "_"
        network.add_submodule(path, SampleShape(shapes[place]))
        with network.graph.inserting_after(node):
            guarded = network.graph.call_module(path)
        guarded.meta["scope"] = ""
        node.replace_all_uses_with(guarded)
        guarded.args = (node,)
