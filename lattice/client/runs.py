"""A run: its events while it goes on, its results, its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lattice.api.models.schemas import LogEntry, RunReport
from lattice.client import events, pickling, sources
from lattice.client.errors import RunCancelledError, RunFailedError, ServiceError, TaskFailure
from lattice.client.events import Event, FinishTask, FinishWorkflow, TaskException, TaskLog
from lattice.client.handles import Output, TaskHandle
from lattice.client.progress import Progress
from lattice.client.service import Service, output_path
from lattice.client.suggestions import did_you_mean
from lattice.errors import InvalidRequestError


class Run:
    """A run on the service. Made by `Workflow.run` and `LatticeClient.run`; may be used from any thread.

    `result` gives what is small JSON as it came with the messages (so a tuple is a list there), and
    fetches everything else; `output` and `run[task]` give the exact objects. Fetched values are unpickled
    here: trust in them is trust in the run's tasks and in its service.
    """

    def __init__(
        self,
        service: Service,
        workflow_id: str,
        run_id: str,
        names: Mapping[str, str],
        workflow_name: str | None = None,
    ) -> None:
        self.run_id = run_id
        self.workflow_id = workflow_id
        self._service = service
        self._workflow_name = workflow_name
        self._given_names = names
        self._names = _unique(names)
        self._outputs: dict[str, dict[str, Any]] = {}
        #: Objects that were fetched, by task id and output.
        self._values: dict[tuple[str, str], Any] = {}
        self._end: FinishWorkflow | None = None
        self._failures: list[TaskFailure] = []

    def events(
        self, *, after: int = 0, timeout: float | None = None, logs: bool = False
    ) -> Iterator[Event]:
        """The run's events, each once and in order, as they happen; the last is a `FinishWorkflow`.

        Starts with the run's first event, however late it is called, or with the one after the event
        numbered `after`. A lost connection is made again. With `logs` there are `TaskLog` events too: first what
        tasks have printed so far, then what they print, each text once.

        Raises:
            DeadlineError: the run did not end within `timeout` seconds.
            ConnectionFailedError, ServiceError
        """
        parsed: Event | None = None

        def read(message: str | bytes) -> tuple[int, bool]:
            nonlocal parsed
            parsed = events.parse(message, self._names)
            return parsed.seq, isinstance(parsed, FinishWorkflow)

        subscription = self._service.subscription(
            self.workflow_id, self.run_id, read, after, logs=logs
        )
        told: dict[tuple[str, int], int] = {}
        for _ in subscription.follow(timeout):
            assert parsed is not None
            if isinstance(parsed, TaskLog):
                key, offset = (parsed.task_id, parsed.attempt), parsed.data["offset"]
                if offset <= told.get(key, -1):
                    continue
                told[key] = offset
            yield parsed

    def logs(self, which: TaskHandle | str, *, attempt: int | None = None) -> list[LogEntry]:
        """What a task (a handle or a name) has printed and logged so far, of all attempts or of one.

        Of each attempt the beginning and the end are kept; `cut` says how many bytes are missing before an
        entry. `"".join(entry.text for entry in run.logs("train"))` is the text.

        Raises:
            InvalidRequestError: the run has no such task.
            ServiceError
        """
        return self._service.task_logs(self.run_id, self._task_id(which), attempt)

    def result(
        self, timeout: float | None = None, *, progress: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Waits for the run's end; the outputs of each task, by the task's name.

        Args:
            timeout: seconds to wait; None waits as long as it takes. The run goes on in any case.
            progress: shows a bar.

        Raises:
            RunFailedError: a task failed, and the error has its traceback; or the deadline passed.
            RunCancelledError: the run was cancelled.
            DeadlineError: the run did not end in time.
        """
        if self._end is None:
            self._wait(timeout, progress)
        assert self._end is not None
        if self._end.status == "cancelled":
            raise RunCancelledError(self.run_id)
        if self._end.status != "succeeded":
            raise RunFailedError(self.run_id, self._failures, self._end.reason)
        return {
            name: self._shown(task_id)
            for task_id, name in self._names.items()
            if task_id in self._outputs
        }

    def output(self, which: TaskHandle | Output | str) -> Any:
        """The outputs of a finished task (a handle or a name), or one of them; the run may go on.

        They are the exact objects that the task returned, each fetched once.

        Raises:
            InvalidRequestError: the run has no such task.
            RunFailedError, RunCancelledError: the run has ended without it.
            ServiceError: the task has not finished; the status is 404.
        """
        if isinstance(which, Output):
            task_id = self._task_id(which.task)
            self._ensure_finished(task_id)
            return self._exact(task_id, which.key)
        task_id = self._task_id(which)
        self._ensure_finished(task_id)
        return {key: self._exact(task_id, key) for key in self._outputs[task_id]}

    __getitem__ = output

    def status(self) -> str:
        """`running`, `succeeded`, `failed` or `cancelled`, as it is now."""
        return self._end.status if self._end else self.report().status

    def report(self) -> RunReport:
        """How far each task is, as it is now."""
        return self._service.describe_run(self.run_id)

    def cancel(self) -> str:
        """Ends the run; its status, which is as it was for a run that had ended."""
        return self._service.cancel_run(self.run_id)

    def retry(self) -> Run:
        """A new run that does what this one, failed or cancelled, has left undone.

        What has finished here does not run again: its results are those of the new run too.

        Raises:
            ServiceError: this run has not ended, or has succeeded; the status is 400.
        """
        run_id = self._service.retry_run(self.run_id)
        return Run(self._service, self.workflow_id, run_id, self._given_names, self._workflow_name)

    def delete(self) -> None:
        """Deletes the run, which has ended, with its values on the service. Raises ServiceError."""
        self._service.delete_run(self.run_id)

    def __repr__(self) -> str:
        of = f" of {self._workflow_name!r}" if self._workflow_name else ""
        return f"<Run {self.run_id}{of}, {len(self._names)} tasks>"

    def _wait(self, timeout: float | None, show: bool) -> None:
        outputs: dict[str, dict[str, Any]] = {}
        failures: list[TaskFailure] = []
        with Progress(len(self._names), self._workflow_name or "run", shown=show) as progress:
            for event in self.events(timeout=timeout):
                progress.tell(event)
                if isinstance(event, FinishTask):
                    outputs[event.task_id] = dict(event.result)
                elif isinstance(event, TaskException):
                    failures.append(
                        TaskFailure(
                            event.task,
                            event.task_id,
                            event.error_type,
                            event.message,
                            sources.restored(event.traceback),
                        )
                    )
                elif isinstance(event, FinishWorkflow):
                    self._outputs, self._failures = outputs, failures
                    self._end = event

    def _task_id(self, which: TaskHandle | str) -> str:
        if isinstance(which, TaskHandle):
            name, task_id = which.name, which.task_id
        else:
            ids = {name: task_id for task_id, name in self._names.items()}
            name, task_id = which, ids.get(which, which)
        if task_id not in self._names:
            raise InvalidRequestError(
                "task", f"{name!r}, not in this run", did_you_mean(name, self._names.values())
            )
        return task_id

    def _ensure_finished(self, task_id: str) -> None:
        """Gets to know the outputs of a task, as far as the messages show them."""
        if task_id not in self._outputs:
            try:
                self._outputs[task_id] = self._service.task_result(self.run_id, task_id)
            except ServiceError as error:
                if error.status == 404 and self.status() in ("failed", "cancelled"):
                    self.result()  # says why there is nothing
                raise

    def _shown(self, task_id: str) -> dict[str, Any]:
        """The outputs of a task, with each description replaced by its value."""
        return {
            key: self._exact(task_id, key) if self._is_description(task_id, key, value) else value
            for key, value in self._outputs[task_id].items()
        }

    def _is_description(self, task_id: str, key: str, value: object) -> bool:
        # A dict of the user's own that looks the same stands for the same value.
        url = output_path(self.run_id, task_id, key)
        return isinstance(value, dict) and value.get("url") == url

    def _exact(self, task_id: str, key: str) -> Any:
        """The object that a task returned as an output."""
        if (task_id, key) not in self._values:
            data = self._service.output(self.run_id, task_id, key)
            self._values[task_id, key] = pickling.loads(data)
        return self._values[task_id, key]


def _unique(names: Mapping[str, str]) -> dict[str, str]:
    """`names` by task id, with the id in place of a name that several tasks have."""
    counts = Counter(names.values())
    return {task_id: name if counts[name] == 1 else task_id for task_id, name in names.items()}


def attach(service: Service, run_id: str) -> Run:
    """The run of that id. Raises ServiceError (404) where there is none."""
    report = service.describe_run(run_id)
    names = {task.task_id: task.name for task in report.tasks}
    return Run(service, report.workflow_id, run_id, names)
