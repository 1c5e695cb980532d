"""The metrics of several processes in one text: nothing is mixed up, nothing is lost."""

from __future__ import annotations

import pytest

from lattice.observability import exposition
from lattice.observability.exposition import Published, merge
from lattice.observability.metrics import Metrics


def test_samples_say_whose_they_are() -> None:
    """Each family is described once; counters and histograms stay what they are."""
    texts = {}
    for number, process in enumerate(("one", "two"), start=1):
        metrics = Metrics(process=process)
        metrics.meter.create_counter("lattice.things", description="Things.").add(
            number, {"kind": 'a "b"'}
        )
        metrics.meter.create_histogram("lattice.wait", unit="s").record(number)
        texts[process] = metrics.render() or b""
        metrics.shutdown()
    text = merge(texts).decode()
    assert 'lattice_things_total{kind="a \\"b\\"",process="one"} 1.0' in text
    assert 'lattice_things_total{kind="a \\"b\\"",process="two"} 2.0' in text
    assert text.count("# TYPE lattice_things_total counter") == 1
    assert text.count("# HELP lattice_things_total Things.") == 1
    assert 'lattice_wait_seconds_bucket{le="+Inf",process="two"} 1.0' in text
    assert text.count("# TYPE lattice_wait_seconds histogram") == 1


def test_a_process_that_has_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(exposition.time, "monotonic", lambda: now)
    published = Published()
    published.note("one", b"1")
    now = 20.0
    assert published.note("two", b"2") == {"one": b"1", "two": b"2"}
    now = 31.0
    assert published.note("two", b"3") == {"two": b"3"}
