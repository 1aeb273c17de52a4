"""The installed program without its start: a process of its own, forked off one that has imported torch.

It has the arguments, environment, folder and streams of the call. What it does not show is the start itself: threads,
imports that are missing, signals that are ignored, streams that are closed; programs that are tested for those, or
killed, are started as installed.
"""

import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent


class Server(NamedTuple):
    folder: Path
    process: subprocess.Popen[bytes]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def python(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python that has imported torch already, with -c and code, -m and a module, or a file."""
    command = [commands() / "python", *map(str, arguments)]
    variables = environment() | {"PYTHON_EXEC": str(command[0])}  # what torchrun starts
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


def torchrun(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Two processes, each with the arguments."""
    return python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments, cwd=cwd)


def commands() -> Path:
    """The folder that the commands `compresskit` and `python` are in."""
    return _server().folder if hasattr(os, "pidfd_open") else SCRIPTS


@cache
def _server() -> Server:
    """One for all tests of this process. It ends when this one does, however that ends, and removes its folder."""
    folder = Path(tempfile.mkdtemp(prefix="compresskit-tests-"))
    for name in ("compresskit", "python"):
        client = folder / name
        client.write_text(f"#!{sys.executable} -IS\n{(HERE / 'client.py').read_text()}")
        client.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        number = listener.fileno()
        command = [sys.executable, str(HERE / "server.py"), str(folder), str(number)]
        process = subprocess.Popen(
            command, pass_fds=[number], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment()
        )
    return Server(folder, process)


def end() -> None:
    """Ends the server, if it has been started."""
    if _server.cache_info().currsize:
        _server().process.communicate()
        _server.cache_clear()
