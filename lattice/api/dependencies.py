"""Where a route gets what it works with: the one holder of an app's orchestrator, and request headers.

Each app has its own holder, so that two apps in one process do not mix. `set_orchestrator` and
`get_orchestrator` are fronts over the holder of the app that was made last.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import AfterValidator
from starlette.requests import HTTPConnection

from lattice.api.access import RequestCaller
from lattice.api.exposition import Exposition
from lattice.api.following import StreamPolicy
from lattice.api.limits import OpenStreams
from lattice.errors import (
    InvalidRequestError,
    OrchestratorNotInitializedError,
    UnavailableError,
)
from lattice.observability.metrics import Metrics
from lattice.ports.service import ANYBODY, Once, OrchestratorService
from lattice.workflow import checks


@dataclass(slots=True)
class Holder:
    """What the routes of one app share.

    Attributes:
        orchestrator: None until there is one.
        metrics: None where metrics are not collected.
        exposition: None where this process is the only one.
        streams: how event streams are kept up.
        open_streams: counts those that are open.
        stopping: set when the server has been told to stop; event streams then end.
    """

    orchestrator: OrchestratorService | None = None
    metrics: Metrics | None = None
    exposition: Exposition | None = None
    streams: StreamPolicy = field(default_factory=StreamPolicy)
    open_streams: OpenStreams = field(default_factory=lambda: OpenStreams(sys.maxsize))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def get(self) -> OrchestratorService:
        """The orchestrator. Raises OrchestratorNotInitializedError where there is none."""
        if self.orchestrator is None:
            raise OrchestratorNotInitializedError
        return self.orchestrator


_newest = Holder()


def use_holder(new: Holder) -> None:
    """Puts `set_orchestrator` and `get_orchestrator` in front of `new`."""
    global _newest
    _newest = new


def set_orchestrator(orchestrator: OrchestratorService | None) -> None:
    """Sets the orchestrator of the app that was made last."""
    _newest.orchestrator = orchestrator


def get_orchestrator() -> OrchestratorService:
    """The orchestrator of the app that was made last. Raises OrchestratorNotInitializedError."""
    return _newest.get()


async def app_holder(connection: HTTPConnection) -> Holder:
    """The holder of the app that serves this request."""
    holder = connection.app.state.holder
    assert isinstance(holder, Holder)
    return holder


AppHolder = Annotated[Holder, Depends(app_holder)]


async def orchestrator(holder: AppHolder, caller: RequestCaller) -> OrchestratorService:
    """The orchestrator that answers this request, as its caller sees it; tests override this dependency."""
    service = holder.get()
    return service if caller == ANYBODY else service.for_caller(caller)


Service = Annotated[OrchestratorService, Depends(orchestrator)]

#: How long the orchestrator may take to say that it is ready, in seconds.
_READY_WITHIN = 5.0


async def readiness(service: Service) -> None:
    """Raises UnavailableError unless the orchestrator says within some seconds that it is ready."""
    try:
        async with asyncio.timeout(_READY_WITHIN):
            await service.ready()
    except TimeoutError:
        raise UnavailableError(
            f"the orchestrator has not answered for {_READY_WITHIN:g} s"
        ) from None


async def idempotency(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="1 to 255 printable ASCII characters. A request that repeats a key gets the "
            "first one's answer and does nothing more.",
            json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
        ),
    ] = None,
) -> Once | None:
    """The request's idempotency key and what it was sent with. Raises InvalidRequestError."""
    if idempotency_key is None:
        return None
    key = idempotency_key
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise InvalidRequestError(
            "Idempotency-Key", checks.shown(key), "1 to 255 printable ASCII characters are allowed"
        )
    # The reach of a key is one endpoint and one body, byte for byte.
    digest = hashlib.sha256(f"{request.method} {request.url.path}\n".encode())
    digest.update(await request.body())
    return Once(key, digest.hexdigest())


def _without_nul(text: str) -> str:
    # No id has a NUL, and some databases refuse even to look for one.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


#: An id in a path or a query. Any text will do: one that names nothing is answered 404.
AnyId = Annotated[str, AfterValidator(_without_nul)]

Idempotency = Annotated[Once | None, Depends(idempotency)]
