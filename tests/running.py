"""Starting and stopping the real service for tests: its own cluster, ports, temporary and data folders."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

ROOT = Path(__file__).parent.parent

#: How long a start or a recovery may take before a test gives up, in seconds: generous, as machines
#: are slow and noisy; nothing is asserted about how long it takes.
PATIENCE = 120.0


#: Ports that this process has given away, of which some are listened on only later.
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on just now, and that was not given before.

    Not one that the system would choose: those go to the engine's own processes, which start between this
    and the use of the port, and one of them once answered every request in the service's place.
    """
    while True:
        port = random.randrange(20_000, 30_000)  # above Ray's workers, below Serve's replicas
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port


def wait_for(what: str, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first true value of `condition`, asked again and again. Fails after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {patience:g} s for {what}")


@dataclass
class Service:
    """A running service. `log` is what it printed; `command` what starts it with a configuration."""

    url: str
    config: Path
    environ: dict[str, str]
    log: Path
    command: Sequence[str] = ("make", "serve")
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self, *, wait: bool = True) -> None:
        """Starts it as the README says, and waits until it is ready, unless it is not to be."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, f"CONFIG={self.config}"],
                cwd=ROOT,
                env=self.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Waits until requests can be answered and made durable."""
        # One client for all the asking: to make one takes 50 ms of a CPU, which what starts has need of.
        with httpx.Client(timeout=5) as http:
            wait_for(f"the service; its log: {self.log}", lambda: self._ready(http))

    def _ready(self, http: httpx.Client) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"make serve ended: {self.log.read_text()[-4000:]}")
        try:
            return http.get(f"{self.url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """Stops it as Ctrl-C does, and what is left of it by force."""
        processes = self.processes()
        # To all of them, as the terminal does.
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            # Serve gives what still runs half a minute.
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _, left = psutil.wait_procs(processes, timeout=5)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)

    def end(self) -> None:
        """Ends it by force, for tests that are over: a stop takes seconds, and is what other tests are about."""
        # Not all are children of this process, and what they start meanwhile is found the next time.
        while left := {*self.processes(), *filter(self._owns, psutil.process_iter())}:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
        self.process.wait()

    def _owns(self, process: psutil.Process) -> bool:
        """Whether a process was started with the service's folder. Ray's workers no longer show that."""
        try:
            environ: dict[str, str] = process.environ()
            return environ.get("RAY_TMPDIR") == self.environ["RAY_TMPDIR"]
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            return False

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The service's own processes whose command line begins with `name`."""
        found: list[psutil.Process] = []
        if not psutil.pid_exists(self.process.pid):
            return found
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(name):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, name: str) -> None:
        """Kills, with SIGKILL, the one process whose command line begins with `name`."""
        (process,) = self.processes(name)
        process.kill()
        process.wait()


#: Variables of the `make` that runs the tests and of other clusters, which are not for the service's own.
_OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "RAY_ADDRESS")

#: Command lines of the processes that Serve gives the deployments.
ORCHESTRATOR = "ray::ServeReplica:lattice:orchestrator"
INGRESS = "ray::ServeReplica:lattice:ingress"


def environ_of(folder: Path) -> dict[str, str]:
    """The environment of a service with ports, and temporary files in `folder`, of its own."""
    return {
        **{name: value for name, value in os.environ.items() if name not in _OF_MAKE},
        "RAY_TMPDIR": str(folder),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # Where HAProxy sends requests until the ingress is there: two services must not share it.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


@contextmanager
def running_service(
    command: Sequence[str] = Service.command,
    beside: Sequence[Mapping[str, object]] = (),
    host: str = "127.0.0.1",
    wait: bool = True,
    **settings: Any,
) -> Iterator[Service]:
    """A service of its own, with `settings` as the configuration's `args`; stopped at the end.

    `beside` are further Serve applications on its cluster, as a configuration has them; `host` is where it listens.
    """
    # Short, as Ray puts sockets below it, whose paths may have at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    port = free_port()
    document = yaml.safe_load((ROOT / "configs" / "lattice.yaml").read_text())
    document["http_options"] |= {"host": host, "port": port}
    document["applications"][0]["args"] = {"data_dir": str(folder / "data"), **settings}
    document["applications"].extend(beside)
    config = folder / "lattice.yaml"
    config.write_text(yaml.safe_dump(document))
    environ = environ_of(folder)
    service = Service(f"http://127.0.0.1:{port}", config, environ, folder / "serve.log", command)
    try:
        service.start(wait=wait)
        yield service
    finally:
        service.end()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redeployed(service: Service, **settings: object) -> Iterator[None]:
    """The same configuration with other `settings`, deployed on the cluster of a running service."""

    def ask() -> int | None:
        try:
            answer = httpx.post(f"{service.url}/get_head_ray_port", timeout=PATIENCE)
        except httpx.HTTPError:  # HAProxy replaces itself soon after the start
            return None
        return int(answer.json()["port"]) if answer.is_success else None

    port = wait_for("the engine's port", ask)
    document = yaml.safe_load(service.config.read_text())
    document["applications"][0]["args"] |= settings
    changed = service.config.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(document))
    command = f". .venv/bin/activate && exec serve run --address 127.0.0.1:{port} {changed}"
    with service.log.open("ab") as log:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=ROOT,
            env={**service.environ, "RAY_AUTH_MODE": "token"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        # Without a word, as a stop would take the service along.
        process.kill()
        process.wait()
