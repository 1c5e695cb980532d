"""Every error that Lattice raises on purpose.

LatticeError
├── InvalidRequestError            what was asked makes no sense: field, what was found, what is allowed
│   └── CycleError                 an edge would close a cycle
├── NotFoundError                  an id that names nothing
│   ├── WorkflowNotFoundError
│   ├── TaskNotFoundError
│   ├── EdgeNotFoundError
│   ├── RunNotFoundError
│   ├── ResultNotFoundError
│   └── WorkerNotFoundError
├── ConflictError                  an idempotency key that was used for another request
├── TooLargeError                  over a limit of the settings
├── ForbiddenError                 a request that a foreign web page made a browser send
├── ProtocolRefusedError           a client of a release that this service does not understand
├── ExposedError                   a request over the network to a service without API keys
├── UnauthorizedError              no API key, or one that is not accepted
├── AdminOnlyError                 a tenant's key for what only operators may do
├── TooManyRequestsError           more requests than a tenant's keys allow
├── UserCodeError                  the user's own code failed in a synchronous call
├── CallTimeoutError               a synchronous call took too long
├── UnavailableError               not now; trying again may help
│   ├── OverloadedError            a bound on what is under way
│   ├── OrchestratorNotInitializedError
│   ├── StoreUnavailableError        the database is away
│   │   └── StoreRefusedError        it will never do this
│   └── LeaseLostError             another orchestrator has taken over
└── InvalidTransitionError         a defect: an event that the run machine does not allow

Errors cross process boundaries between the orchestrator and the ingress, so each is rebuilt from
its constructor's arguments (`args`), and its message is made from its attributes.
"""

from __future__ import annotations

from collections.abc import Sequence


class LatticeError(Exception):
    """Base of all errors of Lattice. `str(error)` is written for the user who caused it."""


class InvalidRequestError(LatticeError):
    """A value that makes no sense.

    Attributes:
        field: path of the offending field, such as `resources.cpu`.
        found: what was there, as a short text.
        allowed: what may be there instead, or what to do.
    """

    def __init__(self, field: str, found: str, allowed: str) -> None:
        super().__init__(field, found, allowed)
        self.field = field
        self.found = found
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.field}: found {self.found}; {self.allowed}"


class CycleError(InvalidRequestError):
    """An edge would close a cycle. `cycle` lists the task ids along it; the first is also the last."""

    def __init__(self, field: str, cycle: Sequence[str]) -> None:
        LatticeError.__init__(self, field, tuple(cycle))
        self.field = field
        self.cycle = tuple(cycle)
        self.found = "a cycle " + " -> ".join(_shortened(cycle))
        self.allowed = "the tasks of a workflow must form a graph without cycles"


#: Most tasks of a cycle that a refusal names.
_MOST_NAMED = 20


def _shortened(cycle: Sequence[str]) -> Sequence[str]:
    left_out = len(cycle) - _MOST_NAMED
    if left_out <= 1:
        return cycle
    half = _MOST_NAMED // 2
    return [*cycle[:half], f"({left_out} more)", *cycle[-half:]]


class NotFoundError(LatticeError):
    """An id that names nothing."""


class WorkflowNotFoundError(NotFoundError):
    def __init__(self, workflow_id: str) -> None:
        super().__init__(workflow_id)
        self.workflow_id = workflow_id

    def __str__(self) -> str:
        return f"Workflow {self.workflow_id} not found"


class TaskNotFoundError(NotFoundError):
    def __init__(self, task_id: str, workflow_id: str) -> None:
        super().__init__(task_id, workflow_id)
        self.task_id = task_id
        self.workflow_id = workflow_id

    def __str__(self) -> str:
        return f"Task {self.task_id} not found in workflow {self.workflow_id}"


class EdgeNotFoundError(NotFoundError):
    def __init__(self, source_task_id: str, target_task_id: str, workflow_id: str) -> None:
        super().__init__(source_task_id, target_task_id, workflow_id)
        self.source_task_id = source_task_id
        self.target_task_id = target_task_id
        self.workflow_id = workflow_id

    def __str__(self) -> str:
        return (
            f"Edge {self.source_task_id} -> {self.target_task_id} not found "
            f"in workflow {self.workflow_id}"
        )


