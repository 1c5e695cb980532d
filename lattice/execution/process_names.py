"""Names by which a worker process shows, to whoever looks from outside, which call it is busy with.

Ending a process by its number alone might strike another call, as workers go from one to the next. The name is that of
the main thread, which Linux lets everybody read: setting it costs a microsecond, and Ray sets its own when the call
has ended. Elsewhere nothing is named, and nothing found.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from hashlib import blake2b
from pathlib import Path

_LINUX = sys.platform == "linux"
#: The option of prctl(2) for the name of a thread, of which the kernel keeps 15 bytes.
_PR_SET_NAME = 15
_PROCESSES = Path("/proc")
_prctl = ctypes.CDLL(None).prctl if _LINUX else None


def name_of(call: str) -> str:
    """The name of a process that is busy with `call`, which may be any text."""
    return f"lt{blake2b(call.encode(), digest_size=6).hexdigest()}"


def take(call: str) -> None:
    """Names this process after `call`. Comes from its main thread."""
    if _prctl is not None:
        _prctl(_PR_SET_NAME, name_of(call).encode(), 0, 0, 0)


def kill(name: str) -> list[int]:
    """Ends the processes of this machine that are named so with SIGKILL; their ids."""
    killed: list[int] = []
    for entry in _PROCESSES.glob("[0-9]*/comm") if _LINUX else ():
        # Processes end while they are looked at, and some are another user's.
        with contextlib.suppress(OSError):
            if entry.read_text(errors="replace").rstrip("\n") == name:
                os.kill(int(entry.parent.name), signal.SIGKILL)
                killed.append(int(entry.parent.name))
    return killed
