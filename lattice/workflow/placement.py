"""Whether a task can run on the nodes there are, and what share of a GPU its memory comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lattice.errors import InvalidRequestError
from lattice.workflow.task import Resources

#: The engine counts fractions of a GPU in steps of this size.
_GPU_STEP = 0.0001


@dataclass(frozen=True, slots=True)
class Capacity:
    """All that one node has: CPUs, GPUs, and MiB of memory."""

    cpu: float
    gpu: float
    memory: float


def gpu_share(resources: Resources, gpu_memories: Iterable[float]) -> float | None:
    """How many GPUs a task occupies.

    `gpu` as asked; else `gpu_mem` as a fraction of the smallest GPU that holds it, among those whose
    memory (MiB) the registered nodes gave. None if no registered GPU is large enough.
    """
    if resources.gpu or not resources.gpu_mem:
        return resources.gpu
    fitting = [memory for memory in gpu_memories if memory >= resources.gpu_mem]
    if not fitting:
        return None
    return min(1.0, math.ceil(resources.gpu_mem / min(fitting) / _GPU_STEP) * _GPU_STEP)


def check(
    resources: Resources, where: str, nodes: Sequence[Capacity], gpu_memories: Sequence[float]
) -> None:
    """Raises InvalidRequestError if no node can ever hold what `resources` ask for.

    `where` names the task in the error.
    """
    share = gpu_share(resources, gpu_memories)
    if share is None:
        largest = max(gpu_memories, default=None)
        raise InvalidRequestError(
            f"resources.gpu_mem of {where}",
            f"{resources.gpu_mem:g} MiB asked",
            "no connected worker has said how much memory its GPUs have; connect one, or ask for gpu"
            if largest is None
            else f"the largest registered GPU has {largest:g} MiB",
        )
    if not nodes:
        raise InvalidRequestError(
            f"resources of {where}", "no node to run it", "connect a worker first"
        )
    if any(
        node.cpu >= resources.cpu and node.gpu >= share and node.memory >= resources.cpu_mem
        for node in nodes
    ):
        return
    wanted = {"cpu": resources.cpu, "cpu_mem": resources.cpu_mem, "gpu": share}
    largest_node = max(nodes, key=lambda node: (node.gpu, node.cpu, node.memory))
    raise InvalidRequestError(
        f"resources of {where}",
        ", ".join(f"{key} {amount:g} asked" for key, amount in wanted.items() if amount),
        f"no node has all of it; the largest has cpu {largest_node.cpu:g}, "
        f"cpu_mem {largest_node.memory:g} MiB, gpu {largest_node.gpu:g}",
    )
