"""The ingress's side of the orchestrator. What the real one does when it is killed is in `tests/faults/`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import ray.exceptions
from grpc.aio import AioRpcError, Metadata
from ray.serve.exceptions import BackPressureError

from deployments.ingress import RemoteOrchestrator
from lattice.errors import UnavailableError
from lattice.ids import RunId
from lattice.ports.service import ANYBODY

pytestmark = pytest.mark.anyio


class Handle:
    """Fails with one error after another, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = [*errors]
        self.call = self.follow = self
        self.asked: list[dict[str, object]] = []

    def options(self, **asked: object) -> Handle:
        """Itself."""
        self.asked.append(asked)
        return self

    def remote(self, *_: object) -> Any:
        """What can be awaited, and iterated over."""
        return self

    def __await__(self) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return "answer"
        yield

    async def __aiter__(self) -> AsyncIterator[list[str]]:
        raise self._errors.pop(0)
        yield []

    def cancel(self) -> None:
        """Nothing to do."""


def broken(code: grpc.StatusCode) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details="the connection broke")


ERRORS = [
    broken(grpc.StatusCode.INTERNAL),
    broken(grpc.StatusCode.CANCELLED),
    ray.exceptions.ActorUnavailableError("away", b"0" * 16),
    BackPressureError(num_queued_requests=1, max_queued_requests=1),
]


def test_who_asks_has_to_be_said() -> None:
    """Whoever forgets it must not ask as one who sees everything."""
    make: Any = RemoteOrchestrator
    with pytest.raises(TypeError, match="caller"):
        make(None, 1.0)


@pytest.mark.parametrize("error", ERRORS)
async def test_what_the_engine_cannot_deliver_is_asked_again_only_if_that_does_no_harm(
    error: Exception,
) -> None:
    """However it says so."""
    remote: Any = RemoteOrchestrator(Handle(error), 1.0, ANYBODY)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="restarting"):
        await remote.submit_workflow([], [])
    remote = RemoteOrchestrator(Handle(error, error), 1.0, ANYBODY)  # type: ignore[arg-type]
    assert await remote.describe_run(RunId("r")) == "answer"


async def test_what_is_too_large_for_grpc_goes_as_an_object_once() -> None:
    """Nothing was done by then, so that it is sent again whatever it is."""
    handle = Handle(broken(grpc.StatusCode.RESOURCE_EXHAUSTED))
    remote: Any = RemoteOrchestrator(handle, 1.0, ANYBODY)  # type: ignore[arg-type]
    assert await remote.submit_workflow([], []) == "answer"
    assert handle.asked == [{"_by_reference": True}]


@pytest.mark.parametrize("error", ERRORS)
async def test_a_stream_that_breaks_can_be_opened_again(error: Exception) -> None:
    remote: Any = RemoteOrchestrator(Handle(error), 1.0, ANYBODY)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="restarting"):
        async for _ in remote.follow(RunId("r"), None, 0):
            pass
