"""What the processes of a sandbox use, as looked up in `/proc` from outside.

The kernel adds a child's CPU time to its parent's once that has waited for it. A process that wants no word of its
children, or whose children live for less than from one look to the next, would use it unseen. So each look also counts
those that it meets for the first time while they run as if they had run since the look before. Who does not know
when it comes gains nothing: of many that are met at random, those that are counted for too much make up for the others.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
#: What a process takes of memory by itself, in KiB.
_MEMORY = ("RssAnon", "VmSwap", "HugetlbPages")


@dataclass(frozen=True, slots=True)
class _Process:
    """One of them.

    Attributes:
        begun: when, in the kernel's ticks; with its id it names a process for good.
        own: seconds of its CPU time.
        waited: seconds of the children that it waited for.
        memory: in bytes, what it does not share. What processes share is in the scratch folder, which has a limit
            itself.
    """

    process: int
    begun: int
    own: float
    waited: float
    memory: int


class Usage:
    """Of the process that `handle`, a process's file descriptor, stands for, and of all below it."""

    def __init__(self, handle: int) -> None:
        self._process = _process_of(handle)
        self._at = time.monotonic()
        self._known: dict[tuple[int, int], float] = {}
        self._met = 0.0

    def look(self) -> tuple[float, int]:
        """Seconds of CPU time that they have used by now, and bytes of memory that they have."""
        now = time.monotonic()
        there = [found for each in _family(self._process) if (found := _read(each)) is not None]
        running = 0
        for each in there:
            before = self._known.get((each.process, each.begun))
            if before is not None:
                self._met += each.own - before
            elif self._known:
                running += _running(each.process)
            else:
                self._met += each.own
        self._met += min(running, os.cpu_count() or 1) * (now - self._at)
        self._at = now
        self._known = {(each.process, each.begun): each.own for each in there}
        counted = sum(each.own + each.waited for each in there)
        return max(counted, self._met), sum(each.memory for each in there)


def _process_of(handle: int) -> int:
    """The process id that a handle stands for."""
    for line in Path(f"/proc/self/fdinfo/{handle}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1


def _family(process: int) -> Iterator[int]:
    """A process and all below it."""
    waiting = [process] if process > 0 else []
    while waiting:
        each = waiting.pop()
        yield each
        for thread in _threads(each):
            with contextlib.suppress(OSError):
                waiting += map(int, Path(f"{thread}/children").read_text().split())


def _threads(process: int) -> list[str]:
    folder = f"/proc/{process}/task"
    try:
        return [f"{folder}/{each}" for each in os.listdir(folder)]
    except OSError:
        return []


def _running(process: int) -> int:
    """How many of its threads run, or would if a CPU were free."""
    found = 0
    for thread in _threads(process):
        with contextlib.suppress(OSError):
            found += _fields(thread)[0] == "R"
    return found


def _read(process: int) -> _Process | None:
    try:
        fields = _fields(f"/proc/{process}")
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    own, system, waited, waited_system, begun = (int(fields[each]) for each in (11, 12, 13, 14, 19))
    taken = [int(line.split()[1]) for line in lines if line.partition(":")[0] in _MEMORY]
    return _Process(
        process,
        begun,
        (own + system) / _TICKS,
        (waited + waited_system) / _TICKS,
        sum(taken) * 1024,
    )


def _fields(folder: str) -> list[str]:
    """What is said after the name, which may hold anything."""
    return Path(f"{folder}/stat").read_text().rpartition(")")[2].split()
