"""`compresskit evaluate`: the metrics, size and latency of a checkpoint, on the recipe's data."""

from compresskit.commands.evaluate.exported import evaluated
from compresskit.commands.figures import compared, draw_sizes
from compresskit.commands.plan import layer_table
from compresskit.commands.result import Result
from compresskit.commands.session import Arguments, Progress, session, with_folder
from compresskit.storage.exported.metadata import EXPORTED


def run(arguments: Arguments, progress: Progress) -> Result:
    """Evaluates on the test set, each trial of a run folder or an exported file; writes only where `--out` says."""
    with session("evaluate", arguments, ("data",), progress, from_checkpoint=True) as current:
        if arguments.out is not None:
            current = with_folder(current)
        path = arguments.checkpoint
        if path is not None and path.suffix in EXPORTED:
            return evaluated(current, path)
        found = []
        for trial in range(max(1, len(current.parents))):
            start = current.parent(trial)
            assert start.path is not None
            found.append(current.figures(start.network, current.evaluate(start.network), start.path, start.masks))
        result = Result("evaluate", str(start.path), current.folder.path if current.folder else None)
        result.figures = compared([], found, current.recipe.report.latency_batch, current.device)
        result.tables = [layer_table(start.network, current.data.input_shape, start.masks)]
        if current.folder is not None and current.group.is_main and current.recipe.report.plots:
            draw_sizes(current.folder.path, {"": start.network}, current.data.input_shape)
        return result
