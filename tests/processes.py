"""Programs and functions that run on several processes of this machine, as a training does.

Processes of a run meet at a port. Tests run side by side, so each run takes one of its own.
"""

import os
import socket
from pathlib import Path

from accelerate import debug_launcher

#: What runs a program as the file named after it says.
LAUNCH = "-m accelerate.commands.launch --main_process_port 0 --config_file"
CONFIGS = Path(__file__).parents[1] / "examples" / "accelerate_configs"
#: What runs a program on one process of the CPU, and on two.
LAUNCH_ONE = "-m accelerate.commands.launch --cpu --num_processes 1 --mixed_precision no"
LAUNCH_TWO = f"{LAUNCH} {CONFIGS / 'cpu.yaml'}"


def free_port():
    """Return a port of the loopback interface that nobody has taken."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def on_processes(count, function, *args):
    """Call a function on so many forked processes."""
    debug_launcher(_meet, (str(free_port()), function, args), count)


def _meet(port, function, args):
    os.environ["MASTER_PORT"] = port  # accelerate's is the same for all
    function(*args)
