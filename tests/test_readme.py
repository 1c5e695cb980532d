"""The README's diagram is the machine's table, and its tables are tables."""

from __future__ import annotations

import re
from pathlib import Path

from lattice.workflow.states import TRANSITIONS, TaskState

README = Path(__file__).parent.parent / "README.md"


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {TaskState.WAITING}"]
    lines += [
        f"    {before} --> {after}: {cause}" for (before, cause), after in TRANSITIONS.items()
    ]
    ends = [state for state in TaskState if state not in {before for before, _ in TRANSITIONS}]
    lines += [f"    {state} --> [*]" for state in ends]
    return "\n".join(lines)


def test_the_state_diagram_is_made_from_the_table() -> None:
    """A changed table needs a changed picture; this is its text."""
    assert diagram() in README.read_text(), diagram()


def test_no_table_was_wrapped() -> None:
    """Rows of a table that come together in one line are shown as text."""
    lines = re.sub(r"`[^`\n]*`", "", README.read_text()).splitlines()
    assert [
        line for line in lines if line.count("|") > 2 and not line.lstrip().startswith("|")
    ] == []
    rows = [line.strip() for line in lines if line.lstrip().startswith("|")]
    assert [row for row in rows if not row.endswith("|")] == []
