"""File names in pickled code, and tracebacks that come back with them.

Pickled code carries `<script.py>` in place of a path: it must not depend on where a script lies, and a
service on another machine must not take a file of its own for the user's. When a traceback comes back,
the path and the line of source are put in again, as far as this process pickled that code.
"""

from __future__ import annotations

import linecache
import os.path
import re
import threading

#: Marks code of the SDK that is sent along with the user's; not shown in tracebacks.
_OURS = "<lattice>"

_FRAME = re.compile(r'^  File "(<[^"]+>)", line (\d+), in .*$')

_lock = threading.Lock()
#: The path behind each label; None where two files share one.
_paths: dict[str, str | None] = {}


def label(path: str) -> str:
    """What stands for `path` in pickled code; remembered for `restored`."""
    if os.path.dirname(path) == os.path.dirname(__file__):
        return _OURS
    if path.startswith("<") and path.endswith(">"):
        return "<cell>" if path.startswith("<ipython-input") else path
    # A notebook's kernel gives each cell a file whose name is new in every session.
    text = "<cell>" if "ipykernel_" in path else f"<{os.path.basename(path)}>"
    with _lock:
        if _paths.setdefault(text, path) != path:
            _paths[text] = None
    return text


def restored(traceback: str) -> str:
    """`traceback` with the paths and source lines of this process's files, and without the SDK's frames."""
    lines = traceback.splitlines()
    shown: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        frame = _FRAME.match(line)
        if frame is None:
            shown.append(line)
            continue
        followed = position < len(lines) and lines[position].startswith("    ")
        if frame[1] == _OURS:
            position += followed
            continue
        path = _paths.get(frame[1])
        if path is None:
            shown.append(line)
            continue
        shown.append(line.replace(frame[1], path, 1))
        source = linecache.getline(path, int(frame[2])).strip()
        if source and not followed:
            shown.append(f"    {source}")
    return "\n".join(shown)
