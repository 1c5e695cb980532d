"""The side-effect file: what tasks did in the world, written by themselves and by nobody else.

Each line is one write to a file opened for appending, so that lines of many processes do not mix, and a
process that is killed leaves a whole line or none.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mark:
    """A task of the workflow `nonce` was called (`begin`) or was about to return (`end`).

    `call` is new for each call; `at` is in seconds since the epoch.
    """

    moment: str
    nonce: str
    task: str
    call: str
    at: float


def leave(file: str, moment: str, nonce: str, task: str, call: str = "") -> str:
    """Writes a line, in a process that runs tasks; the call's name, a new one by default."""
    call = call or uuid.uuid4().hex
    opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(opened, f"{moment} {nonce} {task} {call} {time.time():.6f}\n".encode())
    finally:
        os.close(opened)
    return call


def read(file: Path) -> list[Mark]:
    """All lines, in the order in which they were written."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        moment, nonce, task, call, at = line.split()
        found.append(Mark(moment, nonce, task, call, float(at)))
    return found
