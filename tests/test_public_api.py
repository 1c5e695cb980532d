"""What `lattice` offers: the names declared are those that can be had, and having them is cheap."""

from __future__ import annotations

import subprocess
import sys
import typing

import pytest

import lattice


def test_declared_names_are_sorted_and_there() -> None:
    """`__all__` is the public API."""
    assert lattice.__all__ == sorted(set(lattice.__all__))
    for name in lattice.__all__:
        assert getattr(lattice, name) is not None
    assert set(lattice.__all__) <= set(dir(lattice))


def test_every_name_that_is_loaded_is_declared() -> None:
    """Nothing is offered beside `__all__`."""
    offered = {name for names in lattice._MODULES.values() for name in names}
    assert offered == set(lattice.__all__)


def test_names_lead_home() -> None:
    """Each comes from the module that the type checker sees it in."""
    for name in lattice.__all__:
        module = getattr(lattice, name).__module__
        assert name in lattice._MODULES[module.removeprefix("lattice.")]


def test_an_unknown_name() -> None:
    """Is no attribute."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        typing.cast("typing.Any", lattice).nothing  # noqa: B018  # the access is what is tested


def test_the_sdk_needs_neither_ray_nor_the_server() -> None:
    """A client's machine may have neither."""
    script = (
        "import sys, lattice\n"
        "assert not [m for m in sys.modules if m.startswith('lattice.')], 'importing is cheap'\n"
        "[getattr(lattice, name) for name in lattice.__all__]\n"
        "heavy = {'ray', 'fastapi', 'starlette', 'sqlalchemy', 'lattice.api.server',"
        " 'lattice.orchestrator', 'lattice.store'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
