"""Declaring functions and classes as tasks.

A declared function stays the function that it was, so it can be called and tested like any other; its
declaration is kept beside it. There are two forms:

- `@task(inputs=["a", "b"], outputs=["c"])` on `def f(params: dict) -> dict`: inputs come as one dict,
  outputs go as one dict. With `batch_size`, on `def f(batch: list[dict]) -> list[dict]`.
- `@task` on a function with typed parameters: each parameter is an input, and those with a default may
  be left out. The returned value is the output `result`; if the function is annotated to return a
  TypedDict, or `outputs` names them, it returns a dict and each key is an output.

A class is declared by the signature of its `__call__`; the service makes one instance and calls it
many times.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from lattice.client import stable
from lattice.client.adapters import adapted
from lattice.client.suggestions import did_you_mean
from lattice.errors import InvalidRequestError
from lattice.ids import Digest
from lattice.workflow.task import Code, CodeForm, Task, check_isolation, check_scaling

#: The output that the value of a plain function is.
RESULT = "result"

_ANY = "Any"

_Code = TypeVar("_Code", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a task takes, gives and needs.

    Attributes:
        inputs: name and data type of each input.
        optional: inputs that may be left out.
        outputs: name and data type of each output.
        keywords: the code takes its inputs as keyword arguments, not as one dict.
        single: the code's value is its only output, not a dict of outputs.
        needs: `resources`, `batch_config`, `autoscaling`, `retry`, `timeout`, `runtime_env`, `sandbox`,
            `secrets` as far as given, in the form of the API.
    """

    name: str
    inputs: Mapping[str, str]
    optional: frozenset[str]
    outputs: Mapping[str, str]
    keywords: bool
    single: bool
    needs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batched(self) -> bool:
        """Whether the code takes many calls at once."""
        return "batch_config" in self.needs

    def payload(
        self, code: Callable[..., Any], groups: Mapping[str, Sequence[str]]
    ) -> Callable[..., Any]:
        """What the service is sent for `code`, given the parts in which list inputs arrive."""
        return adapted(
            code,
            keywords=self.keywords,
            output=next(iter(self.outputs)) if self.single else None,
            groups=groups,
            batched=self.batched,
        )


@overload
def task(code: _Code, /) -> _Code: ...


@overload
def task(
    code: None = None,
    /,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    resources: Mapping[str, float] | None = None,
    data_types: Mapping[str, str] | None = None,
    batch_size: int | None = None,
    batch_timeout: float | None = None,
    max_concurrent_batches: int | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    retry: int | Mapping[str, Any] | None = None,
    timeout: float | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    sandbox: bool | Mapping[str, int] | None = None,
    secrets: Iterable[str] | None = None,
    name: str | None = None,
) -> Callable[[_Code], _Code]: ...


def task(
    code: Any = None,
    /,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    resources: Mapping[str, float] | None = None,
    data_types: Mapping[str, str] | None = None,
    batch_size: int | None = None,
    batch_timeout: float | None = None,
    max_concurrent_batches: int | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    retry: int | Mapping[str, Any] | None = None,
    timeout: float | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    sandbox: bool | Mapping[str, int] | None = None,
    secrets: Iterable[str] | None = None,
    name: str | None = None,
) -> Any:
    """Declares a function or class as a task and returns it unchanged.

    Args:
        inputs: names of the inputs; the function then takes one dict.
        outputs: names of the outputs; the function then returns a dict.
        resources: `cpu` and `gpu`, which may be fractions, `cpu_mem` and `gpu_mem` in MiB.
        data_types: what inputs and outputs hold, by name; information for people and tools.
        batch_size: the function takes a list of up to so many dicts and returns a list as long. It must
            tolerate being called again with a part of a list whose call failed.
        batch_timeout: seconds to wait for a batch to fill; 0 (the default) does not wait.
        max_concurrent_batches: batches that a replica works on at a time, each in a thread; 1 by default.
        autoscaling: `min_replicas`, `max_replicas`, `target_ongoing_requests`, `upscale_delay`,
            `downscale_delay` (seconds) and `warm_up`, for tasks with a batch_size or a GPU and classes.
        retry: how many times to try; or `max_attempts`, `backoff` and `max_backoff` (seconds, of which up
            to half is left to chance), and `on`: names of the exception classes that alone are tried
            again, with their subclasses ("TaskTimeoutError" for time-outs).
        timeout: longest attempt, in seconds.
        runtime_env: `env_vars` and `pip` packages that the code needs.
        sandbox: whether the code runs in a sandbox, or its limits: `cpu_seconds`, `memory` and `scratch` (MiB),
            `processes`. It then returns plain data.
        secrets: names of secrets that the service has, which are in the environment while the code runs.
        name: a name for people; by default that of the function.

    Raises:
        InvalidRequestError: a value that makes no sense.
        TypeError: a function that cannot be called in the way declared.
    """

    def declare(code: Any) -> Any:
        declaration = _declared(
            code,
            name=name,
            inputs=inputs,
            outputs=outputs,
            data_types=data_types or {},
            needs=_needs(
                name or _name(code),
                isinstance(code, type),
                resources,
                _batch_config(batch_size, batch_timeout, max_concurrent_batches),
                autoscaling,
                retry,
                timeout,
                runtime_env,
                sandbox,
                secrets,
            ),
        )
        _attach(code, declaration)
        return code

    return declare if code is None else declare(code)


