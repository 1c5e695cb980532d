"""What an operator sees of a real service: metrics of all its processes at one address, or sent to a receiver."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.otlp import Receiver, receiving
from tests.running import ORCHESTRATOR, ROOT, Service, running_service, wait_for
from tests.service.rest import Rest, outputs

ONE = "def one(params):\n    return {'out': 1}\n"
BATCH = "def batch(items):\n    return [{'out': 1} for _ in items]\n"
FAILS = "def fails(params):\n    raise ValueError('no')\n"
MONITORING = ROOT / "configs" / "monitoring"


@pytest.fixture(scope="module")
def two_ingresses() -> Iterator[Service]:
    """A service with two ingress replicas."""
    with running_service(ingress_replicas=2) as service:
        yield service


def samples(rest: Rest, name: str, **labels: str) -> dict[str, float]:
    """The samples of this name that have these labels, by process."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(rest.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                process = sample.labels["process"]
                found[process] = found.get(process, 0.0) + sample.value
    return found


def use(rest: Rest) -> None:
    """A run of a task, and one that fails."""
    for name, code in (("one", ONE), ("fails", FAILS)):
        workflow_id = rest.workflow()
        rest.task(workflow_id, name, code, task_output=outputs("out"))
        rest.messages(workflow_id, rest.run(workflow_id))


def test_one_address_has_the_metrics_of_all_processes(two_ingresses: Service) -> None:
    """Requests add up whichever ingress answered them; runs and tasks are the orchestrator's."""
    with Rest(two_ingresses.url) as rest:
        use(rest)
        labels = {"http_route": "/runs"}
        name = "http_server_request_duration_seconds_count"
        made = 0

        def both() -> bool:
            nonlocal made
            # On a connection of its own, as the proxy chooses a replica for each.
            with Rest(two_ingresses.url) as other:
                assert other.http.get("/runs").status_code == 200
            made += 1
            return made >= 40 and len(samples(rest, name, **labels)) == 2

        wait_for("both ingresses", both)
        wait_for("all requests", lambda: sum(samples(rest, name, **labels).values()) == made)
        ended = "lattice_run_duration_seconds_count"
        # An ingress that waits for the others for too long answers with its own alone.
        wait_for("the runs", lambda: samples(rest, ended, status="succeeded"))
        assert samples(rest, ended, status="succeeded") == {"orchestrator": 1}
        assert samples(rest, ended, status="failed") == {"orchestrator": 1}
        attempts = "lattice_attempt_duration_seconds_count"
        assert samples(rest, attempts, task="one", state="succeeded") == {"orchestrator": 1}
        assert samples(rest, attempts, task="fails", state="failed") == {"orchestrator": 1}
        assert samples(rest, "lattice_store_available") == {"orchestrator": 1}
        assert samples(rest, "lattice_runs_active") == {"orchestrator": 0}
        assert samples(rest, "lattice_store_writes_total")["orchestrator"] > 10


def test_a_caller_that_leaves_is_no_failure_of_the_service(two_ingresses: Service) -> None:
    """What somebody no longer waits for is 499: the alert for 500 is not theirs."""
    [orchestrator] = two_ingresses.processes(ORCHESTRATOR)
    orchestrator.suspend()
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{two_ingresses.url}/metrics", timeout=2)
        time.sleep(2)  # that it has left is seen before there is an answer
    finally:
        orchestrator.resume()
    name, route = "http_server_request_duration_seconds_count", "/metrics"
    with Rest(two_ingresses.url) as rest:
        wait_for(
            "the request's end",
            lambda: (
                sum(samples(rest, name, http_route=route, http_response_status_code="499").values())
                == 1
            ),
        )
        assert samples(rest, name, http_response_status_code="500") == {}


@pytest.mark.parametrize("exporter", ["otlp", "otlp_http"])
def test_a_receiver_gets_the_metrics(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ingress and orchestrator; with an exporter that sends, /metrics says so."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
    with receiving() as receiver:
        endpoint = receiver.grpc if exporter == "otlp" else receiver.http
        with (
            running_service(metrics_exporter=exporter, metrics_endpoint=endpoint) as service,
            Rest(service.url) as rest,
        ):
            use(rest)
            wait_for("the runs", lambda: counted(receiver, "lattice.run.duration") == 2)
            wait_for("the requests", lambda: counted(receiver, "http.server.request.duration") > 8)
            assert rest.http.get("/metrics").status_code == 404
            [process] = receiver.points("lattice.run.duration")
            assert process == "orchestrator"


def counted(receiver: Receiver, name: str) -> int:
    """What the histograms of all processes have counted."""
    return sum(point.count for points in receiver.points(name).values() for point in points)


def test_dashboard_and_alerts_ask_for_metrics_that_exist(two_ingresses: Service) -> None:
    """Each name in an expression is one that the service has, with the labels that are used."""
    with Rest(two_ingresses.url) as rest:
        use(rest)
        config = {"enabled": True, "batch_size": 2, "batch_timeout": 0}
        workflow_id = rest.workflow()
        rest.task(workflow_id, "batch", BATCH, task_output=outputs("out"), batch_config=config)
        rest.messages(workflow_id, rest.run(workflow_id))
        wait_for("the orchestrator's", lambda: samples(rest, "lattice_store_available"))
        found: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(rest.http.get("/metrics").text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    asked += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert len(asked) > 20
    for expression in asked:
        names = re.findall(r"\b(?:lattice|http_server)_\w+", expression)
        assert names
        assert [name for name in names if name not in found] == []
        labels = {
            label
            for each in re.findall(r"by \(([^)]*)\)", expression)
            for label in each.split(", ")
        }
        labels |= set(re.findall(r"(\w+)=\"", expression)) - {"job"}
        assert labels <= set().union(*(found[name] for name in names)), expression
    scrape = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert scrape["rule_files"] == ["alerts.yaml"]
    assert scrape["scrape_configs"][0]["static_configs"][0]["targets"] == ["127.0.0.1:8000"]
