"""A real Prometheus takes what configs/monitoring has: it reaches the service, and all panels and alerts find data."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.running import ROOT, Service, free_port, wait_for
from tests.service.rest import Rest, outputs, pickled

PROMETHEUS = shutil.which("prometheus") or ""
PROMTOOL = shutil.which("promtool") or ""

pytestmark = pytest.mark.skipif(
    not (PROMETHEUS and PROMTOOL), reason="no Prometheus is installed: `apt install prometheus`"
)

MONITORING = ROOT / "configs" / "monitoring"
CONFIG = MONITORING / "prometheus.yaml"
ALERTS = MONITORING / "alerts.yaml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]
}
PANELS = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]

#: What Grafana puts for its variable: four times the interval of a data source, which is 15 s where nobody sets it.
VARIABLES = {"$__rate_interval": "1m"}

#: Panels and alerts that ask for what a service which is well need not have, and why.
MAY_BE_EMPTY = {
    "LatticeRefusesRuns": "no request was refused, which takes a service that is full",
}

#: Series of a service that is well, every 10 s for an hour, as promtool writes them: first value, step, times.
WELL = {
    'up{job="lattice",instance="a"}': "1+0x360",
    'lattice_runs_active{job="lattice",instance="a",process="orchestrator"}': "5+0x360",
    'lattice_store_available{job="lattice",instance="a",process="orchestrator"}': "1+0x360",
    'http_server_request_duration_seconds_count{http_response_status_code="200",process="i"}': "0+90x360",
    'http_server_request_duration_seconds_count{http_response_status_code="500",process="i"}': "0+0x360",
    'http_server_request_duration_seconds_count{http_response_status_code="503",process="i"}': "0+0x360",
    'lattice_attempt_duration_seconds_count{state="succeeded",task="t"}': "0+80x360",
    'lattice_attempt_duration_seconds_count{state="lost",task="t"}': "0+0x360",
    'lattice_attempt_wait_seconds_bucket{for="queued",le="15"}': "0+80x360",
    'lattice_attempt_wait_seconds_bucket{for="queued",le="60"}': "0+80x360",
    'lattice_attempt_wait_seconds_bucket{for="queued",le="300"}': "0+80x360",
    'lattice_attempt_wait_seconds_bucket{for="queued",le="+Inf"}': "0+80x360",
    'lattice_store_commit_duration_seconds_bucket{le="0.1"}': "0+70x360",
    'lattice_store_commit_duration_seconds_bucket{le="0.5"}': "0+70x360",
    'lattice_store_commit_duration_seconds_bucket{le="2"}': "0+70x360",
    'lattice_store_commit_duration_seconds_bucket{le="+Inf"}': "0+70x360",
}
UP, RUNS, STORE, _, ERRORS, REFUSALS, _, LOST, WAITS_15, WAITS_60, *_ = WELL
COMMITS_100, COMMITS_500 = [series for series in WELL if "commit" in series][:2]

#: What somebody is woken for: changes of WELL, all from the beginning on.
SICK = [
    ("LatticeIsDown", {UP: "0+0x360", RUNS: "_x360"}),
    ("LatticeIsDown", {RUNS: "_x360"}),  # ingresses without an orchestrator
    ("LatticeIsDown", {UP: "_x360", RUNS: "_x360"}),  # nobody looks
    ("LatticeCannotStore", {STORE: "0+0x360"}),
    ("LatticeRefusesRuns", {REFUSALS: "0+1x360"}),
    ("LatticeFails", {ERRORS: "0+1x360"}),
    ("LatticeLosesAttempts", {LOST: "0+20x360"}),
    ("LatticeWaitsForResources", {WAITS_15: "0+60x360", WAITS_60: "0+60x360"}),
    ("LatticeCommitsSlowly", {COMMITS_100: "0+60x360", COMMITS_500: "0+60x360"}),
]

#: What nobody is woken for.
WELL_ENOUGH: dict[str, dict[str, str]] = {
    "well": {},
    "away for 50 s": {UP: "1+0x30 0+0x4 1+0x320", RUNS: "5+0x30 stale _x4 5+0x320"},
    "a store that is away for 20 s": {STORE: "1+0x30 0+0x1 1+0x320"},
    "one refusal": {REFUSALS: "0+0x30 1+0x320"},
    "one error": {ERRORS: "0+0x30 1+0x320"},
    "an attempt lost every 20 s": {
        LOST: "0+0x1 1+0x1 " + " ".join(f"{n}+0x1" for n in range(2, 180))
    },
    "one in twenty waits": {WAITS_15: "0+76x360", WAITS_60: "0+76x360"},
    "all wait for 15 to 60 s": {WAITS_15: "0+0x360"},
    "commits of 0.1 to 0.5 s": {COMMITS_100: "0+0x360"},
}


def promtool(*args: str, stdin: str = "") -> None:
    """Fails with what promtool says, where it finds fault."""
    done = subprocess.run([PROMTOOL, *args], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"promtool {' '.join(args)}: {done.stdout}{done.stderr}"


class Prometheus:
    """The HTTP API of a running Prometheus, and its log."""

    def __init__(self, port: int, log: Path) -> None:
        self.log = log
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def close(self) -> None:
        self._http.close()

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str, **params: object) -> Any:
        """The data of an answer, which must not be an error or come with warnings."""
        answer = self._http.get(f"/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", f"{path} {params}: {answer}"
        assert "warnings" not in answer, answer
        return answer["data"]

    def query(self, expression: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an expression, at a time; now where none is given."""
        found = self.get("query", query=expression, **({} if at is None else {"time": at}))
        assert found["resultType"] == "vector", found
        return [(series["metric"], float(series["value"][1])) for series in found["result"]]

    def rules(self) -> dict[str, dict[str, Any]]:
        """State of each rule by its name, once all were evaluated."""

        def evaluated() -> dict[str, dict[str, Any]]:
            groups = self.get("rules")["groups"]
            rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
            return {} if any(rule["health"] == "unknown" for rule in rules.values()) else rules

        found: dict[str, dict[str, Any]] = wait_for("an evaluation of all rules", evaluated)
        return found


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """A Prometheus with the configuration as it is, but for whom it asks, and how often.

    It waits no longer for an answer than until it asks again: a slow machine's service needs those seconds.
    """
    document = yaml.safe_load(CONFIG.read_text())
    document["global"] |= {"scrape_interval": "3s", "evaluation_interval": "500ms"}
    document["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    config = folder / CONFIG.name
    config.write_text(yaml.safe_dump(document))
    for name in document["rule_files"]:
        shutil.copy(MONITORING / name, folder / name)
    port = free_port()
    log = folder / "log"
    command = [
        PROMETHEUS,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    prometheus = Prometheus(port, log)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return prometheus.ready()

    try:
        wait_for("Prometheus", ready)
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that asks the service."""
    folder = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(folder, service.url.removeprefix("http://")) as prometheus:
        yield prometheus


TASKS: dict[str, dict[str, Any]] = {
    "def one(params):\n    return {'out': 1}\n": {},
    "def fails(params):\n    raise ValueError('no')\n": {},
    "import os\ndef dies(params):\n    os._exit(3)\n": {},
    "def batch(items):\n    return [{'out': 1} for _ in items]\n": {
        "batch_config": {"enabled": True, "batch_size": 2, "batch_timeout": 0}
    },
}


def use(rest: Rest) -> None:
    """Runs that succeed, fail, lose their process and are batched, and a request that fails."""

    def node(*args: object) -> None:
        raise LookupError

    node.__module__ = "__main__"
    workflow_id = rest.workflow()
    body = {"workflow_id": workflow_id, "task_type": "langgraph", "task_name": "node"}
    task_id = rest.post("/add_langgraph_task", body | {"code_ser": pickled(node)})["task_id"]
    call = {"workflow_id": workflow_id, "task_id": task_id}
    call |= {"args": pickled(()), "kwargs": pickled({})}
    assert rest.refused("/run_langgraph_task", call)[0] == 500
    for code, fields in TASKS.items():
        workflow_id = rest.workflow()
        name = re.findall(r"def (\w+)", code)[0]
        rest.task(workflow_id, name, code, task_output=outputs("out"), **fields)
        rest.messages(workflow_id, rest.run(workflow_id))


@pytest.fixture(scope="module")
def used(service: Service, prometheus: Prometheus) -> float:
    """The time when Prometheus had seen the service in use twice: what is new has no rate the first time."""
    wait_for("a scrape", lambda: prometheus.query("lattice_runs_active"))

    def ended() -> float:
        return sum(value for _, value in prometheus.query("lattice_run_duration_seconds_count"))

    with Rest(service.url) as rest:
        for _ in range(2):
            expected = ended() + len(TASKS)
            use(rest)
            wait_for("the runs in Prometheus", lambda least=expected: ended() >= least)
    newest = wait_for("a scrape", lambda: prometheus.query("max(timestamp(lattice_runs_active))"))
    return float(newest[0][1])


def test_promtool_takes_configuration_and_rules() -> None:
    """As they stand, with the rules where the configuration says."""
    promtool("check", "config", str(CONFIG))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))


def test_promtool_finds_no_fault_with_the_metrics(service: Service, used: float) -> None:
    """Each has a help text, and names and units as Prometheus wants them."""
    promtool("check", "metrics", stdin=httpx.get(f"{service.url}/metrics", timeout=60).text)


def test_prometheus_reaches_the_service(prometheus: Prometheus, used: float) -> None:
    """It takes every sample, and has nothing to complain of."""

    def reached() -> dict[str, Any] | None:
        [target] = prometheus.get("targets")["activeTargets"]
        return target if target["health"] == "up" else None

    target = wait_for("a scrape", reached)
    assert target["lastError"] == ""
    assert target["labels"]["job"] == "lattice"
    log = prometheus.log.read_text()
    assert "level=info" in log
    assert re.findall(r".*level=(?:warn|error).*", log) == []


@pytest.mark.parametrize(
    ("title", "target"),
    [(panel["title"], target) for panel in PANELS for target in panel["targets"]],
    ids=[f"{panel['title']}-{target['refId']}" for panel in PANELS for target in panel["targets"]],
)
def test_each_query_of_the_dashboard_shows_something(
    title: str, target: dict[str, str], prometheus: Prometheus, used: float
) -> None:
    """Numbers, each under a name of its own, made of labels that are there."""
    expression = target["expr"]
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, "a variable of Grafana's that this test does not know"
    series = prometheus.query(expression, at=used)
    assert series or title in MAY_BE_EMPTY, expression
    assert not series or not all(math.isnan(value) for _, value in series), series
    used_labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for labels, _ in series:
        assert used_labels <= labels.keys(), labels
    legends = [
        re.sub(r"{{(\w+)}}", lambda label, labels=labels: labels[label[1]], target["legendFormat"])
        for labels, _ in series
    ]
    assert len(set(legends)) == len(legends), legends


@pytest.mark.parametrize("alert", RULES)
def test_each_alert_has_data_to_judge_by(alert: str, prometheus: Prometheus, used: float) -> None:
    """It is loaded and evaluated without an error, and what it compares with its limit is there."""
    rules = prometheus.rules()
    assert rules.keys() == RULES.keys()
    assert (rules[alert]["health"], rules[alert].get("lastError", "")) == ("ok", "")
    expression = RULES[alert]["expr"]
    prometheus.query(expression, at=used)
    compared = re.fullmatch(r"(.*) (?:==|>) [\d.]+", expression)
    if compared is None:
        assert alert == "LatticeIsDown"  # has no number to compare
        assert prometheus.query(expression, at=used) == []
    else:
        assert prometheus.query(compared[1], at=used) or alert in MAY_BE_EMPTY, expression


def test_a_service_that_is_not_there_is_down(tmp_path: Path) -> None:
    """One alert, once, and no other: with nobody to ask, the rest says nothing."""
    with running_prometheus(tmp_path, f"127.0.0.1:{free_port()}") as prometheus:

        def states() -> dict[str, str]:
            return {name: rule["state"] for name, rule in prometheus.rules().items()}

        wait_for("a scrape that fails", lambda: prometheus.query("up == 0"))
        assert len(prometheus.query(RULES["LatticeIsDown"]["expr"])) == 1
        wait_for("the alert", lambda: states()["LatticeIsDown"] != "inactive")
        assert {name for name, state in states().items() if state != "inactive"} == {
            "LatticeIsDown"
        }


def seconds(duration: str) -> int:
    """A duration as the rules have them."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def judged(folder: Path, series: dict[str, str], expected: dict[int, list[str]]) -> None:
    """Fails unless exactly the `expected` alerts fire, each once, so many seconds after the series began."""
    tests = [
        {
            "interval": "10s",
            "input_series": [{"series": name, "values": series[name]} for name in series],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{after}s",
                    "exp_samples": [
                        {"labels": f'{{alertname="{name}"}}', "value": 1} for name in names
                    ],
                }
                for after, names in expected.items()
            ],
        }
    ]
    interval = yaml.safe_load(CONFIG.read_text())["global"]["evaluation_interval"]
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": interval, "tests": tests}
    file = folder / "tests.yaml"
    file.write_text(yaml.safe_dump(document))
    promtool("test", "rules", str(file))


