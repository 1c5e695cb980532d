"""A task of a workflow: its code by digest, its parameters and what it needs to run.

All values are frozen. Each class reads its wire form with `parse` and writes it with `document`; a
refusal names the field, what was found and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lattice.errors import InvalidRequestError
from lattice.ids import Digest, TaskId
from lattice.workflow import checks
from lattice.workflow.bindings import (
    Input,
    Output,
    inputs_document,
    outputs_document,
    parse_inputs,
    parse_outputs,
)
from lattice.workflow.retry import RetryPolicy
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.scaling import Scaling


class TaskKind(StrEnum):
    """How a task is used: as a node of a workflow's runs, or called by itself with any arguments."""

    CODE = "code"
    LANGGRAPH = "langgraph"


class CodeForm(StrEnum):
    """What the bytes of a code are."""

    PICKLE = "pickle"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Code:
    """A task's code, by the digest of its bytes. `name` picks the function out of source.

    `is_class`: what it comes to is a class, constructed once in each process, whose instance is called.
    """

    digest: Digest
    form: CodeForm
    name: str
    is_class: bool = False

    def document(self) -> dict[str, object]:
        """The stored form."""
        return {
            "digest": self.digest,
            "form": self.form.value,
            "name": self.name,
            "is_class": self.is_class,
        }


def _exact(value: float) -> int | float:
    return int(value) if value.is_integer() else value


@dataclass(frozen=True, slots=True)
class Resources:
    """What one call of a task occupies: CPUs, GPUs, and MiB of main and GPU memory.

    CPUs and GPUs may be fractions; above one, GPUs are whole (the engine's rule).
    """

    cpu: float = 1.0
    cpu_mem: float = 0.0
    gpu: float = 0.0
    gpu_mem: float = 0.0

    @classmethod
    def parse(cls, document: object, field: str = "resources") -> Resources:
        """Reads `{"cpu", "cpu_mem", "gpu", "gpu_mem"}`, all optional. Raises InvalidRequestError."""
        if document is None:
            return cls()
        given = checks.mapping(document, field)
        checks.known_keys(given, field, ("cpu", "cpu_mem", "gpu", "gpu_mem"))
        found = {
            key: checks.number(value, f"{field}.{key}", maximum=1e9) for key, value in given.items()
        }
        resources = cls(**found)
        if resources.gpu > 1 and not resources.gpu.is_integer():
            raise InvalidRequestError(
                f"{field}.gpu", checks.shown(given["gpu"]), "above 1 only whole GPUs are allowed"
            )
        return resources

    def document(self) -> dict[str, object]:
        """The wire form."""
        return {
            "cpu": _exact(self.cpu),
            "cpu_mem": _exact(self.cpu_mem),
            "gpu": _exact(self.gpu),
            "gpu_mem": _exact(self.gpu_mem),
        }


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Whether a task takes a list of calls at once, and how the list fills.

    Attributes:
        batch_size: most calls in a list.
        batch_timeout: seconds that a list which is not full waits for more; 0 does not wait.
        max_concurrent_batches: lists that a replica works on at a time, each in a thread of its own.
    """

    enabled: bool = False
    batch_size: int = 1
    batch_timeout: float = 0.0
    max_concurrent_batches: int = 1

    @classmethod
    def parse(cls, document: object, field: str = "batch_config") -> BatchPolicy:
        """Reads an object with any of the attributes' names. Raises InvalidRequestError."""
        if document is None:
            return cls()
        given = checks.mapping(document, field)
        checks.known_keys(given, field, cls.__slots__)
        enabled = given.get("enabled", True)
        if not isinstance(enabled, bool):
            raise InvalidRequestError(
                f"{field}.enabled", checks.shown(enabled), "true and false are allowed"
            )
        return cls(
            enabled=enabled,
            batch_size=checks.whole(
                given.get("batch_size", 1), f"{field}.batch_size", minimum=1, maximum=100_000
            ),
            batch_timeout=checks.number(
                given.get("batch_timeout", 0.0), f"{field}.batch_timeout", maximum=86_400
            ),
            max_concurrent_batches=checks.whole(
                given.get("max_concurrent_batches", 1),
                f"{field}.max_concurrent_batches",
                minimum=1,
                maximum=1000,
            ),
        )

    def document(self) -> dict[str, object]:
        """The wire form."""
        return {
            "enabled": self.enabled,
            "batch_size": self.batch_size,
            "batch_timeout": self.batch_timeout,
            "max_concurrent_batches": self.max_concurrent_batches,
        }


