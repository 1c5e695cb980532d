"""The GPUs of this machine and their memory, as the driver's own tool tells."""

from __future__ import annotations

import os
import subprocess

#: The tool asks each GPU, which may take a while after a cold start.
_WITHIN = 30.0


def gpu_memories() -> dict[str, float]:
    """MiB of each GPU that processes of this machine may use, by its index; empty without NVIDIA's tool.

    CUDA_VISIBLE_DEVICES counts, as it does for the processes.
    """
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_WITHIN,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    found = {
        (index, uuid): float(memory)
        for index, uuid, memory in (row for row in rows if len(row) == 3)
        # A GPU that cannot say is one that its driver has lost.
        if memory.replace(".", "", 1).isdecimal()
    }
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = {name.strip() for name in visible.split(",")}
        found = {each: memory for each, memory in found.items() if not named.isdisjoint(each)}
    return {index: memory for (index, _), memory in found.items()}
