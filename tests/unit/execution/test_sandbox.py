"""Sandboxes where the kernel or the worker's user allows less, and what may come out of one."""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from lattice.errors import InvalidRequestError
from lattice.execution.sandbox import plain
from lattice.execution.secrets import SecretFolder
from lattice.ids import Tenant
from lattice.ports.secrets import SecretNotFoundError, key_of
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.task import Task, check_isolation

_SCRIPT = """
import hashlib
from lattice.execution.sandbox import worker
from lattice.execution.sandbox.request import Request, decode_answer
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.task import Code, CodeForm

SOURCE = b'''
import os, socket
def run(p):
    found = {}
    for name, act in {
        "network": lambda: socket.create_connection(("127.0.0.1", 1)),
        "root": lambda: open("/file", "w"),
        "own": lambda: os.listdir(HOME),
        "scratch": lambda: open("file", "w").close(),
        "processes": lambda: [each for each in os.listdir("/proc") if each.isdigit()],
        "capabilities": lambda: [each.split()[1] for each in open("/proc/self/status") if each.startswith("CapEff")],
        "pipes": lambda: os.listdir("/proc/1/fd"),
        "memory": lambda: open("/proc/1/mem", "rb"),
        "more": lambda: [os.fork() or os._exit(0) for _ in range(100)],
    }.items():
        try:
            found[name] = act()
        except OSError as error:
            found[name] = type(error).__name__
    return found
'''.replace(b"HOME", repr("HOME_FOLDER").encode())
code = Code(hashlib.sha256(SOURCE).hexdigest(), CodeForm.SOURCE, "run")
try:
    answer = worker.call(Request("run", code, SOURCE, {}, {}), Sandbox(processes=16), print)
    print(decode_answer(answer)[1])
except worker.SandboxError as error:
    print(error.info.type, error.info.message)
"""

_WORKER = """
import hashlib, os, signal, sys, time
from lattice.execution.sandbox import worker
from lattice.execution.sandbox.request import Request
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.task import Code, CodeForm

SOURCE = b"import time\\ndef run(p):\\n    print('up')\\n    time.sleep(600)\\n"
code = Code(hashlib.sha256(SOURCE).hexdigest(), CodeForm.SOURCE, "run")

def call(printed):
    worker.call(Request("run", code, SOURCE, {}, {}), Sandbox(processes=16), printed)
"""

#: An interrupt before each line of those functions; afterwards what is left of the sandbox.
_INTERRUPTS = (
    _WORKER
    + """
left = 0

def interrupt(frame, event, argument):
    global left
    if frame.f_code.co_name not in ("call", "_call", "_order") or frame.f_code.co_filename != worker.__file__:
        return None
    left -= event == "line"
    if left == 0:
        raise KeyboardInterrupt
    return interrupt

def printed(stream, text):
    global number
    number = 0
    raise KeyboardInterrupt

number = 1
while number:
    left = number
    number += 1
    sys.settrace(interrupt)
    try:
        call(printed)
    except KeyboardInterrupt:
        sys.settrace(None)
    print("interrupted", flush=True)
    input()
"""
)

#: A worker that is killed while something that it forked holds all that it has open.
_KILLED = (
    _WORKER
    + """
def printed(stream, text):
    if os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)

call(printed)
"""
)

linux = pytest.mark.skipif(platform.system() != "Linux", reason="sandboxes are Linux's")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
setpriv = shutil.which("setpriv") or ""


