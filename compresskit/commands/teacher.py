"""The teacher that a training section names, checked against the data and the student before any work."""

from dataclasses import replace
from pathlib import Path

from torch import fx

from compresskit.commands.parents import check_finite, check_fits, checkpoint_file
from compresskit.commands.session import Session, run_path
from compresskit.errors import CheckpointError, DataError, RecipeError, RunFolderError
from compresskit.options import named
from compresskit.storage.checkpoint import load
from compresskit.training.distillation import ORIGINAL, Distill, distiller_for
from compresskit.training.inputs import check_inputs
from compresskit.training.options import Training


def teacher_for(
    current: Session, student: fx.GraphModule, options: Training, original: fx.GraphModule | None
) -> fx.GraphModule | None:
    """The network of `distill.teacher`, None without one. original: that the run starts from, where it does.

    Raises RecipeError for a file that cannot be read, one of other inputs or another number of classes than the data's,
    for layers that cannot be compared, and where there is no original; RunFolderError for a file in the folder that the
    run writes to.
    """
    if options.distill is None:
        return None
    if options.distill.teacher == ORIGINAL and original is None:
        raise RecipeError(
            f"distill.teacher: original is the network that a run starts from, and this '{current.verb}' starts from "
            "none that is trained; name a model.pt, or the folder of a run"
        )
    teacher = original if options.distill.teacher == ORIGINAL else _loaded(current, options.distill.teacher)
    assert teacher is not None
    _check_task(current, options.distill)
    distiller_for(student, teacher, options.distill, current.data.input_shape, 0)
    return teacher


def teacher_notes(options: Training | None) -> list[str]:
    """For reports: whom a training learnt from beside its labels."""
    if options is None or options.distill is None:
        return []
    whom = options.distill.teacher
    name = "the network that the run started from" if whom == ORIGINAL else whom
    return [f"distill: training learnt from {name}, too ({named(replace(options.distill, teacher=ORIGINAL))})"]


def _loaded(current: Session, teacher: str) -> fx.GraphModule:
    path = Path(teacher).expanduser()
    folder = run_path(current)
    if folder.resolve() in (path.resolve(), *path.resolve().parents):
        raise RunFolderError(f"{folder}: it holds the teacher {path}; write elsewhere with --out")
    try:
        path = checkpoint_file(path)
        checkpoint = load(path, current.device)
        check_finite(checkpoint.network, path)
        check_fits(checkpoint, path, current.data)
        check_inputs(checkpoint.network, current.data)
    except (CheckpointError, DataError) as error:
        raise RecipeError(f"distill.teacher: {error}") from error
    return checkpoint.network


def _check_task(current: Session, options: Distill) -> None:
    if options.kind == "kd" and current.data.task not in ("classification", "segmentation"):
        raise RecipeError(
            f"distill.kind: kd softens class scores, but the data set is for {current.data.task}; use hint or pkt"
        )
