"""The README's diagram is the machine's table."""

from __future__ import annotations

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
