"""Forks itself for each program that a client asks for, having imported what programs import.

Standard input is the lifeline: its end is the end of the process that has started this one. Run with the folder that
the clients are in, which is removed at the end, and the number of the socket that they connect to.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import re
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

import compresskit

INSTALLED = str(Path(sys.executable).with_name("compresskit"))
READ_AT_THE_START = re.compile("PYTHON(?!_EXEC)|OMP_|MKL_|OPENBLAS_")  # variables, by Python and by torch


@cache
def preload() -> None:
    """Imports, once for all that are forked off, whatever a run would import."""
    for module in pkgutil.walk_packages(compresskit.__path__, "compresskit."):
        importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # as torch's optimisers do at their first step


def asked(listener: socket.socket) -> list[str] | None:
    """A command and its arguments, in the process that is to become it; None at the end of the lifeline."""
    minders: set[int] = set()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        minders = {minder for minder in minders if os.waitpid(minder, os.WNOHANG) == (0, 0)}
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        if minder := os.fork():
            minders.add(minder)
            connection.close()
        else:
            listener.close()
            return minded(connection)


def minded(connection: socket.socket) -> list[str]:
    """Command and arguments, in the program's process. This one says how that ends, and ends it with the client."""
    _, handles, _, _ = socket.recv_fds(connection, 1, 4)
    with connection, connection.makefile("rw") as stream:
        arguments, environment = json.loads(stream.readline())
        if program := os.fork():
            for handle in handles:
                os.close(handle)
            stream.write(f"{program}\n")
            stream.flush()
            ready, _, _ = select.select([connection, os.pidfd_open(program)], [], [])
            if connection in ready:  # at its end: the client is gone
                os.kill(program, signal.SIGKILL)
                os._exit(0)
            _, status = os.waitpid(program, 0)
            stream.write(f"{os.waitstatus_to_exitcode(status)}\n")
            stream.flush()
            os._exit(0)
    *streams, folder = handles
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
    os.fchdir(folder)
    for handle in handles:
        os.close(handle)
    adopt(environment)
    return arguments


def adopt(environment: dict[str, str]) -> None:
    for name in environment.keys() | os.environ.keys():
        if READ_AT_THE_START.match(name) and environment.get(name) != os.environ.get(name):
            sys.exit(f"{name} is read when a program starts, and this one is forked: start the installed one")
    os.environ.clear()
    os.environ.update(environment)


def main() -> None:
    folder, number = sys.argv[1:]
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for pytest, which ends the lifeline
    preload()
    gc.freeze()  # what is shared with all is left alone
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would have one of them"
    arguments = asked(socket.socket(fileno=int(number)))
    if arguments is None:
        shutil.rmtree(folder)
        return
    signal.signal(signal.SIGINT, handler)
    np.random.seed()  # as each program has a state of its own
    status = 0
    try:
        run(*arguments)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    leave(status)


def run(command: str, *arguments: str) -> None:
    """`compresskit` with its arguments, or `python` with those that it takes here: [-u] -c CODE, -m MODULE or FILE."""
    kind, *rest = [INSTALLED, *arguments] if command == "compresskit" else arguments[arguments[0] == "-u" :]
    if kind in ("-c", "-m"):
        what, *rest = rest
        sys.path[0] = "" if kind == "-c" else os.getcwd()
        sys.argv = [kind if kind == "-c" else what, *rest]
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), fresh_main().__dict__)
    elif kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(kind).resolve().parent)
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def fresh_main() -> ModuleType:
    sys.modules["__main__"] = ModuleType("__main__")
    return sys.modules["__main__"]


def leave(status: int) -> None:
    """What Python does at the end, without taking apart all that is imported, which takes it as long as many a run."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
