"""What the examples have in common: their command line, and that they check their own result."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from lattice import LatticeError


class WrongResultError(Exception):
    """An example did not get the result that it knows to be right."""


def check(right: bool, message: str) -> None:
    """Raises WrongResultError with `message` unless `right`."""
    if not right:
        raise WrongResultError(message)


def run(example: Callable[[str], None], description: str, argv: Sequence[str] | None) -> int:
    """Runs `example` with the service's address from the command line; the process's exit status."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="address of a running service"
    )
    url = parser.parse_args(argv).url
    started = time.monotonic()
    try:
        example(url)
    except (LatticeError, WrongResultError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(f"right, in {time.monotonic() - started:.1f} s")
    return 0
