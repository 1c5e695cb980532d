"""`python -m tests.fuzz`: as many hostile requests as wanted, from any seed, against a service of its own."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.campaign import Campaign
from tests.fuzz.pickles import Marks
from tests.fuzz.settings import MAX_BODY, SETTINGS
from tests.fuzz.watch import Watch, heaps
from tests.running import running_service
from tests.service.rest import Rest


def main() -> int:
    """Returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", default="0", help="which requests")
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--requests", type=int, default=10_000, help="how many")
    parser.add_argument("--connections", type=int, default=6, help="how many at a time")
    parser.add_argument("--looks", type=int, default=2, help="how often to look at the memory")
    parser.add_argument("--verbose", action="store_true", help="count the answers")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(**SETTINGS) as service,
        Rest(service.url) as rest,
    ):
        marks = Marks(Path(folder) / "marks")
        watch = Watch(service)
        campaign = Campaign(service.url, options.seed, marks, MAX_BODY, options.connections)
        campaign.fill()
        size = max(1, options.requests // options.looks)
        for first in range(options.first, options.first + options.requests, size):
            began = time.monotonic()
            campaign.run(first, size)
            took = time.monotonic() - began
            campaign.settle()
            print(
                f"up to {first + size}: {size / took:.0f} a second", heaps(rest), watch.resident()
            )
        if options.verbose:
            for (kind, status), count in sorted(campaign.answers.items()):
                print(f"{count:7d} {kind}: {status}")
            print(Counter((mark.place, mark.command) for mark in marks.read()))
        print(f"slowest: request {campaign.slowest[1]}, {campaign.slowest[0]:.1f} s")
        wrong = [
            *campaign.faults,
            *watch.changes(),
            *watch.trespasses(marks.read()),
            *watch.defects(),
        ]
        print(*wrong, f"{len(wrong)} wrong", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
