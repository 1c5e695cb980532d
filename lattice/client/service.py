"""A Lattice service as the SDK sees it: one method for each endpoint that it uses.

Requests that create or run something carry an `Idempotency-Key`, so they are repeated safely when the
connection breaks or the service is busy (503), until `timeout` seconds have passed.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import platform
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from pydantic import BaseModel, ValidationError

from lattice.api.models.schemas import (
    AddLangGraphTaskRequest,
    AddTaskResponse,
    CancelRunResponse,
    ConnectWorkerRequest,
    ConnectWorkerResponse,
    CreateWorkflowResponse,
    DescribeRunResponse,
    DisconnectWorkerRequest,
    GetRayPortResponse,
    HealthResponse,
    ListRunsResponse,
    LogEntry,
    RetryRunResponse,
    RunLangGraphTaskRequest,
    RunLangGraphTaskResponse,
    RunReport,
    RunSummary,
    RunWorkflowRequest,
    RunWorkflowResponse,
    StatusResponse,
    SubmittedTask,
    SubmitWorkflowRequest,
    SubmitWorkflowResponse,
    TaskLogsResponse,
    TaskResultResponse,
    WorkersResponse,
)
from lattice.client import pickling
from lattice.client.credentials import headers_of
from lattice.client.errors import (
    ConnectionFailedError,
    DeadlineError,
    ServiceError,
    VersionMismatchError,
)
from lattice.client.subscription import Open, Subscription, open_with, socket_url
from lattice.client.transport import (
    BrokenOffError,
    NotSentError,
    Request,
    Response,
    TimedOutError,
    Transport,
)
from lattice.errors import InvalidRequestError
from lattice.versions import OLDEST, PROTOCOL_HEADER, RELEASE_HEADER, release

_Answer = TypeVar("_Answer", bound=BaseModel)

#: Seconds before the first repetition of a request, doubled for each further one up to the last.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class Service:
    """The service at `url`. `timeout` is in seconds, for each call with its repetitions.

    `api_key` is by default that of the environment.

    All methods raise ServiceError for a refusal, ConnectionFailedError and DeadlineError. May be used
    from any thread.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        transport: Transport,
        *,
        api_key: str | None = None,
        open_socket: Open | None = None,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = checked_url(url)
        self.timeout = timeout
        self._credentials = headers_of(api_key)
        self._open = open_socket or functools.partial(open_with, self._credentials)
        self._now = now
        self._pause = pause
        self._transport = transport
        self._checked = False
        self._answered = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Closes connections."""
        self._transport.close()

    def check_versions(self) -> None:
        """Compares this process's Python and cloudpickle with the service's, once.

        Raises:
            VersionMismatchError: what is pickled here would not run there.
        """
        with self._lock:
            if self._checked:
                return
            health = self._call(HealthResponse, "GET", "/healthz")
            here = platform.python_version()
            if here.split(".")[:2] != health.python.split(".")[:2]:
                raise VersionMismatchError("Python", here, health.python)
            here = pickling.VERSION
            if here.split(".")[0] != health.cloudpickle.split(".")[0]:
                raise VersionMismatchError("cloudpickle", here, health.cloudpickle)
            self._checked = True

    # -- workflows and runs ------------------------------------------------------------------

    def submit_workflow(
        self,
        tasks: Sequence[SubmittedTask],
        edges: Sequence[tuple[str, str]],
        deadline: float | None = None,
    ) -> SubmitWorkflowResponse:
        """Makes a workflow and starts a run of it, which has to end within `deadline` seconds."""
        request = SubmitWorkflowRequest(tasks=list(tasks), edges=list(edges), deadline=deadline)
        return self._create(SubmitWorkflowResponse, "/submit_workflow", request)

    def run_workflow(self, workflow_id: str, deadline: float | None = None) -> str:
        """Starts a run, which has to end within `deadline` seconds; its id."""
        request = RunWorkflowRequest(workflow_id=workflow_id, deadline=deadline)
        return self._create(RunWorkflowResponse, "/run_workflow", request).run_id

    def describe_run(self, run_id: str) -> RunReport:
        """A run and how far each of its tasks is."""
        return self._call(DescribeRunResponse, "GET", f"/runs/{run_id}").run

    def cancel_run(self, run_id: str) -> str:
        """Ends a run; its status now."""
        return self._call(CancelRunResponse, "POST", f"/runs/{run_id}/cancel").run_status

    def retry_run(self, run_id: str) -> str:
        """Starts a run of what a run has left undone; its id."""
        return self._create(RetryRunResponse, f"/runs/{run_id}/retry", None).run_id

    def delete_run(self, run_id: str) -> None:
        """Deletes a run that has ended.

        Where the answer is lost, it is asked for again; that the run is gone by then is what was wanted.
        """
        path = f"/runs/{run_id}"
        try:
            self._call(StatusResponse, "DELETE", path, repeatable=False)
        except (ConnectionFailedError, ServiceError) as broken:
            if isinstance(broken, ServiceError) and broken.status < 500:
                raise
            try:
                self._call(StatusResponse, "DELETE", path)
            except ServiceError as error:
                if error.status != 404:
                    raise error from broken

    def task_result(self, run_id: str, task_id: str) -> dict[str, Any]:
        """The outputs of a finished task, each its JSON value or a description."""
        path = f"/runs/{run_id}/tasks/{task_id}/result"
        return self._call(TaskResultResponse, "GET", path).result

    def task_logs(self, run_id: str, task_id: str, attempt: int | None) -> list[LogEntry]:
        """All that is kept of what a task, or one attempt of it, has printed."""
        path = f"/runs/{run_id}/tasks/{task_id}/logs"
        found: list[LogEntry] = []
        after: str | None = None
        while True:
            asked = {"attempt": attempt, "after": after}
            query = "&".join(f"{key}={value}" for key, value in asked.items() if value is not None)
            page = self._call(TaskLogsResponse, "GET", f"{path}?{query}")
            found += page.logs
            after = page.next
            if after is None:
                return found

    def output(self, run_id: str, task_id: str, key: str) -> bytes:
        """The pickle of one output of a finished task."""
        return self._fetch("GET", f"{output_path(run_id, task_id, key)}?format=pickle").body

    def subscription(
        self,
        workflow_id: str,
        run_id: str,
        read: Callable[[str | bytes], tuple[int, bool]],
        after: int,
        *,
        logs: bool = False,
    ) -> Subscription:
        """The messages of a run behind the one numbered `after`; the rest is as `Subscription` says."""
        return Subscription(
            socket_url(self.url, f"/get_workflow_res/{workflow_id}/{run_id}"),
            read,
            self.timeout,
            after=after,
            logs=logs,
            open_socket=self._open,
            now=self._now,
            pause=self._pause,
        )

    # -- calls of single functions -----------------------------------------------------------

    def create_workflow(self) -> str:
        """A new workflow; its id."""
        return self._create(CreateWorkflowResponse, "/create_workflow", None).workflow_id

    def add_langgraph_task(self, request: AddLangGraphTaskRequest) -> str:
        """Registers a function; its id."""
        return self._create(AddTaskResponse, "/add_langgraph_task", request).task_id

    def run_langgraph_task(
        self, workflow_id: str, task_id: str, args: bytes, kwargs: bytes, within: float
    ) -> bytes:
        """Calls a function with pickled arguments; its pickled result, within that many seconds.

        Where the connection breaks, the call is not repeated: the function may be at work. It is where
        the service says that it has given the call up (503).
        """
        request = RunLangGraphTaskRequest(
            workflow_id=workflow_id,
            task_id=task_id,
            args=pickling.text(args),
            kwargs=pickling.text(kwargs),
            result_format="pickle",
        )
        answer = self._call(
            RunLangGraphTaskResponse,
            "POST",
            "/run_langgraph_task",
            request,
            answer_within=within,
            repeatable=False,
        )
        return base64.b64decode(answer.result)

    # -- the service and its machines --------------------------------------------------------

    def health(self) -> HealthResponse:
        """What the service is; answers whatever the state of the orchestrator."""
        return self._call(HealthResponse, "GET", "/healthz")

    def ready(self) -> None:
        """Returns if runs can be started; says at once if they cannot (ServiceError, 503)."""
        try:
            response = self._transport.send(Request("GET", "/readyz"), self.timeout)
        except TimedOutError as error:
            raise DeadlineError(f"GET {self.url}/readyz", self.timeout) from error
        except (BrokenOffError, NotSentError) as error:
            raise ConnectionFailedError(self.url, str(error)) from error
        if response.status >= 400:
            raise ServiceError(response.status, _detail(response))

    def list_runs(
        self, *, status: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[RunSummary]:
        """Runs, newest first, of that status, older than the run `before`."""
        asked = {"status": status, "limit": limit, "before": before}
        query = urlencode({key: value for key, value in asked.items() if value is not None})
        return self._call(ListRunsResponse, "GET", f"/runs?{query}").runs

    def workers(self) -> list[dict[str, Any]]:
        """Registered workers, and nodes of the cluster that nobody registered."""
        return self._call(WorkersResponse, "GET", "/workers").workers

    def head_port(self) -> int:
        """The port of the cluster's head, at which nodes join."""
        return self._call(GetRayPortResponse, "POST", "/get_head_ray_port").port

    def connect_worker(self, node_id: str, node_ip: str, resources: dict[str, Any]) -> None:
        """Registers a node of the cluster; once more changes and reconnects it."""
        request = ConnectWorkerRequest(node_ip=node_ip, node_id=node_id, resources=resources)
        self._call(ConnectWorkerResponse, "POST", "/connect_worker", request)

    def disconnect_worker(self, node_id: str, *, leaving: bool = False) -> None:
        """Has nothing new placed on a node, which with `leaving` will not be back."""
        request = DisconnectWorkerRequest(node_id=node_id, leaving=leaving)
        self._call(StatusResponse, "POST", "/disconnect_worker", request)

    # -- requests ----------------------------------------------------------------------------

    def _create(self, answer: type[_Answer], path: str, body: BaseModel | None) -> _Answer:
        return self._call(answer, "POST", path, body, key=str(uuid.uuid4()))

    def _call(
        self,
        answer: type[_Answer],
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        key: str | None = None,
        answer_within: float | None = None,
        repeatable: bool = True,
    ) -> _Answer:
        response = self._fetch(
            method, path, body, key=key, answer_within=answer_within, repeatable=repeatable
        )
        try:
            return answer.model_validate_json(response.body)
        except ValidationError as error:
            raise ServiceError(
                response.status,
                f"{self.url}{path} answered something that is not Lattice's: {_start(response.body)}; "
                "is the address right?",
            ) from error

    def _fetch(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        key: str | None = None,
        answer_within: float | None = None,
        repeatable: bool = True,
    ) -> Response:
        """A successful answer, each try within `answer_within` seconds or what is left of `timeout`."""
        request = Request(
            method,
            path,
            None if body is None else body.model_dump_json(exclude_none=True).encode(),
            self._credentials if key is None else {**self._credentials, "idempotency-key": key},
        )
        deadline = self._now() + self.timeout
        wait = _FIRST_PAUSE
        while True:
            within = answer_within or max(deadline - self._now(), 0.001)
            try:
                response = self._transport.send(request, None if within == math.inf else within)
            except TimedOutError as error:
                raise DeadlineError(
                    f"{method} {self.url}{path}", answer_within or self.timeout
                ) from error
            except BrokenOffError as error:
                if not repeatable or self._now() + wait >= deadline:
                    raise ConnectionFailedError(
                        self.url,
                        str(error),
                        "the connection broke before the answer; the service may have begun",
                    ) from error
            except NotSentError as error:
                # A service that was never seen is more likely not there than restarting.
                if self._now() + wait >= deadline or not self._answered:
                    raise ConnectionFailedError(self.url, str(error)) from error
            else:
                own = response.status < 400 or _is_own(response)
                passing = response.status in (429, 503) or (
                    # The proxy in front of the service, while it restarts: it knows no path yet (404), or
                    # nobody who answers, and then what was sent may have arrived.
                    not own
                    and self._answered
                    and (response.status == 404 or (response.status >= 500 and repeatable))
                )
                self._answered |= own
                _check_protocol(response)
                if response.status < 400:
                    return response
                wait = max(wait, _retry_after(response))
                if not passing or self._now() + wait >= deadline:
                    raise ServiceError(response.status, _detail(response))
            self._pause(wait)
            wait = min(wait * 2, _LONGEST_PAUSE)


