"""Rebuilding runs from the store: after a restart to go on with them, later to show how they went."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator

from lattice.errors import LatticeError, UnavailableError
from lattice.ids import Digest, RunId
from lattice.orchestrator.runs import append_message
from lattice.ports.store import FinishRun, RunRecord, Store, Write
from lattice.workflow.graph import Graph
from lattice.workflow.messages import Message, MessageType, iso_time
from lattice.workflow.run import Run
from lattice.workflow.states import RunStatus

_log = logging.getLogger(__name__)

#: Messages are read in pages, so that a long log is not in memory at once.
_PAGE = 1_000


def load_graph(store: Store, digest: Digest) -> Graph:
    """The graph that was put under `digest`. Blocks. Raises LatticeError if it is not there."""
    data = store.load_blob(digest)
    if data is None:
        raise LatticeError(f"the graph {digest} is missing from the store")
    return Graph.from_document(json.loads(data))


class Graphs:
    """Graphs by their digests, each read once: many runs may be of one workflow."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[Digest, Graph] = {}

    def load(self, digest: Digest) -> Graph:
        """The graph that was put under `digest`. Blocks. Raises LatticeError if it is not there."""
        if digest not in self._read:
            self._read[digest] = load_graph(self._store, digest)
        return self._read[digest]


def rebuild_each(
    store: Store, records: Iterable[RunRecord], graphs: Graphs
) -> list[tuple[RunRecord, Run]]:
    """Runs with what is needed to go on with them. Blocks. One that cannot be read is left out.

    Raises:
        UnavailableError: the store cannot be reached.
    """
    rebuilt: list[tuple[RunRecord, Run]] = []
    for record in records:
        try:
            run = _replay(store, record, graphs.load(record.graph), with_values=True)
        except (LatticeError, ValueError, KeyError) as error:
            if isinstance(error, UnavailableError):
                raise
            # One run that cannot be read must not keep the others from going on.
            _log.exception("run %s cannot be read and does not go on", record.run_id)
        else:
            rebuilt.append((record, run))
    return rebuilt


def rebuild(store: Store, record: RunRecord, *, with_values: bool) -> Run:
    """The run as its log tells. Blocks. `with_values` is needed to go on with it."""
    return _replay(store, record, load_graph(store, record.graph), with_values=with_values)


def _replay(store: Store, record: RunRecord, graph: Graph, *, with_values: bool) -> Run:
    values = store.load_values(record.run_id) if with_values else {}

    def messages() -> Iterator[Message]:
        for text in stored_messages(store, record.run_id):
            document = json.loads(text)
            task_id = document["data"].get("task_id")
            yield Message.from_document(document, values.get(task_id))

    return Run.replay(record.run_id, graph, messages(), record.deadline)


def end_unread(store: Store, record: RunRecord, at: float) -> list[Write]:
    """What cancels a run that cannot be read, behind its messages. Blocks. `at` is in seconds since the epoch."""
    seq = 1 + sum(1 for _ in stored_messages(store, record.run_id))
    data = {
        "workflow_id": record.workflow_id,
        "run_id": record.run_id,
        "status": RunStatus.CANCELLED.value,
        "seq": seq,
        "time": iso_time(at),
    }
    message = append_message(record.run_id, Message(seq, MessageType.FINISH_WORKFLOW, data))
    return [message, FinishRun(record.run_id, RunStatus.CANCELLED, at)]


def stored_messages(store: Store, run_id: RunId) -> Iterator[str]:
    """All messages of a run, as JSON texts. Blocks."""
    after = 0
    while True:
        page = store.load_messages(run_id, after, _PAGE)
        yield from page
        after += len(page)
        if len(page) < _PAGE:
            return
