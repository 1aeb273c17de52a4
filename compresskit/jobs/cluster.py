"""Jobs on a cluster that Ray keeps: each goes where there is room, and again elsewhere where its machine is lost.

All machines have the package, and the same folders under the same paths: what a job needs and leaves is in files, so
that one that is started again goes on from its last state. On its machine a job is a process of its own, as it is
without Ray. Home of ray.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compresskit.errors import JobError, RecipeError, ResourceError, first_line
from compresskit.jobs import processes
from compresskit.jobs.lanes import Board, Lane, Sent, Shown

if TYPE_CHECKING:
    from compresskit.jobs.places import Place
    from compresskit.jobs.processes import Orders

NAME = "ray"
SCHEME = f"{NAME}://"
MACHINES = 3  # that may be lost under one job
LOOK = 0.3  # seconds until the next look for what jobs say
PATIENCE = processes.PATIENCE + 5.0  # seconds that jobs have to end on their machines when they are told to


def is_cluster(asked: str) -> bool:
    """Whether --jobs asks for Ray."""
    return asked == NAME or asked.startswith(SCHEME)


def spread(
    address: str,
    module: str,
    orders: "Orders",
    place: "Place",
    board: Board,
    more: Callable[[], "Orders"] | None = None,
) -> dict[str, Exception]:
    """As `processes.spread` does, on all machines of the cluster. place: what each job has, on whichever machine.

    Raises RecipeError without Ray, ResourceError where there is no such cluster, it is lost, or none of its machines
    has the place.
    """
    with _connected(address, place) as ray:
        try:
            return _Cluster(ray, module, place, board).run(orders, more)
        except ray.exceptions.RayError as error:
            raise ResourceError(f"--jobs {address}: the cluster is lost ({first_line(error)})") from error


class _Cluster:
    def __init__(self, ray: Any, module: str, place: "Place", board: Board) -> None:
        self._ray, self._place, self._board = ray, place, board
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )  # another machine may be lost, and what is said with it
        self._said = ray.util.queue.Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        needs = {"num_cpus": place.threads, "num_gpus": int(place.gpu is not None)}
        self._work = ray.remote(max_retries=MACHINES, max_calls=1, **needs)(_work).remote
        self._module, self._running = module, dict[Any, str]()
        self._shown, self._warned = dict[str, Shown](), set[str]()

    def run(self, orders: "Orders", more: Callable[[], "Orders"] | None) -> dict[str, Exception]:
        failed: dict[str, Exception] = {}
        try:
            self._start(orders)
            while self._running:
                ended, _ = self._ray.wait(list(self._running), timeout=LOOK)
                self._hear()
                for one in ended:
                    name = self._running.pop(one)
                    if (error := self._ended(one, name)) is not None:
                        failed[name] = error
                    self._shown_of(name).lane.end()
                self._start(more() if more is not None else {})
        finally:
            self._stop()
        return failed

    def _start(self, orders: "Orders") -> None:
        for name, order in orders.items():
            self._running[self._work(self._module, order(self._place), os.getcwd(), name, self._said)] = name

    def _hear(self) -> None:
        for name, what in self._said.get_nowait_batch(self._said.qsize()):
            self._shown_of(name)(*what)

    def _shown_of(self, name: str) -> Shown:
        if name not in self._shown:
            self._shown[name] = Shown(self._board.lane(name), self._warned)
        return self._shown[name]

    def _ended(self, one: Any, name: str) -> Exception | None:
        """What stopped it: on its machine, which has said so, or with it."""
        try:
            error: Exception | None = self._ray.get(one)
        except self._ray.exceptions.RayError as lost:
            error = JobError(f"Ray lost it, on {MACHINES + 1} machines one after another ({first_line(lost)})")
            self._shown_of(name).lane.log(f"failed: {error}")
        return error

    def _stop(self) -> None:
        for one in self._running:
            self._ray.cancel(one)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=PATIENCE)


@contextmanager
def _connected(address: str, place: "Place") -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
        import ray.util.queue
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise RecipeError(f"--jobs {address}: Ray is missing; pip install 'compresskit[ray]'") from error
    try:
        ray.init("auto" if address == NAME else address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ResourceError(
            f"--jobs {address}: no cluster answers; start one (ray start --head), or name it: {SCHEME}HOST:10001, or "
            "RAY_ADDRESS in the environment"
        ) from error
    try:
        _check_room(ray.nodes(), address, place)
        yield ray
    finally:
        ray.shutdown()


def _check_room(nodes: list[dict[str, Any]], address: str, place: "Place") -> None:
    """Ray would wait for ever for a machine that has it."""
    asked = {"CPU": place.threads, "GPU": int(place.gpu is not None)}
    machines: list[Mapping[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(machine.get(kind, 0) >= count for kind, count in asked.items()) for machine in machines):
        needs = "a GPU and a CPU" if asked["GPU"] else "a CPU"
        raise ResourceError(f"--jobs {address}: a job takes {needs}, and no machine of the cluster has that")


class _Far(Sent):
    """A board of one lane: what a job says, on its way to the machine that shows it."""

    def lane(self, name: str) -> Lane:
        return self

    def end(self) -> None:
        """That is told by its result."""


def _work(module: str, order: Any, folder: str, name: str, said: Any) -> Exception | None:
    """On a machine of the cluster: one job, in a process of its own, which ends with this one. What stopped it."""
    os.chdir(folder)
    far = _Far(lambda what: said.put((name, what)))
    logging.getLogger("compresskit").addHandler(far)
    processes.prepare(module)
    began, orders = time.monotonic(), {name: lambda place: order}
    # it is asked for more, and has none, so that it looks up time and again: when Ray cancels it, too
    failed = processes.spread(module, orders, [order.task.place], far, more=dict)
    far.log(f"ended on {os.uname().nodename} after {time.monotonic() - began:.0f} s")
    return failed.get(name)
