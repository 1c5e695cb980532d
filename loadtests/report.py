"""All benchmarks, one after another, as one table and one picture: `make bench`.

Each runs in a process of its own, with an engine of its own. What it prints also goes, as Markdown and as a picture
of those figures that have a target, into the folder that is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from xml.sax.saxutils import escape

import psutil

from loadtests.bench import Figure, show

#: What is measured, by the module that does it.
TITLES = {
    "bench_overhead": "Runs beside raw Ray tasks",
    "bench_requests": "Requests beside a bare FastAPI deployment",
    "bench_latency": "Messages, from the end of a task to a socket",
    "bench_durability": "Durable runs beside runs in memory",
    "bench_growth": "Large runs beside small ones",
    "bench_recovery": "Restart after a kill",
    "bench_batching": "Batches on replicas",
    "bench_runs": "Whole runs of batched tasks",
    "bench_scaling": "More replicas",
    "bench_cold_start": "From zero replicas",
    "bench_definitions": "Saving batched tasks",
}
_WIDTH, _LEFT, _ROW = 900, 430, 22
_COLOURS = {True: "#2a7f62", False: "#b5493a"}


def machine() -> str:
    """Cores and memory."""
    memory = psutil.virtual_memory().total / 1024**3
    return f"{os.cpu_count()} cores, {memory:.0f} GiB"


def measured(module: str) -> list[Figure]:
    """The figures of one benchmark."""
    found: list[Figure] = import_module(f"loadtests.{module}").figures()
    return found


def markdown(tables: dict[str, Sequence[Figure]]) -> str:
    """All tables."""
    parts = [f"Medians, lowest and highest of the rounds. {machine()}."]
    for title, figures in tables.items():
        lines = [f"| {title} | median | lowest | highest | target | |", "|---|---|---|---|---|---|"]
        lines += [figure.row() for figure in figures]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def picture(tables: dict[str, Sequence[Figure]]) -> str:
    """Bars of all figures that have a target, as SVG: how far each is from it, which is the line."""
    rows: list[str] = []
    y = 40
    unit = (_WIDTH - _LEFT - 60) / 2
    for title, figures in tables.items():
        aimed = [figure for figure in figures if figure.target is not None]
        if not aimed:
            continue
        rows.append(f'<text x="10" y="{y + 14}" font-weight="bold">{escape(title)}</text>')
        y += _ROW
        for figure in aimed:
            assert figure.target is not None
            median = statistics.median(figure.values)
            part = median / figure.target
            length = min(max(part, 0.0), 2.0) * unit
            value = f"{median:,.{figure.digits}f}"
            rows += [
                f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(figure.label)}</text>',
                f'<rect x="{_LEFT}" y="{y + 3}" width="{length:.0f}" height="{_ROW - 8}" '
                f'fill="{_COLOURS[figure.reached]}"/>',
                f'<text x="{_LEFT + length + 5:.0f}" y="{y + 14}">{value}</text>',
            ]
            y += _ROW
        y += 6
    line = _LEFT + unit
    head = "The line is each figure's target: green is on the right side of it."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 10}" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="10" y="20">{head} Medians; {machine()}.</text>',
            *rows,
            f'<line x1="{line:.0f}" y1="30" x2="{line:.0f}" y2="{y}" stroke="black"/>',
            "</svg>\n",
        ]
    )


def main() -> None:
    """Runs the benchmarks that are named, or all; ends with 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=[*TITLES], help=", ".join(TITLES))
    parser.add_argument("--results", type=Path, default=Path("loadtests/results"))
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Sequence[Figure]] = {}
    failed = []
    for module in arguments.modules:
        print(f"\n{TITLES[module]} ({module})", flush=True)
        try:
            # A new interpreter for each: an engine leaves its marks in the process that had it.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                tables[TITLES[module]] = pool.submit(measured, module).result()
        except Exception as error:
            failed.append(module)
            print(f"failed: {type(error).__name__}: {error}", flush=True)
            continue
        show(tables[TITLES[module]])
        (arguments.results / "benchmarks.md").write_text(markdown(tables))
        (arguments.results / "benchmarks.svg").write_text(picture(tables))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
