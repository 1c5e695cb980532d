"""Prometheus' text of several processes as one: each sample says which process it is of."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

#: The label that says which process a sample is of.
_LABEL = "process"
#: Seconds of silence after which a process is taken to have ended.
_GONE = 30.0


class _Families(Collector):
    """Families of metrics that were collected elsewhere."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge(texts: Mapping[str, bytes]) -> bytes:
    """The samples of all `texts`, which are by name of their process, grouped by family."""
    families: dict[str, Metric] = {}
    for process, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, _LABEL: process}
                merged.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class Published:
    """The last texts of other processes; one that has not been heard of for a while is gone."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[float, bytes]] = {}

    def note(self, process: str, text: bytes) -> dict[str, bytes]:
        """Takes the text of a process; returns those of all, by process."""
        now = time.monotonic()
        self._texts[process] = now, text
        gone = [each for each, (at, _) in self._texts.items() if now - at > _GONE]
        for each in gone:
            del self._texts[each]
        return {each: kept for each, (_, kept) in self._texts.items()}
