"""Jobs of a run: its trials and the networks that it compares, in processes beside each other where --jobs asks for it.

Each job leaves the state of its work in a folder of its own, as a run that was stopped does. So a verb lists its jobs
and goes on as ever: with --jobs 1 there is nothing more to it. With more, processes run the same verb up to its list,
and do one job each; then the verb finds them all done, as if it were resumed, but for what the processes have just
measured, which it takes from their checkpoints. Only the process that the user has
started locks the run folder, and writes what is no job's. Equal numbers of threads give equal results, since the same
code goes on from the same states.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from compresskit.commands.result import Result, Table
from compresskit.commands.session import Arguments, Session, run_path
from compresskit.errors import ConvergenceError, RecipeError
from compresskit.jobs import cluster, processes
from compresskit.jobs.cluster import is_cluster
from compresskit.jobs.places import (
    Place,
    Task,
    described,
    described_on_cluster,
    place_on_cluster,
    places,
    wanted,
)
from compresskit.mishaps import told
from compresskit.numerics.threads import threads

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A part of a run that needs no other part. work: what takes long of it, into `folder`.

    cost: of its training, in epochs times multiply-accumulates of a sample; 0 where that is not known.
    """

    folder: Path
    work: Callable[[], object]
    cost: float = 0.0


def beside(current: Session, jobs: Sequence[Job], later: Callable[[], Sequence[Job]] | None = None) -> Session:
    """Runs the jobs beside each other, if --jobs asks for it. Returns the session to go on with, which is resumed then.

    To be called before any job is done. What failed is among the session's failures. Long jobs come first, for no
    process to be the last one at work for long. later: lists those that need what others have made by now.
    """
    current = replace(current, several=len(jobs) > 1 or later is not None)
    count = _wanted(current) if later is not None else min(_wanted(current), len(jobs))
    if count < 2:
        return current
    known: dict[str, Job] = {}

    def new(more: Sequence[Job]) -> dict[str, Callable[[Place], Arguments]]:
        """Those that were not known before."""
        added = {name: job for job in longest_first(more) if (name := name_of(current, job.folder)) not in known}
        known.update(added)
        return {name: partial(_order, current, job) for name, job in added.items()}

    more = None if later is None else lambda: new(later())
    module, asked = f"compresskit.commands.{current.verb}.verb", current.arguments.jobs
    if is_cluster(asked):
        place = place_on_cluster(current.device.type)
        failed = cluster.spread(asked, module, new(jobs), place, current.progress, more)
    else:
        place, *others = places(count, current.device.type)
        failed = processes.spread(module, new(jobs), [place, *others], current.progress, more)
    ordered = dict.fromkeys(job.folder for job in (*jobs, *known.values()))  # as they would have failed one by one
    current.failed.update((folder, failed[name]) for folder in ordered if (name := name_of(current, folder)) in failed)
    current.held.enter_context(threads(place.threads))  # what follows is rounded as it is in jobs
    return replace(current, arguments=replace(current.arguments, resume=True), by_processes=True)


def longest_first(jobs: Iterable[Job]) -> list[Job]:
    """In the order in which they are started; those of equal cost as the recipe has them."""
    return sorted(jobs, key=lambda job: -job.cost)


def worked(current: Session, jobs: Sequence[Job]) -> Result:
    """Does the one of these jobs that this process was started for."""
    assert current.arguments.task is not None
    {job.folder: job for job in jobs}[current.arguments.task.folder].work()
    return Result(current.verb, current.recipe.name)


def placement(current: Session, jobs: Sequence[Job], later: str = "") -> list[str]:
    """For a dry run: how many jobs there are, and where they would run; nothing where they run one after another.

    later: what others there will be.
    """
    if (asked := _wanted(current)) < 2:
        return []
    count = asked if later else min(asked, len(jobs))
    told = f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}{f' and {later}' if later else ''}"
    if count < 2:
        return [f"{told}, for which --jobs changes nothing"]
    if is_cluster(current.arguments.jobs):
        place = place_on_cluster(current.device.type)
        return [f"{told}, {described_on_cluster(current.arguments.jobs, place)}"]
    return [f"{told}, {described(places(count, current.device.type))}"]


def check_not_timed(current: Session, jobs: Sequence[Job], timed: bool) -> None:
    """Raises RecipeError where what a job does depends on times, and others would run beside it."""
    if timed and min(_wanted(current), len(jobs)) > 1:
        raise RecipeError(
            f"--jobs {current.arguments.jobs}: a target of latency is timed, and jobs beside each other slow each "
            "other down; use --jobs 1, or ask for macs"
        )


def attempt(current: Session, folder: Path, work: Callable[[], T]) -> T | None:
    """What comes of the job of that folder; None where it fails, or has failed before, which the report tells.

    One that is all that there is to do raises what stops it. Of several processes of torchrun, that all do the same,
    only what all meet alike stops a job alone.
    """
    if folder in current.failed:
        return None
    try:
        return work()
    except Exception as error:
        if not current.several or (current.group.world > 1 and not isinstance(error, ConvergenceError)):
            raise
        current.failed[folder] = error
        current.progress.log(f"{name_of(current, folder)}: failed: {told(error, current.verb)}")
        return None


def attempts(current: Session, work: Mapping[Path, Callable[[], T]]) -> list[T]:
    """What came of those jobs that did not fail. Raises what stopped the first where all did."""
    found = [attempt(current, folder, each) for folder, each in work.items()]
    done = [one for one in found if one is not None]
    if not done:
        raise current.failed[next(iter(work))]
    return done


def with_failures(current: Session, result: Result) -> Result:
    """The result, with a row for each job that failed."""
    result.failed = {name_of(current, folder): error for folder, error in current.failed.items()}
    if result.failed:
        rows = [(name, told(error, current.verb)) for name, error in result.failed.items()]
        result.tables.append(Table("jobs that failed", ("job", "why"), rows))
    return result


def name_of(current: Session, folder: Path) -> str:
    """Of a job, by its folder below that of the run."""
    inner = folder.relative_to(run_path(current))
    return str(inner) if inner.parts else current.recipe.name


def _wanted(current: Session) -> int:
    return wanted(current.arguments.jobs, current.device.type, current.group.world)


def _order(current: Session, job: Job, place: Place) -> Arguments:
    """The command line of a process that does one job."""
    return replace(current.arguments, task=Task(job.folder, place), held=None, resume=True, force=False)
