"""Checkpoints: a network, its masks and how it came to be, in one file that runs no code when it is read."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.data.own.targets import OWN
from compresskit.errors import CheckpointError, UnsupportedModelError, first_line
from compresskit.graph.format.rehearsal import rehearse
from compresskit.graph.format.table import from_table, named_tensors, to_table
from compresskit.models.weights.files import CHECKPOINT, is_plain
from compresskit.shapes import Shape
from compresskit.storage import masked
from compresskit.storage.atomic import write_tensors
from compresskit.storage.content import check_content
from compresskit.storage.reading import readable

VERSION = 2  # 1: masks beside whole tensors; still written where there are no masks
_SHOWN = 5  # names of tensors in a message
_PLAIN = ("model", "input_shape", "task", "preprocessing", "history")


class ForeignFile(CheckpointError):
    """A file that some other program wrote, a state dict perhaps."""


@dataclass
class Checkpoint:
    """What model.pt holds.

    network: of one input batch and one output tensor.   model: the recipe's section that the first network was built
    from.   input_shape: of one sample, without the batch; of several inputs a tuple of such.   task: "classification"
    or "regression".
    preprocessing: {"mean": [...], "std": [...]} for each channel, or {}; "bytes": for each input whether the data hold
    it as uint8, divided by 255 before that; "classes": names in the order of their numbers, where the data tell them.
    history: one entry for each verb that was run, oldest first.   masks: by parameter, bool, True = keep; what they set
    to zero is not stored.
    """

    network: fx.GraphModule
    model: dict[str, Any]
    input_shape: Shape
    task: str
    preprocessing: dict[str, Any]
    history: list[dict[str, Any]]
    masks: dict[str, Tensor] = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the checkpoint, whole or not at all; the same content gives the same bytes.

    Raises UnsupportedModelError for a network that could not be loaded again, ResourceError when the disk is full.
    """
    table = to_table(checkpoint.network)
    tensors = _values(checkpoint.network)
    if problems := _misfits(from_table(table), tensors):
        raise UnsupportedModelError(f"{path}: the tensors do not fit the options of their modules: {problems}")
    plain = {name: getattr(checkpoint, name) for name in _PLAIN}
    tensors |= {name: masked.left(tensors[name], mask.cpu()) for name, mask in checkpoint.masks.items()}
    masks = {name: masked.packed(mask.cpu()) for name, mask in checkpoint.masks.items()}
    names, mask_names, graph, plain = _canonical([list(tensors), list(masks), table, plain])
    content = {
        "format": CHECKPOINT,
        "version": VERSION if masks else 1,
        "graph": graph,
        "tensors": dict(zip(names, tensors.values(), strict=True)),
        "masks": dict(zip(mask_names, masks.values(), strict=True)),
        **plain,
    }
    write_tensors(path, content)


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint at `path`, its network in eval mode on `device`.

    Raises CheckpointError for a file that is missing, damaged, of another origin (ForeignFile) or of a newer
    compresskit, and for a graph that asks for anything outside the closed lists.
    """
    content = _read(path, device)
    try:
        check_content(content)
        network = from_table(content["graph"])
        tensors, masks = _unpacked(network, content)
        plain = {name: content[name] for name in _PLAIN}
        plain["input_shape"] = tuple(tuple(n) if isinstance(n, list) else n for n in plain["input_shape"])
        if problems := _misfits(network, tensors):
            raise CheckpointError(f"its tensors do not fit its graph: {problems}; take another copy of the file")
        rehearse(network, plain["input_shape"], whole=plain["task"] == OWN)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # nothing that a damaged file makes of this is worth a line of its own
        raise CheckpointError(f"{path}: it is damaged ({error!r}); {_OTHER_COPY}") from error
    _fill(network, tensors)
    return Checkpoint(network, masks=masks, **plain)


def _unpacked(network: fx.GraphModule, content: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors and masks, both whole. Raises CheckpointError where they do not belong together."""
    tensors, packed = dict(content["tensors"]), content["masks"]
    if content["version"] == 1:
        return tensors, packed
    shapes = {name: tensor.shape for name, tensor in named_tensors(network)}
    masks = {}
    for name, bits in packed.items():
        if name not in shapes or name not in tensors:
            raise CheckpointError(f"a mask is for {name}, which it does not have; take another copy of the file")
        masks[name] = masked.unpacked(bits, shapes[name], name)
        tensors[name] = masked.whole(tensors[name], masks[name], name)
    return tensors, masks


