"""Work for processes of their own: each order says what becomes of it."""

import logging
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing import RLock
from pathlib import Path
from typing import Any

import torch

from compresskit.errors import ConvergenceError
from compresskit.jobs.places import Task


@dataclass(frozen=True)
class Order:
    does: str
    task: Task


def run(order: Order, progress: Any) -> None:
    folder = order.task.folder
    progress.start(order.does, 3)
    progress.log(f"{order.does} with {torch.get_num_threads()} of {order.task.place}")
    if order.does == "warns":
        logging.getLogger("compresskit").warning("odd data")
    if order.does == "diverges":
        raise ConvergenceError("the loss is nan")
    if order.does == "breaks":
        raise KeyError("unforeseen")
    if order.does == "is killed":
        lock = RLock()  # as progress bars in torch have one
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    if order.does == "waits":
        (folder / f"{os.getpid()}.pid").touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (folder / f"{os.getpid()}.state").touch()
            raise
    if order.does == "waits to go on":
        (folder / f"{os.getpid()}.pid").touch()
        while not (folder / "go on").exists():
            time.sleep(0.05)
    if order.does == "makes more":
        (folder / "more").touch()
        time.sleep(0.3)
    (folder / order.does).touch()


def order(does: str, folder: Path) -> Any:
    return lambda place: Order(does, Task(folder, place))