class RunNotFoundError(NotFoundError):
    def __init__(self, run_id: str, workflow_id: str | None = None) -> None:
        super().__init__(run_id, workflow_id)
        self.run_id = run_id
        self.workflow_id = workflow_id

    def __str__(self) -> str:
        of = f" of workflow {self.workflow_id}" if self.workflow_id else ""
        return f"Run {self.run_id}{of} not found"


class ResultNotFoundError(NotFoundError):
    """A task that has no result (yet), or an output key that it has not returned."""

    def __init__(self, run_id: str, task_id: str, reason: str) -> None:
        super().__init__(run_id, task_id, reason)
        self.run_id = run_id
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return f"No result of task {self.task_id} in run {self.run_id}: {self.reason}"


class WorkerNotFoundError(NotFoundError):
    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self.node_id = node_id

    def __str__(self) -> str:
        return f"Worker {self.node_id} not found"


class ConflictError(LatticeError):
    """An `Idempotency-Key` that was used before, for another request."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return (
            f"Idempotency-Key {self.key!r} was used for a different request; "
            "use a new key for a new request"
        )


class TooLargeError(LatticeError):
    """Something over a limit. `limit` is the setting's name, `found` and `allowed` are in `unit`."""

    def __init__(self, limit: str, found: int, allowed: int, unit: str) -> None:
        super().__init__(limit, found, allowed, unit)
        self.limit = limit
        self.found = found
        self.allowed = allowed
        self.unit = unit

    def __str__(self) -> str:
        return f"{self.limit}: found {self.found} {self.unit}; at most {self.allowed} are allowed"


class ForbiddenError(LatticeError):
    """A request that another site's page made a browser send."""

    def __init__(self, header: str, value: str) -> None:
        super().__init__(header, value)
        self.header = header
        self.value = value

    def __str__(self) -> str:
        return (
            f"{self.header} {self.value!r} is not this service; requests from pages of other sites "
            "are refused (setting allowed_hosts names the hosts that may be used)"
        )


class ProtocolRefusedError(LatticeError):
    """A request of a client whose release this service does not understand.

    Attributes:
        release, protocol: what the client says of itself.
        own_release, own_protocol, oldest: this service, and the oldest protocol that it understands.
    """

    def __init__(
        self, release: str, protocol: str, own_release: str, own_protocol: int, oldest: int
    ) -> None:
        super().__init__(release, protocol, own_release, own_protocol, oldest)
        self.release = release
        self.protocol = protocol
        self.own_release = own_release
        self.own_protocol = own_protocol
        self.oldest = oldest

    def __str__(self) -> str:
        spoken = f"{self.oldest} to {self.own_protocol}"
        if self.oldest == self.own_protocol:
            spoken = f"{self.own_protocol}"
        words = (
            f"the client (Lattice {self.release}) speaks protocol {self.protocol}, this service (Lattice "
            f"{self.own_release}) {spoken}: "
        )
        if not self.protocol.isdecimal():
            return f"{words}lattice-protocol has to be a number"
        if int(self.protocol) > self.own_protocol:
            return f"{words}upgrade the service, or use a client of Lattice {self.own_release}"
        return f"{words}upgrade the client to Lattice {self.own_release}"


class ExposedError(LatticeError):
    """A request over the network to a service that has no API keys. `address` is where it came in."""

    def __init__(self, address: str, advice: str) -> None:
        super().__init__(address, advice)
        self.address = address
        self.advice = advice

    def __str__(self) -> str:
        return f"the service listens on {self.address}, which other machines reach, without API keys. {self.advice}"


class UnauthorizedError(LatticeError):
    """A request without an API key, or with one that is not accepted. `rejected`: there was one."""

    def __init__(self, reason: str, rejected: bool = False) -> None:
        super().__init__(reason, rejected)
        self.reason = reason
        self.rejected = rejected

    def __str__(self) -> str:
        return self.reason


