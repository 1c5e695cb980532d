"""A service of its own under the load of many users (`loadtests.locustfile`), and the limits that it has to keep.

`make loadtest` or `python -m loadtests.load --users 20 --seconds 75`; a soak is `python -m loadtests.load --soak
HOURS`. The limits: no request fails; every accepted run succeeds, is followed to its end and listed, and no
other is; no follower misses a message; in a soak, memory stays flat. Ends with 1 and the reasons where one is
broken. Locust's report (HTML, CSV), the ids of runs, memory and logs are left in `loadtests/results/`.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from loadtests.service import service
from tests.running import INGRESS, ORCHESTRATOR, ROOT, Service

RESULTS = Path(__file__).parent / "results"

#: What has to have happened, as Locust names it: a kind of user that does nothing breaks no other limit.
KINDS = {
    *(("run", name) for name in ("short", "deep", "wide", "batched", "SDK")),
    *(("listen", name) for name in ("early", "late", "resumed")),
}
#: So few users are one of each kind, in the proportions of the locustfile.
FEWEST = 10
#: Seconds that users have, at the end, to follow to its end what they have begun.
PATIENCE = 240

#: In a soak, what a process may grow by from the first to the last third of the time after the warm-up: caches of
#: fixed size that fill late (1,000 workflows, statements), threads and the allocator's pools; and a little for each
#: run, less than one message or one run that is never forgotten. A soak of 36 minutes and 12,643 runs, all kept, grew
#: the orchestrator by 6 MiB and the ingress by 0.6.
SLACK = 16 * 2**20
SLACK_PER_RUN = 200
#: The part of a soak that is left out: processes still load code, and caches fill.
WARM_UP = 0.25

# -- memory ------------------------------------------------------------------------------------


@dataclass
class Memory:
    """What processes of a service occupy, in bytes, over time."""

    running: Service
    times: list[float] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    parts: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = {"orchestrator": ORCHESTRATOR, "ingress": INGRESS}
        self._processes = {part: self.running.processes(name) for part, name in names.items()}
        self.parts = {part: [] for part in names}

    def sample(self, runs: int) -> None:
        """One more, when so many runs had been accepted.

        Without pages that are shared: those of the object store are everybody's and bounded by Ray.

        Raises:
            psutil.NoSuchProcess: one of them is gone.
        """
        self.times.append(time.monotonic())
        self.runs.append(runs)
        for part, processes in self._processes.items():
            infos = [process.memory_info() for process in processes]
            self.parts[part].append(sum(info.rss - info.shared for info in infos))

    def write(self, path: Path) -> None:
        """Writes all as CSV."""
        with path.open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["seconds", "runs", *self.parts])
            for at, runs, *sizes in zip(self.times, self.runs, *self.parts.values(), strict=True):
                lines.writerow([round(at - self.times[0], 1), runs, *sizes])


@dataclass(frozen=True, slots=True)
class Growth:
    """What a process occupied (medians) in the first and the last third after the warm-up, and runs between."""

    part: str
    first: float
    last: float
    runs: float

    @property
    def allowed(self) -> float:
        """Most by which it may have grown, in bytes."""
        return SLACK + SLACK_PER_RUN * self.runs


def growths(memory: Memory) -> list[Growth]:
    """How each part has grown."""
    begin = int(len(memory.times) * WARM_UP)
    third = max(1, (len(memory.times) - begin) // 3)
    first, last = slice(begin, begin + third), slice(len(memory.times) - third, None)
    runs = statistics.median(memory.runs[last]) - statistics.median(memory.runs[first])
    return [
        Growth(part, statistics.median(sizes[first]), statistics.median(sizes[last]), runs)
        for part, sizes in memory.parts.items()
    ]


# -- load --------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[list[str]]:
    """The words of each line; none of a file that is not there."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def put_load(running: Service, users: int, seconds: float, folder: Path) -> Memory:
    """Runs Locust to its end, and samples memory meanwhile."""
    command = [
        *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py"))),
        *("--host", running.url, "--headless", "--only-summary", "--loglevel", "WARNING"),
        # What failed is read from the CSV files.
        *("--exit-code-on-error", "0"),
        *("--users", str(users), "--spawn-rate", str(max(1.0, users / 5))),
        *("--run-time", f"{seconds:.0f}s", "--stop-timeout", str(PATIENCE)),
        *("--csv", str(folder / "load"), "--html", str(folder / "load.html")),
        *("--ledger", str(folder / "runs.txt")),
    ]
    memory = Memory(running)
    with (folder / "locust.log").open("wb") as log:
        locust = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            accepted, size = 0, 0
            while True:
                # Only what is new is read, as a soak's file grows long.
                ledger = folder / "runs.txt"
                if ledger.exists():
                    with ledger.open("rb") as file:
                        file.seek(size)
                        new = file.read()
                    accepted, size = accepted + new.count(b"accepted"), size + len(new)
                memory.sample(accepted)
                try:
                    locust.wait(min(5.0, seconds / 30))
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if locust.poll() is None:
                locust.kill()
                locust.wait()
    if locust.returncode != 0:
        raise RuntimeError((folder / "locust.log").read_text()[-2_000:])
    return memory


