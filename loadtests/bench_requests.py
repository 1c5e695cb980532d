"""Requests per second through the ingress, beside a bare FastAPI application on the same Serve and proxy.

`python -m loadtests.bench_requests` takes a minute. `/healthz` does not reach the orchestrator; its floor is an
endpoint that returns a document. `POST /create_workflow` waits for a commit in SQLite; its floor is that same
endpoint, and, to see where the rest goes, one that asks a replica behind. All take turns, over as many
connections as there are callers.
"""

from __future__ import annotations

import asyncio
import os

import httpx

from loadtests.bare import BARE
from loadtests.bench import Figure, rate, ratios, show
from loadtests.service import service

ROUNDS = int(os.environ.get("ROUNDS", "7"))
NUMBER, CALLERS = 400, 16


class Endpoint:
    """An endpoint, and the rates that it reached."""

    def __init__(self, http: httpx.AsyncClient, method: str, path: str) -> None:
        self._http = http
        self._method = method
        self._path = path
        self.rates: list[float] = []

    async def _call(self, _: int) -> None:
        answer = await self._http.request(self._method, self._path)
        assert answer.status_code == 200, answer.text

    async def measure(self) -> None:
        """Adds a rate."""
        self.rates.append(await rate(self._call, NUMBER, CALLERS))


async def measure(url: str) -> list[Figure]:
    """The figures."""
    limits = httpx.Limits(max_connections=CALLERS, max_keepalive_connections=CALLERS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        plain = Endpoint(http, "GET", "/bare/plain")
        behind = Endpoint(http, "GET", "/bare/behind")
        health = Endpoint(http, "GET", "/healthz")
        create = Endpoint(http, "POST", "/create_workflow")
        endpoints = (plain, health, behind, create)
        for each in endpoints:
            await each.measure()
            each.rates.clear()
        for _ in range(ROUNDS):
            for each in endpoints:
                await each.measure()
    return [
        Figure("bare FastAPI, requests/s", plain.rates, 0),
        Figure("GET /healthz, requests/s", health.rates, 0),
        Figure("  of bare", ratios(health.rates, plain.rates), at_least=0.8),
        Figure("bare FastAPI asking a replica, requests/s", behind.rates, 0),
        Figure("POST /create_workflow, requests/s", create.rates, 0),
        Figure("  of bare", ratios(create.rates, plain.rates), at_least=0.3),
        Figure("  of bare asking a replica", ratios(create.rates, behind.rates)),
    ]


def figures() -> list[Figure]:
    """Starts a service and measures."""
    with service(beside=[BARE]) as running:
        return asyncio.run(measure(running.url))


if __name__ == "__main__":
    show(figures())
