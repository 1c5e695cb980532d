"""The code of a replica as its batches call it, with the secrets around it.

A replica whose task asks for secrets starts without its code: their values stand nowhere where a process that starts
could find them, but come with each call. So the code is loaded, and its class constructed, once the first call is
there. Code may keep what it found (`self.client = OpenAI()`), so with new values it is loaded anew. Around code that
runs nothing changes: what runs with the old values ends first, and what comes meanwhile waits. A replica is of one
definition, so all its calls ask for the same secrets of one tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from lattice.execution.code import CodeLoadError, Function
from lattice.execution.secrets import SecretValues, in_environment
from lattice.workflow.events import ErrorInfo

Result = TypeVar("Result")
#: Loads code while secrets are in the environment, and lets go of it at the end. Raises CodeLoadError.
Opener = Callable[[Mapping[str, str]], AbstractContextManager[Function]]


class InThread(Protocol):
    """Does work in a thread of those that call the code."""

    async def __call__(self, work: Callable[[], Result]) -> Result: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """Code, and the secrets that were there when it was loaded, by name."""

    function: Function
    secrets: Mapping[str, str] = field(repr=False)
    end: ExitStack


class LoadedCode:
    """Loaded once, and again when secrets have changed. Lives on one event loop."""

    def __init__(self, open_code: Opener, in_thread: InThread) -> None:
        self._open = open_code
        self._in_thread = in_thread
        self._newest: Mapping[str, str] = {}
        self._read_at = 0.0
        self._loaded: Loaded | None = None
        self._failed: tuple[Mapping[str, str], float, ErrorInfo] | None = None
        self._users = 0
        self._around = ExitStack()
        self._changed = asyncio.Condition()
        #: When it was loaded, in seconds since the epoch.
        self.loaded_at = 0.0

    def bring(self, values: SecretValues) -> None:
        """Takes values that came with a call, unless newer ones have come before."""
        if values.read_at > self._read_at:
            self._read_at = values.read_at
            if values.by_name != self._newest:
                self._newest = values.by_name

    @contextlib.asynccontextmanager
    async def in_use(self, asked: float) -> AsyncIterator[Loaded]:
        """Inside, it does not change, and its secrets are in the environment.

        `asked`: when that was asked for which is to run, in seconds since the epoch.

        Raises:
            CodeLoadError: it does not load, or did not when it was asked for.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._users or self._is_newest)
            try:
                if not self._is_newest:
                    await self._load(asked)
            finally:
                self._changed.notify_all()
            loaded = self._loaded
            assert loaded is not None
            if not self._users:
                self._around.enter_context(in_environment(loaded.secrets))
            self._users += 1
        try:
            yield loaded
        finally:
            async with self._changed:
                self._users -= 1
                if not self._users:
                    self._around.close()
                    self._changed.notify_all()

    @property
    def _is_newest(self) -> bool:
        return self._loaded is not None and self._loaded.secrets is self._newest

    async def _load(self, asked: float) -> None:
        secrets = self._newest
        if self._failed is not None:
            tried, at, info = self._failed
            if tried is secrets and asked < at:
                # A constructor may take minutes to fail: not again for each that waits.
                raise CodeLoadError(info)
            self._failed = None
        old, self._loaded = self._loaded, None
        if old is not None:
            await self._in_thread(old.end.close)
            # What it occupied, such as the memory of a GPU, must be free before it is constructed again.
            del old
            gc.collect()

        def load() -> Loaded:
            with ExitStack() as stack:
                function = stack.enter_context(self._open(secrets))
                return Loaded(function, secrets, stack.pop_all())

        try:
            self._loaded = await self._in_thread(load)
        except CodeLoadError as error:
            self._failed = secrets, time.time(), error.info
            raise
        self.loaded_at = time.time()
