"""The command `lattice`: what operators do from a shell, over the service's own API.

Each command is a module with `add`, which says what it takes, and a function that does it and returns the
exit status: 0, or 1 with the reason on standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lattice.cli import cancel, key, logs, runs, status, worker
from lattice.errors import LatticeError
from lattice.versions import release

COMMANDS = (status, runs, logs, cancel, worker, key)


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the arguments say; the exit status."""
    parser = argparse.ArgumentParser(
        prog="lattice", description="Looks after a Lattice service and its worker machines."
    )
    parser.add_argument("--version", action="version", version=f"lattice {release()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    args = parser.parse_args(argv)
    try:
        result: int = args.run(args)
        # Here, where a reader that has gone away can still be told from an error.
        sys.stdout.flush()
        return result
    except LatticeError as error:
        print(f"lattice {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read has seen enough, such as `head`. Nothing is left to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
