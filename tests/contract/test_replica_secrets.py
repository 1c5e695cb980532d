"""Secrets of tasks on replicas, on a real Serve: batched, on a GPU, and classes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import serve

from deployments.replicas.identity import Bounds
from lattice.execution.secrets import SecretFolder
from lattice.ports.execution import Definition
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Resources
from tests.contract.dispatching import LONG, Bench, given
from tests.contract.replicas import new_routing, running_engine
from tests.files import contents

pytestmark = pytest.mark.anyio

SECRET, ALICES, BOBS = (f"s3cr3t-{uuid.uuid4().hex}" for _ in range(3))
SMALL: dict[str, Any] = {"resources": Resources(cpu=0.1)}
BATCHED: dict[str, Any] = SMALL | {"batch": BatchPolicy(True, 4)}

FUNCTION = """
import os
KEPT = os.environ.get("KEY")
def run(batch):
    found = [os.environ.get("KEY"), KEPT, os.getpid()]
    return [{"lengths": [len(each or "") for each in found[:2]], "process": found[2], "last": (KEPT or "")[-4:]} for _ in batch]
"""
CLASS = """
import os
class Model:
    def __init__(self):
        self.key = os.environ.get("KEY")
        self.calls = 0
    def __call__(self, params):
        self.calls += 1
        lengths = [len(os.environ.get("KEY", "")), len(self.key or "")]
        return {"lengths": lengths, "process": os.getpid(), "calls": self.calls, "last": self.key[-4:]}
"""


@pytest.fixture(scope="module")
def engine_folder() -> Iterator[Path]:
    with running_engine() as folder:
        yield folder


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder with the secret KEY of the service, and of two tenants."""
    folder = tmp_path / "secrets"
    for place, value in ((".", SECRET), ("alice", ALICES), ("bob", BOBS)):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / "KEY").write_text(f"{value}\n")
    return folder