#: Keys of a task's runtime environment that are handed to the engine.
_RUNTIME_ENV_KEYS = ("env_vars", "pip")


def _runtime_env(document: object, field: str) -> dict[str, object]:
    """Reads `{"env_vars": {name: text}, "pip": [requirement]}`. Raises InvalidRequestError."""
    if document is None:
        return {}
    given = checks.mapping(document, field)
    checks.known_keys(given, field, _RUNTIME_ENV_KEYS)
    result: dict[str, object] = {}
    if "env_vars" in given:
        variables = checks.mapping(given["env_vars"], f"{field}.env_vars")
        for name, value in variables.items():
            if not name or "=" in name or "\0" in name:
                raise InvalidRequestError(
                    f"{field}.env_vars", checks.shown(name), "a variable's name is allowed"
                )
            if not isinstance(value, str) or "\0" in value:
                raise InvalidRequestError(
                    f"{field}.env_vars.{name}", checks.shown(value), "a string is allowed"
                )
        result["env_vars"] = dict(variables)
    if "pip" in given:
        packages = given["pip"]
        if not isinstance(packages, list) or not all(isinstance(item, str) for item in packages):
            raise InvalidRequestError(
                f"{field}.pip", checks.shown(packages), "a list of requirements is allowed"
            )
        for item in packages:
            # Options would have pip read files of the worker, or take packages from elsewhere.
            if not item.strip() or item.lstrip().startswith("-") or not item.isprintable():
                raise InvalidRequestError(
                    f"{field}.pip",
                    checks.shown(item),
                    "a requirement is allowed, such as `six==1.16.0`, and no option of pip",
                )
        result["pip"] = list(packages)
    return result


#: Most secrets of a task.
_MAX_SECRETS = 100
_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def is_secret_name(name: str) -> bool:
    """Whether a secret may have that name: one that a variable of the environment has."""
    return _SECRET_NAME.fullmatch(name) is not None


def parse_secrets(document: object, field: str = "secrets") -> tuple[str, ...]:
    """Reads a list of names. Raises InvalidRequestError."""
    if document is None:
        return ()
    allowed = "a list of names, of letters, digits and `_`, is allowed"
    if not isinstance(document, list) or len(document) > _MAX_SECRETS:
        raise InvalidRequestError(
            field, checks.shown(document), f"{allowed}, {_MAX_SECRETS} at most"
        )
    for name in document:
        if not isinstance(name, str) or not is_secret_name(name):
            raise InvalidRequestError(field, checks.shown(name), allowed)
    return tuple(dict.fromkeys(document))