def declaration_of(code: object) -> Declaration:
    """The declaration of a task; a function that is not declared is taken as with a bare `@task`.

    Raises:
        TypeError: `code` is not a function or class, or cannot be called with named inputs.
    """
    found = getattr(code, "__dict__", {}).get(stable.DECLARATION)
    if isinstance(found, Declaration):
        return found
    return _declared(code, name=None, inputs=None, outputs=None, data_types={}, needs={})


def _attach(code: Any, declaration: Declaration) -> None:
    present = getattr(code, "__dict__", {}).get(stable.DECLARATION)
    if present is not None and present != declaration:
        raise TypeError(
            f"{declaration.name} is declared as a task already, in another way; declare a function "
            "that calls it"
        )
    try:
        setattr(code, stable.DECLARATION, declaration)
    except (AttributeError, TypeError):
        raise TypeError(
            f"{declaration.name} ({type(code).__name__}) cannot be declared; declare a function that "
            "calls it"
        ) from None


def _name(code: object) -> str:
    name = getattr(code, "__name__", None) or type(code).__name__
    return "task" if name == "<lambda>" else str(name)


def _batch_config(
    batch_size: int | None, batch_timeout: float | None, max_concurrent_batches: int | None
) -> dict[str, Any] | None:
    """How batches fill; None for a task without. Raises InvalidRequestError."""
    more = {"batch_timeout": batch_timeout, "max_concurrent_batches": max_concurrent_batches}
    given = {key: value for key, value in more.items() if value is not None}
    if batch_size is None:
        for key, value in given.items():
            raise InvalidRequestError(
                key, repr(value), "it goes with a batch_size, which is missing"
            )
        return None
    return {"enabled": True, "batch_size": batch_size, "batch_timeout": 0.0} | given


def _needs(
    name: str,
    is_class: bool,
    resources: Mapping[str, float] | None,
    batch_config: dict[str, Any] | None,
    autoscaling: Mapping[str, Any] | None,
    retry: int | Mapping[str, Any] | None,
    timeout: float | None,
    runtime_env: Mapping[str, Any] | None,
    sandbox: bool | Mapping[str, int] | None,
    secrets: Iterable[str] | None,
) -> dict[str, Any]:
    """What was given, in the form of the API. Raises InvalidRequestError where it makes no sense."""
    needs: dict[str, Any] = {}
    if batch_config is not None:
        needs["batch_config"] = batch_config
    if autoscaling is not None:
        needs["autoscaling"] = dict(autoscaling)
    if resources is not None:
        needs["resources"] = dict(resources)
    if retry is not None:
        needs["retry"] = {"max_attempts": retry} if isinstance(retry, int) else dict(retry)
    if timeout is not None:
        needs["timeout"] = timeout
    if runtime_env is not None:
        needs["runtime_env"] = dict(runtime_env)
    if sandbox is not None:
        needs["sandbox"] = sandbox if isinstance(sandbox, bool) else dict(sandbox)
    if secrets is not None:
        needs["secrets"] = [*secrets]
    code = Code(Digest("unknown"), CodeForm.PICKLE, name, is_class)
    task = Task.from_document(
        {"task_id": "unnamed", "task_name": name, "code": code.document(), **needs}
    )
    check_scaling(task)
    check_isolation(task)
    return needs


# -- reading signatures ------------------------------------------------------------------------


