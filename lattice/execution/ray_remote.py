"""What Ray tasks are made of: resources as Ray options, remote functions, and code as references."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import ray

from lattice.execution.shape import Shape
from lattice.ids import Digest
from lattice.ports.execution import LoadCode

_MIB = 1024 * 1024
#: Functions with their options, which Ray validates once for each.
_MAX_FUNCTIONS = 256
#: Code kept in the object store, by number and by size; the least recently used goes first.
_MAX_CODES = 1_024
_MAX_CODE_BYTES = 256 * _MIB
#: Code up to this many bytes costs less inside each task than as a reference, which workers borrow.
_SMALL_CODE = 8 * 1024


def options_of(shape: Shape) -> dict[str, Any]:
    """A shape as options of a Ray task, which is never run again by Ray itself."""
    options: dict[str, Any] = {"num_cpus": shape.cpus, "num_gpus": shape.gpus, "max_retries": 0}
    if shape.memory:
        options["memory"] = int(shape.memory * _MIB)
    if shape.runtime_env:
        options["runtime_env"] = json.loads(shape.runtime_env)
    if shape.excluded:
        nodes = ",".join(sorted(shape.excluded))
        options["label_selector"] = {"ray.io/node-id": f"!in({nodes})"}
    return options


class RemoteFunctions:
    """One worker function as a Ray function with the options of each shape."""

    def __init__(self, function: Callable[..., Any], returns: int) -> None:
        self._remote = ray.remote(function)
        self._returns = returns
        self._shaped: OrderedDict[Shape, Any] = OrderedDict()

    def of(self, shape: Shape) -> Any:
        """The Ray function for `shape`. Raises ValueError or TypeError for options that Ray refuses."""
        if shape not in self._shaped:
            options = options_of(shape) | {"num_returns": self._returns}
            self._shaped[shape] = self._remote.options(**options)
            if len(self._shaped) > _MAX_FUNCTIONS:
                self._shaped.popitem(last=False)
        else:
            self._shaped.move_to_end(shape)
        return self._shaped[shape]


#: Code as it goes to a worker: itself when it is small, else a reference, fetched only where it is needed.
CodeSource = bytes | ray.ObjectRef[bytes]


class CodeSources:
    """Code by digest; what is not small is put into the object store once while it is used."""

    def __init__(self, load: LoadCode) -> None:
        self._load = load
        self._kept: OrderedDict[Digest, tuple[CodeSource, int]] = OrderedDict()
        self._bytes = 0
        self._loading: dict[Digest, asyncio.Task[CodeSource]] = {}

    def get(self, digest: Digest) -> CodeSource | None:
        """The code, if it has been loaded."""
        if digest not in self._kept:
            return None
        self._kept.move_to_end(digest)
        return self._kept[digest][0]

    def load(self, digest: Digest) -> asyncio.Task[CodeSource]:
        """Loads the code. All who ask meanwhile share the task."""
        if digest not in self._loading:
            self._loading[digest] = asyncio.ensure_future(self._put(digest))
        return self._loading[digest]

    async def _put(self, digest: Digest) -> CodeSource:
        try:
            data = await self._load(digest)
            size = len(data)
            small = size <= _SMALL_CODE
            source: CodeSource = data if small else await asyncio.to_thread(ray.put, data)
        finally:
            del self._loading[digest]
        self._kept[digest] = source, size
        self._bytes += size
        while len(self._kept) > _MAX_CODES or (
            self._bytes > _MAX_CODE_BYTES and len(self._kept) > 1
        ):
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped
        return source

    async def close(self) -> None:
        """Lets go of all code."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._kept.clear()
