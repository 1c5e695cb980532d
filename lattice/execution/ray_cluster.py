"""The Ray cluster itself: joining or starting it, and what its nodes have."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

import ray
from ray._private.state import available_resources_per_node  # as `ray.util.state` has only totals

from lattice.execution.shortage import Room
from lattice.ids import NodeId
from lattice.ports.execution import EngineNode

_MIB = 1024 * 1024
#: Seconds that a request for what tasks wait for waits for the engine.
_ROOMS_WAIT = 2.0

_logger = logging.getLogger(__name__)


def connect(port: int) -> None:
    """Makes sure that this process is part of a Ray cluster. Blocks.

    That is the cluster that the process belongs to already, else the one whose head listens on `port` of
    this machine, else a new one of this machine, which ends with this process.
    """
    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    if _listens(port):
        ray.init(address=f"127.0.0.1:{port}")
    else:
        ray.init(include_dashboard=False)
    if callable(before):
        # Ray has put a handler that exits at once in the place of a server's, which stops in order.
        signal.signal(signal.SIGTERM, before)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(1.0)
        return connection.connect_ex(("127.0.0.1", port)) == 0


def live_nodes() -> list[EngineNode]:
    """The live nodes and all that they have. Blocks."""
    return [
        EngineNode(
            node_id=NodeId(node["NodeID"]),
            node_ip=node["NodeManagerAddress"],
            cpu=node["Resources"].get("CPU", 0.0),
            gpu=node["Resources"].get("GPU", 0.0),
            memory=node["Resources"].get("memory", 0.0) / _MIB,
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own gap
        if node["Alive"]
    ]


def rooms() -> list[Room]:
    """The live nodes and what of them is free, as the head last heard. Blocks."""
    free = available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray's own gap
    return [
        Room(
            node,
            # What is used up is left out.
            cpu=free[node.node_id].get("CPU", 0.0),
            gpu=free[node.node_id].get("GPU", 0.0),
            memory=free[node.node_id].get("memory", 0.0) / _MIB,
        )
        for node in live_nodes()
        if node.node_id in free
    ]


async def ask_rooms() -> list[Room] | None:
    """As `rooms`, for somebody who is waiting: None if the head does not say it soon."""
    try:
        async with asyncio.timeout(_ROOMS_WAIT):
            return await asyncio.to_thread(rooms)
    except Exception:
        _logger.warning("what is free in the cluster could not be listed", exc_info=True)
        return None


def head_port() -> int:
    """The port under which nodes join the cluster."""
    return int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
