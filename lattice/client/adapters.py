"""Functions that stand between a task as the service calls it and the user's own function.

The service calls `code(params)`, or `code(batch)` for a batch. What stands here is sent along with the
user's code, by value, so it may use nothing but its arguments and the standard library: no function
of this module either, which would travel by reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def adapted(
    code: Callable[..., Any],
    *,
    keywords: bool,
    output: str | None,
    groups: Mapping[str, Sequence[str]],
    batched: bool,
) -> Callable[..., Any]:
    """What is sent to the service for `code`: `code` itself where it can be called as it is.

    Args:
        keywords: `code` takes its inputs as keyword arguments, not as one dict.
        output: the output that the returned value is; None if `code` returns a dict of outputs.
        groups: inputs that are lists, and the parameters in which their items arrive.
        batched: `code` takes a list of dicts.
    """
    if not keywords and output is None and not groups:
        return code
    arrange = _arranging({key: list(parts) for key, parts in groups.items()}, batched)
    if isinstance(code, type):
        return _class_of(code, keywords, output, arrange)
    if _is_async(code):
        return _async_call(code, keywords, output, arrange)
    return _call(code, keywords, output, arrange)


def _is_async(code: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(code) or inspect.iscoroutinefunction(
        getattr(code, "__call__", None)  # noqa: B004  # an instance whose call is a coroutine
    )


def _arranging(groups: dict[str, list[str]], batched: bool) -> Callable[[Any], Any]:
    """A function that puts the items of list inputs together again."""

    def arranged(params: dict[str, Any]) -> dict[str, Any]:
        parts = {part for names in groups.values() for part in names}
        result = {key: value for key, value in params.items() if key not in parts}
        for key, names in groups.items():
            result[key] = [params[name] for name in names]
        return result

    def each(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [arranged(params) for params in batch]

    return each if batched else arranged


def _call(
    code: Callable[..., Any],
    keywords: bool,
    output: str | None,
    arrange: Callable[[Any], Any],
) -> Callable[[Any], Any]:
    def call(params: Any) -> Any:
        given = arrange(params)
        value = code(**given) if keywords else code(given)
        return value if output is None else {output: value}

    return call


def _async_call(
    code: Callable[..., Any],
    keywords: bool,
    output: str | None,
    arrange: Callable[[Any], Any],
) -> Callable[[Any], Any]:
    async def call(params: Any) -> Any:
        given = arrange(params)
        value = await (code(**given) if keywords else code(given))
        return value if output is None else {output: value}

    return call


def _class_of(
    code: type, keywords: bool, output: str | None, arrange: Callable[[Any], Any]
) -> type:
    """A class, as the service makes one instance and calls it many times."""
    if not inspect.iscoroutinefunction(getattr(code, "__call__", None)):  # noqa: B004  # as above

        class Adapted:
            def __init__(self) -> None:
                self._instance = code()

            def __call__(self, params: Any) -> Any:
                given = arrange(params)
                value = self._instance(**given) if keywords else self._instance(given)
                return value if output is None else {output: value}

        return _named_like(code, Adapted)

    class AsyncAdapted:
        def __init__(self) -> None:
            self._instance = code()

        async def __call__(self, params: Any) -> Any:
            given = arrange(params)
            value = await (self._instance(**given) if keywords else self._instance(given))
            return value if output is None else {output: value}

    return _named_like(code, AsyncAdapted)


def _named_like(code: type, adapted: type) -> type:
    """`adapted` under the name of the user's class, for errors that name it."""
    adapted.__name__ = code.__name__
    adapted.__qualname__ = code.__qualname__
    adapted.__module__ = code.__module__
    return adapted
