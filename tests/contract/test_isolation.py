"""Code that nobody should trust, and secrets, on a real engine.

What hostile code tries succeeds outside of a sandbox, and fails inside.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import socket
import subprocess
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from lattice.errors import UserCodeError
from lattice.execution.failures import MAX_KIND, MAX_KINDS, MAX_MESSAGE, MAX_TRACEBACK
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.execution.secrets import SecretFolder
from lattice.ids import Tenant
from lattice.ports.execution import Argument
from lattice.workflow.events import TaskSucceeded
from lattice.workflow.sandbox import Sandbox
from tests.contract import attacks
from tests.contract.dispatching import LONG, Bench, given, output_of, short_folder
from tests.files import contents

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(platform.system() != "Linux", reason="sandboxes are Linux's"),
]

SMALL = Sandbox(cpu_seconds=30, memory=256, scratch=16, processes=24)


def limits(words: str) -> Sandbox:
    """Those of an attempt that is to end with `words`: little CPU time only where it ends for that."""
    return replace(SMALL, cpu_seconds=2) if "cpu" in words.lower() else SMALL


SECRET = "s3cr3t-" + uuid.uuid4().hex


@dataclass
class Engine:
    """A Ray: a Unix socket on which it listens, and the folder that it writes to."""

    socket: str
    folder: Path


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One of two CPUs."""
    with short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        # As the environment of `make` has it.
        patch.setenv("RUNTIME_ENV_RETRY_TIMES", "1")
        context = ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder
        )
        try:
            yield Engine(str(context.address_info["raylet_socket_name"]), Path(folder))
        finally:
            ray.shutdown()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder with one secret."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "API_KEY").write_text(f"{SECRET}\n")
    return folder