def _declared(
    code: Any,
    *,
    name: str | None,
    inputs: Iterable[str] | None,
    outputs: Iterable[str] | None,
    data_types: Mapping[str, str],
    needs: Mapping[str, Any],
) -> Declaration:
    if not callable(code):
        raise TypeError(f"a function or class can be a task, not {code!r}")
    called = name or _name(code)
    parameters, returned = _signature(code, called)
    named_outputs = None if outputs is None else _names(outputs, called, "outputs")
    # A function without inputs that was written for one dict.
    takes_dict = inputs is not None or (
        named_outputs is not None and [p.name for p in parameters] == ["params"]
    )
    batched = "batch_config" in needs
    if batched and (inputs is None or outputs is None):
        raise TypeError(
            f"{called} has a batch_size, so it takes a list of dicts and returns one: name its "
            "inputs= and outputs="
        )
    if takes_dict:
        _check_takes_one(parameters, called, "a list of dicts" if batched else "one dict")
        input_types = dict.fromkeys(_names(inputs or (), called, "inputs"), _ANY)
        optional: frozenset[str] = frozenset()
        if named_outputs is None:
            raise TypeError(f"{called} has inputs=, so it returns a dict: name its outputs=")
    else:
        input_types, optional = _keyword_inputs(parameters, called)
    single = False
    if named_outputs is not None:
        output_types = dict.fromkeys(named_outputs, _ANY)
    elif typing.is_typeddict(returned):
        output_types = {key: _type_name(kind) for key, kind in returned.__annotations__.items()}
    else:
        output_types, single = {RESULT: _type_name(returned)}, True
    for key in data_types:
        if key not in input_types and key not in output_types:
            raise InvalidRequestError(
                f"data_types of {called!r}",
                repr(key),
                did_you_mean(key, [*input_types, *output_types]),
            )
    return Declaration(
        name=called,
        inputs={key: data_types.get(key, kind) for key, kind in input_types.items()},
        optional=optional,
        outputs={key: data_types.get(key, kind) for key, kind in output_types.items()},
        keywords=not takes_dict,
        single=single,
        needs=needs,
    )


def _names(names: Iterable[str], called: str, what: str) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"{what} of {called}: a list of names is allowed, not the text {names!r}")
    found = list(names)
    for name in found:
        if not (name and isinstance(name, str)):
            raise TypeError(f"{what} of {called}: a list of names is allowed, {name!r} is none")
        if found.count(name) > 1:
            raise TypeError(f"{what} of {called}: {name!r} stands there twice")
    return found


def _signature(code: Any, called: str) -> tuple[list[inspect.Parameter], Any]:
    """Parameters of the call that the service makes, and what it is annotated to return."""
    function = code.__call__ if isinstance(code, type) else code
    if isinstance(code, type) and not isinstance(function, types.FunctionType):
        raise TypeError(f"the class {called} has no __call__, which the service would call")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise TypeError(
            f"{called} does not tell its parameters; declare a function that calls it"
        ) from None
    parameters = list(signature.parameters.values())
    if isinstance(code, type):
        parameters = parameters[1:]
    return parameters, _resolved(signature.return_annotation, function)


def _resolved(annotation: Any, function: Any) -> Any:
    """An annotation that was written or kept as text, as the object it names if that can be found."""
    if not isinstance(annotation, str):
        return annotation
    function = inspect.unwrap(function)
    names = dict(getattr(function, "__globals__", {}))
    if isinstance(function, types.FunctionType):
        names |= inspect.getclosurevars(function).nonlocals
    try:
        return eval(annotation, names)  # noqa: S307  # the text stands in the code of whoever calls
    except Exception:
        return annotation


def _check_takes_one(parameters: list[inspect.Parameter], called: str, what: str) -> None:
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD,)]
    if not parameters or parameters[0].kind not in positional or len(needed) > 1:
        shown = ", ".join(str(parameter) for parameter in parameters)
        raise TypeError(
            f"{called} has inputs=, so it is called with {what}, which ({shown}) does not take; "
            "without inputs= each parameter is an input"
        )


def _keyword_inputs(
    parameters: list[inspect.Parameter], called: str
) -> tuple[dict[str, str], frozenset[str]]:
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"{called} takes {parameter}, which has no fixed name: inputs are passed by name, so "
                "give each a parameter, or name inputs= and take one dict"
            )
    return (
        {parameter.name: _type_name(parameter.annotation) for parameter in parameters},
        frozenset(p.name for p in parameters if p.default is not p.empty),
    )


def _type_name(annotation: Any) -> str:
    """A short name for an annotation."""
    if annotation is inspect.Parameter.empty:
        return _ANY
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return annotation if annotation.isprintable() and annotation else _ANY
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    if annotation is None:
        return "None"
    return str(annotation).replace("typing.", "")
