"""Single calls on Ray: of a function with pickled arguments, and of what renders a value. Nothing of them is kept."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lattice.errors import InvalidRequestError, TooLargeError, UnavailableError, UserCodeError
from lattice.execution import ray_worker, wire
from lattice.execution.ray_endings import Endings, Frame, force, ray_future
from lattice.execution.ray_failures import explain
from lattice.execution.ray_remote import CodeSources, RemoteFunctions
from lattice.execution.ray_starts import StartListener
from lattice.execution.secrets import values_of
from lattice.execution.shape import Shape, env_of
from lattice.ids import NodeId, RunId, Tenant
from lattice.ports.execution import Call, CallResult, EngineNode
from lattice.ports.secrets import Secrets
from lattice.workflow.events import ErrorInfo, Value

#: Values of a tenant rendered at once. Rendering asks for no CPU, so that it does not wait behind tasks.
_RENDERERS = 4
#: Seconds that it may take, in which the value is unpickled.
_RENDER_WITHIN = 20.0
_RENDER_SHAPE = Shape(cpus=0, memory=0, gpus=0, runtime_env="", excluded=frozenset())


@dataclass(slots=True, eq=False)
class _OpenCall:
    """A call that Ray has, and the node on which it runs, once that is known."""

    shape: Shape
    node: NodeId | None = None


class RayCalls:
    """Runs calls, each as a Ray task.

    Args:
        storage_url: where values are stored.
        max_result_bytes: largest pickled result of a call.
        endings: ends those whose caller is gone.
        secrets: what is put into the environment of calls that ask for it.
    """

    def __init__(
        self, storage_url: str, max_result_bytes: int, endings: Endings, secrets: Secrets
    ) -> None:
        self._storage_url = storage_url
        self._max_result_bytes = max_result_bytes
        self._endings = endings
        self._secrets = secrets
        self._open: set[Frame] = set()
        self._calls: dict[RunId, _OpenCall] = {}
        #: Nodes that get nothing new, whatever definitions say; None until there is word of it.
        self.excluded: frozenset[NodeId] | None = None
        #: Those that the engine has.
        self.nodes: Sequence[EngineNode] = ()
        self._renderers: defaultdict[Tenant | None, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_RENDERERS)
        )
        self._run_function = RemoteFunctions(ray_worker.run_function, returns=1)
        self._render = RemoteFunctions(ray_worker.render, returns=1)

    def listen(self, starts: StartListener) -> None:
        """From now on, calls tell where they run. Comes before the first call."""
        self._starts = starts
        starts.also(self._heard_start)

    def _heard_start(self, note: wire.StartNote) -> None:
        found = self._calls.get(note.run_id)
        if found is not None:
            found.node = note.started.placement.node_id

    def running(self) -> Counter[NodeId]:
        """How many calls run on each node. May be called from any thread.

        One of which that is not known counts on each excluded node on which it may run, as nobody takes it back.
        """
        leaving = [node for node in self.nodes if node.node_id in (self.excluded or ())]
        found: Counter[NodeId] = Counter()
        for call in [*self._calls.values()]:
            if call.node:
                found[call.node] += 1
            else:
                found.update(node.node_id for node in leaving if call.shape.places(node) >= 1)
        return found

    async def call(self, call: Call, codes: CodeSources) -> CallResult:
        """Runs a call to its end. Cancelling the caller ends the call.

        Raises:
            UserCodeError: the function raised, its code or arguments do not load, a secret of it is gone, or its
                process died. That is not `UnavailableError`, after which callers call again: it may have begun.
            TooLargeError: the pickled result is over `max_result_bytes`.
        """
        definition = call.definition
        digest = definition.code.digest
        code = codes.get(digest) or await asyncio.shield(codes.load(digest))
        shape = Shape.of(definition)
        if self.excluded is not None:
            shape = replace(shape, excluded=self.excluded)
        call_id = RunId(uuid.uuid4().hex)
        self._calls[call_id] = _OpenCall(shape)
        try:
            reference = self._run_function.of(shape).remote(
                definition.code,
                [code],
                call.args,
                call.kwargs,
                definition.gpus > 0,
                self._max_result_bytes,
                self._starts.mailbox,
                call_id,
                values_of(definition.secrets, self._secrets),
            )
            answer = wire.decode_call(await self._result(reference, call_id))
        except Exception as error:
            info = explain(error)
            raise UserCodeError(info.type, info.message, "") from error
        finally:
            del self._calls[call_id]
        if isinstance(answer, UserCodeError):
            raise answer
        if isinstance(answer, wire.TooLarge):
            raise TooLargeError("max_result_bytes", answer.found, self._max_result_bytes, "bytes")
        return answer

    async def render(self, value: Value, limit: int, tenant: Tenant | None = None) -> bytes:
        """The JSON text of a tenant's stored value, made in a process that runs its code.

        Raises:
            InvalidRequestError: the value is not JSON, or takes too long to load.
            TooLargeError: the text is longer than `limit` bytes.
            UnavailableError: the process that made it died.
        """
        advice = "fetch it as a pickle instead"
        async with self._renderers[tenant]:
            function = self._render.of(replace(_RENDER_SHAPE, runtime_env=env_of({}, tenant)))
            call_id = uuid.uuid4().hex
            try:
                reference = function.remote(call_id, value, self._storage_url, limit)
                async with asyncio.timeout(_RENDER_WITHIN):
                    frame = await self._result(reference, call_id)
                rendering = wire.decode_rendering(frame)
            except TimeoutError:
                found = f"a value that was not loaded within {_RENDER_WITHIN:g} s"
                raise InvalidRequestError("value", found, advice) from None
            except Exception as error:
                raise UnavailableError(explain(error).message) from error
        if isinstance(rendering, wire.TooLarge):
            raise TooLargeError("max_result_bytes", rendering.found, limit, "bytes")
        if isinstance(rendering, wire.NotJson):
            raise InvalidRequestError("value", f"{rendering.reason}, which is not JSON", advice)
        if isinstance(rendering, ErrorInfo):
            found = f"a value that cannot be loaded ({rendering.type}: {rendering.message})"
            raise InvalidRequestError("value", found, advice)
        return rendering

    async def _result(self, reference: Frame, call_id: str) -> bytes:
        """The frame under `reference`; its task is ended if the caller is cancelled."""
        self._open.add(reference)
        try:
            frame: bytes = await ray_future(reference)
            return frame
        except asyncio.CancelledError:
            self._endings.end(reference, call_id)
            raise
        finally:
            self._open.discard(reference)

    def close(self) -> None:
        """Ends what runs."""
        for reference in self._open:
            force(reference)