@pytest.fixture
async def bench(engine: Engine, secrets: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(
        RayTaskDispatcher(
            (tmp_path / "values").as_uri(), 1024, cancel_grace=0.5, secrets=SecretFolder(secrets)
        )
    )
    await bench.start()
    yield bench
    await bench.dispatcher.close()


@dataclass
class Targets:
    """What is attacked."""

    arguments: tuple[Argument, ...]
    file: Path


@pytest.fixture
def targets(engine: Engine, tmp_path: Path) -> Iterator[Targets]:
    """A file as that of the database, what listens, and a process."""
    file = tmp_path / "lattice.db"
    file.write_text("of the service")
    file.chmod(0o600)
    abstract = uuid.uuid4().hex
    bystander = subprocess.Popen(["sleep", "600"])
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0" + abstract)
        unix.listen()
        named = {
            "file": str(file),
            "port": server.getsockname()[1],
            "socket": engine.socket,
            "abstract": abstract,
            "pid": bystander.pid,
        }
        yield Targets(tuple(given(key, value) for key, value in named.items()), file)
    bystander.kill()
    bystander.wait()


def processes_called(name: str) -> list[str]:
    """The processes of the machine that have given themselves that name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits for what does happen."""
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


async def goes_on(bench: Bench) -> None:
    """The workers and the machine still do what others want of them."""
    for sandbox in (None, Sandbox()):
        end = await bench.succeed(
            "def run(p):\n    return {'out': 1}\n", f"after {sandbox}", sandbox=sandbox
        )
        assert end.result == {"out": 1}


# -- attacks -----------------------------------------------------------------------------------


async def test_attacks_fail_inside_and_succeed_outside(bench: Bench, targets: Targets) -> None:
    """Files, sockets, processes and namespaces of the service, the engine and the machine."""
    outside, inside = {}, {}
    for name, body in attacks.HARMLESS_TO_TRY.items():
        code = attacks.source(body)
        end = await bench.succeed(code, f"out: {name}", targets.arguments)
        outside[name] = end.result
        before = targets.file.read_bytes()
        end = await bench.succeed(code, f"in: {name}", targets.arguments, sandbox=SMALL)
        inside[name] = end.result
        assert targets.file.read_bytes() == before
    assert {name for name, result in inside.items() if "got" in result} == set()
    tried = {name for name, result in outside.items() if "refused" in result}
    assert tried <= (set() if os.geteuid() == 0 else attacks.ONLY_AS_ROOT), outside
    await goes_on(bench)


@pytest.mark.parametrize("name", attacks.EXHAUSTION)
async def test_what_there_is_cannot_be_used_up(bench: Bench, name: str) -> None:
    """The attempt fails with the limit that it met, and the worker is there for the next."""
    code, words = attacks.EXHAUSTION[name]
    failed = await bench.fail(code, name, sandbox=limits(words))
    assert re.search(words, f"{failed.error.type}: {failed.error.message}"), failed.error
    await goes_on(bench)


@pytest.mark.parametrize("name", attacks.FORGED)
async def test_a_forged_answer_runs_nothing(bench: Bench, tmp_path: Path, name: str) -> None:
    """What comes out of a sandbox is read as data, whatever it is."""
    answer, words = attacks.FORGED[name]
    mark = tmp_path / "mark"
    code = attacks.FORGERY.replace("MARK", str(mark)).replace("ANSWER", answer)
    failed = await bench.fail(code, name, outputs=("out",), sandbox=limits(words))
    assert words in failed.error.message
    error = failed.error
    assert len(error.message) <= MAX_MESSAGE
    assert len(error.traceback) <= MAX_TRACEBACK
    assert len(error.kinds) <= MAX_KINDS
    assert all(len(each) <= MAX_KIND for each in (error.type, *error.kinds))
    assert not mark.exists()
    await goes_on(bench)


async def test_killing_what_is_around_kills_only_the_attempt(bench: Bench) -> None:
    """Its parent and every process that it may signal."""
    code = """
import os, signal
def run(p):
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGSTOP)
    if p["all"]:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return {"out": "alive"}
"""
    end = await bench.succeed(code, "parent", (given("all", False),), sandbox=SMALL)
    assert end.result == {"out": "alive"}
    failed = await bench.fail(code, "all", (given("all", True),), sandbox=SMALL)
    assert failed.error.type == "SandboxStopped"
    await goes_on(bench)


async def test_nothing_is_left_behind(bench: Bench) -> None:
    """A daemon in a session of its own ends with its attempt, and so does one that is cancelled."""
    name = uuid.uuid4().hex[:15]
    code = f"""
import ctypes, os, time
def run(p):
    if os.fork() == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(15, b"{name}", 0, 0, 0)
        open("there", "w").close()
        for number in range(3, 200):
            try: os.close(number)
            except OSError: pass
        time.sleep(600)
    while not os.path.exists("there"): time.sleep(0.01)
    print("there", flush=True)
    time.sleep(p["seconds"])
    return {{"out": 1}}
"""
    await bench.succeed(code, "ends", (given("seconds", 0.5),), sandbox=SMALL)
    assert processes_called(name) == []
    job = bench.job(code, "cancelled", (given("seconds", 600),), sandbox=SMALL)
    bench.dispatcher.submit(job)
    await asyncio.to_thread(wait_until, lambda: processes_called(name) != [])
    bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    await asyncio.to_thread(wait_until, lambda: processes_called(name) == [])
    await goes_on(bench)


async def test_one_attempt_leaves_nothing_for_the_next(bench: Bench) -> None:
    """Neither files nor modules nor variables."""
    code = """
import builtins, os
def run(p):
    found = [os.listdir("."), hasattr(builtins, "left"), "LEFT" in os.environ]
    open("file", "w").close()
    builtins.left = True
    os.environ["LEFT"] = "1"
    return {"out": found}
"""
    for number in range(3):
        end = await bench.succeed(code, f"t{number}", sandbox=SMALL)
        assert end.result == {"out": [[], False, False]}


# -- what code in a sandbox can do -------------------------------------------------------------


async def test_values_go_in_and_out(bench: Bench) -> None:
    """Small and large ones, from the outside in and from sandbox to sandbox; of any class in, plain ones out."""
    numpy = pytest.importorskip("numpy")
    make = bench.job(lambda p: {"array": numpy.arange(100_000)}, "make", outputs=("array",))
    bench.dispatcher.submit(make)
    made = await bench.end(make)
    assert isinstance(made, TaskSucceeded)
    array = output_of("make", "array", made.values["array"])
    total = "def run(p):\n    return {'sum': int(p['array'].sum()), 'list': p['array'].tolist()}\n"
    end = await bench.succeed(total, "total", (array,), outputs=("sum", "list"), sandbox=Sandbox())
    assert end.result["sum"] == sum(range(100_000))
    assert end.values["list"].location is not None
    listed = output_of("total", "list", end.values["list"])
    count = "def run(p):\n    return {'n': len(p['list']), 'kinds': (1, b'x', {2}, 1j)}\n"
    end = await bench.succeed(count, "count", (listed,), outputs=("n",), sandbox=Sandbox())
    assert end.result["n"] == 100_000


async def test_only_plain_data_comes_out(bench: Bench) -> None:
    """As whoever takes it would run what is in it."""
    pytest.importorskip("numpy")
    failed = await bench.fail(
        "import numpy\ndef run(p):\n    return {'out': numpy.arange(3)}\n", sandbox=Sandbox()
    )
    assert "must be plain data" in failed.error.message
    assert "numpy" in failed.error.message
    failed = await bench.fail("def run(p):\n    return {'out': lambda: 1}\n", "f", sandbox=SMALL)
    assert "must be plain data" in failed.error.message


async def test_errors_prints_and_variables(bench: Bench) -> None:
    """As without a sandbox: the user's own traceback, what was printed, the variables of the runtime_env."""
    code = """
import os, subprocess, sys
def run(p):
    print("from Python é")
    sys.stdout.flush()
    subprocess.run(["echo", "from a child"], check=True)
    print("complaint", file=sys.stderr)
    raise ValueError(" ".join(os.environ[name] for name in ("MINE", "LATTICE_TENANT", "HOME")))
"""
    job = bench.job(
        code, sandbox=SMALL, tenant=Tenant("alice"), runtime_env={"env_vars": {"MINE": "yes"}}
    )
    bench.dispatcher.submit(job)
    end: Any = await bench.end(job)
    assert (end.error.type, end.error.message) == ("ValueError", "yes alice /scratch")
    assert "in run" in end.error.traceback
    assert "lattice/execution" not in end.error.traceback
    assert "ValueError" in end.error.kinds
    texts: dict[str, str] = {}
    for entry in await bench.printed(job):
        texts[entry.stream] = texts.get(entry.stream, "") + entry.text
    assert texts == {"stdout": "from Python é\nfrom a child\n", "stderr": "complaint\n"}


async def test_a_process_that_dies_says_how(bench: Bench) -> None:
    """The signal or the status."""
    for number, (call, words) in enumerate(
        {"os._exit(7)": "status 7", "os.abort()": "signal 6"}.items()
    ):
        failed = await bench.fail(
            f"import os\ndef run(p):\n    {call}\n", f"t{number}", sandbox=SMALL
        )
        assert words in failed.error.message


# -- secrets -----------------------------------------------------------------------------------

LENGTH = """
import os
def length():
    return len(os.environ.get("API_KEY", ""))
KEPT = length()
def run(p):
    return {"out": [length(), KEPT]}
"""


@pytest.mark.parametrize("sandbox", [None, SMALL], ids=["plain", "sandbox"])
async def test_a_secret_is_there_while_its_attempt_runs(
    bench: Bench, sandbox: Sandbox | None
) -> None:
    """For those that asked for it, and not for what runs in the same process before or after."""
    for number in range(3):
        end = await bench.succeed(LENGTH, f"without {number}", sandbox=sandbox)
        assert end.result == {"out": [0, 0]}
        end = await bench.succeed(LENGTH, f"with {number}", sandbox=sandbox, secrets=("API_KEY",))
        assert end.result == {"out": [len(SECRET)] * 2}


@pytest.mark.parametrize("sandbox", [None, SMALL], ids=["plain", "sandbox"])
async def test_nothing_tells_a_secret(
    bench: Bench, engine: Engine, sandbox: Sandbox | None
) -> None:
    """Not what is recorded of prints and logs, not errors, and no file that the engine writes."""
    code = """
import logging, os, sys
def run(p):
    key = os.environ["API_KEY"]
    print("key", key)
    sys.stderr.write(f"<{key}>\\n")
    logging.getLogger("mine").warning("with %s", key)
    try:
        raise KeyError(key)
    except KeyError:
        raise ValueError(f"refused {key}")
"""
    job = bench.job(code, sandbox=sandbox, secrets=("API_KEY",))
    bench.dispatcher.submit(job)
    end: Any = await bench.end(job)
    assert end.error.message == "refused ***"
    assert "KeyError: '***'" in end.error.traceback
    printed = "".join(entry.text for entry in await bench.printed(job))
    assert printed.count("***") == 3
    assert SECRET not in str(bench.reports)
    found = contents(engine.folder)
    assert found
    assert [path for path, data in found.items() if SECRET.encode() in data] == []
    # Part of a value is found by nobody: where text is cut, or comes in pieces.
    for before in range(2028 - len(SECRET), 2028, 7):
        code = f"import os\ndef run(p):\n    raise ValueError({before} * 'x' + os.environ['API_KEY'] + 4000 * 'x')"
        failed = await bench.fail(code, f"cut at {before}", sandbox=sandbox, secrets=("API_KEY",))
        assert SECRET[:8] not in str(failed)
        assert SECRET[-8:] not in str(failed)
    code = """
import os, sys
def run(p):
    text = 65500 * "x" + os.environ["API_KEY"]
    for start in range(0, len(text), 65521):
        sys.stdout.write(text[start : start + 65521])
        sys.stdout.flush()
    return {"out": 1}
"""
    job = bench.job(code, "in pieces", sandbox=sandbox, secrets=("API_KEY",))
    bench.dispatcher.submit(job)
    assert isinstance(await bench.end(job), TaskSucceeded)
    printed = "".join(entry.text for entry in await bench.printed(job))
    assert printed.endswith("x***")
    assert SECRET[:8] not in printed
    found = contents(engine.folder)
    assert [path for path, data in found.items() if SECRET[:20].encode() in data] == []
    failed = await bench.fail(
        "import os\nraise ValueError(os.environ['API_KEY'])\ndef run(p): pass\n",
        "does not load",
        sandbox=sandbox,
        secrets=("API_KEY",),
    )
    assert "***" in failed.error.message
    assert SECRET not in str(failed)


async def test_a_thread_that_is_left_tells_no_secret(
    bench: Bench, engine: Engine, tmp_path: Path
) -> None:
    """After its attempt, whether or not another one runs in its process."""
    code = """
import os, threading, time
def run(p):
    def later(key):
        while not os.path.exists(p["go"]):
            time.sleep(0.01)
        print("later", key, flush=True)
        open(p["done"], "w").close()
    threading.Thread(target=later, args=(os.environ["API_KEY"],), daemon=True).start()
    return {"out": 1}
"""
    go, done = tmp_path / "go", tmp_path / "done"
    paths = given("go", str(go)), given("done", str(done))
    await bench.succeed(code, "leaves", paths, secrets=("API_KEY",))
    go.touch()
    await asyncio.to_thread(wait_until, done.exists)
    found = contents(engine.folder)
    assert any(b"later ***" in data for data in found.values())
    assert [path for path, data in found.items() if SECRET.encode() in data] == []


async def test_a_secret_is_read_when_it_is_needed(bench: Bench, secrets: Path) -> None:
    """A new value counts from the next attempt on, and one that is gone fails it with its name."""
    (secrets / "API_KEY").write_text("new")
    end = await bench.succeed(LENGTH, "new", secrets=("API_KEY",))
    assert end.result == {"out": [3, 3]}
    (secrets / "API_KEY").write_bytes(b"\xff\xfe")
    failed = await bench.fail(LENGTH, "no text", secrets=("API_KEY",))
    assert "'API_KEY' cannot be read as text" in failed.error.message
    for name in ("API_KEY", "SECOND", "THIRD"):
        (secrets / name).write_text("x" * 32_000)
    end = await bench.succeed(LENGTH, "long", secrets=("API_KEY", "SECOND"))
    assert end.result == {"out": [32_000] * 2}
    failed = await bench.fail(LENGTH, "too long", secrets=("API_KEY", "SECOND", "THIRD"))
    assert "a secret of the task cannot be had" in failed.error.message
    assert "96000 bytes together" in failed.error.message
    (secrets / "API_KEY").unlink()
    failed = await bench.fail(LENGTH, "gone", secrets=("API_KEY",))
    assert "'API_KEY'" in failed.error.message
    assert "secrets_dir" in failed.error.message


NODE = """
import logging, os, sys
KEPT = os.environ.get("API_KEY", "")
def run(fail=False):
    key = os.environ.get("API_KEY", "")
    print("key", key)
    sys.stderr.write(f"<{key}>\\n")
    logging.getLogger("mine").warning("with %s", key)
    if fail:
        raise ValueError(f"refused {key}")
    return [len(key), len(KEPT)]
"""


async def test_calls_have_secrets_as_attempts_do(
    bench: Bench, engine: Engine, secrets: Path
) -> None:
    """Those that ask: the value of then, told in no error and no file; one that is gone is said."""

    async def found(*names: str) -> object:
        return (await bench.dispatcher.call(bench.call(NODE, secrets=names))).json

    assert [await found(), await found("API_KEY"), await found()] == [
        [0, 0],
        [len(SECRET)] * 2,
        [0, 0],
    ]
    with pytest.raises(UserCodeError) as failed:
        await bench.dispatcher.call(bench.call(NODE, secrets=("API_KEY",), fail=True))
    assert failed.value.message == "refused ***"
    assert "refused ***" in failed.value.traceback
    assert SECRET not in str(failed.value.args)
    logs = contents(engine.folder).values()
    assert sum(data.count(b"key ***") for data in logs) >= 2
    assert not any(SECRET.encode() in data for data in logs)
    (secrets / "API_KEY").write_text("new")
    assert await found("API_KEY") == [3, 3]
    (secrets / "API_KEY").unlink()
    with pytest.raises(UserCodeError, match=r"'API_KEY'.*secrets_dir"):
        await found("API_KEY")


# -- environments ------------------------------------------------------------------------------


def wheel(folder: Path, name: str) -> str:
    """A package with one module, to be installed without an index."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "ANSWER = 42\n")
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    return str(path)


async def test_packages_are_installed_once(bench: Bench, engine: Engine, tmp_path: Path) -> None:
    """For all attempts that ask for the same, in a sandbox or not; meanwhile it is told what they wait for."""
    name = f"answer{uuid.uuid4().hex[:8]}"
    env = {"pip": [wheel(tmp_path, name)]}
    code = f"import {name} as found\ndef run(p):\n    return {{'out': [found.ANSWER, found.__file__]}}\n"
    first = bench.job(code, "first", runtime_env=env)
    bench.dispatcher.submit(first)
    told = set()
    while not bench.ends(first):
        told.update((await bench.waiting(first)).values())
        await asyncio.sleep(0.2)
    assert any("pip packages" in each for each in told), told
    end: Any = await bench.end(first)
    answer, where = end.result["out"]
    assert answer == 42
    # No package can be installed again from a file that is gone.
    os.unlink(env["pip"][0])
    for sandbox in (None, Sandbox()):
        end = await bench.succeed(code, f"with {sandbox}", runtime_env=env, sandbox=sandbox)
        assert end.result["out"] == [42, where]
    failed = await bench.fail(f"import {name}\ndef run(p): pass\n", "without")
    assert "runtime_env" in failed.error.message


async def test_packages_that_are_not_there_fail_the_attempt(bench: Bench, tmp_path: Path) -> None:
    """With the words of pip."""
    missing = str(tmp_path / "missing-1.0-py3-none-any.whl")
    failed = await bench.fail("def run(p):\n    return {}\n", runtime_env={"pip": [missing]})
    assert "runtime_env could not be set up" in failed.error.message
    assert "missing-1.0" in failed.error.message