def call_as(options: list[str], python: str, folder: Path) -> str:
    """What a worker tells of a call in a sandbox that has given up some of what it may."""
    script = folder / "call.py"
    script.write_text(_SCRIPT.replace("HOME_FOLDER", str(folder)))
    done = subprocess.run(
        [setpriv, *options, python, str(script)],
        env={"PYTHONPATH": os.pathsep.join([os.getcwd(), sysconfig.get_path("purelib")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
@root
@pytest.mark.skipif(not setpriv, reason="setpriv is not installed")
def test_no_sandbox_no_run(tmp_path: Path) -> None:
    """A worker that may not make namespaces says so, and runs nothing."""
    told = call_as(["--bounding-set=-sys_admin", "--inh-caps=-all"], sys.executable, tmp_path)
    assert told.startswith("SandboxUnavailable")
    assert "the task was not run" in told
    assert "CAP_SYS_ADMIN" in told


@linux
@root
@pytest.mark.skipif(not setpriv, reason="setpriv is not installed")
def test_a_worker_without_rights_makes_a_user_namespace(tmp_path: Path) -> None:
    """What a worker of root can keep apart by users, another keeps apart by what it shows."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = shutil.which(f"python{version}", path="/usr/local/bin:/usr/bin")
    if python is None:
        pytest.skip(f"no Python {version} for all users")
    folder = Path("/tmp") / tmp_path.name
    folder.mkdir(mode=0o755, exist_ok=True)
    try:
        told = call_as(["--reuid=65534", "--regid=65534", "--clear-groups"], python, folder)
    finally:
        shutil.rmtree(folder)
    found = eval(told)
    assert isinstance(found["capabilities"], list)
    assert int(found.pop("capabilities")[0], 16) == 0
    assert found == {
        "network": "OSError",
        "root": "OSError",
        "own": "FileNotFoundError",
        "scratch": None,
        "processes": ["1", "2"],
        "pipes": "PermissionError",
        "memory": "PermissionError",
        "more": "BlockingIOError",
    }


def started_for(mark: str) -> list[int]:
    """What makes sandboxes, and sandboxes, of workers that have `mark` in their module path."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if "-I" in words and any(mark in each for each in words):
                found.append(int(path.parent.name))
    return found


def worker_of(script: str, mark: Path) -> subprocess.Popen[str]:
    path = [os.getcwd(), sysconfig.get_path("purelib"), str(mark)]
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": os.pathsep.join(path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # So that what it forks can be ended with it.
        start_new_session=True,
    )


def wait_for_end(processes: list[int]) -> None:
    """Waits until all of them have ended."""
    for each in processes:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(each)
            ended = select.select([handle], [], [], 30)[0]
            os.close(handle)
            assert ended


@linux
@root
def test_an_interrupt_ends_the_sandbox(tmp_path: Path) -> None:
    """Wherever it comes, also where the sandbox was only just made."""
    rounds = 0
    with worker_of(_INTERRUPTS, tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline():
            # What makes sandboxes may stay.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            there = started_for(str(tmp_path))
            wait_for_end([each for each in there if str(each) not in children])
            process.stdin.write("\n")
            process.stdin.flush()
            rounds += 1
    assert process.returncode == 0
    assert rounds > 20
    wait_for_end(started_for(str(tmp_path)))


@linux
@root
def test_nothing_is_left_of_a_worker_that_was_killed(tmp_path: Path) -> None:
    """Though something that user code has forked in it lives on, with all that was open in it."""
    with worker_of(_KILLED, tmp_path) as process:
        process.wait()
        try:
            os.killpg(process.pid, 0)
            wait_for_end(started_for(str(tmp_path)))
            os.killpg(process.pid, 0)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_plain_data_comes_through() -> None:
    """All that JSON has, and a few more classes that run nothing when they are read."""
    value = [
        {"a": [1, 2.5, None, True], 3: (b"x", bytearray(b"y"))},
        {1, "x"},
        frozenset({2}),
        1 << 200,
        2j,
        datetime(2024, 1, 1, tzinfo=UTC),
        Decimal("1.5"),
    ]
    assert plain.loads(plain.dumps(value)) == value


@pytest.mark.parametrize("value", [OrderedDict(a=1), os.system, Path("x"), ValueError("x"), ...])
def test_other_things_are_not_plain(value: object) -> None:
    """Each names a class or a function in its pickle."""
    with pytest.raises(plain.NotPlainError):
        plain.dumps(value)


def test_plain_data_has_a_depth() -> None:
    """Which is told where it is written, as where it is read."""
    deep: list[object] = []
    for _ in range(2_000):
        deep = [deep]
    with pytest.raises(plain.NotPlainError, match="levels deep"):
        plain.dumps(deep)
    plain.try_out(pickle.dumps([{"a": 1}] * 10_000))
    with pytest.raises(plain.NotPlainError, match="levels deep"):
        plain.try_out(b"]" * 2_000 + b"a" * 1_999 + b".")
    with pytest.raises(plain.NotPlainError, match=r"posix\.system"):
        plain.try_out(pickle.dumps(os.system))


def test_limits_are_read() -> None:
    """True stands for the defaults; what is refused is named."""
    assert Sandbox.parse(True) == Sandbox()
    assert Sandbox.parse(None) is Sandbox.parse(False) is None
    found = Sandbox.parse({"memory": 512})
    assert found == Sandbox(memory=512)
    assert Sandbox.parse(found.document()) == found
    for document, field in (
        ("yes", "sandbox"),
        (1, "sandbox"),
        ({"gpu": 1}, "sandbox.gpu"),
        ({"memory": 1}, "sandbox.memory"),
        ({"cpu_seconds": True}, "sandbox.cpu_seconds"),
        ({"processes": 0}, "sandbox.processes"),
    ):
        with pytest.raises(InvalidRequestError, match=field):
            Sandbox.parse(document)


@pytest.mark.parametrize(
    "needs", [{"batch_config": {"batch_size": 2}}, {"resources": {"gpu": 1}}], ids=["batch", "gpu"]
)
def test_replicas_have_none(needs: dict[str, object]) -> None:
    """They serve many calls from one process."""
    task = Task.from_document({"task_id": "t", "task_name": "t", "sandbox": True, **needs})
    with pytest.raises(InvalidRequestError, match="replicas"):
        check_isolation(task)


def test_tenants_have_secrets_of_their_own(tmp_path: Path) -> None:
    """Nobody gets at those of others, nor at other files, by a name."""
    (tmp_path / "KEY").write_text("shared\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "KEY").write_text("of a")
    (tmp_path / "a" / "MINE").write_text("of a")
    found = SecretFolder(tmp_path)
    assert found.value(key_of("KEY", None)) == "shared"
    assert found.value(key_of("KEY", Tenant("a"))) == "of a"
    for name, tenant in (
        ("MINE", None),
        ("KEY", "b"),
        ("MINE", "b"),
        ("KEY", ".."),
        ("KEY", "b/../a"),
    ):
        key = key_of(name, None if tenant is None else Tenant(tenant))
        assert not found.has(key)
        with pytest.raises(SecretNotFoundError):
            found.value(key)
