"""The files of `configs/` that cannot be tried here say what the engine and the settings understand."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from lattice.settings import LatticeSettings
from lattice.versions import release
from tests.running import ROOT

CONFIGS = ROOT / "configs"


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return document


def kuberay() -> dict[str, Any]:
    cluster: dict[str, Any] = read("kuberay.yaml")["spec"]["rayClusterConfig"]
    return cluster


@pytest.mark.parametrize("name", ["lattice.yaml", "lattice-cluster.yaml"])
def test_serve_and_the_settings_take_a_configuration(name: str) -> None:
    """By Serve's own schema; its args by ours, which refuse what they do not know."""
    document = read(name)
    schema = ServeDeploySchema.model_validate(document)
    (application,) = schema.applications
    assert application.import_path == "deployments.app:build"
    LatticeSettings(**application.args)


def test_the_cluster_is_the_single_machine_with_other_args() -> None:
    """But for the address that it listens on."""
    one, many = read("lattice.yaml"), read("lattice-cluster.yaml")
    settings = LatticeSettings(**many["applications"][0].pop("args"))
    del one["applications"][0]["args"]
    many["http_options"]["host"] = one["http_options"]["host"]
    assert one == many
    assert settings.resolved_store_url.startswith("postgresql+psycopg://")
    assert settings.storage_url
    assert settings.ingress_replicas > 1


def test_kubernetes_serves_the_same_configuration() -> None:
    """The manifest holds it as text."""
    document = read("kuberay.yaml")
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayService")
    served = yaml.safe_load(document["spec"]["serveConfigV2"])
    assert served == read("lattice-cluster.yaml")


def test_kubernetes_runs_this_release_on_this_ray() -> None:
    """Head and workers alike, with the storage that the configuration names, the password, keys and a token."""
    cluster = kuberay()
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    storage = read("lattice-cluster.yaml")["applications"][0]["args"]["storage_url"]
    for group in groups:
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        assert container["image"] == f"lattice:{release()}"
        assert [each["name"] for each in container["env"]] == ["PGPASSWORD", "LATTICE_API_KEYS"]
        (mount,) = container["volumeMounts"]
        assert storage.startswith(f"file://{mount['mountPath']}/")
        assert mount["name"] in {volume["name"] for volume in spec["volumes"]}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_image_has_the_lock_and_the_environment_of_make() -> None:
    """Line by line: it cannot be built where there is no Docker."""
    text = (CONFIGS / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    assert "FROM python:3.11-slim" in lines
    assert any(
        "pip install" in line and "--require-hashes -r requirements.lock" in line for line in lines
    )
    for copied in re.findall(r"^COPY (.*) \./?\S*$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())
    assert lines[-1] == "USER ray"
    (environ,) = (line for line in lines if line.startswith("ENV RAY_"))
    given = dict(pair.split("=", 1) for pair in environ.removeprefix("ENV ").split())
    made = (ROOT / "Makefile").read_text()
    wanted = dict(re.findall(r'export (\w+)="\$\$\{\w+:-(\w+)\}"', made))
    wanted["RAY_SERVE_HAPROXY_BINARY_PATH"] = "/opt/lattice/.venv/bin/lattice-haproxy"
    assert given == wanted


def test_the_dashboard_is_whole() -> None:
    """What Grafana would show wrongly without a word: panels on one another, of no unit, of no data source."""
    dashboard = json.loads((CONFIGS / "monitoring" / "grafana-dashboard.json").read_text())
    assert (dashboard["uid"], dashboard["title"]) == ("lattice", "Lattice")
    assert isinstance(dashboard["schemaVersion"], int)
    [variable] = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    panels = dashboard["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels), key
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        title, place = panel["title"], panel["gridPos"]
        assert panel["datasource"] == source, title
        # Of Grafana's units: requests and operations per second, seconds, and bare numbers.
        assert panel["fieldConfig"]["defaults"]["unit"] in {"reqps", "ops", "s", "short"}, title
        targets = panel["targets"]
        assert len({target["refId"] for target in targets}) == len(targets), title
        assert all(target["legendFormat"] and target["expr"] for target in targets), title
        assert place["x"] >= 0, title
        assert place["x"] + place["w"] <= 24, title  # columns of Grafana's grid
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), title) == title
