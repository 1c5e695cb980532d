"""The process that makes sandboxes: small, without threads, and with nothing in it that is worth reading.

A worker process starts it once. For each call it forks a child that enters a sandbox and runs the call; a fork
costs a few milliseconds where starting Python would cost hundreds. It never sees user code run: what
is loaded in a sandbox ends with it.

Of a sandbox there are three processes. The keeper makes the namespaces and waits; killing it kills
all. The first process inside prepares everything, gives up its privileges and reaps. Its child runs user code.
When that has ended, the first one ends what it left, and reads its answer on trial before it hands it on: if that
takes all the memory, all the time or the process, then it takes the sandbox's.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from typing import NoReturn

from lattice.execution import pickling
from lattice.execution.code import CodeLoadError, load
from lattice.execution.failures import describe, message_of, type_name
from lattice.execution.runner import Failed, Succeeded, run_call
from lattice.execution.sandbox import jail, kernel, plain
from lattice.execution.sandbox.request import Given, Request, decode_request, encode_answer
from lattice.execution.secrets import hidden
from lattice.workflow.events import ErrorInfo
from lattice.workflow.sandbox import Sandbox

#: What goes with each order: the request, and where the answer, what is printed, and how it ended go.
_DESCRIPTORS = 5
_MAX_ORDER = 64 * 1024
#: How the last of an attempt is told: the sandbox could not be made, how its process ended, or why its answer is none.
REFUSED, ENDED, FORGED = b"R", b"E", b"F"
_CHUNK = 64 * 1024
_MIB = 1024 * 1024
#: Seconds of CPU time in which an answer must be read; one more for each MiB.
_READING = 3
_MAX_REASON = 4000
#: The stack that reading an answer may take: less than any thread has that reads it afterwards.
_STACK = 4 * _MIB


def main(descriptor: int, parent: int) -> NoReturn:
    """Makes sandboxes for its parent, which holds the other end of a socket, until that is closed or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = socket.socket(fileno=descriptor)
    folders = jail.python_folders()
    try:
        worker = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(0)
    if os.getppid() != parent:
        os._exit(0)
    while True:
        # What user code has forked in the worker's process may hold the socket open for longer.
        if worker in select.select([orders.fileno(), worker], [], [])[0]:
            os._exit(0)
        order, descriptors, _, _ = socket.recv_fds(orders, _MAX_ORDER, _DESCRIPTORS)
        if not order:
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        zygote = os.getpid()
        keeper = os.fork()
        if keeper == 0:
            orders.close()
            os.close(worker)
            kernel.die_with_parent()
            if os.getppid() != zygote:
                os._exit(0)
            _keep(Sandbox(**json.loads(order)), folders, *descriptors)
        handle = os.pidfd_open(keeper)
        with contextlib.suppress(OSError):  # the worker may be gone
            socket.send_fds(orders, [b"1"], [handle])
        for each in (*descriptors, handle):
            os.close(each)


def _keep(
    sandbox: Sandbox,
    folders: Mapping[str, str],
    request: int,
    answer: int,
    printed: int,
    complained: int,
    status: int,
) -> NoReturn:
    try:
        os.setsid()
        jail.isolate()
        keeper = os.pidfd_open(os.getpid())
        user = jail.user_of(os.getpid())
        first = os.fork()
        if first == 0:
            for source, target in ((printed, 1), (complained, 2)):
                os.dup2(source, target)
            jail.build_root(folders, sandbox, user)
            jail.confine(sandbox, user)
            kernel.die_with_parent()
            if select.select([keeper], [], [], 0)[0]:
                os._exit(1)
            _reap(request, answer, status)
        for each in (request, answer, printed, complained, keeper):
            os.close(each)
        os.waitpid(first, 0)
    except BaseException as error:
        os.write(status, REFUSED + str(error).encode("utf-8", "replace")[:_MAX_REASON])
    os._exit(0)


