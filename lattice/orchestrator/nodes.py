"""The worker nodes that users registered, matched with the nodes that the engine has.

A registered node need not be known to the engine yet: it waits until the engine reports a node with its
id or, failing that, its address; if it is gone, one that comes from its address. A disconnected node keeps what
runs on it and gets nothing new. Nodes of the engine that nobody registered may be used.

What the engine does not have is forgotten some day, as machines come and go for ever: one that said that it leaves
at the next look of the housekeeping, any other when it has been away for long enough for people to have seen it.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from lattice.errors import InvalidRequestError, WorkerNotFoundError
from lattice.ids import NodeId, Tenant
from lattice.ports.execution import Definition, EngineNode
from lattice.ports.secrets import key_of
from lattice.ports.store import DeleteNode, PutNode
from lattice.workflow import checks
from lattice.workflow.messages import iso_time
from lattice.workflow.placement import Capacity, gpu_share
from lattice.workflow.task import Task


@dataclass(frozen=True, slots=True)
class _Node:
    """A registered node.

    Attributes:
        joined: the engine had a node of that id, which does not come back under it once it is gone.
        leaving: whoever disconnected it said that it will not be back.
        gone: since when the engine does not have it, in seconds since the epoch; None while it has.
    """

    node_id: NodeId
    node_ip: str
    resources: Mapping[str, object]
    connected: bool
    joined: bool = False
    leaving: bool = False
    gone: float | None = None

    def write(self) -> PutNode:
        document = {
            "node_id": self.node_id,
            "node_ip": self.node_ip,
            "resources": self.resources,
            "connected": self.connected,
            "joined": self.joined,
            "leaving": self.leaving,
            "gone": self.gone,
        }
        return PutNode(self.node_id, json.dumps(document))


class NodeRegistry:
    """Registered nodes by id.

    With `share_definitions`, calls of one task may share a process whatever tenants they are of.
    """

    def __init__(self, documents: Iterable[str] = (), *, share_definitions: bool = False) -> None:
        self._share_definitions = share_definitions
        self._nodes: dict[NodeId, _Node] = {}
        self._engine: list[EngineNode] = []
        #: Registered ids by the engine's ids, as of the last `refresh`.
        self._names: dict[NodeId, NodeId] = {}
        #: What the engine has changed since it was last written.
        self._unwritten: set[NodeId] = set()
        #: Engine ids of nodes that get nothing new.
        self.excluded: frozenset[NodeId] = frozenset()
        for text in documents:
            node = _Node(**json.loads(text))
            self._nodes[node.node_id] = node
        self._match(())

    def connect(
        self, node_id: NodeId, node_ip: str, resources: Mapping[str, object]
    ) -> list[PutNode | DeleteNode]:
        """Registers a node, or changes or reconnects one. Raises InvalidRequestError.

        What had joined from its address and is gone is forgotten: this one has taken its place.
        """
        _check_resources(resources)
        joined = any(node.node_id == node_id for node in self._engine)
        node = _Node(node_id, node_ip, resources, connected=True, joined=joined)
        self._nodes[node_id] = node
        present = {each.node_id for each in self._engine}
        left = [
            each.node_id
            for each in self._nodes.values()
            if each.node_ip == node_ip and each.joined and each.node_id not in {*present, node_id}
        ]
        for each in left:
            del self._nodes[each]
        self._match(present)
        return [node.write(), *map(DeleteNode, left)]

    def disconnect(self, node_id: NodeId, *, leaving: bool = False) -> PutNode:
        """Places nothing new on a node, which with `leaving` will not be back. Raises WorkerNotFoundError."""
        if node_id not in self._nodes:
            raise WorkerNotFoundError(node_id)
        old = self._nodes[node_id]
        node = replace(old, connected=False, leaving=leaving or old.leaving)
        self._nodes[node_id] = node
        self._match({each.node_id for each in self._engine})
        return node.write()

    def refresh(self, engine: list[EngineNode], now: float) -> None:
        """Takes note of the nodes that the engine has now."""
        known = {node.node_id for node in self._engine}
        self._engine = [*engine]
        self._match(known)
        ids = {node.node_id for node in engine}
        present = set(self._names.values())
        for old in [*self._nodes.values()]:
            gone = None if old.node_id in present else now if old.gone is None else old.gone
            node = replace(old, joined=old.joined or old.node_id in ids, gone=gone)
            if node != old:
                self._nodes[node.node_id] = node
                self._unwritten.add(node.node_id)

    def forget(self, now: float, seconds: float | None) -> list[PutNode | DeleteNode]:
        """Forgets nodes that have left, or have been gone for `seconds`; None keeps these for ever.

        Also writes since when others are gone, so that a restart does not begin to count anew. Engine ids of what is
        forgotten stay in `excluded` as long as those of others that are gone.
        """
        due = [
            node.node_id
            for node in self._nodes.values()
            if node.gone is not None
            and (node.leaving or (seconds is not None and now - node.gone >= seconds))
        ]
        for node_id in due:
            del self._nodes[node_id]
        changed = sorted(self._unwritten & self._nodes.keys())
        self._unwritten.clear()
        return [*(self._nodes[each].write() for each in changed), *map(DeleteNode, due)]

    def capacities(self, *, disconnected: bool = False) -> list[Capacity]:
        """What the nodes have on which something new may be placed; on request also the disconnected ones."""
        return [
            Capacity(node.cpu, node.gpu, node.memory)
            for node in self._engine
            if disconnected or node.node_id not in self.excluded
        ]

    @property
    def gpu_memories(self) -> list[float]:
        """The memory, in MiB, of each GPU of the connected nodes that the engine has."""
        return self._gpu_memories

    def all_gpu_memories(self, *, disconnected: bool = True) -> list[float]:
        """The same of all registered nodes that the engine has."""
        return [
            float(str(gpu["gpu_mem"]))
            for node_id in self._names.values()
            if disconnected or self._nodes[node_id].connected
            for gpu in _gpus(self._nodes[node_id].resources)
            if "gpu_mem" in gpu
        ]

    def define(self, task: Task, tenant: Tenant | None) -> Definition:
        """What a tenant's `task` runs and needs, on the nodes that there are. It has code."""
        assert task.code is not None, "a graph has only tasks with code"
        share = gpu_share(task.resources, self.gpu_memories)
        return Definition(
            code=task.code,
            resources=task.resources,
            # A share that is not known, as no node with a GPU has come back after a restart, is one.
            gpus=1.0 if share is None else share,
            batch=task.batch,
            scaling=task.scaling,
            runtime_env=task.runtime_env,
            excluded=self.excluded,
            # What has seen secrets serves only who owns them.
            tenant=None if self._share_definitions and not task.secrets else tenant,
            sandbox=task.sandbox,
            secrets=tuple(key_of(name, tenant) for name in task.secrets),
        )

    def name(self, engine_id: NodeId) -> NodeId:
        """The id under which a node of the engine was registered, else its own."""
        return self._names.get(engine_id, engine_id)

    def describe(self, running: Mapping[NodeId, int]) -> list[dict[str, object]]:
        """Registered nodes, then nodes of the engine that nobody registered, with how many tasks run there."""
        engine_ids = {name: engine_id for engine_id, name in self._names.items()}
        found: list[dict[str, object]] = []
        for node in self._nodes.values():
            engine_id = engine_ids.get(node.node_id)
            status = "active" if engine_id else "lost" if node.joined else "waiting"
            found.append(
                {
                    "node_id": node.node_id,
                    "node_ip": node.node_ip,
                    "status": status if node.connected else "disconnected",
                    "engine_node_id": engine_id,
                    "gone_since": None if node.gone is None else iso_time(node.gone),
                    "running": running.get(node.node_id, 0),
                    "resources": dict(node.resources),
                }
            )
        for engine_node in self._engine:
            if engine_node.node_id not in self._names:
                found.append(
                    {
                        "node_id": engine_node.node_id,
                        "node_ip": engine_node.node_ip,
                        "status": "unregistered",
                        "engine_node_id": engine_node.node_id,
                        "gone_since": None,
                        "running": running.get(engine_node.node_id, 0),
                        "resources": {
                            "cpu": engine_node.cpu,
                            "cpu_mem": engine_node.memory,
                            "gpu": engine_node.gpu,
                        },
                    }
                )
        return found

    def _match(self, known: Container[NodeId]) -> None:
        """Finds the nodes of the engine that are registered; `known` are those that it had before, too."""
        before = self._names
        names = {node.node_id: node.node_id for node in self._engine if node.node_id in self._nodes}
        taken = set(names.values())
        for registered in sorted(self._nodes.values(), key=lambda each: each.joined):
            if registered.node_id in taken or (registered.joined and registered.leaving):
                continue
            for node in self._engine:
                if node.node_ip != registered.node_ip or node.node_id in names:
                    continue
                # A machine may have several nodes: what was beside one that is gone has not taken its place.
                comes = node.node_id not in known or before.get(node.node_id) == registered.node_id
                if comes or not registered.joined:
                    names[node.node_id] = registered.node_id
                    break
        self._names = names
        self._gpu_memories = self.all_gpu_memories(disconnected=False)
        excluded = frozenset(
            engine_id for engine_id, name in names.items() if not self._nodes[name].connected
        )
        # One that is gone stays among them until something else changes: each change has the dispatcher take back
        # what waits, and begin replicas anew.
        if excluded != self.excluded.intersection(node.node_id for node in self._engine):
            self.excluded = excluded


