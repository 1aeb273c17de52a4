"""The teacher that a training section names, checked against the data and the student before any work."""

from pathlib import Path

from torch import fx

from compresskit.commands.parents import check_finite, check_fits, checkpoint_file
from compresskit.commands.session import Session, run_path
from compresskit.errors import CheckpointError, DataError, RecipeError, RunFolderError
from compresskit.storage.checkpoint import load
from compresskit.training.distillation import Distill, distiller_for
from compresskit.training.inputs import check_inputs
from compresskit.training.options import Training


def teacher_for(current: Session, student: fx.GraphModule, options: Training) -> fx.GraphModule | None:
    """The network of `distill.teacher`, None without one.

    Raises RecipeError for a file that cannot be read, one of other inputs or another number of classes than the data's,
    and for layers that cannot be compared; RunFolderError for one in the folder that the run writes to.
    """
    if options.distill is None:
        return None
    path = Path(options.distill.teacher).expanduser()
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
    _check_task(current, options.distill)
    distiller_for(student, checkpoint.network, options.distill, current.data.input_shape, 0)
    return checkpoint.network


def _check_task(current: Session, options: Distill) -> None:
    if options.kind == "kd" and current.data.task not in ("classification", "segmentation"):
        raise RecipeError(
            f"distill.kind: kd softens class scores, but the data set is for {current.data.task}; use hint or pkt"
        )
