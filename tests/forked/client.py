"""Stands for `compresskit` or `python`, by its name.

It asks the server beside it for one, lends it all that a process inherits, and ends as it ends.
"""

import json
import os
import signal
import socket
import sys

folder, command = os.path.split(os.path.abspath(__file__))
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.path.join(folder, "socket"))
    socket.send_fds(connection, [b"\0"], [0, 1, 2, os.open(".", os.O_RDONLY)])
    with connection.makefile("rw") as stream:
        stream.write(json.dumps([[command, *sys.argv[1:]], dict(os.environ)]) + "\n")
        stream.flush()
        program = int(stream.readline())
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, lambda number, frame: os.kill(program, number))
        status = int(stream.readline())
if status >= 0:
    sys.exit(status)
if -status != signal.SIGKILL:
    signal.signal(-status, signal.SIG_DFL)
os.kill(os.getpid(), -status)
