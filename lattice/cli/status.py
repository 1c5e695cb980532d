"""`lattice status`: whether the service is there, what it is, and the machines that it has."""

from __future__ import annotations

import argparse
from typing import Any

from lattice.cli.options import Commands, add_url, client_of, table
from lattice.client.errors import ServiceError


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Says what the command takes."""
    parser = commands.add_parser("status", help="the service, its workers and its unfinished runs")
    add_url(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints it. 1 if the service cannot start runs."""
    with client_of(args) as client:
        service = client.service
        health = service.health()
        print(f"{client.url}: Lattice {health.version}, Python {health.python}", end="")
        try:
            service.ready()
        except ServiceError as error:
            print(f", not ready: {error}")
            return 1
        print(", ready")
        running = service.list_runs(status="running", limit=1000)
        print(f"{len(running)}{'+' if len(running) == 1000 else ''} unfinished runs")
        heads = ("WORKER", "ADDRESS", "STATUS", "CPU", "MEMORY", "GPU")
        print(table(heads, [_row(worker) for worker in service.workers()]))
    return 0


def _row(worker: dict[str, Any]) -> tuple[object, ...]:
    has = worker["resources"]
    gpus = has.get("gpu_resource")
    if gpus:
        shown = ", ".join(f"{gpu['gpu_mem']:.0f} MiB" for gpu in gpus.values() if "gpu_mem" in gpu)
        gpu = f"{len(gpus)} ({shown})" if shown else str(len(gpus))
    else:
        gpu = f"{has.get('gpu', 0):g}"
    memory = f"{has['cpu_mem']:.0f} MiB" if "cpu_mem" in has else "?"
    cpu = f"{has['cpu']:g}" if "cpu" in has else "?"
    status = worker["status"]
    if worker.get("gone_since"):
        status += f", gone since {worker['gone_since'][:19]}Z"
    return worker["node_id"], worker["node_ip"], status, cpu, memory, gpu
