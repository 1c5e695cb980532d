"""The process that makes sandboxes: small, without threads, and with nothing in it that is worth reading.

A worker process starts it once. For each call it forks a child that enters a sandbox and runs the call; a fork
costs a few milliseconds where starting Python would cost hundreds. It never sees user code run: what
is loaded in a sandbox ends with it.

Of a sandbox there are three processes. The keeper makes the namespaces and waits; killing it kills
all. The first process inside prepares everything, gives up its privileges and reaps. Its child runs user code.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import NoReturn

from lattice.execution import pickling
from lattice.execution.code import CodeLoadError, load
from lattice.execution.failures import describe, message_of, type_name
from lattice.execution.runner import Failed, Succeeded, run_call
from lattice.execution.sandbox import jail, kernel, plain
from lattice.execution.sandbox.request import Given, Request, decode_request, encode_answer
from lattice.workflow.events import ErrorInfo
from lattice.workflow.sandbox import Sandbox

#: What goes with each order: the request, and where the answer, what is printed, and how it ended go.
_DESCRIPTORS = 5
_MAX_ORDER = 64 * 1024
#: How the last of an attempt is told: the sandbox could not be made, or how its process ended.
REFUSED, ENDED = b"R", b"E"


def main(descriptor: int) -> NoReturn:
    """Makes sandboxes for whoever holds the other end of a socket, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = socket.socket(fileno=descriptor)
    folders = jail.python_folders()
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, _MAX_ORDER, _DESCRIPTORS)
        if not order:
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        keeper = os.fork()
        if keeper == 0:
            orders.close()
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
        kernel.die_with_parent()
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
        os.write(status, REFUSED + str(error).encode("utf-8", "replace")[:4000])
    os._exit(0)


def _reap(request: int, answer: int, status: int) -> NoReturn:
    worker = os.fork()
    if worker == 0:
        _work(request, answer)
    # All but the status, so that the others end with those who use them.
    os.closerange(0, status)
    os.closerange(status + 1, jail.MAX_FILES)
    while True:
        ended, code = os.wait()
        if ended == worker:
            os.write(status, ENDED + str(os.waitstatus_to_exitcode(code)).encode())
            os._exit(0)


def _work(request: int, answer: int) -> NoReturn:
    """The process that user code runs in."""
    try:
        kernel.set_dumpable()
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
