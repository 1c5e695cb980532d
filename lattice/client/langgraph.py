"""Functions that run on Lattice when they are called: nodes of LangGraph graphs, or any others.

A call takes any arguments and gives the exact object that the function returned. Functions are
registered with the service at their first call, once; a service that has lost them gets them again.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast, overload

from lattice.api.models.schemas import AddLangGraphTaskRequest
from lattice.client import pickling, sources, stable
from lattice.client.client import DEFAULT_URL
from lattice.client.errors import RemoteError, ServiceError
from lattice.client.service import Service, checked_url
from lattice.client.transport import HttpTransport, Transport
from lattice.workflow.task import Resources, parse_secrets

_Code = TypeVar("_Code", bound=Callable[..., Any])

#: Most calls of `async def` functions that wait at the same time.
_WAITING_CALLS = 256

#: How the service begins when the failure is its own and not the function's.
_DEFECT = "Internal error of the service"

#: What a LangGraph config holds beside data: handlers and channels of the running process.
_CONFIG_DATA = ("tags", "metadata", "run_name", "run_id", "recursion_limit", "max_concurrency")


class LangGraphClient:
    """Runs functions on the service at `url`. May be used from any thread.

    `timeout` is in seconds, for registering a function; `call_timeout` for each call, where None waits
    as long as the service allows. `api_key` is by default what the environment variable LATTICE_API_KEY holds, if
    anything. `transport` replaces HTTP, for tests.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        timeout: float = 30.0,
        *,
        call_timeout: float | None = None,
        api_key: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        url = checked_url(url)
        self._service = Service(url, timeout, transport or HttpTransport(url), api_key=api_key)
        self._call_timeout = math.inf if call_timeout is None else call_timeout
        self._lock = threading.Lock()
        self._workflow_id: str | None = None
        # The event loop's own pool has too few threads for calls that mostly wait.
        self._threads = ThreadPoolExecutor(_WAITING_CALLS, "lattice-call")

    @overload
    def task(self, code: _Code, /) -> _Code: ...

    @overload
    def task(
        self,
        code: None = None,
        /,
        *,
        resources: Mapping[str, float] | None = None,
        secrets: Iterable[str] | None = None,
        name: str | None = None,
    ) -> Callable[[_Code], _Code]: ...

    def task(
        self,
        code: Any = None,
        /,
        *,
        resources: Mapping[str, float] | None = None,
        secrets: Iterable[str] | None = None,
        name: str | None = None,
    ) -> Any:
        """A function that runs `code` on the service, with the same parameters; async if `code` is.

        Usable as a decorator, with or without arguments, and as `add_node("name", client.task(f))`. Of
        the `config` that LangGraph hands to nodes that ask for one, its data are sent along. On the
        service, a function that calls another one of these calls it directly.

        Args:
            resources: `cpu` and `gpu`, which may be fractions, `cpu_mem` and `gpu_mem` in MiB.
            secrets: names of secrets that the service has, which are in the environment while the code runs; not
                while it is called directly by another one of these, which has its own.
            name: a name for people; by default that of the function.

        A call raises RemoteError if the function raises, UnpicklableError, VersionMismatchError,
        ServiceError, ConnectionFailedError or DeadlineError.
        """
        Resources.parse(resources)
        names = None if secrets is None else parse_secrets([*secrets])

        def wrap(code: Any) -> Any:
            if not callable(code):
                raise TypeError(f"a function can be a task, not {code!r}")
            called = name or str(getattr(code, "__name__", type(code).__name__))
            function = _RemoteFunction(self, code, called, resources, names)
            if inspect.iscoroutinefunction(code) or inspect.iscoroutinefunction(
                getattr(code, "__call__", None)  # noqa: B004  # an instance whose call is a coroutine
            ):

                async def call_async(*args: Any, **kwargs: Any) -> Any:
                    # With the caller's context, in which its trace is.
                    context = contextvars.copy_context()
                    call = functools.partial(context.run, function.call, args, kwargs)
                    return await asyncio.get_running_loop().run_in_executor(self._threads, call)

                return _standing_for(code, call_async)

            def call(*args: Any, **kwargs: Any) -> Any:
                return function.call(args, kwargs)

            return _standing_for(code, call)

        return wrap if code is None else wrap(code)

    def close(self) -> None:
        """Closes connections; calls that wait fail."""
        self._service.close()
        self._threads.shutdown(wait=False)

    def __enter__(self) -> LangGraphClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LangGraphClient({self._service.url!r})"

    def _workflow(self, lost: str | None) -> str:
        """The workflow that functions are registered in; another one than `lost`."""
        with self._lock:
            if self._workflow_id in (None, lost):
                self._workflow_id = self._service.create_workflow()
            assert self._workflow_id is not None
            return self._workflow_id


