"""The recipe: which sections it has, and how a file becomes one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from compresskit.commands.expand.section import ExpandAndTrain
from compresskit.commands.fuse.section import FuseAndRetrain
from compresskit.commands.prune.section import PRUNINGS
from compresskit.commands.reconstruct.section import ReconstructAndRetrain
from compresskit.commands.spectra.section import SpectraOfNetwork
from compresskit.commands.train.section import FreshTraining
from compresskit.data.dataset import AnySet
from compresskit.data.registry import DATASETS
from compresskit.errors import RecipeError
from compresskit.models.registry import MODELS
from compresskit.options import option
from compresskit.recipes.hints import Kinds, keys_of, kinds, option_class
from compresskit.recipes.inheritance import over
from compresskit.recipes.load import Values, load_typed
from compresskit.recipes.texts import FileName, Size, bytes_of
from compresskit.recipes.yaml_reader import Node
from compresskit.training.options import Training

Changes = Mapping[str, Any]  # values by dotted keys, as overrides on the command line name them


@option
class MomentOptions:
    """How moments are gathered and kept."""

    cache: str | None = None  # folder of the cached moments; default: inside the run folder
    stale: Literal["recompute", "fail"] = "recompute"  # what to do with a cache of other weights, data or options
    batch_size: Annotated[int, Gt(0)] = 256  # images that the network sees at a time
    # limit on the statistics held at a time, in bytes or as 4GB; default: a share of what is free
    memory: Annotated[float, Gt(0)] | Size | None = None

    def memory_bytes(self) -> int | None:
        """The limit in bytes; None where there is none."""
        if isinstance(self.memory, str):
            return bytes_of(self.memory)
        return None if self.memory is None else int(self.memory)


@option
class ReportOptions:
    """What the report measures beside the test metric."""

    latency_batch: Annotated[int, Gt(0)] = 1  # samples in the batch that is timed
    latency_repeats: Annotated[int, Gt(0)] = 30  # timed runs, of which the median is reported
    plots: bool = True  # pictures beside the report
    # "package.module:name" of functions of yours, (outputs, targets) -> number, over all samples of a part
    metrics: tuple[str, ...] | None = None


@option
class Recipe:
    """All that one recipe says, defaults filled in; None for a section that it does not have."""

    name: FileName  # of the run folder; default: the recipe file's
    description: str | None = None
    seed: Annotated[int, Ge(0), Lt(2**62)] = 0  # each trial adds 1
    trials: Annotated[int, Ge(1), Le(10_000)] = 1  # independent runs, reported as mean and standard deviation
    deterministic: bool = False  # refuse operations whose result varies from run to run
    model: Annotated[Any, Kinds(MODELS)] | None = None
    data: Annotated[AnySet, Kinds(DATASETS)] | None = None
    train: FreshTraining | None = None
    finetune: Training | None = None
    fuse: FuseAndRetrain | None = None
    expand: ExpandAndTrain | None = None
    reconstruct: ReconstructAndRetrain | None = None
    prune: Annotated[Any, Kinds(PRUNINGS, default="channels")] | None = None  # channels, weights or kernels
    spectra: SpectraOfNetwork | None = None
    moments: MomentOptions = MomentOptions()
    report: ReportOptions = ReportOptions()

    def section(self, name: str) -> Any:
        """A section that was required when the recipe was loaded. Raises KeyError if the recipe does not have it."""
        found = getattr(self, name)
        if found is None:
            raise KeyError(name)
        return found

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, every default written out; sections that it does not have are left out."""
        return {key: value for key, value in _plain(asdict(self)).items() if value is not None}


def load_recipe(path: Path, overrides: Sequence[str] = (), *, verb: str = "", require: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` with `key.sub=value` and `~key` overrides applied.

    require: the sections that `verb` needs. Raises RecipeError with one line for each mistake found.
    """

    def complete(values: Values) -> None:
        values.setdefault("name", Node(path.stem))
        for name, hint in keys_of(Recipe).items():
            if name in values and values[name].value is None and (option_class(hint) or kinds(hint)):
                values[name].value = {}  # `fuse:` with nothing below it asks for the defaults
        if "model" in values:
            _write_out_model(values["model"])

    return load_typed(Recipe, path, overrides, verb=verb, require=require, complete=complete, inherit=_inherit)


def variant(path: Path, overrides: Sequence[str], changes: Changes, where: str, *, verb: str = "") -> Recipe:
    """The recipe at `path` with the command line's overrides and, over them, `changes`.

    where: key of the comparison, which every message starts with. Raises RecipeError with all mistakes.
    """
    texts = [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML, too
    try:
        return load_recipe(path, [*overrides, *texts], verb=verb)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _inherit(values: Values) -> None:
    """Entries of `expand.compare` say what they change of `train`."""
    train, section = values.get("train"), values.get("expand")
    entries = section.value.get("compare") if section and isinstance(section.value, dict) else None
    if train is None or not isinstance(train.value, dict) or entries is None or not isinstance(entries.value, dict):
        return
    base = Node({key: node for key, node in train.value.items() if key in keys_of(Training)}, train.line)
    for entry in entries.value.values():
        if isinstance(entry.value, dict) and "train" in entry.value:
            entry.value["train"] = over(base, entry.value["train"])


def _write_out_model(model: Node) -> None:
    """`torchvision:NAME` and `timm:NAME` are models of these libraries. Such a kind of the command line, or the name of
    code, stands in the place of the name that the file gives."""
    if isinstance(model.value, str):
        model.value = {"kind": Node(model.value, model.line)}
    values = model.value if isinstance(model.value, dict) else {}
    kind = values.get("kind")
    if kind is None or not isinstance(kind.value, str):
        return
    library, colon, name = kind.value.partition(":")
    if colon and kind.line is None:
        for key in [key for key in ("name", "target") if key in values and values[key].line is not None]:
            del values[key]
    if colon and library in ("torchvision", "timm") and "name" not in values:  # else both say it, and it is refused
        values["name"] = Node(name, kind.line)
        kind.value = library


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
