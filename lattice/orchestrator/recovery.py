"""Rebuilding runs from the store: after a restart to go on with them, later to show how they went."""

from __future__ import annotations

import json
from collections.abc import Iterator

from lattice.errors import LatticeError
from lattice.ids import Digest, RunId
from lattice.ports.store import RunRecord, Store
from lattice.workflow.graph import Graph
from lattice.workflow.messages import Message
from lattice.workflow.run import Run

#: Messages are read in pages, so that a long log is not in memory at once.
_PAGE = 1_000


def load_graph(store: Store, digest: Digest) -> Graph:
    """The graph that was put under `digest`. Blocks. Raises LatticeError if it is not there."""
    data = store.load_blob(digest)
    if data is None:
        raise LatticeError(f"the graph {digest} is missing from the store")
    return Graph.from_document(json.loads(data))


def rebuild(store: Store, record: RunRecord, *, with_values: bool) -> Run:
    """The run as its log tells. Blocks. `with_values` is needed to go on with it."""
    graph = load_graph(store, record.graph)
    values = store.load_values(record.run_id) if with_values else {}

    def messages() -> Iterator[Message]:
        for text in stored_messages(store, record.run_id):
            document = json.loads(text)
            task_id = document["data"].get("task_id")
            yield Message.from_document(document, values.get(task_id))

    return Run.replay(record.run_id, graph, messages(), record.deadline)


def stored_messages(store: Store, run_id: RunId) -> Iterator[str]:
    """All messages of a run, as JSON texts. Blocks."""
    after = 0
    while page := store.load_messages(run_id, after, _PAGE):
        yield from page
        after += len(page)