def _standing_for(code: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with the looks of `code`. Functions that use it on the service get `code` itself."""
    functools.update_wrapper(call, code)
    call.__dict__[stable.STANDS_FOR] = code
    return call


class _RemoteFunction:
    """A function and where the service knows it."""

    def __init__(
        self,
        client: LangGraphClient,
        code: Callable[..., Any],
        name: str,
        resources: Mapping[str, float] | None,
        secrets: Sequence[str] | None,
    ) -> None:
        self._client = client
        self._service = client._service
        self._code = code
        self._name = name
        self._resources = resources
        self._secrets = secrets
        self._takes_config = _takes_config(code)
        self._lock = threading.Lock()
        #: Ids of workflow and task.
        self._address: tuple[str, str] | None = None

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the function returns on the service."""
        given = dict(kwargs)
        if self._takes_config and "config" in given:
            given["config"] = _portable(given["config"])
        what = f"what {self._name!r} is called with"
        pickled = pickling.dumps_value(args, what), pickling.dumps_value(given, what)
        address = self._registered(None)
        try:
            result = self._run(address, pickled)
        except ServiceError as error:
            if error.status != 404:
                raise
            result = self._run(self._registered(address), pickled)
        return pickling.loads(result)

    def _run(self, address: tuple[str, str], pickled: tuple[bytes, bytes]) -> bytes:
        try:
            return self._service.run_langgraph_task(
                *address, *pickled, within=self._client._call_timeout
            )
        except ServiceError as error:
            if error.status == 500 and not error.detail.startswith(_DEFECT):
                raise RemoteError(self._name, sources.restored(error.detail)) from None
            raise

    def _registered(self, lost: tuple[str, str] | None) -> tuple[str, str]:
        """Where the service knows the function, which is not `lost` any more."""
        with self._lock:
            if self._address is None or self._address == lost:
                self._service.check_versions()
                code = pickling.text(pickling.dumps_code(self._code))
                workflow_id = self._client._workflow(lost[0] if lost else None)
                try:
                    self._address = self._register(workflow_id, code)
                except ServiceError as error:
                    if error.status != 404:
                        raise
                    # Lost since another function was registered in it.
                    self._address = self._register(self._client._workflow(workflow_id), code)
            return self._address

    def _register(self, workflow_id: str, code: str) -> tuple[str, str]:
        request = AddLangGraphTaskRequest(
            workflow_id=workflow_id,
            task_name=self._name,
            code_ser=code,
            resources=None if self._resources is None else dict(self._resources),
            secrets=None if self._secrets is None else [*self._secrets],
        )
        return workflow_id, self._service.add_langgraph_task(request)


def _takes_config(code: Callable[..., Any]) -> bool:
    try:
        return "config" in inspect.signature(code).parameters
    except (TypeError, ValueError):
        return False


def _portable(config: Any) -> Any:
    """A LangGraph config without what belongs to the process that runs the graph."""
    if not isinstance(config, Mapping) or "configurable" not in config:
        return config
    data = {key: config[key] for key in _CONFIG_DATA if key in config}
    configurable = cast("Mapping[str, Any]", config["configurable"] or {})
    data["configurable"] = {
        key: value for key, value in configurable.items() if not key.startswith("__")
    }
    return data