class AdminOnlyError(LatticeError):
    """A request with the key of a tenant for what only operators may do."""

    def __init__(self, tenant: str) -> None:
        super().__init__(tenant)
        self.tenant = tenant

    def __str__(self) -> str:
        return (
            f"the API key of {self.tenant!r} may not do this: it needs a key with `admin: true` in the setting "
            "api_keys"
        )


class TooManyRequestsError(LatticeError):
    """More requests of a tenant than its keys allow. `retry_after` is in seconds."""

    def __init__(self, tenant: str, allowed: float, retry_after: float) -> None:
        super().__init__(tenant, allowed, retry_after)
        self.tenant = tenant
        self.allowed = allowed
        self.retry_after = retry_after

    def __str__(self) -> str:
        return (
            f"requests_per_second: the API keys of {self.tenant!r} allow {self.allowed:g} requests a second; "
            "wait as long as Retry-After says"
        )


class UserCodeError(LatticeError):
    """The user's own code failed in a synchronous call.

    Attributes:
        error_type: qualified name of the exception's class.
        message: the exception's text.
        traceback: the user's own traceback.
    """

    def __init__(self, error_type: str, message: str, traceback: str) -> None:
        super().__init__(error_type, message, traceback)
        self.error_type = error_type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return self.traceback or f"{self.error_type}: {self.message}"


class CallTimeoutError(LatticeError):
    """A synchronous call that did not end within `limit` seconds, waiting included, and was given up."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"the call did not end within call_timeout, {self.limit:g} s, and was given up: it ran for too "
            "long, or waited as long for free resources (GET /workers shows what there is)"
        )


class UnavailableError(LatticeError):
    """The service cannot do it now. `retry_after` is in seconds."""

    def __init__(self, reason: str, retry_after: float = 1.0) -> None:
        super().__init__(reason, retry_after)
        self.reason = reason
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.reason


class OverloadedError(UnavailableError):
    """More than a bound allows would be under way. `limit` is the setting's name, counts are in `unit`."""

    def __init__(self, limit: str, found: int, allowed: int, unit: str) -> None:
        LatticeError.__init__(self, limit, found, allowed, unit)
        self.limit = limit
        self.found = found
        self.allowed = allowed
        self.unit = unit
        self.reason = (
            f"{limit}: {found} {unit} would be under way; at most {allowed} are allowed: try again when "
            "some have ended"
        )
        self.retry_after = 5.0


class OrchestratorNotInitializedError(UnavailableError, RuntimeError):
    def __init__(self) -> None:
        LatticeError.__init__(self)
        self.reason = "Orchestrator not initialized"
        self.retry_after = 1.0


class StoreUnavailableError(UnavailableError):
    """The database did not do what it was asked; the same may be done when it is back."""


class StoreRefusedError(StoreUnavailableError):
    """The database will never do this, now or later, such as to put a message that exists already."""


class LeaseLostError(UnavailableError):
    """A newer orchestrator holds the lease on the store. `held` and `current` are lease numbers."""

    def __init__(self, held: int, current: int) -> None:
        LatticeError.__init__(self, held, current)
        self.held = held
        self.current = current
        self.reason = (
            f"lease {held} was replaced by lease {current}: another orchestrator is in charge"
        )
        self.retry_after = 1.0


class InvalidTransitionError(LatticeError):
    """An event that the run machine does not allow in the task's state: a defect, not a user's error.

    Attributes:
        run_id, task_id: where.
        state: the task's state, which is unchanged.
        event: the event's name.
        story: what happened to the task before, oldest first.
    """

    def __init__(
        self, run_id: str, task_id: str, state: str, event: str, story: Sequence[str]
    ) -> None:
        super().__init__(run_id, task_id, state, event, tuple(story))
        self.run_id = run_id
        self.task_id = task_id
        self.state = state
        self.event = event
        self.story = tuple(story)

    def __str__(self) -> str:
        return (
            f"run {self.run_id}, task {self.task_id}: {self.event} is not allowed in state "
            f"{self.state}; before: {', '.join(self.story) or 'nothing'}"
        )
