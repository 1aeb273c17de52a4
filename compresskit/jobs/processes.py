"""Jobs in processes of their own, one a job: what kills one costs no other.

The processes are multiprocessing's, of the standard library, and what we add is a queue: a pool (concurrent.futures,
joblib) breaks as a whole where one of its processes is killed, and an engine for clusters is a service to run. They are
forked off a server that has imported torch (`forkserver`), where the system can fork: each would take seconds for that.
Nothing imported here takes long, so that the server starts beside the imports of this process.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, get_all_start_methods, get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from compresskit.errors import JobError
from compresskit.jobs.lanes import Board, Shown

if TYPE_CHECKING:
    from compresskit.jobs.places import Place

PATIENCE = 10.0  # seconds that a process has to end when it is told to
LOOK = 1.0  # seconds until the next look for more to do
Orders = Mapping[str, Callable[["Place"], Any]]
_FORKS = "forkserver" in get_all_start_methods()
_WORKER = "compresskit.jobs.worker"


def prepare(module: str) -> None:
    """Starts the server that jobs of `module` are forked off; it goes on importing while this process does.

    It has one thread, without which forking is not safe: libraries start others when they are imported, unless they are
    told not to. Each job says how many it takes.
    """
    if _FORKS:
        get_context("forkserver").set_forkserver_preload([_WORKER, module, "torch._dynamo"])  # as optimisers do
        with _set("PYTHONWARNINGS", "ignore:resource_tracker"):  # it removes what a killed job leaves, without a word
            resource_tracker.ensure_running()  # before the server, which would start it, and let Ctrl-C through
        with _set("OMP_NUM_THREADS", "1"), _without_interrupts():
            forkserver.ensure_running()


def spread(
    module: str,
    orders: Orders,
    places: Sequence["Place"],
    board: Board,
    more: Callable[[], Orders] | None = None,
) -> dict[str, Exception]:
    """Runs `module.run(order, progress)` for each order, in their order, one at each place at a time.

    orders: by name, made for the place. more: those that are new; it is asked time and again. Returns by name what
    stopped those that failed. However it ends, none of the processes is left.
    """
    context: Any = get_context("forkserver" if _FORKS else "spawn")  # of which typeshed knows no Process
    waiting, free, warned = deque(orders.items()), deque(places), set[str]()
    running: dict[Connection, _Running] = {}
    failed: dict[str, Exception] = {}
    try:
        while waiting or running:
            while waiting and free:
                name, order = waiting.popleft()
                place = free.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(module, order(place), os.getcwd(), sender), name=name)
                running[receiver] = _Running(name, place, process, Shown(board.lane(name), warned))
                process.start()
                sender.close()
            for connection in wait(list(running), None if more is None else LOOK):
                assert isinstance(connection, Connection)
                one = running[connection]
                if one.hears(connection):
                    continue
                del running[connection]
                free.append(one.place)
                if one.error is not None:
                    failed[one.name] = one.error
            waiting.extend(more().items() if more is not None else ())
    finally:
        _stop(one.process for one in running.values())
    return failed


@dataclass
class _Running:
    """A job at work. error: what stopped it, known when it has ended."""

    name: str
    place: "Place"
    process: BaseProcess
    shown: Shown
    error: Exception | None = None
    told: bool = False

    def hears(self, connection: Connection) -> bool:
        """Takes what the process says next; False where it has ended, and closed its end."""
        try:
            kind, *what = connection.recv()
        except (EOFError, OSError):
            connection.close()
            self.process.join()
            if not self.told:
                self.error = JobError(_killed(self.process.exitcode))
            if self.error is not None:
                self.shown.lane.log(f"failed: {self.error}")
            self.shown.lane.end()
            return False
        if kind == "ended":
            self.told, (self.error,) = True, what
        else:
            self.shown(kind, *what)
        return True


def _killed(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed by SIGKILL, as Linux does where memory runs out; fewer --jobs take less memory"
    return f"its process ended with status {status} before it was done"


def _work(module: str, order: Any, folder: str, sender: Connection) -> None:
    from compresskit.jobs.worker import work  # torch, which only jobs need

    os.chdir(folder)
    work(module, order, sender)


def _stop(processes: Iterable[BaseProcess]) -> None:
    """Tells them all to end, as a signal tells the program, and waits for it."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
    for process in started:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C is for this process, which gets it behind the block: what is started inside never does, from its first
    line on, where it would say with a traceback that its imports were interrupted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, for what is started inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
