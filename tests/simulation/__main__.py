"""`python -m tests.simulation`: many worlds by their seeds, or one of them with its trace."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.world import Outcome, run


def replay(outcome: Outcome) -> str:
    """What went wrong, and the command that shows it again."""
    return (
        f"seed {outcome.seed}: {outcome.violation}\n"
        f"  python -m tests.simulation --seed {outcome.seed} --verbose"
    )


def main() -> int:
    """Returns the number of failing seeds, at most 1 for the shell."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this world alone")
    parser.add_argument("--verbose", action="store_true", help="print the trace")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failing seed")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    began, failed, runs, processes = time.monotonic(), 0, 0, 0
    for done, seed in enumerate(seeds, 1):
        outcome = run(seed)
        runs, processes = runs + outcome.runs, processes + outcome.processes
        if options.verbose:
            print(*outcome.trace, sep="\n")
        if outcome.violation is not None:
            failed += 1
            print(replay(outcome), flush=True)
            if not options.keep_going:
                break
        if done % 10_000 == 0:
            print(f"{done} worlds", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{done} worlds with {runs} runs and {processes} processes in {seconds:.1f} s, "
        f"{done / seconds:.0f} a second; {failed} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
