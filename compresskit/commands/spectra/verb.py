"""`compresskit spectra`: the spectra of a network's weights, through its training where that was kept."""

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

from compresskit.commands.parents import in_folder
from compresskit.commands.recipe import Recipe, load_recipe
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, Start, load_data
from compresskit.commands.spectra.graphs import Graphs
from compresskit.commands.spectra.isometry import Isometries
from compresskit.commands.spectra.report import plan_result, spectra_result
from compresskit.commands.spectra.section import SpectraOfNetwork
from compresskit.commands.spectra.similarity import Similarity
from compresskit.commands.train.initial import untrained_start
from compresskit.data.dataset import DataSet
from compresskit.distributed import device_kind, device_name
from compresskit.errors import CheckpointError, RecipeError
from compresskit.graph.masks import Masks
from compresskit.graph.trace import traced
from compresskit.graph.weights import Weight, chosen, weights_in, weights_of
from compresskit.jobs.lanes import Counter
from compresskit.models.memory import within_memory
from compresskit.models.weights.files import read_state
from compresskit.models.weights.fitting import load_weights
from compresskit.passes.spectra.spectrum import Spectrum
from compresskit.passes.spectra.weights import spectra
from compresskit.plots.spectra import alphas, densities, through_training
from compresskit.recipes.yaml_reader import to_yaml
from compresskit.storage.atomic import write_arrays
from compresskit.storage.checkpoint import load
from compresskit.storage.run_folder import RunFolder, open_run_folder
from compresskit.training.state import epochs_kept

logger = logging.getLogger(__name__)
COLUMNS = [column.name for column in fields(Spectrum) if column.name != "eigenvalues"]


@dataclass(frozen=True)
class Source:
    """Whose spectra are taken. network: None for a bare state dict. epochs: state dicts of its training."""

    title: str
    path: Path | None
    network: nn.Module | None
    weights: list[Weight]
    others: dict[str, str]
    epochs: dict[int, Path]
    masks: Masks


def run(arguments: Arguments, progress: Progress) -> Result:
    """Spectra of all layers; writes spectra.csv, eigenvalues.npz, report and plots."""
    recipe = load_recipe(arguments.recipe, arguments.changes, verb="spectra", require=("spectra",))
    options: SpectraOfNetwork = recipe.section("spectra")
    device = torch.device(device_kind(arguments.device))
    data = _data(recipe, options, arguments.checkpoint, progress)
    source = _source(arguments.checkpoint, recipe, options, data)
    alike = (
        Similarity(source.network, options.cka, data, device) if options.cka is not None and data is not None else None
    )
    isometries = _isometries(source, arguments, recipe, data, device)
    of_masks = Graphs(source.network, source.weights, source.masks) if options.graphs else None
    parts = [part for part in (alike, of_masks, isometries) if part is not None]
    if arguments.dry_run:
        planned = plan_result(source.title, source.weights, source.others, options)
        planned.tables += isometries.plan() if isometries is not None else []
        return planned
    with ExitStack() as own:
        folder = (arguments.held or own).enter_context(_folder(arguments, recipe, source, isometries, device))
        return _measured(folder, source, recipe, device, progress, parts)


def _measured(
    folder: RunFolder,
    source: Source,
    recipe: Recipe,
    device: torch.device,
    progress: Progress,
    parts: Sequence[Similarity | Graphs | Isometries],
) -> Result:
    options: SpectraOfNetwork = recipe.section("spectra")

    def take(weights: Sequence[Weight], label: str) -> tuple[list[Spectrum], dict[str, str]]:
        progress.start(label, len(weights))
        counted = Counter(progress)
        return spectra(weights, options, seed=recipe.seed, device=device, on_layer=counted)

    found, reasons = take(source.weights, "spectra")
    history = {epoch: take(_of_epoch(source, path), f"epoch {epoch}")[0] for epoch, path in source.epochs.items()}
    result = spectra_result(source.title, folder.path, found, source.others | reasons, options, history)
    _write(folder, found, history)
    for part in parts:
        part.measure(folder, progress, result, drawn=recipe.report.plots)
    if recipe.report.plots:
        densities(folder.path / "densities.png", found)
        alphas(folder.path / "alpha-by-depth.png", found)
        if history:
            through_training(folder.path / "alpha-through-training.png", history)
    return result


def _data(recipe: Recipe, options: SpectraOfNetwork, path: Path | None, progress: Progress) -> DataSet | None:
    """The recipe's data, where they are needed: for similarities, and for the shapes of a model that is to be built."""
    if recipe.data is None:
        if options.cka is not None:
            raise RecipeError("spectra.cka: layers are compared by what they make of images; add `data:` to the recipe")
        if options.isometry is not None:
            raise RecipeError("spectra.isometry: Jacobians are taken at images; add `data:` to the recipe")
        return None
    if options.cka is None and options.isometry is None and (recipe.model is None or _is_checkpoint(path)):
        return None
    return load_data(recipe, progress)