def _reap(request: int, answer: int, status: int) -> NoReturn:
    # What it tells is not user code's to write.
    kernel.set_dumpable(False)
    answers, its = os.pipe()
    woken, wake = os.pipe()
    for each in (woken, wake):
        os.set_blocking(each, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _work(request, its)
    kept = (answer, status, answers, woken, wake)
    for each in range(jail.MAX_FILES):
        # All others, so that they end with those who use them.
        if each not in kept:
            with contextlib.suppress(OSError):
                os.close(each)
    try:
        code, data = _wait(worker, answers, woken)
        if code == 0 and data:
            _try_out(data)
            with os.fdopen(answer, "wb") as out:
                out.write(data)
        os.write(status, ENDED + str(code).encode())
    except BaseException as error:
        reason = str(error) if isinstance(error, plain.NotPlainError) else type(error).__name__
        os.write(status, FORGED + reason.encode("utf-8", "replace")[:_MAX_REASON])
    os._exit(0)


def _wait(worker: int, answers: int, woken: int) -> tuple[int, bytes]:
    """How a child ended, and what was written into its pipe. Ends all other processes."""
    data = bytearray()
    code: int | None = None
    watched = [answers, woken]
    while code is None:
        for each in select.select(watched, [], [])[0]:
            chunk = os.read(each, _CHUNK)
            if each == answers:
                data += chunk
                if not chunk:
                    watched.remove(answers)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == worker:
                    code = os.waitstatus_to_exitcode(found[1])
    assert os.getpid() == 1, "outside of a namespace it would end everybody's"
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    while chunk := os.read(answers, _CHUNK):
        data += chunk
    return code, bytes(data)


def _try_out(data: bytes) -> None:
    used = int(time.process_time())
    _lower(resource.RLIMIT_CPU, used + _READING + len(data) // _MIB)
    _lower(resource.RLIMIT_STACK, _STACK)
    plain.try_out(data)


def _lower(limit: int, value: int) -> None:
    for each in resource.getrlimit(limit):
        value = value if each == resource.RLIM_INFINITY else min(value, each)
    resource.setrlimit(limit, (value, value))


def _work(request: int, answer: int) -> NoReturn:
    """The process that user code runs in."""
    try:
        kernel.set_dumpable(True)
        null = os.open("/dev/null", os.O_RDONLY)
        with os.fdopen(request, "rb") as file:
            asked = decode_request(file.read())
        os.dup2(null, 0)
        result = os.dup(answer)
        os.dup2(result, 3)
        os.closerange(4, jail.MAX_FILES)
        os.environ.clear()
        os.environ.update(
            {
                "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "HOME": jail.SCRATCH,
                "TMPDIR": jail.SCRATCH,
                "CUDA_VISIBLE_DEVICES": "",
                **asked.environment,
            }
        )
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # text files
        with hidden(asked.hidden):
            data = _answer(asked)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with os.fdopen(3, "wb") as out:
            out.write(data)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _answer(asked: Request) -> bytes:
    try:
        returned = _call(asked)
    except CodeLoadError as error:
        returned = error.info
    except BaseException as error:
        returned = describe(error, asked.name)
    try:
        return encode_answer(returned)
    except plain.NotPlainError as error:
        message = (
            f"what a task in a sandbox returns must be plain data (numbers, text, bytes, lists, dicts, "
            f"sets, dates), so that reading it runs no code: {error}"
        )
        return encode_answer(ErrorInfo("TypeError", message))


def _call(asked: Request) -> object:
    function = load(asked.code, lambda: asked.data)
    params: dict[str, object] = {}
    for key, argument in asked.arguments.items():
        try:
            params[key] = _value(argument)
        except BaseException as error:
            message = (
                f"the value of {argument.named} could not be unpickled: "
                f"{type_name(type(error))}: {message_of(error)}"
            )
            return describe(error, asked.name, message)
    outcome = run_call(function, params, asked.output_keys, asked.name)
    if isinstance(outcome, Failed):
        return outcome.error
    assert isinstance(outcome, Succeeded)
    return outcome.outputs


def _value(argument: Given) -> object:
    if argument.json is not None:
        return json.loads(argument.json)
    return pickling.loads(argument.pickled, argument.buffers)
