"""`lattice runs`: the runs that there are, or the tasks of one."""

from __future__ import annotations

import argparse

from lattice.cli.options import Commands, add_url, client_of, table


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Says what the command takes."""
    parser = commands.add_parser("runs", help="runs, newest first, or the tasks of one run")
    parser.add_argument("run_id", nargs="?", metavar="RUN", help="shows how far its tasks are")
    parser.add_argument("--status", choices=("running", "succeeded", "failed", "cancelled"))
    parser.add_argument("--limit", type=int, default=20, help="most runs (default %(default)s)")
    add_url(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints them."""
    with client_of(args) as client:
        if args.run_id is None:
            found = client.service.list_runs(status=args.status, limit=args.limit)
            listed = [
                (each.run_id, each.status, each.created, each.finished or "") for each in found
            ]
            print(table(("RUN", "STATUS", "CREATED", "FINISHED"), listed))
            return 0
        report = client.service.describe_run(args.run_id)
    print(f"{report.run_id} {report.status}")
    rows = []
    for task in report.tasks:
        error = (task.error or {}).get("message", "")
        rows.append((task.name, task.task_id, task.state, task.waiting_for or _first_line(error)))
    print(table(("TASK", "ID", "STATE", ""), rows))
    return 0


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
