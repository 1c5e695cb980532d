"""Other machines, as far as one can have them: network namespaces with addresses of their own.

Where the system does not allow that, a machine is this one, and only its processes tell it apart.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.running import PATIENCE, ROOT, Service, wait_for


@dataclass(frozen=True)
class Machine:
    """A machine. `prefix` runs a command there; `head` is the address of this one as seen from there."""

    prefix: Sequence[str]
    head: str
    ip: str | None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def machine(number: int) -> Iterator[Machine]:
    """A machine with an address of its own in 10.77.NUMBER.0/24, if the system allows it."""
    # Of this process, as other tests may run beside.
    name = f"lt{number}-{os.getpid()}"
    outside, inside = f"lo{number}-{os.getpid()}"[:15], f"li{number}-{os.getpid()}"[:15]
    network = f"10.77.{number}"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        yield Machine((), "127.0.0.1", None)
        return
    try:
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        _ip("addr", "add", f"{network}.1/24", "dev", outside)
        _ip("link", "set", outside, "up")
        _ip("-n", name, "addr", "add", f"{network}.2/24", "dev", inside)
        for device in (inside, "lo"):
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", name, "route", "add", "default", "via", f"{network}.1")
        yield Machine(("ip", "netns", "exec", name), f"{network}.1", f"{network}.2")
    finally:
        _ip("netns", "del", name)


class Worker:
    """`lattice worker` on a machine. `gpus` are MiB of GPUs that it is made to believe in."""

    def __init__(
        self, service: Service, where: Machine, *options: str, gpus: Sequence[int] = ()
    ) -> None:
        port = service.url.rpartition(":")[2]
        self._folder = Path(tempfile.mkdtemp(prefix="lw-", dir="/tmp"))
        self.log = self._folder / "worker.log"
        environ = {**service.environ, "RAY_TMPDIR": str(self._folder)}
        environ.pop("RAY_AUTH_MODE", None)
        if gpus:
            tool = self._folder / "bin" / "nvidia-smi"
            tool.parent.mkdir()
            lines = "".join(f"{n}, GPU-{n}, {memory}\\n" for n, memory in enumerate(gpus))
            tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
            tool.chmod(0o755)
            environ["PATH"] = f"{tool.parent}:{environ['PATH']}"
            options = (*options, f"--num-gpus={len(gpus)}")
        environ["LATTICE_URL"] = f"http://{where.head}:{port}"
        environ["LATTICE_API_KEY"] = "lattice_" + "x" * 43
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*where.prefix, sys.executable, "-m", "lattice.cli.main", "worker", *options],
                cwd=ROOT,
                env={**environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Whatever started the tests may have told its children to ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def says(self, words: str) -> None:
        """Waits until it has said that."""

        def said() -> bool:
            text = self.log.read_text()
            if words in text:
                return True
            assert self.process.poll() is None, text
            return False

        wait_for(f"{words!r} in {self.log}", said, 2 * PATIENCE)

    @property
    def node_id(self) -> str:
        """The id under which it has registered last."""
        self.says(" is a worker of ")
        lines = self.log.read_text().splitlines()
        return [line.split()[1] for line in lines if " is a worker of " in line][-1]

    def kill(self) -> None:
        """All its processes at once, as when the machine loses power."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.process.pid)
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        self.process.wait()

    def close(self) -> None:
        """Ends what is left of it."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
