"""`lattice cancel`: ends runs."""

from __future__ import annotations

import argparse

from lattice.cli.options import Commands, add_url, client_of


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Says what the command takes."""
    parser = commands.add_parser("cancel", help="ends runs; their running tasks are ended")
    parser.add_argument("run_ids", nargs="+", metavar="RUN")
    add_url(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ends them, and prints what became of each: one that had ended stays as it was."""
    with client_of(args) as client:
        for run_id in args.run_ids:
            print(f"{run_id} {client.service.cancel_run(run_id)}")
    return 0