def has_replicas(batch: BatchPolicy, resources: Resources, code: Code | None) -> bool:
    """Whether what is so runs on replicas of its own: batched, on a GPU, or a class."""
    on_gpu = resources.gpu > 0 or resources.gpu_mem > 0
    return batch.enabled or on_gpu or (code is not None and code.is_class)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a workflow. Without `code` it is a draft that cannot run yet.

    `timeout` is in seconds for each attempt; None sets no limit. `runtime_env` is handed to the engine.
    """

    task_id: TaskId
    name: str
    kind: TaskKind = TaskKind.CODE
    code: Code | None = None
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    resources: Resources = Resources()
    batch: BatchPolicy = BatchPolicy()
    scaling: Scaling = field(default_factory=Scaling)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    runtime_env: Mapping[str, object] = field(default_factory=dict)
    sandbox: Sandbox | None = None
    secrets: tuple[str, ...] = ()

    @property
    def output_keys(self) -> tuple[str, ...]:
        """The declared output keys, in order."""
        return tuple(output.key for output in self.outputs)

    @property
    def on_replicas(self) -> bool:
        """Whether it runs on replicas of its own. A draft without code counts as a function."""
        return has_replicas(self.batch, self.resources, self.code)

    def document(self) -> dict[str, object]:
        """A JSON document from which `from_document` makes the same task."""
        return {
            "task_id": self.task_id,
            "task_name": self.name,
            "task_type": self.kind.value,
            "code": self.code and self.code.document(),
            "task_input": inputs_document(self.inputs),
            "task_output": outputs_document(self.outputs),
            "resources": self.resources.document(),
            "batch_config": self.batch.document(),
            "autoscaling": self.scaling.document(),
            "retry": self.retry.document(),
            "timeout": self.timeout,
            "runtime_env": dict(self.runtime_env),
            "sandbox": self.sandbox and self.sandbox.document(),
            "secrets": [*self.secrets],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Task:
        """The task that `document` describes. Raises InvalidRequestError where it is malformed."""
        code = None
        if document.get("code") is not None:
            stored = checks.mapping(document["code"], "code")
            code = Code(
                Digest(checks.text(stored.get("digest"), "code.digest")),
                CodeForm(checks.text(stored.get("form"), "code.form")),
                checks.text(stored.get("name"), "code.name"),
                stored.get("is_class") is True,
            )
        return cls(
            task_id=TaskId(checks.text(document.get("task_id"), "task_id")),
            name=checks.text(document.get("task_name"), "task_name"),
            kind=TaskKind(checks.text(document.get("task_type", "code"), "task_type")),
            code=code,
            inputs=parse_inputs(document.get("task_input", {})),
            outputs=parse_outputs(document.get("task_output", {})),
            resources=Resources.parse(document.get("resources")),
            batch=BatchPolicy.parse(document.get("batch_config")),
            scaling=Scaling.parse(document.get("autoscaling")),
            retry=RetryPolicy.parse(document.get("retry")),
            timeout=parse_timeout(document.get("timeout")),
            runtime_env=_runtime_env(document.get("runtime_env"), "runtime_env"),
            sandbox=Sandbox.parse(document.get("sandbox")),
            secrets=parse_secrets(document.get("secrets")),
        )


def check_outputs(task: Task) -> None:
    """Raises InvalidRequestError for a declared output that no task can return."""
    for key in task.output_keys:
        if not checks.is_output_key(key):
            raise InvalidRequestError(
                "task_output",
                f"the output key {checks.shown(key)}",
                f"at most {checks.MAX_OUTPUT_KEY:,} bytes in UTF-8 are allowed",
            )


def check_scaling(task: Task) -> None:
    """Raises InvalidRequestError for bounds on the replicas of a task that has code and no replicas."""
    if task.scaling != Scaling() and task.code is not None and not task.on_replicas:
        raise InvalidRequestError(
            "autoscaling",
            f"{checks.shown(task.scaling.document())} for the task {task.name!r}, which has no replicas",
            "only batched tasks, tasks with gpu or gpu_mem, and classes have replicas; leave it out",
        )


def check_isolation(task: Task) -> None:
    """Raises InvalidRequestError for a sandbox where there is none.

    Replicas serve many calls in one process, and what LangGraph tasks take and return is any object, no plain data.
    """
    if task.sandbox is None:
        return
    if task.kind is TaskKind.LANGGRAPH:
        raise InvalidRequestError(
            "sandbox",
            f"a sandbox for the LangGraph task {task.name!r}",
            "LangGraph tasks have none: make it a task of a workflow, or leave sandbox out",
        )
    if task.on_replicas:
        raise InvalidRequestError(
            "sandbox",
            f"a sandbox for the task {task.name!r}, which runs on replicas",
            "batched tasks, tasks with gpu or gpu_mem, and classes have none: make it a plain function "
            "on CPUs, or leave sandbox out",
        )


def parse_timeout(value: object) -> float | None:
    """Reads a time-out in seconds, or None for no limit. Raises InvalidRequestError."""
    return (
        None if value is None else checks.number(value, "timeout", above=True, maximum=31_536_000)
    )
