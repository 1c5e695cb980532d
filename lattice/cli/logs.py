"""`lattice logs`: what the tasks of a run print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from lattice.cli.options import Commands, add_url, client_of
from lattice.client.events import TaskLog


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Says what the command takes."""
    parser = commands.add_parser("logs", help="what the tasks of a run have printed and logged")
    parser.add_argument("run_id", metavar="RUN")
    parser.add_argument("task", nargs="?", metavar="TASK", help="only this task, by name or id")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="goes on until the run has ended"
    )
    add_url(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints it as it was printed, each line after its task's name where there are several."""
    with client_of(args) as client:
        followed = client.run(args.run_id)
        tasks = followed.report().tasks
        shown = {
            task.task_id: task.name
            for task in tasks
            if args.task in (None, task.task_id, task.name)
        }
        if args.task is not None and not shown:
            # Is refused here, with the names that there are.
            followed.logs(args.task)
        printer = _Printer(shown)
        try:
            if args.follow:
                for event in followed.events(logs=True):
                    if isinstance(event, TaskLog) and event.task_id in shown:
                        printer.add(event.task_id, event.stream, event.text)
                        sys.stdout.flush()
            else:
                for task_id in shown:
                    for entry in followed.logs(task_id):
                        printer.add(task_id, entry.stream, entry.text)
        finally:
            # Also where somebody has seen enough: what hangs has perhaps begun a line about it.
            printer.end()
    return 0


class _Printer:
    """Prints what tasks have printed; of several, which `names` has by id, whole lines after their names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        #: Lines that have only begun, by task and stream. What comes are pieces, cut anywhere.
        self._begun: dict[tuple[str, str], str] = {}

    def add(self, task_id: str, stream: str, text: str) -> None:
        # What a task prints may be no text that can be encoded.
        text = text.encode("utf-8", "replace").decode()
        if len(self._names) == 1:
            print(text, end="")
            return
        lines = (self._begun.pop((task_id, stream), "") + text).splitlines(keepends=True)
        if lines and not lines[-1].endswith(("\n", "\r")):
            self._begun[task_id, stream] = lines.pop()
        for line in lines:
            self._print(task_id, line)

    def end(self) -> None:
        """No more comes."""
        for (task_id, _), line in self._begun.items():
            self._print(task_id, line)

    def _print(self, task_id: str, line: str) -> None:
        text = line.rstrip("\r\n")
        print(f"{self._names[task_id]}: {text}")
