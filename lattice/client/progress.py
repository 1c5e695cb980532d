"""A bar that shows how far a run is."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from lattice.client.events import Event, FinishTask, FinishWorkflow, StartTask, TaskException


class Progress:
    """A bar of `total` tasks, on standard error, if `shown`. A context manager."""

    def __init__(self, total: int, name: str, *, shown: bool) -> None:
        self._bar: Any = tqdm(total=total, desc=name, unit="task", disable=not shown)
        self._running: dict[str, None] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def tell(self, event: Event) -> None:
        """Moves the bar on."""
        if isinstance(event, StartTask):
            self._running[event.task] = None
        elif isinstance(event, FinishTask | TaskException):
            self._running.pop(event.task, None)
            self._bar.update()
        elif isinstance(event, FinishWorkflow):
            self._running.clear()
        if self._running:
            more = len(self._running) - 1
            self._bar.set_postfix_str(next(iter(self._running)) + (f" +{more}" if more else ""))
        elif isinstance(event, FinishWorkflow):
            self._bar.set_postfix_str(event.status)