@pytest.fixture
async def bench(engine_folder: Path, secrets: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    url = (tmp_path / "values").as_uri()
    # Replicas stay, however long a test takes from one call to the next.
    bench = Bench(new_routing(url, secrets=SecretFolder(secrets), bounds=Bounds(4, 300.0)))
    await bench.start()
    yield bench
    await bench.dispatcher.close()


def files_with(folder: Path, *texts: str) -> list[Path]:
    """The files below a folder that hold any of these."""
    found = contents(folder)
    return [path for text in texts for path, data in found.items() if text.encode() in data]


def of_processes() -> str:
    """What `ps` shows of all processes: command lines, and the environment that each began with."""
    found = []
    for process in psutil.process_iter():
        try:
            found.append(f"{process.cmdline()} {process.environ()}")
        except psutil.Error:
            continue
    return "".join(found)


@pytest.mark.parametrize(
    ("code", "needs"),
    [(FUNCTION, BATCHED), (CLASS, SMALL), (CLASS, SMALL | {"gpus": 0.1})],
    ids=["batched", "class", "gpu"],
)
async def test_a_secret_is_there_and_a_new_value_too(
    bench: Bench, secrets: Path, code: str, needs: dict[str, Any]
) -> None:
    """For the call, and for what is loaded and constructed before it, which is not done again without need."""
    first = await bench.succeed(code, "t1", secrets=("KEY",), **needs)
    again = await bench.succeed(code, "t2", secrets=("KEY",), **needs)
    for end in (first, again):
        assert end.result["lengths"] == [len(SECRET)] * 2
    assert again.result["process"] == first.result["process"]
    assert again.result.get("calls", 2) == 2
    (secrets / "KEY").write_text("a new one")
    renewed = await bench.succeed(code, "t3", secrets=("KEY",), **needs)
    assert renewed.result["lengths"] == [9, 9]
    assert renewed.result["process"] == first.result["process"]
    if code is FUNCTION:
        without = await bench.succeed(code, "t4", **needs)
        assert without.result["lengths"] == [0, 0]
        assert without.result["process"] != first.result["process"]


async def test_tenants_have_their_own_values_in_their_own_processes(bench: Bench) -> None:
    """The same code and the same name, at the same time; also where what has no secrets is shared by all."""
    for shared in (True, False):
        jobs = [
            bench.job(
                FUNCTION,
                f"t{shared}{number}",
                secrets=(f"{who}/KEY",),
                **BATCHED,
                **({} if shared else {"tenant": who}),
            )
            for number, who in enumerate(("alice", "bob") * 4)
        ]
        for job in jobs:
            bench.dispatcher.submit(job)
        found: dict[str, list[Any]] = {"alice": [], "bob": []}
        for job in jobs:
            end: Any = await bench.end(job)
            found[job.definition.secrets[0].partition("/")[0]].append(end.result)
        for who, value in (("alice", ALICES), ("bob", BOBS)):
            assert {each["last"] for each in found[who]} == {value[-4:]}
        processes = [{each["process"] for each in found[who]} for who in found]
        assert not processes[0] & processes[1]


async def test_nothing_tells_a_secret(bench: Bench, engine_folder: Path, tmp_path: Path) -> None:
    """Not what a batch prints, logs and raises, nor a constructor, nor a thread that is left; nor any file or status."""
    code = """
import logging, os, sys, threading, time
key = os.environ["KEY"]
print("loaded with", key)
class Caller:
    def __init__(self):
        print("constructed with", key)
        threading.Thread(target=self.goes_on, daemon=True).start()
    def goes_on(self):
        while True:
            print("in between", key)
            time.sleep(0.05)
    def __call__(self, batch):
        print("key", key)
        sys.stderr.write(f"<{key}>\\n")
        logging.getLogger("mine").warning("with %s", key)
        return [ValueError(f"item {key}") if p["x"] else self.fail() for p in batch]
    def fail(self):
        raise LookupError(f"refused {2000 * 'x'}{os.environ['KEY']}{4000 * 'x'}")
"""
    jobs = [
        bench.job(code, f"t{x}", (given("x", x),), secrets=("KEY",), **BATCHED) for x in range(2)
    ]
    for job in jobs:
        bench.dispatcher.submit(job)
    errors = [(await bench.end(job)).error for job in jobs]  # type: ignore[union-attr]  # fails if it has none
    assert [each.type for each in errors] == ["LookupError", "ValueError"]
    assert errors[1].message == "item ***"
    assert all("***" in each.traceback for each in errors)
    printed = "".join([entry.text for job in jobs for entry in await bench.printed(job)])
    assert "key ***\n" in printed
    assert "<***>\n" in printed
    assert "with ***\n" in printed
    construct = """
import os
class Model:
    def __init__(self):
        print("opened with", os.environ["KEY"])
        raise OSError("no " + os.environ["KEY"])
"""
    job = bench.job(construct, "constructor", secrets=("KEY",), **SMALL)
    bench.dispatcher.submit(job)
    failed: Any = await bench.end(job)
    assert failed.error.message == "constructing Model failed: no ***"
    assert "in __init__" in failed.error.traceback
    assert "".join(entry.text for entry in await bench.printed(job)) == "opened with ***\n"
    await asyncio.sleep(0.5)
    assert SECRET[:12] not in str(bench.reports)
    assert SECRET not in str(await asyncio.to_thread(lambda: serve.status()))
    client: Any = serve.context._get_global_client()
    details = await asyncio.to_thread(client.get_serve_details)
    assert "lattice-task-" in str(details)
    assert SECRET not in str(details)
    assert SECRET not in await asyncio.to_thread(of_processes)
    for words in ("loaded with ***", "constructed with ***", "in between ***", "with ***"):
        assert files_with(engine_folder, words) != [], words
    assert files_with(engine_folder, SECRET, SECRET[:20]) == []
    assert files_with(tmp_path / "values", SECRET) == []


async def test_a_secret_that_is_gone_fails_the_call(bench: Bench, secrets: Path) -> None:
    """It says which and where it belongs; when it is back, the same replica goes on."""
    first = await bench.succeed(FUNCTION, "t1", secrets=("KEY",), **BATCHED)
    (secrets / "KEY").unlink()
    failed = await bench.fail(FUNCTION, "t2", secrets=("KEY",), **BATCHED)
    assert failed.error.message.startswith("a secret of the task cannot be had")
    assert "'KEY'" in failed.error.message
    assert "secrets_dir" in failed.error.message
    (secrets / "KEY").write_text("back")
    again = await bench.succeed(FUNCTION, "t3", secrets=("KEY",), **BATCHED)
    assert again.result["lengths"] == [4, 4]
    assert again.result["process"] == first.result["process"]


async def test_a_constructor_that_refuses_a_value_gets_the_next(
    bench: Bench, secrets: Path
) -> None:
    """All that waits fails with its own words; the code need not be saved again."""
    code = """
import os
class Model:
    def __init__(self):
        if os.environ["KEY"] != "good": raise PermissionError("wrong key " + os.environ["KEY"])
    def __call__(self, batch):
        return [{"out": 1} for _ in batch]
"""
    needs = {"secrets": ("KEY",), **BATCHED}
    jobs = [bench.job(code, f"t{number}", **needs) for number in range(8)]
    for job in jobs:
        bench.dispatcher.submit(job)
    for job in jobs:
        end: Any = await bench.end(job)
        assert end.error.type == "PermissionError"
        assert end.error.message == "constructing Model failed: wrong key ***"
    (secrets / "KEY").write_text("good")
    assert (await bench.succeed(code, "later", **needs)).result == {"out": 1}


async def test_a_replica_is_got_ready_with_its_secrets(bench: Bench, tmp_path: Path) -> None:
    """So that the first call need not wait for the code."""
    mark = tmp_path / "constructed"
    code = f"""
import os
class Model:
    def __init__(self):
        with open({str(mark)!r}, "a") as file: file.write(str(len(os.environ["KEY"])))
    def __call__(self, params):
        return {{"out": 1}}
"""
    definition: Definition = bench.definition(code, secrets=("KEY",), **SMALL)
    bench.dispatcher.prepare(definition)
    async with asyncio.timeout(LONG):
        while not mark.exists() or not mark.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await bench.succeed(code, secrets=("KEY",), **SMALL)).result == {"out": 1}
    assert mark.read_text() == str(len(SECRET))


