"""Shared by all tests: the async backend, and the bans that keep unit tests pure."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Machines are slow and noisy: how long an example takes says nothing.
settings.register_profile("lattice", deadline=None)
settings.load_profile("lattice")

ROOT = Path(__file__).parent.parent

#: Folders whose tests may neither start Ray nor sleep.
_PURE = ("unit", "simulation")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _pure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `ray.init`, and `time.sleep` in code of ours, raise in tests that must need neither."""
    if request.path.relative_to(ROOT / "tests").parts[0] not in _PURE:
        return
    sleep = time.sleep

    def no_ray(*args: object, **kwargs: object) -> None:
        raise AssertionError("a unit test may not start Ray")

    def no_sleep(seconds: float) -> None:
        caller = Path(sys._getframe(1).f_code.co_filename)
        # The environment may be inside the project's folder.
        if caller.is_relative_to(ROOT) and not caller.is_relative_to(ROOT / ".venv"):
            raise AssertionError("a unit test may not sleep")
        sleep(seconds)

    monkeypatch.setattr("ray.init", no_ray)
    monkeypatch.setattr(time, "sleep", no_sleep)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A test leaves the process's environment variables as they were."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick and pure tests run first, and those that start Ray in this process last.

    What Ray leaves in a process when it is shut down once crashed it half an hour later.
    """
    turns = {"unit": 0, "simulation": 1, "contract": 3}
    items.sort(key=lambda item: turns.get(item.path.relative_to(ROOT / "tests").parts[0], 2))
