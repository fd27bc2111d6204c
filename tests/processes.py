"""Functions that run on several processes of this machine, as a training does."""

import os
import socket

from accelerate import debug_launcher


def on_processes(count, function, *args):
    """Call a function on so many forked processes, which meet at a port that nobody else takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    debug_launcher(_meet, (port, function, args), count)


def _meet(port, function, args):
    os.environ["MASTER_PORT"] = port  # accelerate's is the same for all
    function(*args)
