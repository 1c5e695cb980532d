"""Looks at a service: its processes, what they hold in memory, and what they logged."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import psutil

from tests.files import contents
from tests.fuzz.pickles import Mark
from tests.running import INGRESS, ORCHESTRATOR, Service, wait_for
from tests.service.rest import Rest

#: Processes that run user code. No other of the service may.
_RUNS_USER_CODE = re.compile(
    r"ray::(run_attempt|run_function|render|IDLE|ServeReplica:(?!lattice:))", re.ASCII
)
#: Processes without which the service is another one. HAProxy replaces itself when Serve writes it a new
#: configuration, which names the process that was replaced; the manager of HAProxy stays.
_CONTROL = re.compile(
    rf"{INGRESS}|{ORCHESTRATOR}|ray::ServeController|ray::ProxyActor|ray::HAProxyManager"
    r"|\S*raylet/raylet|\S*gcs_server|\S*python\S* \S*serve run"
)
_PROXY = re.compile(r"\S*haproxy .*-f ")
#: Seconds in which a process that is about to become another one has done so.
_PASSES = 10.0


@dataclass(frozen=True, slots=True)
class Heap:
    """What a process holds: Python's small blocks by number, all else that was allocated in bytes.

    Not the resident size, which has gaps between what is held: they grow with the longest bodies under way
    at a time, and a leak would hide in them.
    """

    blocks: int
    data: int


#: Runs where user code runs, which can reach the engine's actors, and asks two of them what they hold.
_PROBE = """
import ray

def look(replica):
    import ctypes, gc, sys

    class Info(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks used free keep".split()
        ]

    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Info
    info = libc.mallinfo2()
    return [sys.getallocatedblocks(), info.used + info.hblkhd]

# The others cannot import this module, and get the function itself.
look.__module__ = "__main__"

def probe(params):
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        for name in ("ingress", "orchestrator"):
            if f"lattice#{name}#" in actor["name"]:
                handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
                found[name] = ray.get(handle.__ray_call__.remote(look))
    return {"out": found}
"""


def heaps(rest: Rest) -> dict[str, Heap]:
    """What ingress and orchestrator hold now."""
    message = rest.outcome(_PROBE, timeout=110)
    return {name: Heap(*found) for name, found in message["data"]["result"]["out"].items()}


class Watch:
    """Remembers which processes a service had when the watch began."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.control = wait_for("processes that stay", self._steady)

    def _steady(self) -> dict[int, str] | None:
        first = self._matching(_CONTROL)
        time.sleep(2)
        return first if first == self._matching(_CONTROL) else None

    def _matching(self, pattern: re.Pattern[str]) -> dict[int, str]:
        found: dict[int, str] = {}
        parents: dict[int, int] = {}
        for process in self._service.processes():
            try:
                command = " ".join(process.cmdline()).strip()
                parents[process.pid] = process.ppid()
            except psutil.NoSuchProcess:
                continue
            if pattern.match(command):
                found[process.pid] = command
        # A process that was forked has its parent's command until it executes its own.
        return {pid: found[pid] for pid in found if found.get(parents[pid]) != found[pid]}

    def changes(self) -> list[str]:
        """Processes that have gone, or have come, since the watch began: for good, as their numbers do not return."""
        end = time.monotonic() + _PASSES
        while True:
            now = self._matching(_CONTROL)
            both = self.control | now
            changed = [f"{pid} {both[pid]}" for pid in self.control.keys() ^ now.keys()]
            if not self._matching(_PROXY):
                changed.append("no HAProxy")
            if not changed or time.monotonic() > end:
                return changed
            time.sleep(1)

    def trespasses(self, marks: list[Mark]) -> list[Mark]:
        """Marks of processes in which no user's byte may be unpickled."""
        return [
            mark
            for mark in marks
            if mark.pid in self.control or not _RUNS_USER_CODE.match(mark.command)
        ]

    def resident(self) -> dict[str, int]:
        """Resident sizes, in bytes, for people."""
        return {
            name: self._service.processes(title)[0].memory_info().rss
            for name, title in (("ingress", INGRESS), ("orchestrator", ORCHESTRATOR))
        }

    def defects(self) -> list[str]:
        """Log entries of the control plane that tell of a defect of ours."""
        pids = {str(pid) for pid in self.control}
        found = []
        for path, data in contents(self._service.config.parent / "ray").items():
            ours = path.name.startswith(("replica_lattice_ingress_", "replica_lattice_orch")) or (
                path.name.startswith("worker-") and path.stem.rpartition("-")[2] in pids
            )
            if ours:
                text = data.decode(errors="replace")
                found += [f"{path.name}: {defect}" for defect in defects_in(text)]
        return found


#: What Python and asyncio write of what nobody caught, down to the line that names the error.
_TRACEBACK = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ \t|+].*\n|\n)*.*$", re.MULTILINE
)
_FORGOTTEN = re.compile(r"^.*(?:was never retrieved|was never awaited).*$", re.MULTILINE)
#: Frames of ours. Serve logs some that are not: of a WebSocket whose client left while it was being written to.
_OURS = re.compile(r'File "[^"]*/(?:lattice|deployments)/')


def defects_in(log: str) -> list[str]:
    """Tracebacks with a frame of ours, and what asyncio says nobody looked at."""
    tracebacks = [match[0] for match in _TRACEBACK.finditer(log)]
    forgotten = [match[0] for match in _FORGOTTEN.finditer(log)]
    return [text for text in tracebacks if _OURS.search(text)] + forgotten