def _source(path: Path | None, recipe: Recipe, options: SpectraOfNetwork, data: DataSet | None) -> Source:
    if path is None and recipe.model is None:
        raise RecipeError(
            "--checkpoint: name a model.pt, the folder of a run or a state dict (.pt, .safetensors), or give the "
            "recipe a `model`"
        )
    network: nn.Module | None = None
    epochs: dict[int, Path] = {}
    masks: Masks = {}
    if path is None:
        network, masks = _initial(recipe, options, data)
        weights_file = getattr(recipe.model, "weights", None)
        title = weights_file or f"{recipe.name}: random weights, since there is no --checkpoint"
    elif path.is_dir():
        checkpoint, title, epochs = load(in_folder(path)[0]), str(path), epochs_kept(path)
        network, masks = checkpoint.network, checkpoint.masks
    else:
        title = str(path)
        if _is_checkpoint(path):
            checkpoint = load(path)
            network, masks = checkpoint.network, checkpoint.masks
        elif recipe.model is not None:
            network = _built(recipe, options, data)
            load_weights(network, path, finite=False)  # the table says where they are not
    weights, others = weights_of(network) if network is not None else _of_state(path or Path())
    if options.layers is not None:
        weights, others = chosen(weights, options.layers), {}
    if not weights:
        raise CheckpointError(f"{title}: it has no layer with a matrix of weights")
    return Source(title, path, network, weights, others, epochs, masks)


def _of_state(path: Path) -> tuple[list[Weight], dict[str, str]]:
    found = read_state(path)
    if found.notes:
        logger.warning("%s: %s", path, "; ".join(found.notes))
    return weights_in(found.state)


def _is_checkpoint(path: Path | None) -> bool:
    """Whether it is a run, or a checkpoint of ours; so is what is neither that nor a state dict, whose own error says
    most of it."""
    if path is None or path.is_dir() or path.suffix == ".safetensors":
        return path is not None and path.is_dir()
    try:
        load(path)
    except CheckpointError:
        try:
            read_state(path)
        except CheckpointError:
            return True
        return False
    return True


def _initial(recipe: Recipe, options: SpectraOfNetwork, data: DataSet | None) -> tuple[nn.Module, Masks]:
    """The recipe's model as training would start from it. Raises RecipeError where that takes data, or a training."""
    if data is None:
        if recipe.train is not None and (recipe.train.init is not None or recipe.train.mask is not None):
            raise RecipeError(
                "spectra: `train` draws or masks layers for the shapes of data; add `data:`, or drop ~train.init and "
                "~train.mask"
            )
        return _built(recipe, options, data), {}
    start = untrained_start(recipe, data, torch.device("cpu"))
    return start.network, start.masks


def _built(recipe: Recipe, options: SpectraOfNetwork, data: DataSet | None) -> nn.Module:
    torch.manual_seed(recipe.seed)
    shape, outputs = (data.input_shape, data.outputs) if data is not None else (options.input_shape, options.outputs)
    with within_memory():
        network: nn.Module = recipe.section("model").build(shape, outputs)
    return network


def _of_epoch(source: Source, path: Path) -> list[Weight]:
    """The layers of the source with the weights of an epoch."""
    state = read_state(path).state
    return [
        Weight(weight.name, weight.kind, state[f"{weight.name}.weight"], weight.groups)
        for weight in source.weights
        if f"{weight.name}.weight" in state
    ]


@contextmanager
def _folder(
    arguments: Arguments, recipe: Recipe, source: Source, isometries: Isometries | None, device: torch.device
) -> Iterator[RunFolder]:
    plain, path = recipe.plain(), source.path
    own = () if path is None else in_folder(path) if path.is_dir() else (path,)
    with open_run_folder(
        arguments.out or Path("runs") / f"{recipe.name}-spectra",
        "spectra",
        plain,
        force=arguments.force,
        resume=arguments.resume,
        inputs=(*own, *(isometries.inputs if isometries is not None else ())),
        about={"device": device_name(device)},
    ) as folder:
        folder.write_text("recipe.yaml", to_yaml(plain))
        yield folder


def _write(folder: RunFolder, found: Sequence[Spectrum], history: Mapping[int, Sequence[Spectrum]]) -> None:
    """spectra.csv, a row a layer with every figure, first of the network and then of each epoch that was kept; and
    eigenvalues.npz, an array a layer of the network."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", *COLUMNS, "Q"])
    for epoch, rows in [("", found), *history.items()]:
        for row in rows:
            values = ["x".join(map(str, row.shape)) if name == "shape" else getattr(row, name) for name in COLUMNS]
            writer.writerow([epoch, *values, row.Q])
    folder.write_text("spectra.csv", text.getvalue())
    write_arrays(folder.path / "eigenvalues.npz", {row.name: row.eigenvalues for row in found})


def _isometries(
    source: Source, arguments: Arguments, recipe: Recipe, data: DataSet | None, device: torch.device
) -> Isometries | None:
    """What the section asks for, checked before any work."""
    if recipe.section("spectra").isometry is None or data is None:
        return None
    if source.network is None:
        raise RecipeError("spectra.isometry: a state dict has no layers to run; give the recipe its `model`")
    return Isometries(Start(traced(source.network), masks=source.masks), arguments, recipe, data, device)
