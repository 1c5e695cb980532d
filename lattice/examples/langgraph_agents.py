"""A LangGraph graph of agents whose work is done on Lattice.

    python -m lattice.examples.langgraph_agents [--url http://127.0.0.1:8000]

An editor chooses modules of the standard library; three agents look at their source at the same time,
each from its own side; a writer puts their findings together. The agents are ordinary functions, sync
and async, that run on the service when LangGraph calls them. The report is checked against what the
same functions find in this process.
"""

from __future__ import annotations

import ast
import asyncio
import operator
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

from lattice import LangGraphClient
from lattice.examples import command

MODULES = ("csv", "json/decoder", "textwrap", "argparse")


class Finding(TypedDict):
    agent: str
    module: str
    value: int


class State(TypedDict, total=False):
    """What the agents share. Findings of agents that run side by side are added up."""

    topic: str
    modules: list[str]
    findings: Annotated[list[Finding], operator.add]
    report: str


def syntax(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse((Path(sysconfig.get_path("stdlib")) / f"{module}.py").read_bytes())


def findings(agent: str, state: State, count: Callable[[ast.Module], int]) -> State:
    """What an agent counts in each module."""
    return {
        "findings": [
            Finding(agent=agent, module=module, value=count(syntax(module)))
            for module in state["modules"]
        ]
    }


def documented(tree: ast.Module) -> int:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return sum(isinstance(n, kinds) and bool(ast.get_docstring(n)) for n in ast.walk(tree))


def editor(state: State) -> State:
    """Chooses what to look at."""
    return {"modules": [name for name in MODULES if name not in state["topic"]]}


def structure_agent(state: State) -> State:
    """Counts functions and classes."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return findings(
        "structure", state, lambda tree: sum(isinstance(n, kinds) for n in ast.walk(tree))
    )


def documentation_agent(state: State) -> State:
    """Counts those that are documented."""
    return findings("documentation", state, documented)


async def failure_agent(state: State) -> State:
    """Counts what raises."""
    return findings(
        "failures", state, lambda tree: sum(isinstance(n, ast.Raise) for n in ast.walk(tree))
    )


def writer(state: State) -> State:
    """Writes a line for each module."""
    lines = []
    for module in state["modules"]:
        told = sorted(
            (each["agent"], each["value"]) for each in state["findings"] if each["module"] == module
        )
        lines.append(f"{module}: " + ", ".join(f"{agent} {value}" for agent, value in told))
    return {"report": "\n".join(lines)}


def graph_of(wrap: Callable[[Any], Any]) -> Any:
    """The graph, with each agent as `wrap` makes it."""
    graph = StateGraph(State)
    graph.add_node("editor", editor)
    for name, agent in (
        ("structure", structure_agent),
        ("documentation", documentation_agent),
        ("failures", failure_agent),
    ):
        graph.add_node(name, wrap(agent))
        graph.add_edge("editor", name)
        graph.add_edge(name, "writer")
    graph.add_node("writer", wrap(writer))
    graph.add_edge(START, "editor")
    graph.add_edge("writer", END)
    return graph.compile()


def example(url: str) -> None:
    """Runs the graph with its agents on Lattice, and once more without."""
    asked: State = {"topic": "the standard library", "findings": []}

    async def report_of(graph: Any) -> str:
        report = ""
        async for update in graph.astream(asked, stream_mode="updates"):
            for node, told in update.items():
                print(f"{node}: done")
                report = (told or {}).get("report", report)
        return report

    with LangGraphClient(url) as client:
        report = asyncio.run(report_of(graph_of(client.task(resources={"cpu": 0.5}))))
    print(report)
    expected = asyncio.run(graph_of(lambda agent: agent).ainvoke(asked))["report"]
    command.check(report == expected, f"the report should be:\n{expected}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.run(example, __doc__ or "", argv)


if __name__ == "__main__":
    raise SystemExit(main())
