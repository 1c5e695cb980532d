"""Requests by number: number N of seed S is always the same, but for the ids that the pool holds just then.

About a fifth is what a client would send, on shared ids; the rest is meant to do harm.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from random import Random
from urllib.parse import quote, quote_from_bytes

from tests.fuzz import hostile, pickles
from tests.fuzz.hostile import json_text
from tests.fuzz.pickles import Marks
from tests.fuzz.plans import Planner
from tests.fuzz.pool import Pool
from tests.fuzz.request import WEBSOCKET, Header, Plan, Request, encode
from tests.fuzz.wire import frame


class Generator:
    """Makes requests.

    Args:
        max_body_bytes: the service's setting.
    """

    def __init__(self, seed: str, pool: Pool, marks: Marks, max_body_bytes: int) -> None:
        self._seed = seed
        self._pool = pool
        self._marks = marks
        self._max_body = max_body_bytes
        self._planner = Planner(pool, marks)

    def filling(self, number: int) -> Request:
        """One of the requests that fill the pool before the others are sent."""
        rng = Random(f"{self._seed}/filling/{number}")
        plan = self._planner.submit_workflow(rng)
        return replace(plan, learns="whole", slot=number, place=number).request("filling")

    def request(self, number: int) -> Request:
        """Request `number` of this seed."""
        rng = Random(f"{self._seed}/{number}")
        (make,) = rng.choices([make for make, _ in _KINDS], [weight for _, weight in _KINDS])
        return make(self, rng)

    def good(self, rng: Random) -> Request:
        """As a client sends it, now and then with a key that others use, too."""
        plan = self._planner.plan(rng)
        if plan.method == "POST" and rng.random() < 0.2:
            key = b"key %d" % rng.randrange(50)
            return plan.request("good, with a key", headers=((b"Idempotency-Key", key),))
        return plan.request("good")

    def good_stream(self, rng: Random) -> Request:
        """A WebSocket that follows a run, for a moment or to its end."""
        run_id, workflow_id = self._pool.run(rng)
        path = f"/get_workflow_res/{workflow_id}/{run_id}?after={rng.choice((0, 0, 3))}"
        return self._handshake(rng, "websocket", path.encode(), stream=rng.choice((0.02, 0.5)))

    def broken(self, rng: Random) -> Request:
        """A body that is not JSON or not an object."""
        plan = self._with_body(rng)
        good = json_text(plan.body if plan.body is not None else {}).encode()
        return plan.request("broken body", body=hostile.broken_body(rng, good))

    def mutated(self, rng: Random) -> Request:
        """A good document with hostile places."""
        plan = self._with_body(rng)
        document = hostile.mutated(rng, plan.body if plan.body is not None else {"a": 1})
        body = json_text(document).encode("utf-8", "surrogatepass")
        return plan.request("mutated body", body=body)

    def nested(self, rng: Random) -> Request:
        """A document in which one place is nested by the thousand."""
        plan = self._with_body(rng)
        deep = hostile.nested(
            rng.choice((10_000, 100_000)), rng.choice(("array", "object")), rng.random() < 0.9
        )
        document = dict(plan.body or {"a": 1})
        document[rng.choice([*document])] = rng.choice((deep, {"input_params": {"1": {"a": deep}}}))
        return plan.request("nested body", body=json_text(document).encode())

    def long(self, rng: Random) -> Request:
        """A body at the limit or beyond it."""
        plan = self._with_body(rng)
        body = json_text(plan.body or {"a": 1}).encode()
        length = self._max_body + rng.choice((-1, 0, 1, 100_000))
        if rng.random() < 0.5:
            body += b" " * (length - len(body))
        else:
            body = body[:-1] + b',"padding":"' + b"x" * (length - len(body) - 14) + b'"}'
        return plan.request("long body", body=body)

    def _with_body(self, rng: Random) -> Plan:
        """A plan that has a body, or one of the few operations that need none."""
        while (plan := self._planner.plan(rng)).method != "POST":
            pass
        return plan

    def typed(self, rng: Random) -> Request:
        """A good body under another name."""
        types = (
            b"",
            b"text/plain",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data",
            b"multipart/form-data; boundary=x",
            b"application/json; charset=utf-16",
            b"application/octet-stream",
            b"application/vnd.api+json",
            b"APPLICATION/JSON",
            b"application/json, text/plain",
            b"\xff\xfe",
            b"/",
            b"a" * 5_000,
        )
        return self._with_body(rng).request("content type", content_type=rng.choice(types))

    def hostile_path(self, rng: Random) -> Request:
        """Hostile ids in a path."""
        templates = [
            (plan.operation, plan.path)
            for plan in (self._planner.plan(rng) for _ in range(20))
            if "{" in plan.operation
        ]
        operation, _ = rng.choice(templates or [("GET /runs/{run_id}", "")])
        method, template = operation.split(" ", 1)
        path = b""
        for piece in template.split("/")[1:]:
            path += b"/"
            path += _id_in_path(rng) if piece.startswith("{") else piece.encode()
        # An id with a slash, or an empty one, may make it another path.
        query = rng.choice((b"", b"", b"?", b"?after=0", b"#a"))
        return Request("hostile path", "", encode(method, path + query), proxy=True, stream=0.3)

    def hostile_query(self, rng: Random) -> Request:
        """Hostile parameters."""
        plans = self._planner
        plan = rng.choice(
            (plans.list_runs, plans.delete_runs, plans.task_result, plans.run_events)
        )(rng)
        names = ("limit", "workflow_id", "status", "before", "after", "format", "a[]", "")
        pairs = [
            rng.choice(names).encode() + b"=" + _id_in_path(rng, longest=3_000)
            for _ in range(rng.choice((1, 1, 2, 20)))
        ]
        path = plan.path.encode() + b"?" + rng.choice((b"&", b"&", b";")).join(pairs)
        return plan.request("hostile query", path=path, proxy=True)

    def hostile_headers(self, rng: Random) -> Request:
        """Hostile headers, of which one is often an idempotency key."""
        plan = self._planner.plan(rng)
        value = _header_value(rng)
        choices: tuple[tuple[Header, ...], ...] = (
            ((b"Idempotency-Key", value),),
            ((b"Idempotency-Key", value),),
            ((b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")),
            ((b"Idempotency-Key", b"k" * rng.choice((255, 256, 5_000))),),
            ((b"Last-Event-ID", value),),
            ((b"Host", value),),
            ((b"Origin", value),),
            ((b"Origin", b"http://[::1"),),
            ((b"Origin", b"null"), (b"Sec-Fetch-Site", b"cross-site")),
            ((b"Authorization", b"Bearer " + value),),
            ((b"Content-Encoding", b"gzip"),),
            ((b"Accept-Encoding", value), (b"Accept", value)),
            ((b"Cookie", value * 3),),
            ((b"X-Forwarded-For", value), (b"X-Forwarded-Proto", value), (b"Forwarded", value)),
            ((b"traceparent", value), (b"X-Request-ID", value)),
            ((b"X-Session-ID", value), (b"serve_multiplexed_model_id", value)),
            ((b"X-Request-Timeout-Seconds", value), (b"X-Request-Disconnect-Disabled", value)),
            ((b"Range", b"bytes=0-,1-,2-"), (b"If-None-Match", value)),
            ((b"Expect", rng.choice((b"100-continue", b"a"))),),
            ((b"Connection", rng.choice((b"close", b"Upgrade", b"keep-alive, x"))),),
            ((b"Upgrade", b"h2c"), (b"Connection", b"Upgrade"), (b"HTTP2-Settings", b"AAMA")),
            tuple((b"X-%d" % number, b"a") for number in range(rng.choice((90, 300)))),
            ((b"X-Long", b"a" * rng.choice((8_000, 20_000, 100_000))),),
            ((b"X\xff", b"a"),),
            ((b"", b"a"),),
            ((b" folded", b"a\r\n b"),),
            ((b"X-Nul", b"a\0b"),),
        )
        headers = rng.choice(choices)
        return plan.request("hostile headers", headers=headers, proxy=True)

    def framing(self, rng: Random) -> Request:
        """HTTP that is broken below the body."""
        plan = self._with_body(rng)
        body = json_text(plan.body or {"a": 1}).encode()
        head = f"POST {plan.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        start = head.encode()
        chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
        chunk = b"%x\r\n%s\r\n" % (len(body), body)
        huge = b"%x\r\n%s\r\n" % (65_536, b" " * 65_536) * (self._max_body // 65_536 + 2)
        leaving = (
            chunked + chunk,
            chunked + b"ffffffff\r\n" + body,
            start + b"Content-Length: 100000\r\n\r\n" + body,
            start,
            start + b"Content-Length: 10",
            chunked + huge[: len(huge) // 2],
            b"POST",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(100),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        )
        answered = (
            chunked + chunk + b"0\r\n\r\n",
            chunked + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
            chunked + huge + b"0\r\n\r\n",
            chunked + b"zz\r\n" + body,
            chunked + b"-1\r\n" + body,
            chunked + b"fffffffffffffffffffff\r\n" + body,
            chunked + chunk + b"0\r\nX-Trailer: a\r\n\r\n",
            start + b"Content-Length: -1\r\n\r\n",
            start + b"Content-Length: 1e3\r\n\r\n",
            start + b"Content-Length: " + b"9" * rng.choice((19, 30, 5_000)) + b"\r\n\r\n",
            start + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
            start
            + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunk
            + b"0\r\n\r\n",
            start + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk + b"0\r\n\r\n",
            b"POST " + plan.path.encode() + b"\r\n\r\n",
            b"POST " + plan.path.encode() + b" HTTP/9.9\r\nHost: a\r\n\r\n",
            b"POST " + plan.path.encode() + b" HTTP/1.1\r\n\r\n",
            b"POST http://127.0.0.1" + plan.path.encode() + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\r\n\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET  /healthz  HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        if rng.random() < 0.4:
            return Request("broken framing", "", rng.choice(leaving), proxy=True, leaves=True)
        return Request("broken framing", "", rng.choice(answered), proxy=True)

    def elsewhere(self, rng: Random) -> Request:
        """Paths and methods that there are not, and what browsers ask before they ask."""
        plan = self._planner.plan(rng)
        method = rng.choice(
            (
                "GET",
                "PUT",
                "PATCH",
                "DELETE",
                "HEAD",
                "OPTIONS",
                "TRACE",
                "PROPFIND",
                "QUERY",
                "post",
            )
        )
        path = rng.choice(
            (
                plan.path,
                plan.path + "/",
                "/" + plan.path,
                plan.path.upper(),
                "/",
                "/docs",
                "/-/routes",
            )
        )
        preflight = ((b"Origin", b"http://a"), (b"Access-Control-Request-Method", b"POST"))
        headers = preflight if rng.random() < 0.2 else ()
        data = encode(method, path.encode(), None, headers)
        return Request("elsewhere", "", data, proxy=True, stream=0.1)

    def hostile_pickle(self, rng: Random) -> Request:
        """A run of a workflow of its own, all of whose code is hostile."""
        plan = self._planner.submit_workflow(rng)
        for task in plan.body["tasks"]:
            for key in ("code_str", "code_ser", "serialized_code"):
                task.pop(key, None)
            key = rng.choice(("code_ser", "serialized_code"))
            task[key] = pickles.arguments(rng, self._marks, key, pickles.RETURNS)
        return plan.request("hostile pickle")

    def deadly(self, rng: Random) -> Request:
        """A run whose task ends its process."""
        task = {
            "task_id": "deadly",
            "task_name": "deadly",
            "code_str": rng.choice(pickles.DEADLY),
            "task_input": {},
            "task_output": {},
        }
        plan = self._planner.submit_workflow(rng)
        return replace(plan, body={"tasks": [task]}).request("deadly code")

    def hostile_websocket(self, rng: Random) -> Request:
        """Hostile ids, numbers and frames."""
        run_id, workflow_id = self._pool.run(rng)
        ids = [workflow_id.encode(), run_id.encode()]
        if rng.random() < 0.6:
            ids[rng.randrange(2)] = _id_in_path(rng)
        path = b"/get_workflow_res/" + ids[0] + b"/" + ids[1]
        if rng.random() < 0.5:
            path += b"?after=" + _id_in_path(rng, longest=3_000)
        frames = (
            b"",
            frame(1, b"hello" * rng.randrange(1, 1_000)),
            frame(1, b"\xff\xfe"),
            frame(2, rng.randbytes(100)),
            frame(1, b"a" * 300_000),
            frame(3, b"reserved"),
            frame(9, b"ping" * 40),
            frame(9, b"ping") * 50,
            frame(0, b"nothing to go on with"),
            frame(1, b"a", final=False) + frame(1, b"b", final=False),
            frame(8, b"\x03"),
            frame(8, b"\x00\x01"),
            frame(8, b"\x03\xe8bye"),
            b"\x81\x05hello",
            b"\x81\xff" + b"\xff" * 8,
            rng.randbytes(50),
        )
        return self._handshake(rng, "hostile websocket", path, stream=0.1, after=rng.choice(frames))

    def _handshake(
        self, rng: Random, kind: str, path: bytes, *, stream: float, after: bytes = b""
    ) -> Request:
        key = base64.b64encode(rng.randbytes(16))
        version = b"13"
        headers: tuple[Header, ...] = (
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Version", version),
            (b"Sec-WebSocket-Key", key),
        )
        hostile_too = kind.startswith("hostile")
        if hostile_too and rng.random() < 0.2:
            at = rng.randrange(len(headers))
            changed = rng.choice(((), ((headers[at][0], rng.choice((b"", b"a", b"\xff"))),)))
            headers = (*headers[:at], *changed, *headers[at + 1 :])
        elif hostile_too and rng.random() < 0.1:
            headers = (*headers, (b"Origin", _header_value(rng)))
        data = encode("GET", path, None, headers) + after
        operation = WEBSOCKET if not hostile_too else ""
        return Request(kind, operation, data, proxy=hostile_too, stream=stream)


def _id_in_path(rng: Random, longest: int = 30_000) -> bytes:
    """Text as it stands in a path or a query: quoted well, badly or not at all."""
    dice = rng.random()
    if dice < 0.45:
        return quote(hostile.text(rng).encode("utf-8", "surrogatepass"), safe="")[:longest].encode()
    if dice < 0.6:
        return quote_from_bytes(rng.randbytes(rng.randrange(1, 30)), safe="").encode()
    if dice < 0.75:
        return b"9" * rng.choice((1, 17, 400, min(longest, 5_000)))
    pieces = (
        b"%00",
        b"a%00b",
        b"%2F",
        b"a/b",
        b"/",
        b"..",
        b"%2e%2e/%2e%2e",
        b"%",
        b"%zz",
        b"%ff%fe",
        b"%c0%80",
        b"%ed%a0%80",
        b"%25%30%30",
        b"a;b=c",
        b"a%0d%0aX: y",
        b"a%20b",
        b"[]",
        b"a" * 2_000,
        b"a" * longest,
        b"\xff",
        b"-1",
        b"1e5",
        b"%F0%9F%92%A9",
    )
    return rng.choice(pieces)


def _header_value(rng: Random) -> bytes:
    return rng.choice(
        (
            b"",
            b" ",
            b"a\tb",
            b"\x7f",
            b"\x01",
            b"\xff\xfe",
            "é".encode(),
            "é".encode("latin-1"),
            b"k" * 255,
            b"k" * 256,
            b"k" * 8_000,
            b"-1",
            b"9" * 30,
            b"a, b",
            b"'; DROP TABLE replies; --",
            b"http://localhost.evil.example",
            b"127.0.0.1:99999999",
            b"[::1]",
            b"*",
            b"(" * 500,
            b"inf",
            b"1e300",
            b"1e-9",
            b"?1",
        )
    )


#: What is sent, and how often.
_KINDS: tuple[tuple[Callable[[Generator, Random], Request], float], ...] = (
    (Generator.good, 20),
    (Generator.good_stream, 2),
    (Generator.broken, 14),
    (Generator.mutated, 26),
    (Generator.nested, 2),
    (Generator.long, 0.7),
    (Generator.typed, 2),
    (Generator.hostile_path, 10),
    (Generator.hostile_query, 6),
    (Generator.hostile_headers, 7),
    (Generator.framing, 3.5),
    (Generator.elsewhere, 3),
    (Generator.hostile_pickle, 1.5),
    (Generator.deadly, 0.1),
    (Generator.hostile_websocket, 3),
)
