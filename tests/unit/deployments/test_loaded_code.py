"""A replica's code and the secrets around it: loaded with the first values, and anew with others."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from deployments.replicas.loaded_code import LoadedCode
from lattice.execution import attempt
from lattice.execution.capture import mask, recording
from lattice.execution.code import CodeLoadError, Function
from lattice.execution.secrets import SecretValues, in_environment
from lattice.ids import Digest
from lattice.workflow.events import ErrorInfo
from lattice.workflow.task import Code, CodeForm

pytestmark = pytest.mark.anyio


class Story:
    """Notes what is done with it; fails to load with a value that says so."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.loaded = LoadedCode("work", self._open, self._at_once)

    async def _at_once(self, work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return work()

    @contextmanager
    def _open(self, secrets: Mapping[str, str]) -> Iterator[Function]:
        value = secrets.get("K", "none")
        self.story.append(f"load {value}")
        if value == "bad":
            raise CodeLoadError(ErrorInfo("ValueError", "bad"))
        yield lambda: value
        self.story.append(f"end {value}")

    def bring(self, read_at: float, value: str) -> None:
        self.loaded.bring(SecretValues(read_at, {"K": value}))

    async def call(self, asked: float = 1e12) -> tuple[object, str | None]:
        """What the code was loaded with, and what is in the environment while it runs."""
        async with self.loaded.in_use(asked) as loaded:
            return loaded.function(), os.environ.get("K")


@pytest.fixture(autouse=True)
def unmasked() -> Iterator[None]:
    """What a replica masks for good is not masked for other tests."""
    yield
    mask(())


@pytest.fixture
def code() -> Story:
    return Story()


@pytest.fixture
def source() -> Iterator[Callable[[str], LoadedCode]]:
    """Makes loaded code of source, as a replica has it; it is let go of at the end."""
    with ThreadPoolExecutor(1) as threads, ExitStack() as until_end:

        async def in_thread(work: Callable[[], Any]) -> Any:
            return await asyncio.get_running_loop().run_in_executor(threads, work)

        def make(text: str) -> LoadedCode:
            data = text.encode()
            code = Code(Digest(hashlib.sha256(data).hexdigest()), CodeForm.SOURCE, "work")

            @contextmanager
            def open_code(secrets: Mapping[str, str]) -> Iterator[Function]:
                with ExitStack() as stack:
                    open_function = attempt.function_with(
                        code, lambda: data, secrets, has_gpu=False
                    )
                    function = stack.enter_context(open_function)
                    # By the replica with the next values, else here.
                    until_end.callback(stack.close)
                    yield function

            return LoadedCode("work", open_code, in_thread)

        yield make


async def error_of(loaded: LoadedCode, read_at: float, value: str) -> ErrorInfo:
    """Why it does not load with a value."""
    loaded.bring(SecretValues(read_at, {"K": value}))
    with pytest.raises(CodeLoadError) as failed:
        async with loaded.in_use(1e12):
            pass
    return failed.value.info


async def load(loaded: LoadedCode, read_at: float, value: str) -> None:
    """Loads it with a value."""
    loaded.bring(SecretValues(read_at, {"K": value}))
    async with loaded.in_use(1e12):
        pass


async def test_code_without_secrets_is_loaded_once(code: Story) -> None:
    for _ in range(3):
        assert await code.call() == ("none", None)
    assert code.story == ["load none"]


async def test_what_loading_prints_is_had_once(
    source: Callable[[str], LoadedCode], capsys: pytest.CaptureFixture[str]
) -> None:
    """And after each load anew; secrets are masked in it."""
    code = source("import os\nprint('with', os.environ['K'])\ndef work(p):\n    return {}\n")
    for at, value in enumerate(("a-secret", "b-secret"), 1):
        code.bring(SecretValues(at, {"K": value}))
        async with code.in_use(0.0):
            pass
        assert "".join(entry.text for entry in code.take_printed()) == "with ***\n"
        assert code.take_printed() == []
        assert capsys.readouterr().out == "with ***\n"


async def test_what_loading_that_fails_prints_is_had_once(
    source: Callable[[str], LoadedCode],
) -> None:
    """As of loading that does not."""
    code = source("import os\nprint('with', os.environ['K'])\nraise ValueError(os.environ['K'])\n")
    for at, value in enumerate(("a-secret", "b-secret"), 1):
        code.bring(SecretValues(at, {"K": value}))
        with pytest.raises(CodeLoadError):
            async with code.in_use(time.time()):
                pass
        assert "".join(entry.text for entry in code.take_printed()) == "with ***\n"
        assert code.take_printed() == []


async def test_what_loading_prints_is_bounded(source: Callable[[str], LoadedCode]) -> None:
    """Of much, beginning and end."""
    code = source("print('first\\n' + 100_000 * 'x' + '\\nlast')\ndef work(p):\n    return {}\n")
    async with code.in_use(0.0):
        pass
    printed = code.take_printed()
    assert 8 * 1024 < sum(entry.size for entry in printed) <= 16 * 1024
    text = "".join(entry.text for entry in printed)
    assert text.startswith("first\n")
    assert text.endswith("x\nlast\n")


async def test_new_values_load_it_anew(code: Story) -> None:
    """The same ones, and older ones that come late, do not; between calls there are none in the environment."""
    code.bring(1, "one")
    assert await code.call() == ("one", "one")
    assert "K" not in os.environ
    code.bring(2, "one")
    assert await code.call() == ("one", "one")
    assert code.story == ["load one"]
    code.bring(4, "two")
    code.bring(3, "one")
    assert await code.call() == ("two", "two")
    assert code.story == ["load one", "end one", "load two"]
    assert "K" not in os.environ


async def test_nothing_changes_around_code_that_runs(code: Story) -> None:
    """What runs ends with the values that it began with, and what comes after new ones waits for that."""
    code.bring(1, "one")
    async with code.loaded.in_use(0) as first:
        async with code.loaded.in_use(0) as beside:
            assert beside is first
        assert os.environ["K"] == "one"
        code.bring(2, "two")
        later = [asyncio.ensure_future(code.call()) for _ in range(3)]
        await asyncio.wait(later, timeout=0.05)
        assert not any(each.done() for each in later)
        assert os.environ["K"] == "one"
        assert code.story == ["load one"]
    assert await asyncio.gather(*later) == [("two", "two")] * 3
    assert code.story == ["load one", "end one", "load two"]


async def test_what_waited_for_code_that_does_not_load_fails_with_it(code: Story) -> None:
    """Without another try; what was asked for afterwards, and new values, make one."""
    code.bring(1, "bad")
    waiting = await asyncio.gather(*(code.call(0) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in waiting] == [CodeLoadError] * 3
    assert code.story == ["load bad"]
    with pytest.raises(CodeLoadError):
        await code.call()
    assert code.story == ["load bad"] * 2
    assert "K" not in os.environ
    code.bring(2, "good")
    assert await code.call(0) == ("good", "good")


async def test_equal_values_load_nothing_anew(code: Story) -> None:
    """Also where others came in between, which no call has used: a file may be read while it is written."""
    code.bring(1, "one")
    await code.call()
    code.bring(2, "on")
    code.bring(3, "one")
    assert await code.call() == ("one", "one")
    assert code.story == ["load one"]


async def test_a_load_goes_on_without_those_who_wait(code: Story) -> None:
    """No other is beside it, and nothing is left in the environment."""
    begun, go_on = threading.Event(), threading.Event()

    @contextmanager
    def slowly(secrets: Mapping[str, str]) -> Iterator[Function]:
        code.story.append("load")
        with in_environment(secrets):
            begun.set()
            assert go_on.wait(60)
        code.story.append("loaded")
        yield lambda: secrets["K"]

    loaded = LoadedCode("work", slowly, asyncio.to_thread)
    loaded.bring(SecretValues(1, {"K": "one"}))
    first = asyncio.ensure_future(loaded.in_use(0).__aenter__())
    await asyncio.to_thread(begun.wait, 60)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert loaded.is_loading
    second = asyncio.ensure_future(loaded.in_use(0).__aenter__())
    await asyncio.wait([second], timeout=0.05)
    assert code.story == ["load"]
    go_on.set()
    assert (await second).function() == "one"
    assert code.story == ["load", "loaded"]
    assert not loaded.is_loading


async def test_a_call_that_is_cancelled_leaves(code: Story) -> None:
    """Whenever it is: its secrets leave the environment, and new ones can be loaded."""
    code.bring(1, "one")
    await code.call()
    for turns in range(8):

        async def use() -> None:
            async with code.loaded.in_use(0):
                for _ in range(3):
                    await asyncio.sleep(0)

        used = asyncio.ensure_future(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        used.cancel()
        await asyncio.wait([used])
        assert "K" not in os.environ
        code.bring(2 + turns, f"value {turns}")
        async with asyncio.timeout(60):
            assert await code.call() == (f"value {turns}",) * 2


RAISING = """
import os
class work:
    def __init__(self):
        if os.environ["K"] != "good": {}
    def __call__(self, params): pass
"""


@pytest.mark.parametrize(
    ("raising", "kind"),
    [
        ("raise KeyboardInterrupt(os.environ['K'])", "KeyboardInterrupt"),
        ("raise SystemExit(os.environ['K'])", "SystemExit"),
        ("raise GeneratorExit(os.environ['K'])", "GeneratorExit"),
    ],
)
async def test_whatever_loading_raises_is_said(
    source: Callable[[str], LoadedCode], raising: str, kind: str
) -> None:
    """And no end of the event loop."""
    loaded = source(RAISING.format(raising))
    error = await error_of(loaded, 1, "mine 1234")
    assert error.type == kind
    assert "***" in error.message
    assert "mine" not in str(error)
    await load(loaded, 2, "good")


async def test_what_cannot_be_looked_at_is_said(source: Callable[[str], LoadedCode]) -> None:
    """As a proxy of something that needs a connection."""
    proxy = """
import os
class Proxy:
    @property
    def __class__(self): raise LookupError("no " + os.environ["K"])
work = Proxy()
"""
    error = await error_of(source(proxy), 1, "mine 1234")
    assert (error.type, error.message) == ("LookupError", "no ***")


async def test_what_cannot_be_in_an_environment_is_said(
    source: Callable[[str], LoadedCode],
) -> None:
    """It is no text."""
    error = await error_of(source("def work(p): pass\n"), 1, "mine \ud800")
    assert error.type == "UnicodeEncodeError"


async def test_a_constructor_tells_no_part_of_a_secret(
    source: Callable[[str], LoadedCode],
) -> None:
    """Nor of one before; also where its words are cut."""
    value = "mine-" + "0123456789" * 5
    old = "old-" + "9876543210" * 5
    for before in range(2028 - len(value), 2028, 7):
        words = f"{before} * 'x' + os.environ['K'] + '{old}' + 4000 * 'x'"
        loaded = source(f"import os\nclass work:\n    def __init__(self): raise OSError({words})\n")
        loaded.bring(SecretValues(1, {"K": old}))
        error = await error_of(loaded, 2, value)
        told = error.message + error.traceback.replace(words, "")
        for each in (value, old):
            assert each[:8] not in told
            assert each[-8:] not in told
    assert "K" not in os.environ


TALKING = """
import os, sys, threading
class work:
    def __init__(self):
        self.key = os.environ["K"]
        threading.Thread(target=self.goes_on, args=(self.key,), daemon=True).start()
        if self.key.startswith("bad"): raise ValueError(self.key)
    @staticmethod
    def goes_on(key):
        threading.go_on.wait(60)
        sys.stdout.write(f"in a thread {key}\\n")
        threading.said.release()
    def __call__(self): pass
    def __del__(self):
        print("let go of", self.key, threading.current_thread().name)
"""


async def test_values_before_stay_masked(
    source: Callable[[str], LoadedCode],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what was let go of, which is not on the event loop, and of what did not load."""
    go_on, said = threading.Event(), threading.Semaphore(0)
    monkeypatch.setattr(threading, "go_on", go_on, raising=False)
    monkeypatch.setattr(threading, "said", said, raising=False)
    loaded = source(TALKING)
    await load(loaded, 1, "old 1234")
    await error_of(loaded, 2, "bad 1234")
    await load(loaded, 3, "new 1234")
    with recording(1000, lambda entries: None, loaded.values) as recorder:
        go_on.set()
        for _ in range(3):
            assert await asyncio.to_thread(said.acquire, timeout=60)
    printed = capsys.readouterr().out
    assert "let go of *** ThreadPoolExecutor" in printed
    assert printed.count("in a thread ***") == 3
    assert "1234" not in printed
    recorded = "".join(entry.text for entry in recorder.kept())
    assert recorded.count("in a thread ***") == 3
    assert "1234" not in recorded


async def test_not_all_values_are_kept(code: Story) -> None:
    """The newest are."""
    for number in range(300):
        code.bring(number + 1, f"value {number}")
    assert code.loaded.values[-1] == "value 299"
    assert "value 200" in code.loaded.values
    assert len(code.loaded.values) < 200
