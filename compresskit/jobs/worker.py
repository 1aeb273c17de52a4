"""A job in its process: it says what it does to the one that has started it, and ends with that, however that ends."""

import logging
import signal
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from compresskit import process
from compresskit.errors import CompresskitError, ConvergenceError, JobError
from compresskit.jobs.lanes import Sent
from compresskit.mishaps import explained
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
    except ConvergenceError as found:  # which has a name of its own in tables
        error = ConvergenceError(str(found))
    except CompresskitError as found:
        error = JobError(str(found))
    except Exception as found:
        error = JobError(explained(found, module.split(".")[-2])[0])
    sender.send(("ended", error))
