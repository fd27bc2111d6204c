r"""A run that is asked to end, by SIGTERM or Ctrl-C, ends after its step, with a checkpoint.

A signal is only noted. Processes that train together look from time to time whether one of them
has been asked, about once a second, all after the same step: nothing waits for the device more
often. A second signal ends the process at once, and so does one outside of the training.

`accelerate launch`, ended by a signal to itself alone, leaves its processes behind: they find that
they have another parent, and take it for a SIGTERM.
"""

import os
import re
import signal
import threading
import time
from types import FrameType
from typing import Any

import psutil
import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds in which a second signal is the first one again: of the terminal and of the launcher.
ECHO = 0.5
#: Programs that start processes of a training and stay to watch them.
LAUNCHERS = re.compile(
    r"accelerate(-launch)?|accelerate\.commands\.\w+|torchrun|torch\.distributed\.(run|launch)"
)


class Interrupts:
    """Notes signals in a `with` block.

    Attributes:
        signal: the first that came; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.parent = launcher()
        self.since = self.looked = time.monotonic()
        self.step: int | None = None  # after which was looked, and
        self.next = 0  # after which to look again
        self.former: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # others may not
            self.former = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; end at once if it is the second one."""
        if self.signal is None:
            self.signal, self.since = number, time.monotonic()
            said = f"\n{name_of(number)}: the run ends after its step, with a checkpoint\n"
            os.write(2, said.encode())  # print may be what was interrupted
        elif time.monotonic() - self.since > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self, accelerator: Accelerator, step: int) -> int | None:
        """Return the signal that a process has got, after the same step on all; None if none has.

        Args:
            accelerator: of the run.
            step: that is done, the same on all processes.
        """
        if self.signal is None and self.parent is not None and os.getppid() != self.parent:
            self.note(signal.SIGTERM, None)
        if accelerator.num_processes == 1:
            return self.signal
        if step < self.next:
            return None
        now, done = time.monotonic(), 0 if self.step is None else step - self.step
        pace = done / max(now - self.looked, 1e-3)  # steps in a second
        self.step, self.looked = step, now
        own = torch.tensor([[float(self.signal or 0), pace]], device=accelerator.device)
        signals, paces = accelerator.gather(own).T.tolist()
        self.next = step + max(1, int(min(paces)))
        return int(max(signals)) or None


def name_of(number: int) -> str:
    """Return the name of a signal."""
    return signal.Signals(number).name


def launcher() -> int | None:
    """Return the process that has started this one and watches it, None if it was no launcher."""
    parent = psutil.Process().parent()
    if parent is None:
        return None
    try:
        words = parent.cmdline()
    except psutil.Error:
        return None
    named = any(LAUNCHERS.fullmatch(os.path.basename(word)) for word in words[:4])
    return parent.pid if named else None


def leave_to_main(worker: int) -> None:
    """Let a worker of a loader end with its run, not by Ctrl-C: the run still takes its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