def _check_resources(resources: Mapping[str, object]) -> None:
    checks.known_keys(resources, "resources", ("cpu", "cpu_mem", "gpu_resource"))
    for key in ("cpu", "cpu_mem"):
        if key in resources:
            checks.number(resources[key], f"resources.{key}", maximum=1e9)
    field = "resources.gpu_resource"
    gpus = checks.mapping(resources.get("gpu_resource", {}), field)
    for index, gpu in gpus.items():
        given = checks.mapping(gpu, f"{field}.{index}")
        checks.known_keys(given, f"{field}.{index}", ("gpu_id", "gpu_mem", "gpu_num"))
        for key in ("gpu_mem", "gpu_num"):
            if key in given:
                checks.number(given[key], f"{field}.{index}.{key}", maximum=1e9)
        gpu_id = given.get("gpu_id")
        if gpu_id is not None and (isinstance(gpu_id, bool) or not isinstance(gpu_id, int | str)):
            raise InvalidRequestError(
                f"{field}.{index}.gpu_id", checks.shown(gpu_id), "a number or text is allowed"
            )


def _gpus(resources: Mapping[str, object]) -> list[Mapping[str, object]]:
    gpus = resources.get("gpu_resource", {})
    assert isinstance(gpus, Mapping)
    return list(gpus.values())