def listed_runs(url: str) -> dict[str, str]:
    """Every run that the service knows, and its status."""
    found: dict[str, str] = {}
    page: dict[str, str | int] = {"limit": 1_000}
    with httpx.Client(base_url=url, timeout=60) as http:
        while True:
            runs = http.get("/runs", params=page).raise_for_status().json()["runs"]
            if not runs:
                return found
            found |= {run["run_id"]: run["status"] for run in runs}
            page["before"] = runs[-1]["run_id"]


# -- limits ------------------------------------------------------------------------------------


def broken_requests(folder: Path, rows: Sequence[dict[str, str]]) -> list[str]:
    """What failed, and what did not happen."""
    found = [
        f"{row['Occurrences']} times {row['Method']} {row['Name']}: {row['Error']}"
        for row in rows_of(folder / "load_failures.csv")
    ]
    found += [f"a user broke: {row['Message']}" for row in rows_of(folder / "load_exceptions.csv")]
    happened = {(row["Type"], row["Name"]) for row in rows if int(row["Request Count"])}
    return found + [f"there was no {kind} {name}" for kind, name in sorted(KINDS - happened)]


def broken_runs(ledger: Sequence[Sequence[str]], listed: dict[str, str]) -> list[str]:
    """Runs that did not end, that nobody saw end, that are not listed, and that nobody asked for."""
    accepted, ended = (
        {run_id for what, run_id in ledger if what == kind} for kind in ("accepted", "ended")
    )
    counts = Counter(
        {
            "accepted runs that were not followed to their end": len(accepted - ended),
            "accepted runs that are not listed": len(accepted - listed.keys()),
            "listed runs that were answered to nobody": len(listed.keys() - accepted),
        }
    )
    for status in listed.values():
        if status != "succeeded":
            counts[f"listed runs that are {status}"] += 1
    return [f"{count} {what}" for what, count in counts.items() if count]


def broken_memory(found: Sequence[Growth]) -> list[str]:
    """What is not flat."""
    return [
        f"the {each.part} grew by {(each.last - each.first) / 2**20:.1f} MiB in {each.runs:.0f} runs; "
        f"{each.allowed / 2**20:.1f} MiB are allowed"
        for each in found
        if each.last - each.first > each.allowed
    ]


def show(rows: Sequence[dict[str, str]], found: Sequence[Growth], ended: int, took: float) -> None:
    """Prints the table."""
    heads = ("Request Count", "Failure Count", "50%", "95%", "Max Response Time")
    print(f"{'':<28}{'number':>9}{'failed':>9}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}")
    for row in sorted(rows, key=lambda row: (row["Type"], row["Name"])):
        if row["Name"] != "Aggregated":
            cells = "".join(f"{float(row[head]):9,.0f}" for head in heads)
            print(f"{row['Type'] + ' ' + row['Name']:<28}{cells}")
    print(f"{ended:,} runs in {took:.0f} s, {ended / took:.1f} runs/s")
    for each in found:
        print(
            f"memory of the {each.part}: {each.first / 2**20:.1f}, at last {each.last / 2**20:.1f} MiB"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it; 0 if no limit was broken."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description=__doc__)
    parser.add_argument("--users", type=int, default=20, help=f"at least {FEWEST}")
    parser.add_argument("--seconds", type=float, default=75.0)
    parser.add_argument("--soak", type=float, metavar="HOURS", help="long, with memory checked")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for what is left")
    given = parser.parse_args(arguments)
    if given.users < FEWEST:
        parser.error(f"--users: {given.users}, at least {FEWEST} are needed for one of each kind")
    seconds = given.seconds if given.soak is None else given.soak * 3_600
    folder: Path = given.results
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # All runs are kept, to be counted.
    with service(retention_runs=None, retention_seconds=None, max_replicas=1) as running:
        try:
            memory = put_load(running, given.users, seconds, folder)
            listed = listed_runs(running.url)
        except psutil.NoSuchProcess as error:
            print(f"BROKEN: a process of the service is gone: {error}", file=sys.stderr)
            return 1
        finally:
            shutil.copy(running.log, folder / "service.log")
    memory.write(folder / "memory.csv")
    rows = rows_of(folder / "load_stats.csv")
    ledger = lines_of(folder / "runs.txt")
    found = growths(memory)
    ended = sum(what == "ended" for what, _ in ledger)
    show(rows, found, ended, memory.times[-1] - memory.times[0])
    broken = broken_requests(folder, rows) + broken_runs(ledger, listed)
    if given.soak is not None:
        broken += broken_memory(found)
    for reason in broken:
        print(f"BROKEN: {reason}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
