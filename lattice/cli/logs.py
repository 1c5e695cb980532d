"""`lattice logs`: what the tasks of a run print."""

from __future__ import annotations

import argparse
import sys

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
        names = {task.task_id: task.name for task in tasks}
        if args.task is not None:
            # An unknown one is refused here, with the names that there are.
            followed.logs(args.task)
        shown = [task for task in tasks if args.task in (None, task.task_id, task.name)]
        alone = len(shown) == 1
        if not args.follow:
            for task in shown:
                for entry in followed.logs(task.task_id):
                    _print(entry.text, None if alone else task.name)
            return 0
        wanted = {task.task_id for task in shown}
        for event in followed.events(logs=True):
            if isinstance(event, TaskLog) and event.task_id in wanted:
                _print(event.text, None if alone else names[event.task_id])
                sys.stdout.flush()
    return 0


def _print(text: str, name: str | None) -> None:
    # What a task prints may be no text that can be encoded.
    text = text.encode("utf-8", "replace").decode()
    if name is None:
        print(text, end="")
        return
    for line in text.splitlines():
        print(f"{name}: {line}")
