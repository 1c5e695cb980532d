"""Pages in a real browser: one of another site can neither use the service nor read it, by whatever way it tries."""

from __future__ import annotations

import http.server
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.service.rest import Rest, outputs

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

needs_browser = pytest.mark.skipif(
    not BROWSER, reason="no Chromium is installed: `apt install chromium`"
)
pytestmark = needs_browser

#: What a page tries. Each attempt ends as a status, `open`, `closed` or the name of an error.
SCRIPT = """
const results = {};
const address = (host, scheme) => `${scheme || "http"}://${host || "127.0.0.1"}:${SERVICE}`;
const json = {method: "POST", headers: {"content-type": "application/json", ...HEADERS}, body: JSON.stringify(WORKFLOW)};
const status = (url, options) => fetch(url, options).then(answer => answer.type == "opaque" ? "opaque" : answer.status);
const within = (promise) => Promise.race([promise, new Promise(done => setTimeout(done, 60000, "nothing"))]);
const socket = (host) => new Promise(done => {
    const opened = new WebSocket(address(host, "ws") + SOCKET, PROTOCOLS);
    opened.onmessage = () => done("open");
    opened.onclose = () => done("closed");
});
const framed = () => new Promise(done => {
    addEventListener("message", event => done(event.data));
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts";
    frame.srcdoc = `<script>fetch("${address()}/runs").then(answer => answer.status, error => error.name)
        .then(found => parent.postMessage(found, "*"))<` + `/script>`;
    document.body.append(frame);
});
const events = () => new Promise(done => {
    const source = new EventSource(address() + EVENTS);
    source.onmessage = () => { done("open"); source.close(); };
    source.onerror = () => { done("closed"); source.close(); };
});
const form = () => new Promise(done => {
    const target = document.createElement("iframe");
    target.name = "target";
    const sent = document.createElement("form");
    Object.assign(sent, {method: "POST", action: address() + "/create_workflow", enctype: "text/plain", target: "target"});
    document.body.append(target, sent);
    target.onload = () => done("loaded");
    sent.submit();
});
const attempts = {
    "read": () => status(address() + "/runs", {headers: HEADERS}),
    "read under another name": () => status(address("rebound.example") + "/runs", {headers: HEADERS}),
    "run": () => status(address() + "/submit_workflow", json),
    "run under another name": () => status(address("rebound.example") + "/submit_workflow", json),
    "run without preflight": () => status(address() + "/submit_workflow", {method: "POST", mode: "no-cors", body: json.body}),
    "socket": () => socket(),
    "socket under another name": () => socket("rebound.example"),
    "events": events,
    "read from a frame": framed,
    "form": form,
    "delete": () => status(address() + EVENTS.replace("/events", ""), {method: "DELETE", headers: HEADERS}),
};
(async () => {
    for (const [name, attempt] of Object.entries(attempts)) {
        try { results[name] = await within(attempt()); } catch (error) { results[name] = error.name; }
    }
    await fetch("/report", {method: "POST", body: JSON.stringify(results)});
})();
"""


class Site:
    """A web site on this machine, under any name: it shows one page, and hears what the page reports."""

    def __init__(self, page: str) -> None:
        reports: queue.Queue[dict[str, Any]] = queue.Queue()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())

            def do_POST(self) -> None:
                reports.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        self.reports = reports
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]


@contextmanager
def site(page: str) -> Iterator[Site]:
    made = Site(page)
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def tried(page: str, host: str, folder: Path) -> dict[str, Any]:
    """What the page reports when the browser opens it under the name `host`."""
    with site(page) as shown:
        command = [
            *(
                BROWSER,
                "--headless=new",
                "--disable-gpu",
                "--no-first-run",
                f"--user-data-dir={folder}",
            ),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--host-resolver-rules=MAP *.example 127.0.0.1",
            f"http://{host}:{shown.port}/",
        ]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return shown.reports.get(timeout=700)
        finally:
            browser.terminate()
            browser.wait()


def page_for(rest: Rest, key: str | None = None) -> str:
    """A page that knows an existing run, a workflow that would run, and maybe a key."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    task = {
        "task_id": "t",
        "task_name": "f",
        "code_str": "def f(params):\n    return {'x': 1}\n",
        "task_input": {"input_params": {}},
        "task_output": outputs("x"),
    }
    answer = rest.http.post(
        "/submit_workflow", json={"tasks": [task], "edges": []}, headers=headers
    )
    made = answer.json()
    values = {
        "SERVICE": int(rest.url.rpartition(":")[2]),
        "WORKFLOW": {"tasks": [task], "edges": []},
        "SOCKET": f"/get_workflow_res/{made['workflow_id']}/{made['run_id']}",
        "EVENTS": f"/runs/{made['run_id']}/events",
        "HEADERS": headers,
        "PROTOCOLS": [] if key is None else ["lattice", f"lattice.bearer.{key}"],
    }
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    return f"<!doctype html><body><script>{constants}{SCRIPT}</script>"


def number_of_runs(rest: Rest, key: str | None = None) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return len(rest.http.get("/runs?limit=1000", headers=headers).json()["runs"])


#: What a page of another site gets: no connection, and refusals, which CORS lets it read.
REFUSED = {
    "read": 403,
    "read under another name": 403,
    "run": 403,
    "run under another name": 403,
    "run without preflight": "opaque",
    "delete": 403,
    "socket": "closed",
    "socket under another name": "closed",
    "events": "closed",
    "read from a frame": 403,
    "form": "loaded",
}


def test_a_page_of_another_site_gets_nothing(rest: Rest, tmp_path: Path) -> None:
    """Nor does one under a name that its owner lets point to this machine; and nothing has happened."""
    page = page_for(rest)
    before = number_of_runs(rest)
    assert tried(page, "evil.example", tmp_path) == REFUSED
    assert tried(page, "rebound.example", tmp_path) == REFUSED
    assert number_of_runs(rest) == before


def test_a_page_of_this_machine_gets_all(rest: Rest, tmp_path: Path) -> None:
    """The same page: so what it tries would work."""
    page = page_for(rest)
    before = number_of_runs(rest)
    found = tried(page, "localhost", tmp_path)
    assert found["read"] == found["run"] == 200
    assert found["socket"] == found["events"] == "open"
    # Under another name it is refused also from here, and a sandboxed frame is nobody's page.
    assert found["read under another name"] == found["read from a frame"] == 403
    assert found["socket under another name"] == "closed"
    assert found["delete"] == 200
    # One came, and one went.
    assert number_of_runs(rest) == before
