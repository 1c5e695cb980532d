"""Sends numbered requests over several connections at a time and judges what comes back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from tests.fuzz.pickles import Marks
from tests.fuzz.pool import WORKFLOWS, Pool
from tests.fuzz.request import Request
from tests.fuzz.requests import Generator
from tests.fuzz.verdict import Verdict
from tests.fuzz.wire import Answer, Connection, NoAnswerError, SilentError
from tests.running import wait_for

#: Kinds of requests after which the other end may close, or wait, without a word.
_UNANSWERED = ("broken framing", "hostile websocket")
#: A campaign in which so much is wrong is not worth its time.
_ENOUGH = 20
#: More workflows than the service keeps in memory.
_MANY = 1_000


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer that should not be, and how to see it again."""

    seed: str
    number: int
    request: Request
    what: str
    answer: Answer | None

    def __str__(self) -> str:
        said = (
            "nothing" if self.answer is None else f"{self.answer.status} {self.answer.body[:500]!r}"
        )
        return (
            f"seed {self.seed}, request {self.number} ({self.request.kind}): {self.what}\n"
            f"  python -m tests.fuzz --seed {self.seed} --first {self.number} --requests 1\n"
            f"  sent {self.request.data[:1_500]!r}\n"
            f"  answered {said}"
        )


class Campaign:
    """Requests of one seed against one service.

    Attributes:
        faults: what went wrong, in the order in which it was seen.
        answers: how many answers there were, by kind and status.
        slowest: the longest that an answer took, in seconds, and its request's number.
    """

    def __init__(
        self, url: str, seed: str, marks: Marks, max_body_bytes: int, connections: int = 6
    ) -> None:
        self.faults: list[Fault] = []
        self.answers: Counter[tuple[str, str]] = Counter()
        self.slowest = (0.0, 0)
        self._url = url
        self._port = int(url.rpartition(":")[2])
        self._seed = seed
        self._connections = connections
        self._pool = Pool()
        self._generator = Generator(seed, self._pool, marks, max_body_bytes)
        self._verdict = Verdict(httpx.get(f"{url}/openapi.json", timeout=60).json())
        self._lock = threading.Lock()

    def fill(self) -> None:
        """Fills the pool with workflows that run."""
        with Connection(self._port) as connection:
            for number in range(WORKFLOWS):
                self._send(connection, -1 - number, self._generator.filling(number))

    def run(self, first: int, requests: int) -> None:
        """Sends the requests with numbers from `first` on, each connection the next that nobody has sent."""
        numbers = iter(range(first, first + requests))
        with ThreadPoolExecutor(self._connections) as threads:
            for done in [threads.submit(self._work, numbers) for _ in range(self._connections)]:
                done.result()

    def _work(self, numbers: Iterator[int]) -> None:
        with Connection(self._port) as connection:
            while True:
                with self._lock:
                    number = next(numbers, None)
                if number is None or len(self.faults) >= _ENOUGH:
                    return
                self._send(connection, number, self._generator.request(number))

    def _send(self, connection: Connection, number: int, request: Request) -> None:
        began = time.monotonic()
        if request.proxy:
            connection.close()
        answer, what = self._answer(connection, request)
        if request.proxy:
            # What is left of it must not be taken for the beginning of the next.
            connection.close()
        if answer is not None and answer.status == 200 and request.learns and not what:
            self._pool.learn(request.learns, request.slot, request.place, request.sent, answer.body)
        with self._lock:
            self.slowest = max(self.slowest, (time.monotonic() - began, number))
            self.answers[request.kind, str(answer.status) if answer else "none"] += 1
            if what:
                self.faults.append(Fault(self._seed, number, request, what, answer))

    def _answer(self, connection: Connection, request: Request) -> tuple[Answer | None, str]:
        """What came, if anything, and what is wrong with that."""
        if request.leaves:
            connection.send_and_leave(request.data)
            return None, ""
        try:
            answer = connection.exchange(
                request.data, head=request.method == "HEAD", stream=request.stream
            )
        except NoAnswerError as error:
            return None, "" if request.kind in _UNANSWERED else f"no answer: {error}"
        except SilentError:
            return None, "" if request.kind in _UNANSWERED else "no answer for a long time"
        return answer, self._verdict.of(request, answer)

    def settle(self) -> None:
        """Ends and removes every run, and puts empty workflows in the place of those in memory.

        What the service then holds does not depend on how much was asked of it.
        """
        with httpx.Client(base_url=self._url, timeout=120) as http:

            def asked(method: str, path: str, **params: int) -> httpx.Response:
                """The answer of a service that may have much to do first."""

                def answer() -> httpx.Response | None:
                    found = http.request(method, path, params=params)
                    return None if found.status_code == 503 else found

                found: httpx.Response = wait_for(path, answer)
                return found

            while page := asked("GET", "/runs", limit=1000).json()["runs"]:
                for run in page:
                    if run["status"] == "running":
                        http.post(f"/runs/{run['run_id']}/cancel")
                for workflow_id in {run["workflow_id"] for run in page}:
                    http.delete(f"/workflows/{workflow_id}/runs", params={"limit": 10_000})
            with ThreadPoolExecutor(self._connections) as threads:
                answers = threads.map(lambda _: asked("POST", "/create_workflow"), range(_MANY))
                assert {answer.status_code for answer in answers} == {200}