def output_path(run_id: str, task_id: str, key: str) -> str:
    """Where the service gives an output whole; also the `url` in the description of one."""
    return f"/runs/{run_id}/tasks/{task_id}/result/{quote(key, safe='')}"


def checked_url(url: str) -> str:
    """`url` without a slash at its end. Raises InvalidRequestError if it is no HTTP address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequestError(
            "url", repr(url), "an address such as 'http://127.0.0.1:8000' is allowed"
        )
    return url.rstrip("/")


def _check_protocol(response: Response) -> None:
    """Raises VersionMismatchError for an answer of a service that is too old for this client.

    One that is newer knows itself whom it understands, and refuses others.
    """
    protocol = response.headers.get(PROTOCOL_HEADER, "")
    if protocol.isdecimal() and int(protocol[:9]) < OLDEST:
        there = response.headers.get(RELEASE_HEADER, "of another release")
        raise VersionMismatchError(
            "Lattice",
            release(),
            there,
            f"the service speaks protocol {protocol}, which is older than {OLDEST}, the oldest "
            f"that this client understands; upgrade the service, or use a client of Lattice {there}",
        )


def _is_own(response: Response) -> bool:
    """Whether a refusal is the service's own: it is JSON and says why."""
    try:
        return "detail" in json.loads(response.body)
    except (ValueError, TypeError):
        return False


def _retry_after(response: Response) -> float:
    """Seconds that a busy service asks to wait; 0 where it does not say."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


def _detail(response: Response) -> str:
    """What a refusal says. A 422 lists what is wrong with each field."""
    try:
        detail = json.loads(response.body)["detail"]
    except (ValueError, KeyError, TypeError):
        return _start(response.body) or "no reason given"
    if isinstance(detail, list):
        return "; ".join(
            f"{'.'.join(str(part) for part in item.get('loc', ()))}: {item.get('msg', item)}"
            for item in detail
            if isinstance(item, dict)
        )
    return str(detail)


def _start(body: bytes) -> str:
    return body[:200].decode(errors="replace")
