"""What runs attempts of tasks on the engine.

Every dispatcher passes one suite in `tests/contract/`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from lattice.ids import Digest, NodeId, RunId, TaskId, Tenant
from lattice.workflow.events import (
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    Value,
)
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Code, Resources


@dataclass(frozen=True, slots=True)
class Argument:
    """An input of an attempt: JSON text given by the user, or another task's output.

    `source` names the output, `value` says where it is durable.
    """

    key: str
    json: str | None
    source: tuple[TaskId, str] | None = None
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """What is to run, and on what: calls of equal definitions may share a process, and a batch.

    Attributes:
        gpus: what `gpu` and `gpu_mem` come to, in GPUs.
        excluded: engine ids of nodes that get nothing new.
        tenant: with whose calls alone it may share; None with anybody's.
        sandbox: limits of the sandbox that each call runs in; None for none.
        secrets: keys of those that are in its environment, by their names, while it runs.
    """

    code: Code
    resources: Resources
    gpus: float
    batch: BatchPolicy
    scaling: Scaling
    runtime_env: Mapping[str, object]
    excluded: frozenset[NodeId]
    tenant: Tenant | None = None
    sandbox: Sandbox | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt of a task.

    Attributes:
        timed: there is a time-out, which begins with the report of the start: it must come first.
        trace: the trace context of what happens in it; None if it is not traced.
        after: of a job that is told ahead of its time, the tasks upstream that have not succeeded yet. Arguments that
            come from them have no value yet.
    """

    run_id: RunId
    task_id: TaskId
    attempt: int
    name: str
    definition: Definition
    arguments: tuple[Argument, ...]
    output_keys: tuple[str, ...]
    timed: bool
    trace: str | None = None
    after: tuple[TaskId, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function by itself, with pickled arguments, which stay opaque bytes here."""

    name: str
    definition: Definition
    args: bytes
    kwargs: bytes


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a call returned: JSON (or a description of what is none), and the pickled object."""

    json: object
    pickled: bytes


@dataclass(frozen=True, slots=True)
class EngineNode:
    """A live node of the engine and all it has: GPUs, and memory in MiB."""

    node_id: NodeId
    node_ip: str
    cpu: float
    gpu: float
    memory: float


@dataclass(frozen=True, slots=True)
class Load:
    """Attempts that wait here and that the engine has; replicas that take calls; deployed definitions.

    `calls`: how many single calls run on each node, by the engine's ids, or may come to run on one that is excluded.
    """

    waiting: int = 0
    engaged: int = 0
    replicas: int = 0
    definitions: int = 0
    calls: Mapping[NodeId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Text that an attempt has printed or logged.

    Attributes:
        offset: where it begins, in bytes of all that the attempt has printed; what lies between the end of an
            entry and the beginning of the next was not kept.
        time: in seconds since the epoch.
        stream: `stdout`, `stderr`, or `log` for a record of `logging`, with its level and its logger.
    """

    offset: int
    time: float
    stream: str
    text: str
    level: str | None = None
    logger: str | None = None

    #: Bytes of the text.
    size: int = field(init=False, repr=False, compare=False)

    #: What an entry costs beside its text wherever text is bounded, in bytes.
    OVERHEAD: ClassVar[int] = 100
    STREAMS: ClassVar[tuple[str, ...]] = ("stdout", "stderr", "log")

    def __post_init__(self) -> None:
        # Asked for often, so the text is encoded but once.
        object.__setattr__(self, "size", len(self.text.encode("utf-8", "surrogatepass")))

    @property
    def cost(self) -> int:
        """What it takes of a bound."""
        return self.size + self.OVERHEAD

    @property
    def end(self) -> int:
        """Where the next begins if nothing lies between."""
        return self.offset + self.size

    def fields(self) -> list[object]:
        """What it is made of, in the order in which it is made, as it is stored and sent."""
        return [
            self.offset,
            round(self.time, 6),
            self.stream,
            self.text,
            self.level,
            self.logger,
        ]


@dataclass(frozen=True, slots=True)
class TaskLogged:
    """What an attempt has printed. `final`: all that is kept of it, told again at its end.

    Entries come in the order of their offsets; those that were told before are known by these.
    """

    task_id: TaskId
    attempt: int
    entries: tuple[LogEntry, ...]
    final: bool = False


Report = TaskStarted | TaskLogged | TaskSucceeded | TaskFailed | TaskLost

#: The jobs of a run, in a topological order, that will be submitted once the given tasks, which are under way, have
#: succeeded, and those of these jobs that come before them. Each is made when it is asked for, at once.
Ahead = Callable[[RunId, Sequence[TaskId]], Iterable[Job]]


#: Gives the bytes of code, which may have to be waited for. Raises LatticeError where it is not to be had.
LoadCode = Callable[[Digest], Awaitable[bytes]]


class Dispatcher(Protocol):
    """Runs attempts of tasks on the engine. Used from one event loop."""

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: LoadCode,
        ahead: Ahead,
    ) -> None:
        """Gets ready. All that it is given is called on the loop.

        A dispatcher may run what `ahead` told, with the tasks that it was told for. It reports of such a job what it
        reports of others, but nothing before the job is submitted, as it may never be.
        """

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""

    def prepare(self, definition: Definition) -> None:
        """Gets ready what the first job of a definition would have to wait for; returns at once."""

    async def waiting(self, run_id: RunId, attempts: Mapping[TaskId, int]) -> Mapping[TaskId, str]:
        """What those of a run's attempts wait for that have been submitted and not begun, for people."""

    def load(self) -> Load:
        """How much there is to do. May be called from any thread."""

    def exclude(self, nodes: frozenset[NodeId]) -> None:
        """From now on, what has not begun may run on all nodes but these, whatever its definition said.

        What was already handed to the engine and waits there is taken back; what runs goes on.
        """

    def pause(self, paused: bool) -> None:
        """Hands nothing more to the engine until it is told otherwise; what the engine has goes on."""

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt and frees what it occupied; nothing of it is reported any more."""

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Drops what is held in memory of a task's output values."""

    async def call(self, call: Call) -> CallResult:
        """Runs a call to its end.

        Raises:
            UserCodeError: the function raised, its code or arguments do not load, or its process died.
            TooLargeError: the pickled result is over `max_result_bytes`.
        """

    async def render(self, value: Value, limit: int, tenant: Tenant | None = None) -> bytes:
        """The JSON text of a tenant's stored value, made in a process that runs its code.

        Raises:
            InvalidRequestError: the value is not JSON.
            TooLargeError: the text is longer than `limit` bytes.
            UnavailableError: the process that made it died.
        """

    async def nodes(self) -> list[EngineNode]:
        """The live nodes."""

    async def head_port(self) -> int:
        """The port under which other nodes join the engine."""

    async def close(self) -> None:
        """Cancels what runs and lets go of the engine."""
