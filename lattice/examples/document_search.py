"""Searches the documentation of Python's standard library.

    python -m lattice.examples.document_search [--url http://127.0.0.1:8000]

One task reads the documentation strings of every module and splits them into passages. Parallel tasks
turn the passages into vectors of hashed words, one builds an index, and one for each question looks up
which module answers it. The answers are known, and checked.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from lattice import LatticeClient, task
from lattice.examples import command

QUESTIONS = {
    "sniff the format and the delimiter of a CSV file": "csv",
    "send mail over SMTP": "smtplib",
    "generate cryptographically strong random numbers for passwords and tokens": "secrets",
    "compute the median and the standard deviation of data": "statistics",
    "print the calendar of a month": "calendar",
    "run a child process and wait for its output": "subprocess",
}

PARTS = 4
#: Longest passage, in characters.
PASSAGE = 1000


class Passages(TypedDict):
    modules: list[str]
    texts: list[str]


def documentation(path: Path) -> Iterator[str]:
    """The documentation strings of a module and of its public functions, classes and methods."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = "" if isinstance(node, ast.Module) else node.name
            text = ast.get_docstring(node)
            if text and not name.startswith("_"):
                yield f"{name} {text}"


def passages(text: str) -> Iterator[str]:
    """`text` in parts of whole paragraphs, each about as long as `PASSAGE` at most."""
    part = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if part and len(part) + len(paragraph) > PASSAGE:
            yield part
            part = ""
        part += paragraph + "\n\n"
    yield part


@task(outputs=[f"part_{number}" for number in range(PARTS)])
def read_library() -> dict[str, Passages]:
    """Every public module's passages, dealt out into parts."""
    parts = [Passages(modules=[], texts=[]) for _ in range(PARTS)]
    count = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if path.stem.startswith("_") or path.stem not in sys.stdlib_module_names:
            continue
        for text in documentation(path):
            for passage in passages(text):
                part = parts[count % PARTS]
                part["modules"].append(path.stem)
                part["texts"].append(f"{path.stem}: {passage}")
                count += 1
    return {f"part_{number}": part for number, part in enumerate(parts)}


def vectors_of(texts: Sequence[str]) -> Any:
    """A sparse matrix with a row of hashed word counts for each text."""
    return HashingVectorizer(
        n_features=2**18, alternate_sign=False, norm=None, stop_words="english"
    ).transform(texts)


class Part(TypedDict):
    modules: list[str]
    vectors: Any


@task(inputs=["passages"], outputs=["part"], resources={"cpu": 0.5})
def embed(params: dict[str, Passages]) -> dict[str, Part]:
    """The passages' vectors; word counts weigh less and less."""
    given = params["passages"]
    vectors = vectors_of(given["texts"])
    vectors.data = 1 + np.log(vectors.data)
    return {"part": Part(modules=given["modules"], vectors=vectors)}


@task
def build_index(parts: list[Part]) -> dict[str, Any]:
    """The parts with rows of length one, words weighted by how few passages have them."""
    passages = sum(part["vectors"].shape[0] for part in parts)
    found = sum(np.asarray((part["vectors"] > 0).sum(axis=0)).ravel() for part in parts)
    weights = np.log((1 + passages) / (1 + found)) + 1
    rows = []
    for part in parts:
        weighted = part["vectors"].multiply(weights).tocsr()
        lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)))
        rows.append(weighted.multiply(1 / np.maximum(lengths, 1e-9)).tocsr())
    modules = [module for part in parts for module in part["modules"]]
    return {"weights": weights, "rows": rows, "modules": modules}


class Answer(TypedDict):
    module: str
    score: float


@task
def search(question: str, index: dict[str, Any]) -> Answer:
    """The module that has the passage most like the question."""
    query = vectors_of([question]).multiply(index["weights"]).tocsr()
    query /= np.sqrt(query.multiply(query).sum())
    scores = np.concatenate([(rows @ query.T).toarray().ravel() for rows in index["rows"]])
    best = int(scores.argmax())
    return Answer(module=index["modules"][best], score=float(scores[best]))


def example(url: str) -> None:
    """Builds the index, asks the questions and checks the answers."""
    with LatticeClient(url) as client:
        workflow = client.create_workflow("document search")
        library = workflow.add_task(read_library)
        parts = [
            workflow.add_task(embed, {"passages": library.outputs[key]}).outputs["part"]
            for key in library.outputs
        ]
        index = workflow.add_task(build_index, {"parts": parts})
        answers = {
            question: workflow.add_task(search, {"question": question, "index": index})
            for question in QUESTIONS
        }
        run = workflow.run()
        run.result(timeout=120, progress=True)
        for question, answer in answers.items():
            module, score = run[answer]["module"], run[answer]["score"]
            print(f"{question}: {module} ({score:.2f})")
            command.check(
                module == QUESTIONS[question],
                f"{question!r} is answered by {QUESTIONS[question]}, not by {module}",
            )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.run(example, __doc__ or "", argv)


if __name__ == "__main__":
    raise SystemExit(main())
