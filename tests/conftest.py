"""Shared by all tests: the async backend, and the bans that keep unit tests pure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

#: Folders whose tests may neither start Ray nor sleep.
_PURE = ("unit", "simulation")


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _pure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `ray.init` and `time.sleep` raise in tests that must need neither."""
    if Path(request.path).relative_to(Path(__file__).parent).parts[0] not in _PURE:
        return

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a unit test may neither start Ray nor sleep")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr(time, "sleep", refuse)
