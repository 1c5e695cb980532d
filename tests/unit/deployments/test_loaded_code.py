"""A replica's code and the secrets around it: loaded with the first values, and anew with others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from deployments.replicas.loaded_code import LoadedCode
from lattice.execution.code import CodeLoadError, Function
from lattice.execution.secrets import SecretValues
from lattice.workflow.events import ErrorInfo

pytestmark = pytest.mark.anyio


class Code:
    """Notes what is done with it; fails to load with a value that says so."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.loaded = LoadedCode(self._open, self._at_once)

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


@pytest.fixture
def code() -> Code:
    return Code()


async def test_code_without_secrets_is_loaded_once(code: Code) -> None:
    for _ in range(3):
        assert await code.call() == ("none", None)
    assert code.story == ["load none"]


async def test_new_values_load_it_anew(code: Code) -> None:
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


async def test_nothing_changes_around_code_that_runs(code: Code) -> None:
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


async def test_what_waited_for_code_that_does_not_load_fails_with_it(code: Code) -> None:
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