@pytest.mark.parametrize(("alert", "changes"), SICK)
def test_an_alert_fires_after_its_time(alert: str, changes: dict[str, str], tmp_path: Path) -> None:
    """No other does, and it does not before: most troubles pass."""
    patience = seconds(RULES[alert]["for"])
    judged(tmp_path, WELL | changes, {patience - 10: [], patience + 60: [alert], 3600: [alert]})


def test_each_alert_was_seen_to_fire() -> None:
    """A new one needs a line in SICK."""
    assert {alert for alert, _ in SICK} == RULES.keys()


@pytest.mark.parametrize("changes", WELL_ENOUGH.values(), ids=WELL_ENOUGH)
def test_what_passes_wakes_nobody(changes: dict[str, str], tmp_path: Path) -> None:
    """At no time of an hour."""
    judged(tmp_path, WELL | changes, {after: [] for after in range(0, 3601, 10)})


def test_the_service_has_the_series_that_alerts_were_tried_with(
    prometheus: Prometheus, used: float
) -> None:
    """Names, labels and limits of buckets: alerts tried with what does not exist have not been tried."""
    for series in WELL:
        name, _, labels = series.rstrip("}").partition("{")
        matchers = [
            f'le="{value}"' if label == "le" else f'{label}!=""'
            for label, value in re.findall(r'(\w+)="([^"]*)"', labels)
        ]
        assert prometheus.query(f"{name}{{{','.join(matchers)}}}", at=used), series
