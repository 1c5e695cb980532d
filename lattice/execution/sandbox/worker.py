"""The worker process's side of sandboxes: starts what makes them, hands calls in, watches, and takes answers.

What comes out is bytes that were read once within the sandbox, and is read as plain data and nothing else.
What is printed inside goes to the attempt's record.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lattice.execution.sandbox.plain import NotPlainError
from lattice.execution.sandbox.request import Request
from lattice.execution.sandbox.usage import Usage
from lattice.execution.sandbox.zygote import FORGED, REFUSED
from lattice.workflow.events import ErrorInfo
from lattice.workflow.sandbox import Sandbox

#: Seconds between two looks at what a sandbox uses.
_PERIOD = 0.05
_MIB = 1024 * 1024
_CHUNK = 64 * 1024
#: More than any word of how a sandbox ended.
_MAX_STATUS = 8 * 1024
_START = (
    "import sys; sys.path[:] = sys.argv[2].split('\\n'); "
    "from lattice.execution.sandbox.zygote import main; main(int(sys.argv[1]), int(sys.argv[3]))"
)
_UTF8 = codecs.getincrementaldecoder("utf-8")


class SandboxError(Exception):
    """A call in a sandbox that came to no answer: the sandbox cannot be made, or was stopped. `info` says why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.info = ErrorInfo(kind, message, kinds=(kind,))


@dataclass(slots=True)
class _Maker:
    process: subprocess.Popen[bytes]
    orders: socket.socket


_maker: _Maker | None = None


def call(request: Request, sandbox: Sandbox, printed: Callable[[str, str], None]) -> bytes:
    """Runs a call in a sandbox; the bytes that it answered, which anybody may have written.

    `printed` gets the name of a stream and text that was written to it.

    Raises:
        SandboxError: the sandbox cannot be made here, or its process ended without an answer.
        NotPlainError: the answer cannot be read within the limits of the sandbox.
    """
    handles: list[int] = []
    # Twice, as the interrupt of an attempt that is cancelled may meet anything, the first time too.
    try:
        try:
            return _call(request, sandbox, printed, handles)
        finally:
            _end(handles)
    finally:
        _end(handles)


def _call(
    request: Request, sandbox: Sandbox, printed: Callable[[str, str], None], handles: list[int]
) -> bytes:
    with contextlib.ExitStack() as stack:
        wanted = os.memfd_create("request")
        stack.callback(os.close, wanted)
        with os.fdopen(os.dup(wanted), "wb") as file:
            file.write(request.encode())
        os.lseek(wanted, 0, os.SEEK_SET)
        readers, writers = zip(*(os.pipe() for _ in range(4)), strict=True)
        for reader in readers:
            stack.callback(os.close, reader)
        try:
            _order(sandbox, [wanted, *writers], handles)
        finally:
            for writer in writers:
                os.close(writer)
        return _Watch(handles[0], readers, sandbox, printed).answer()


def _order(sandbox: Sandbox, descriptors: list[int], handles: list[int]) -> None:
    """Has a sandbox made; puts what it can be killed by into `handles`."""
    global _maker
    if _maker is None or _maker.process.poll() is not None:
        _maker = _start()
    try:
        socket.send_fds(_maker.orders, [json.dumps(sandbox.document()).encode()], descriptors)
        handles += socket.recv_fds(_maker.orders, 16, 1)[1]
        if handles:
            return
        problem = "what makes sandboxes has ended"
    except OSError as error:
        problem = str(error)
    except BaseException:
        # Interrupted in between. What it has made ends with it, and the next must not get the answer to this.
        _maker.orders.close()
        _maker.process.kill()
        _maker = None
        raise
    _maker.orders.close()
    _maker.process.kill()
    _maker = None
    raise SandboxError("SandboxUnavailable", _refusal(problem))


def _start() -> _Maker:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        # Of the environment only what Python may need to start: it may hold what the call must not see.
        kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-c", _START),
                *(str(its.fileno()), "\n".join(sys.path), str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            env={name: os.environ[name] for name in kept if name in os.environ},
            cwd="/",
            start_new_session=True,
        )
    return _Maker(process, ours)


def _end(handles: list[int]) -> None:
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    while handles:
        os.close(handles.pop())


def _refusal(problem: str) -> str:
    return (
        f"this worker cannot make a sandbox, so the task was not run ({problem}); sandboxes need Linux 5.12 "
        "or newer, and a worker that runs as root with CAP_SYS_ADMIN or may make user namespaces"
    )


@dataclass(slots=True)
class _Watch:
    """Of one sandbox until it has ended."""

    keeper: int
    readers: tuple[int, ...]
    sandbox: Sandbox
    printed: Callable[[str, str], None]
    found: dict[str, bytearray] = field(
        default_factory=lambda: {"answer": bytearray(), "status": bytearray()}
    )
    decoders: dict[str, codecs.IncrementalDecoder] = field(
        # A character may come in two pieces.
        default_factory=lambda: {name: _UTF8("replace") for name in ("stdout", "stderr")}
    )

    def answer(self) -> bytes:
        """What was answered. Raises SandboxError and NotPlainError."""
        names = ("answer", "stdout", "stderr", "status")
        usage = Usage(self.keeper)
        next_look = time.monotonic() + _PERIOD
        with selectors.DefaultSelector() as selector:
            for name, reader in zip(names, self.readers, strict=True):
                selector.register(reader, selectors.EVENT_READ, name)
            while selector.get_map():
                for key, _ in selector.select(max(0.0, next_look - time.monotonic())):
                    data = os.read(key.fd, _CHUNK)
                    if not data:
                        selector.unregister(key.fd)
                    self._take(key.data, data)
                if time.monotonic() >= next_look:
                    self._check(usage)
                    next_look = time.monotonic() + _PERIOD
        return self._outcome()

    def _take(self, name: str, data: bytes) -> None:
        if name in self.decoders:
            text = self.decoders[name].decode(data, final=not data)
            if text:
                self.printed(name, text)
            return
        kept = self.found[name]
        kept += data if name == "answer" else data[: _MAX_STATUS - len(kept)]
        if len(kept) > self.sandbox.memory * _MIB:
            raise SandboxError("SandboxLimit", f"its answer is over {self.sandbox.memory} MiB")

    def _check(self, usage: Usage) -> None:
        seconds, memory = usage.look()
        if seconds > self.sandbox.cpu_seconds:
            raise SandboxError(
                "SandboxLimit",
                f"it used more than {self.sandbox.cpu_seconds} s of CPU time (sandbox.cpu_seconds)",
            )
        if memory > self.sandbox.memory * _MIB:
            raise SandboxError(
                "SandboxLimit", f"it used more than {self.sandbox.memory} MiB (sandbox.memory)"
            )

    def _outcome(self) -> bytes:
        status = bytes(self.found["status"])
        if status.startswith(REFUSED):
            problem = status[1:].decode("utf-8", "replace")
            raise SandboxError("SandboxUnavailable", _refusal(problem))
        if status.startswith(FORGED):
            raise NotPlainError(status[1:].decode("utf-8", "replace"))
        code = int(status[1:]) if status[1:].lstrip(b"-").isdigit() else -int(signal.SIGKILL)
        if code == 0 and self.found["answer"]:
            return bytes(self.found["answer"])
        raise SandboxError("SandboxStopped", self._ending(code))

    def _ending(self, code: int) -> str:
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return (
                "its process was killed; most often by a limit of the sandbox "
                f"(cpu_seconds {self.sandbox.cpu_seconds}, memory {self.sandbox.memory} MiB)"
            )
        if code < 0:
            return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"its process ended with status {code} and without a result"
