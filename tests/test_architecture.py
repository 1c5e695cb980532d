"""Who may import what. The table is the architecture; an exception is one named import with a reason."""

from __future__ import annotations

import ast
import fnmatch
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: What each part of `lattice` may import beside the standard library: parts of ours, and packages.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "ids": set(),
    "versions": set(),
    "workflow": {"errors", "ids", "workflow"},
    "ports": {"workflow", "ids", "errors", "ports"},
    "keys": {"errors", "pydantic"},
    "settings": {"errors", "keys", "pydantic"},
    "orchestrator": {"workflow", "ports", "errors", "ids", "orchestrator"},
    "store": {"workflow", "ports", "errors", "ids", "store", "sqlalchemy", "alembic"},
    "execution": {"workflow", "ports", "errors", "ids", "execution", "fsspec"},
    "observability": {
        "ports",
        "errors",
        "ids",
        "observability",
        "opentelemetry",
        "prometheus_client",
        "starlette",
    },
    "api": {
        "api",
        "orchestrator",
        "workflow",
        "ports",
        "errors",
        "ids",
        "keys",
        "settings",
        "versions",
        "observability",
        "fastapi",
        "pydantic",
        "starlette",
    },
    "assembly": {
        "execution",
        "observability",
        "orchestrator",
        "ports",
        "settings",
        "store",
        "workflow.retry",  # what settings say of retries, as the orchestrator takes it
        "errors",
        "ids",
    },
    "client": {"client", "workflow.task", "errors", "ids", "api.models", "versions", "pydantic"},
    "cli": {"cli", "client", "errors", "keys", "settings", "versions"},
    "examples": {"PUBLIC", "examples", "numpy", "sklearn", "langgraph"},
    "testing": {"workflow", "ports", "errors", "ids", "orchestrator", "store", "testing"},
    "__init__": {"client", "errors", "api.models"},
}

#: Single modules that may import more, and why.
EXCEPTIONS: dict[str, set[str]] = {
    "lattice/execution/ray_*.py": {"ray"},  # the only modules that know the engine
    "lattice/execution/pickling.py": {"cloudpickle"},  # writes what the next task gets
    "lattice/execution/source.py": {"cloudpickle"},  # makes classes of source code travel by value
    "lattice/execution/code.py": {"cloudpickle"},  # loads what users send
    "lattice/execution/spans.py": {"observability.traces", "opentelemetry"},  # spans of user code
    "lattice/api/server.py": {"assembly"},  # create_app builds an orchestrator where none is given
    # The only module that knows the HTTP library; it passes the caller's trace on.
    "lattice/client/transport.py": {"httpx", "opentelemetry"},
    "lattice/client/subscription.py": {"websockets"},  # and this one the WebSocket library
    "lattice/client/pickling.py": {"cloudpickle"},  # pickles the user's own code
    "lattice/client/stable.py": {"cloudpickle"},  # to the same bytes in every process
    "lattice/cli/ray_node.py": {"ray"},  # makes a machine a node of the cluster
    "lattice/client/progress.py": {"tqdm"},  # draws the progress bar
}

#: Standard library modules that a part must do without.
FORBIDDEN = {"workflow": {"asyncio", "sqlite3", "time", "random", "uuid", "threading", "socket"}}


def modules() -> list[Path]:
    return sorted((ROOT / "lattice").rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Every absolute name that the module imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(str(node.module))
            if node.module == "lattice":
                found += [f"lattice.{alias.name}" for alias in node.names]
    return found


def part(path: Path) -> str:
    """The package or module of `lattice` that a file belongs to."""
    return path.relative_to(ROOT / "lattice").parts[0].removesuffix(".py")


def allowed(path: Path) -> set[str]:
    """All that the table lets a module import; `PUBLIC` stands for the names of `lattice` itself."""
    name = path.relative_to(ROOT).as_posix()
    more = (extra for pattern, extra in EXCEPTIONS.items() if fnmatch.fnmatch(name, pattern))
    return ALLOWED[part(path)].union(*more)


def violations(path: Path) -> list[str]:
    may = allowed(path)
    wrong = []
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "lattice":
            public = rest.partition(".")[0] not in ALLOWED
            named = any(rest == each or rest.startswith(f"{each}.") for each in may)
            ok = "PUBLIC" in may if public else named
        elif top in sys.stdlib_module_names:
            ok = top not in FORBIDDEN.get(part(path), set())
        else:
            ok = top in may
        if not ok:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_inward(path: Path) -> None:
    """A module imports only what the table allows."""
    assert violations(path) == []


def test_nobody_imports_the_deployments() -> None:
    """`deployments` is the outermost layer."""
    assert [
        path for path in modules() if any(name.startswith("deployments") for name in imports(path))
    ] == []


def test_packages_stay_empty() -> None:
    """Importing a wire model must not pull in the server: `__init__` files hold nothing but words."""
    full = {"lattice", "store", "orchestrator"}
    for path in modules():
        if path.name == "__init__.py" and path.parent.name not in full:
            body = ast.parse(path.read_text()).body
            assert all(isinstance(node, ast.Expr) for node in body), path


def test_only_user_processes_unpickle() -> None:
    """`pickle.loads` stands only where user tasks run, and in the user's own client."""
    for path in [*modules(), *sorted((ROOT / "deployments").rglob("*.py"))]:
        if part_is_user_side(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("loads", "load", "Unpickler"):
                owner = node.value
                assert not (
                    isinstance(owner, ast.Name) and owner.id in ("pickle", "cloudpickle")
                ), path


def part_is_user_side(path: Path) -> bool:
    return path.is_relative_to(ROOT / "lattice" / "execution") or path.is_relative_to(
        ROOT / "lattice" / "client"
    )
