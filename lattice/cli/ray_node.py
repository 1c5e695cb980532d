"""This machine as a node of a Ray cluster: joining, draining and leaving it. The only command module with Ray.

The node is `ray start --block` in a process of its own, which ends when this one does. It carries a label by
which it is found again: several nodes may share an address, and the engine chooses the node's id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice.client.credentials import VARIABLE
from lattice.errors import LatticeError

#: Seconds in which a node has to be part of the cluster, and between looks whether it is.
_JOIN_WITHIN = 90.0
_LOOK = 0.3
#: Seconds that the node's processes have to end.
_STOP_WITHIN = 15.0
#: Ray's number for a node that is to be left by its tasks, and the state of a live node.
_PREEMPTION = 2
_ALIVE = 0
_LABEL = "lattice-worker"
#: From <linux/prctl.h>: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
_MIB = 1024 * 1024


class JoinError(LatticeError):
    """This machine is not part of the cluster. `reason` is what Ray says."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"this machine could not join the Ray cluster at {self.address}: {self.reason}\n"
            "Is the address reachable from here, and is it the same release of Ray and Python? A cluster with a "
            "token needs it here, too: RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        )


@dataclass(frozen=True, slots=True)
class Joined:
    """The node as the engine has it. `memory` is in MiB."""

    node_id: str
    node_ip: str
    cpu: float
    memory: float
    gpu: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What the node is to offer; None leaves it to Ray to find out. `memory` is in MiB."""

    cpus: float | None = None
    gpus: float | None = None
    memory: float | None = None
    ip: str | None = None


class RayNode:
    """A node of the cluster whose head listens at `address`, `host:port`."""

    def __init__(self, address: str, asked: Asked) -> None:
        self._address = address
        self._asked = asked
        self._label = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._output = Path()
        self._gcs: Any = None
        self._node_id: str | None = None

    def join(self, stop: Callable[[float], bool]) -> Joined | None:
        """Starts the node; returns when the cluster has it, or None if `stop`, within some seconds, says to.

        Raises JoinError.
        """
        use_token()
        # Here, as Ray reads the token's place when it is loaded. It gives its compiled part no types.
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        handle, name = tempfile.mkstemp(prefix="lattice-worker-", suffix=".log")
        self._output = Path(name)
        with open(handle, "wb") as output:
            self._process = subprocess.Popen(
                self._command(),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # What the node runs is the tenants', and the key is the operator's.
                env={name: value for name, value in os.environ.items() if name != VARIABLE},
                # Ctrl-C is for us: the node first finishes what it runs.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        end = time.monotonic() + _JOIN_WITHIN
        try:
            while time.monotonic() < end:
                if self._process.poll() is not None:
                    raise JoinError(self._address, self._last_words())
                with contextlib.suppress(Exception):  # Ray's own, while the head is not reachable
                    if self._gcs is None:
                        self._gcs = GcsClient(address=self._address)
                    for info in self._gcs.get_all_node_info(timeout=5).values():
                        if dict(info.labels).get(_LABEL) == self._label and info.state == _ALIVE:
                            return self._joined(info)
                if stop(_LOOK):
                    self.stop()
                    return None
            raise JoinError(self._address, self._last_words() or "no answer")
        except BaseException:
            self.stop()
            raise

    def _command(self) -> list[str]:
        asked = self._asked
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--disable-usage-stats", f"--address={self._address}"]
        command += [f"--labels={_LABEL}={self._label}"]
        for option, value in (("--num-cpus", asked.cpus), ("--num-gpus", asked.gpus)):
            if value is not None:
                command.append(f"{option}={value:g}")
        if asked.memory is not None:
            command.append(f"--memory={int(asked.memory * _MIB)}")
        if asked.ip is not None:
            command.append(f"--node-ip-address={asked.ip}")
        return command

    def _joined(self, info: Any) -> Joined:
        has = dict(info.resources_total)
        self._node_id = info.node_id.hex()
        return Joined(
            self._node_id,
            info.node_manager_address,
            has.get("CPU", 0.0),
            has.get("memory", 0.0) / _MIB,
            has.get("GPU", 0.0),
        )

    def _last_words(self) -> str:
        text = self._output.read_text(errors="replace").strip()
        return text[-2000:]

    def alive(self) -> bool:
        """Whether the cluster still has the node. As long as it cannot be asked, its process decides."""
        if self._process is None or self._process.poll() is not None:
            return False
        try:
            found = self._gcs.get_all_node_info(timeout=5)
        except Exception:  # Ray's own: the head is away, and the node waits for it for a while
            return True
        return any(
            info.node_id.hex() == self._node_id and info.state == _ALIVE for info in found.values()
        )

    def drain(self, seconds: float) -> None:
        """Has the engine place nothing new here, move what it can, and end the node once nothing runs.

        `seconds` is when it will be ended in any case. Then, the engine itself would run what runs here again.
        """
        deadline = int((time.time() + seconds) * 1000)
        with contextlib.suppress(
            Exception
        ):  # Ray's own: without the head, there is nothing to drain
            self._gcs.drain_node(self._node_id, _PREEMPTION, "the worker leaves", deadline)

    def stop(self) -> None:
        """Ends the node's processes, whatever they do."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_WITHIN)
                break
        self._output.unlink(missing_ok=True)


def use_token() -> None:
    """Has Ray send the cluster's token where this machine has one. Nodes that join do not by themselves."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or Path(path).expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
