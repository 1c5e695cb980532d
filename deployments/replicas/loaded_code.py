"""The code of a replica as its batches call it, with the secrets around it.

A replica whose task asks for secrets starts without its code: their values stand nowhere where a process that starts
could find them, but come with each call. So the code is loaded, and its class constructed, once the first call is
there. Code may keep what it found (`self.client = OpenAI()`), so with new values it is loaded anew. Around code that
runs nothing changes: what runs with the old values ends first, and what comes meanwhile waits. A replica is of one
definition, so all its calls ask for the same secrets of one tenant.

What was let go of, or did not load, may have left threads and destructors that know the values before. So all that a
replica has seen stays masked as long as it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from lattice.execution import capture
from lattice.execution.arguments import UnavailableError
from lattice.execution.code import CodeLoadError, Function
from lattice.execution.failures import describe
from lattice.execution.secrets import SecretValues, in_environment, masked_error
from lattice.ports.execution import LogEntry
from lattice.workflow.events import ErrorInfo

#: What is kept of what code prints while it is loaded, in bytes. Where it does not load, Serve is told it.
_MOST_PRINTED = 16 * 1024

Result = TypeVar("Result")
#: Loads code while secrets are in the environment, and lets go of it at the end.
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


@dataclass(frozen=True, slots=True)
class _Failed:
    """When code did not load, in seconds since the epoch, with which secrets, and why."""

    at: float
    secrets: Mapping[str, str] = field(repr=False)
    info: ErrorInfo


class LoadedCode:
    """Loaded once, and again when secrets have changed. Lives on one event loop.

    Args:
        name: the task's.
    """

    def __init__(self, name: str, open_code: Opener, in_thread: InThread) -> None:
        self._name = name
        self._open = open_code
        self._in_thread = in_thread
        self._newest: Mapping[str, str] = {}
        self._read_at = 0.0
        self._loaded: Loaded | None = None
        self._failed: _Failed | None = None
        self._loading: asyncio.Task[None] | None = None
        self._users = 0
        self._unused = asyncio.Event()
        self._around = ExitStack()
        self._seen = capture.SeenSecrets()
        #: When it was loaded, in seconds since the epoch.
        self.loaded_at = 0.0
        self._printed: deque[LogEntry] = deque()

    def bring(self, values: SecretValues) -> None:
        """Takes values that came with a call, unless newer ones have come before."""
        if values.read_at > self._read_at:
            self._read_at = values.read_at
            self._newest = values.by_name
            self._seen.add(values.by_name.values())

    @property
    def values(self) -> tuple[str, ...]:
        """The values of secrets that came, which are masked in all that this process prints."""
        return self._seen.values

    def masked(self, info: ErrorInfo) -> ErrorInfo:
        """`info` without the values."""
        return masked_error(info, self.values)

    def take_printed(self) -> list[LogEntry]:
        """What it printed and logged while it was loaded, or was to be, for whoever asks first, from any thread."""
        printed: list[LogEntry] = []
        with contextlib.suppress(IndexError):
            while True:
                printed.append(self._printed.popleft())
        return printed

    @property
    def is_loading(self) -> bool:
        """It is being loaded at this moment."""
        return self._loading is not None

    @contextlib.asynccontextmanager
    async def in_use(self, asked: float) -> AsyncIterator[Loaded]:
        """Inside, it does not change, and its secrets are in the environment.

        `asked`: when that was asked for which is to run, in seconds since the epoch.

        Raises:
            CodeLoadError: it does not load, or did not when it was asked for.
            UnavailableError: it cannot be had.
        """
        loaded = await self._newest_loaded(asked)
        if not self._users:
            self._around.enter_context(in_environment(loaded.secrets))
        self._users += 1
        try:
            yield loaded
        finally:
            # At once, as waiting could be cancelled.
            self._users -= 1
            if not self._users:
                self._around.close()
                self._unused.set()

    async def _newest_loaded(self, asked: float) -> Loaded:
        while True:
            if self._loading is not None:
                await asyncio.wait([self._loading])
            elif self._loaded is not None and self._loaded.secrets == self._newest:
                return self._loaded
            elif self._users:
                self._unused.clear()
                await self._unused.wait()
            else:
                failed, self._failed = self._failed, None
                if failed is not None and failed.secrets == self._newest and asked < failed.at:
                    # A constructor may take minutes to fail: not again for each that waits.
                    self._failed = failed
                    raise CodeLoadError(failed.info)
                # A task of its own: a thread goes on when the one is cancelled who waits for it.
                self._loading = asyncio.ensure_future(self._load(self._newest))
                self._loading.add_done_callback(self._has_loaded)
                await asyncio.shield(self._loading)

    def _has_loaded(self, loading: asyncio.Task[None]) -> None:
        self._loading = None
        if not loading.cancelled():
            loading.exception()  # which nobody may wait for any more

    async def _load(self, secrets: Mapping[str, str]) -> None:
        left = [self._loaded]
        self._loaded = None

        def load() -> Loaded:
            # What the old code occupied, such as the memory of a GPU, must be free before it is constructed again.
            if (old := left.pop()) is not None:
                old.end.close()
                del old
                gc.collect()
            with ExitStack() as stack:
                function = stack.enter_context(self._open(secrets))
                return Loaded(function, secrets, stack.pop_all())

        def load_or_say_why() -> Loaded:
            try:
                with capture.recording(
                    _MOST_PRINTED, lambda entries: None, self.values
                ) as recorder:
                    return load()
            except UnavailableError as error:
                raise UnavailableError(self.masked(error.error), lost=error.lost) from None
            except CodeLoadError as error:
                raise CodeLoadError(self.masked(error.info)) from None
            except BaseException as error:
                # Also those that end an event loop which they get into.
                raise CodeLoadError(self.masked(describe(error, self._name))) from None
            finally:
                self._printed.extend(recorder.kept())

        try:
            self._loaded = await self._in_thread(load_or_say_why)
        except CodeLoadError as error:
            self._failed = _Failed(time.time(), secrets, error.info)
            raise
        self.loaded_at = time.time()
