"""What several commands take, and how they print."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from lattice.client.client import DEFAULT_URL, LatticeClient

#: Type of what `add_subparsers` gives, which argparse does not name.
Commands = argparse._SubParsersAction


def add_url(parser: argparse.ArgumentParser, name: str = "--url") -> None:
    """The option for the service's address."""
    parser.add_argument(
        name,
        dest="url",
        metavar="URL",
        default=os.environ.get("LATTICE_URL", DEFAULT_URL),
        help="address of the service (LATTICE_URL in the environment; default %(default)s)",
    )


def client_of(args: argparse.Namespace) -> LatticeClient:
    """The client of the service that the arguments name. Raises InvalidRequestError."""
    return LatticeClient(args.url)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows in columns as wide as they need to be."""
    texts = [[*heads], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in texts) for at in range(len(heads))]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in texts)
    return "\n".join(lines)