async def test_whatever_a_constructor_raises_fails_the_call(bench: Bench) -> None:
    """And the same replica goes on."""
    code = """
import os
class Model:
    def __init__(self): raise KeyboardInterrupt(f"{os.getpid()} {os.environ['KEY']}")
    def __call__(self, params): pass
"""
    errors = [(await bench.fail(code, f"t{n}", secrets=("KEY",), **SMALL)).error for n in range(2)]
    assert {each.type for each in errors} == {"KeyboardInterrupt"}
    assert all(each.message.endswith(" ***") for each in errors)
    assert errors[0].message == errors[1].message


async def test_a_constructor_that_hangs_ends_with_its_calls(bench: Bench, tmp_path: Path) -> None:
    """Its replica with it, as the thread cannot be interrupted, and the next call gets another."""
    mark = tmp_path / "hung"
    code = f"""
import os, time
class Model:
    def __init__(self):
        if not os.path.exists({str(mark)!r}):
            with open({str(mark)!r}, "w") as file: file.write(str(os.getpid()))
            time.sleep(1000)
    def __call__(self, params): return {{"out": 1}}
"""
    # One that stays: Serve ends others by and by.
    needs = {"secrets": ("KEY",), "scaling": Scaling(min_replicas=1), **SMALL}
    job = bench.job(code, "hangs", **needs)
    bench.dispatcher.submit(job)
    async with asyncio.timeout(LONG):
        while not mark.exists() or not mark.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
        while psutil.pid_exists(int(mark.read_text())):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await bench.succeed(code, "next", **needs)).result == {"out": 1}


async def test_a_value_before_is_told_by_nothing(bench: Bench, secrets: Path) -> None:
    """Not by what the old code has left running, nor by what cannot be read as an argument."""
    code = """
import os, threading, time
class Model:
    def __init__(self):
        threading.Thread(target=self.goes_on, args=(os.environ["KEY"],), daemon=True).start()
    @staticmethod
    def goes_on(key):
        while True:
            os.OLD = getattr(os, "OLD", key)
            print(f"<{key}>", end=" ")
            time.sleep(0.01)
    def __call__(self, params):
        if params["x"]:
            time.sleep(0.3)
            raise ValueError(f"old {os.OLD}")
        return {}
"""
    needs = {"secrets": ("KEY",), **SMALL}
    await bench.succeed(code, "t1", (given("x", 0),), **needs)
    (secrets / "KEY").write_text("another one")
    job = bench.job(code, "t2", (given("x", 1),), **needs)
    bench.dispatcher.submit(job)
    printed = "".join(entry.text for entry in await bench.printed(job))
    end: Any = await bench.end(job)
    assert end.error.message == "old ***"
    assert "<***>" in printed
    assert SECRET[:8] not in str(bench.reports)


async def test_secrets_that_cannot_be_had_do_not_end_warming_up(
    engine_folder: Path, tmp_path: Path
) -> None:
    """Whatever asking for them raises: the next time they are asked for again."""
    asked = 0

    class Broken:
        def has(self, key: str) -> bool:
            return True

        def value(self, key: str) -> str:
            nonlocal asked
            asked += 1
            raise RuntimeError("broken")

    bench = Bench(new_routing((tmp_path / "values").as_uri(), secrets=Broken()))
    await bench.start()
    definition = bench.definition(FUNCTION, secrets=("KEY",), **BATCHED)
    async with asyncio.timeout(LONG):
        while asked < 2:
            bench.dispatcher.prepare(definition)
            await asyncio.sleep(0.05)
    await bench.dispatcher.close()
