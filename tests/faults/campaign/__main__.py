"""`python -m tests.faults.campaign`: kills processes of a service of its own under load, and prints a table."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from tests.faults.campaign.campaign import run
from tests.faults.campaign.report import summary, table


def main() -> int:
    """Returns 1 for the shell if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="draws what is killed, and when")
    options = parser.parse_args()
    # Its service and node are stopped whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} {text}", file=sys.stderr, flush=True)

    result = run(options.kills, options.seed, say)
    print(table(result), summary(result), sep="\n\n", flush=True)
    return 1 if result.verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
