"""Which modules are the user's own, so that what they define travels by value."""

from __future__ import annotations

import functools
import os.path
import sys
import sysconfig
import types
from typing import cast

_LIBRARY_PATHS = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
)


def user_modules() -> list[types.ModuleType]:
    """The loaded modules whose code is the user's own, `__main__` excepted, which always is."""
    found = []
    for name, module in list(cast("dict[str, object]", sys.modules).items()):
        # Some libraries put other objects there, modules under other names, or modules that do work
        # when an attribute is asked for.
        if isinstance(module, types.ModuleType) and module.__dict__.get("__name__") == name:
            file = module.__dict__.get("__file__")
            if isinstance(file, str) and _is_users(name, file):
                found.append(module)
    return found


# Kept, as it is asked for every loaded module at each call, and looks at the file system.
@functools.cache
def _is_users(name: str, file: str) -> bool:
    if name in ("__main__", "__mp_main__") or not file.endswith(".py"):
        return False
    top = name.partition(".")[0]
    # The examples are meant to be edited, so what is here counts, not what the service has.
    if top in sys.stdlib_module_names or (
        top == "lattice" and not name.startswith("lattice.examples")
    ):
        return False
    path = os.path.realpath(file)
    if not {"site-packages", "dist-packages"}.isdisjoint(path.split(os.sep)):
        return False
    return not path.startswith(_LIBRARY_PATHS)


def is_user_made(obj: object, names: frozenset[str]) -> bool:
    """Whether `obj` says that it is from one of the modules `names`, or from `__main__`."""
    module = getattr(obj, "__module__", None)
    return module == "__main__" or module in names
