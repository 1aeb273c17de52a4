"""A job in its process: it says what it does to the one that has started it, and ends with that, however that ends."""

import logging
import signal
import sys
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from compresskit import process
from compresskit.errors import ConvergenceError, JobError
from compresskit.jobs.lanes import Sent
from compresskit.mishaps import told
from compresskit.numerics.threads import limit


def work(module: str, order: Any, sender: Connection) -> None:
    """Runs `module.run(order, progress)`; `order.task.place` says with how many threads."""
    process.prepare()
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to all: they are for the process that started this one
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    process.end_with_parent()
    limit(order.task.place.threads)
    progress = Sent(sender.send)
    logger = logging.getLogger("compresskit")
    logger.addHandler(progress)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    error: Exception | None = None
    try:
        import_module(module).run(order, progress)
    except KeyboardInterrupt:
        sys.exit(process.INTERRUPTED)
    except Exception as found:
        kind = ConvergenceError if isinstance(found, ConvergenceError) else JobError  # tables have both
        error = kind(told(found, module.split(".")[-2]))
        error.add_note(f"In the process of the job:\n{traceback.format_exc().rstrip()}")  # for --debug
    sender.send(("ended", error))
