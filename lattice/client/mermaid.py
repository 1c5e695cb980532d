"""Graphs as text of Mermaid flowcharts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def flowchart(
    nodes: Sequence[tuple[str, str]], edges: Iterable[tuple[str, str, str | None]]
) -> str:
    """A flowchart of `nodes` (id, name) and `edges` (source id, target id, text or None)."""
    short = {node_id: f"t{number}" for number, (node_id, _) in enumerate(nodes, 1)}
    lines = ["flowchart LR"]
    lines += [f'    {short[node_id]}["{_quoted(name)}"]' for node_id, name in nodes]
    for source, target, text in dict.fromkeys(edges):
        arrow = f'-- "{_quoted(text)}" -->' if text else "-->"
        lines.append(f"    {short[source]} {arrow} {short[target]}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """`text` without what has a meaning inside a quoted label."""
    return (
        text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
    )
