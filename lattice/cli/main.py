"""The command `lattice`: finds the module of the sub-command and hands over to it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lattice.cli import key
from lattice.errors import LatticeError

#: Each adds its parser with `add`, whose default `run` takes the parsed arguments and returns the exit status.
_COMMANDS = (key,)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command; the process's exit status: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="lattice", description="Works with a Lattice service.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except LatticeError as error:
        print(f"lattice: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