def load_network(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """The network of the checkpoint at `path`, in eval mode on `device`. Raises CheckpointError."""
    return load(Path(path), device).network


def _values(network: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors by name; a parameter with two names is one tensor under both, which pickle keeps so."""
    values: dict[int, Tensor] = {}
    return {name: values.setdefault(id(t), compact(t)) for name, t in named_tensors(network)}


def compact(tensor: Tensor) -> Tensor:
    """On the CPU, and without what lies around it in memory where it is a part of a larger tensor."""
    value = tensor.detach().cpu().contiguous()
    return value if value.nbytes == value.untyped_storage().nbytes() else value.clone()


def _canonical(plain: list[Any]) -> Any:
    """An equal copy of plain data whose objects are shared or not by their content alone, since pickle shows that."""
    return json.loads(json.dumps(plain))


def _fill(network: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
    """Puts the tensors in their places; one that has two names becomes one parameter with two names."""
    parameters: dict[int, nn.Parameter] = {}
    for name, _ in list(named_tensors(network)):
        owner, _, attribute = name.rpartition(".")
        module, value = network.get_submodule(owner), tensors[name]
        if attribute in module._parameters:
            parameter = nn.Parameter(value, requires_grad=value.is_floating_point())
            module._parameters[attribute] = parameters.setdefault(id(value), parameter)
        else:
            module._buffers[attribute] = value
    for module in network.modules():
        if isinstance(module, nn.RNNBase):  # which keeps a list of its weights beside them
            module._init_flat_weights()


def _misfits(network: fx.GraphModule, tensors: Mapping[str, Any]) -> str:
    """What is missing, superfluous or of another shape or kind of number than the network has it; "" if nothing."""
    wanted = dict(named_tensors(network))
    strange = {name for name, tensor in tensors.items() if not is_plain(tensor)}
    both = [name for name in wanted if name in tensors.keys() - strange]
    wrong = [name for name in both if tensors[name].shape != wanted[name].shape]
    kinds = [name for name in both if tensors[name].is_floating_point() != wanted[name].is_floating_point()]
    found = {
        "missing": [name for name in wanted if name not in tensors],
        "not in the graph": [name for name in tensors if name not in wanted],
        "no plain tensor": sorted(strange & wanted.keys()),
        "wrong shape": [f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}" for name in wrong],
        "wrong type": [f"{name} {tensors[name].dtype}" for name in kinds],
    }
    return "; ".join(f"{what}: {_shorten(names)}" for what, names in found.items() if names)


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Everything in the file, of which nothing was looked at yet but where it comes from and its version."""
    _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of kinds of tensors that are refused below
            content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignFile(
            f"{path}: it holds Python objects, which are never run; a module or a state dict goes into `weights` of a "
            "torchvision, timm or factory model"
        ) from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what torch.save did not write can fail in any way when it is read as if it had
        raise CheckpointError(f"{path}: it cannot be read ({first_line(error)}); {_OTHER_COPY}") from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT:
        raise ForeignFile(
            f"{path}: it is no compresskit checkpoint; a plain state dict goes into `weights` of a torchvision, timm "
            "or factory model"
        )
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"{path}: it was written by a newer compresskit (format {version}, this one reads up to {VERSION}); "
            "update compresskit"
        )
    return content


_OTHER_COPY = "it is cut off or damaged, so take another copy or run the command again that wrote it"


def _check_archive(path: Path) -> None:
    """Looks at the file as a zip archive, with its checksums, which torch does not check."""
    with readable(path), path.open("rb") as file:
        start = file.read(2)
        try:
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise CheckpointError(f"{path}: its parts are compressed, as torch never does; {_OTHER_COPY}")
                damaged = archive.testzip()
        except CheckpointError:
            raise
        except Exception as error:  # what a damaged file makes of zipfile is not told anywhere
            if start == b"PK":
                raise CheckpointError(f"{path}: {_OTHER_COPY}") from error
            raise ForeignFile(f"{path}: it is no compresskit checkpoint; name the model.pt of a run") from error
    if damaged:
        raise CheckpointError(f"{path}: {damaged} fails its checksum; {_OTHER_COPY}")
