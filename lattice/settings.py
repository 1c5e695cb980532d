"""Every setting of Lattice, as one frozen object.

`serve run configs/lattice.yaml` makes it from the file's `args`; what is not given there may come from
an environment variable `LATTICE_<NAME>`, which is read once, when the object is made.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lattice.errors import InvalidRequestError
from lattice.keys import ApiKey, parse_keys

_PREFIX = "LATTICE_"


class LatticeSettings(BaseModel):
    """Settings of a service. An unknown name is refused."""

    # What stands in the wrong place may be a key.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    data_dir: Path = Field(
        default=Path("~/.lattice"),
        description="Folder of the default database and of large values.",
    )
    store_url: str | None = Field(
        default=None,
        description="Database as an SQLAlchemy URL; by default SQLite in `data_dir`. "
        "`memory:` keeps everything in memory, for tests.",
    )
    storage_url: str | None = Field(
        default=None,
        description="Where values too large for the database go, as an fsspec URL that every node "
        "can reach; by default the folder `values` in `data_dir`.",
    )
    inline_value_bytes: int = Field(
        default=64 * 1024,
        ge=0,
        description="A pickled output value up to this many bytes is kept in the database.",
    )
    secrets_dir: Path | None = Field(
        default=None,
        description="Folder with the secrets that tasks may ask for by name, each the text of a file of its name.",
    )
    max_body_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1, description="Largest request body, in bytes."
    )
    max_tasks_per_workflow: int = Field(
        default=20_000, ge=1, description="Most tasks in one workflow."
    )
    max_workflow_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1,
        # A database may refuse a text of a billion bytes, after which nothing would become durable any more.
        le=500_000_000,
        description="Most bytes of all tasks of one workflow with their inputs, without their code.",
    )
    max_edges_per_workflow: int = Field(
        default=200_000,
        ge=0,
        description="Most pairs of tasks with an edge in one workflow, be it explicit or by a reference.",
    )
    max_code_bytes: int = Field(
        default=16 * 1024 * 1024, ge=1, description="Largest source or pickle of a task, in bytes."
    )
    max_batch_size: int = Field(
        default=10_000, ge=1, le=100_000, description="Largest `batch_config.batch_size` of a task."
    )
    max_timeout: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="Longest `timeout` that a task may have, in seconds; one that says none has this one.",
    )
    max_deadline: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="Longest `deadline` that a run may have, in seconds; one that says none has this one.",
    )
    max_workflows_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="Most workflows of one tenant (without API keys: of all together); null sets no limit.",
    )
    max_live_runs_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="Most runs of one tenant that have not ended, beside `max_live_runs` for all; beyond it, new "
        "ones are answered 503. Null sets no limit of its own.",
    )
    max_open_streams: int = Field(
        default=5_000,
        ge=1,
        # Beside them, of 10,000 requests that an ingress process takes at a time, others have to find room.
        le=9_000,
        description="Most WebSockets and streams of server-sent events at a time in one ingress process; more are "
        "answered 503, and on a WebSocket 1013.",
    )
    max_result_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1,
        description="Largest result of a LangGraph call and largest JSON rendering of a value, in bytes.",
    )
    call_timeout: float = Field(
        default=600.0,
        gt=0,
        description="Longest LangGraph call, in seconds, waiting for resources included.",
    )
    max_live_runs: int = Field(
        default=10_000,
        ge=1,
        description="Most runs that have not ended; beyond it, new ones are answered 503.",
    )
    max_unfinished_tasks: int = Field(
        default=200_000,
        ge=1,
        description="Most tasks of all those runs that have not ended; beyond it, new runs are answered 503.",
    )
    max_log_bytes: int = Field(
        default=64 * 1024,
        ge=0,
        le=16 * 1024 * 1024,
        description="What is kept of what each attempt of a task prints and logs: half of it of the beginning, "
        "half of the end; 0 keeps nothing.",
    )
    default_retry_attempts: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="How often a task is tried that does not say so in `retry` when it is saved.",
    )
    default_retry_backoff: float = Field(
        default=1.0,
        ge=0,
        le=86_400,
        description="Longest wait before its second try, in seconds, if it does not say.",
    )
    default_timeout: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="Longest attempt of a task that says no `timeout` when it is saved, in seconds.",
    )
    default_deadline: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="Longest run that says no `deadline` when it is started, in seconds.",
    )
    retention_seconds: float | None = Field(
        default=30 * 86_400.0,
        gt=0,
        description="Seconds after its end until a run is deleted; null keeps runs for ever.",
    )
    retention_runs: int | None = Field(
        default=100_000,
        ge=0,
        description="Most runs that have ended are kept, those that ended last; null keeps all.",
    )
    idempotency_seconds: float | None = Field(
        default=86_400.0,
        gt=0,
        description="Seconds for which the answer to an `Idempotency-Key` is kept; null keeps it for ever.",
    )
    lost_worker_seconds: float | None = Field(
        default=86_400.0,
        gt=0,
        description="Seconds for which a registered worker that the cluster does not have stays listed; null keeps it "
        "for ever. One that left in order is forgotten when housekeeping looks next.",
    )
    housekeeping_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Seconds between two looks at what can be deleted.",
    )
    no_node_seconds: float | None = Field(
        default=30.0,
        gt=0,
        description="Seconds after which a task fails that no node of the cluster could hold any more even if it "
        "were empty, as when the only one with a GPU is lost; nodes that are disconnected count. null waits for "
        "ever, for clusters that grow by themselves.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=("localhost", "127.0.0.1", "[::1]"),
        description="Host names under which a browser may use the service; `*` allows any. Requests "
        "with another `Host`, or from a page of another site, are refused.",
    )
    api_keys: tuple[ApiKey, ...] = Field(
        default=(),
        description="Who may use the service: objects as `lattice key NAME` prints them, in the environment as a "
        "JSON list. With any, every endpoint but `/healthz` and `/readyz` needs a key.",
    )
    batches_across_tenants: bool = Field(
        default=False,
        description="Whether calls of one task definition share replicas and batches whatever tenants they are of.",
    )
    allow_unauthenticated_network_access: bool = Field(
        default=False,
        description="Whether a service without `api_keys` may listen on an address that other machines reach, and "
        "so run code for whoever is in the network.",
    )
    ingress_replicas: int = Field(
        default=1, ge=1, description="How many processes answer HTTP requests."
    )
    max_replicas: int = Field(
        default=4, ge=1, description="Most replicas of one task definition (batched, GPU or class)."
    )
    replica_downscale_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Seconds after which a replica without calls is ended and frees its resources.",
    )
    replica_idle_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Seconds without calls after which the application of a task definition is removed.",
    )
    replica_warm_up: bool = Field(
        default=False,
        description="Whether saving a task that runs on replicas starts one, so that its first call need "
        "not wait for it; a task's `autoscaling.warm_up` wins.",
    )
    max_replica_applications: int = Field(
        default=100,
        ge=1,
        description="Most task definitions that are deployed at a time; beyond it, the one that was not "
        "used for longest is removed, and calls wait until one is idle.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Form of the service's own log lines, which stand in Serve's files of the replicas and on "
        "standard error. Without Serve, `text` leaves them to whoever runs the process.",
    )
    metrics_enabled: bool = Field(default=True, description="Whether metrics are collected.")
    metrics_exporter: str = Field(
        default="prometheus",
        description="`prometheus` (at /metrics), `otlp` (gRPC), `otlp_http` or `console`.",
    )
    metrics_endpoint: str | None = Field(
        default=None, description="Where `otlp` and `otlp_http` send metrics, as a URL."
    )

    traces_exporter: str = Field(
        default="none",
        description="Where traces go: `none`, `otlp` (gRPC), `otlp_http` or `console`.",
    )
    traces_endpoint: str | None = Field(
        default=None, description="Where `otlp` and `otlp_http` send traces, as a URL."
    )
    traces_sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Which part of the requests is traced that come without a trace; those that come with "
        "one are traced if it says so.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_environment(cls, given: dict[str, object]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, field in cls.model_fields.items():
            text = os.environ.get(_PREFIX + name.upper())
            if text is None:
                continue
            if field.annotation == tuple[str, ...]:
                found[name] = text.split(",")
            elif name == "api_keys":
                found[name] = _json(_PREFIX + name.upper(), text)
            else:
                # What a YAML file writes as null, to switch off what is on by default.
                found[name] = None if text == "null" else text
        return found | given

    @field_validator("api_keys", mode="before")
    @classmethod
    def _parse_keys(cls, given: object) -> tuple[ApiKey, ...]:
        return parse_keys(given)

    @model_validator(mode="after")
    def _check_defaults(self) -> Self:
        # Else every task or run that says nothing would be refused.
        for what in ("timeout", "deadline"):
            default, longest = getattr(self, f"default_{what}"), getattr(self, f"max_{what}")
            if default is not None and longest is not None and default > longest:
                raise InvalidRequestError(
                    f"default_{what}",
                    f"{default:g} s",
                    f"at most {longest:g} s are allowed (setting max_{what})",
                )
        return self

    @property
    def resolved_store_url(self) -> str:
        """The database's URL with its default filled in."""
        if self.store_url is not None:
            return self.store_url
        # As a URL: a path may have characters that mean something there.
        return f"sqlite:///{quote(str(self._folder() / 'lattice.db'))}"

    @property
    def resolved_storage_url(self) -> str:
        """The storage URL of large values with its default filled in."""
        return self.storage_url or (self._folder() / "values").as_uri()

    def _folder(self) -> Path:
        return self.data_dir.expanduser().absolute()


def _json(variable: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        # Without the text, which may have a key in it.
        raise InvalidRequestError(
            variable,
            "what is no JSON",
            "a JSON list of keys as `lattice key` prints them is allowed",
        ) from None
