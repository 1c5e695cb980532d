"""Pickled code: the same bytes everywhere, whole without the user's modules, and clear refusals."""

from __future__ import annotations

import base64
import copy
import enum
import functools
import importlib
import os
import pickle
import subprocess
import sys
import threading
import typing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cloudpickle
import pytest

from lattice import UnpicklableError
from lattice.client import stable
from lattice.client.modules import user_modules
from lattice.client.pickling import dumps_code, dumps_value, loads, text

HERE = Path(__file__).parent
SCRIPT = HERE / "determinism_script.py"

#: Runs pickled code from standard input in a process that has none of the user's modules.
ELSEWHERE = """
import pickle, sys
function = pickle.load(sys.stdin.buffer)
print(repr(function(*eval(sys.argv[1]))))
assert not any(name.partition(".")[0] in ("lattice", "tests") for name in sys.modules)
"""


def run(command: list[str], given: bytes = b"", **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        input=given,
        capture_output=True,
        env={**os.environ, **environ},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def elsewhere(code: object, *args: object) -> str:
    """The repr of what the code returns in another process."""
    return run(["-I", "-c", ELSEWHERE, repr(args)], dumps_code(code))


def test_the_same_script_gives_the_same_bytes(tmp_path: Path) -> None:
    """In two processes that hash differently, one with compiled modules and one without, elsewhere."""
    for name in (SCRIPT.name, "helper_module.py"):
        (tmp_path / name).write_bytes((HERE / name).read_bytes())
    there = str(tmp_path / SCRIPT.name)
    first = run(["-B", str(SCRIPT)], PYTHONHASHSEED="1")
    assert first.count("\n") == 5
    assert run([there], PYTHONHASHSEED="2") == first  # compiles the helper module
    assert run([there], PYTHONHASHSEED="3") == first  # loads the compiled one


def test_different_code_gives_different_bytes() -> None:
    """The hash is an identity."""

    def one() -> int:
        return 1

    def two() -> int:
        return 2

    assert dumps_code(one) != dumps_code(two)
    assert dumps_code(one) == dumps_code(one)


WORDS = {"some", "words"}
UserId = typing.NewType("UserId", str)
T = typing.TypeVar("T")


@functools.lru_cache(maxsize=3)
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


class Colour(enum.Enum):
    RED = 1


@dataclass
class Point:
    x: int

    def moved(self) -> Point:
        return Point(self.x + 1)


def uses_much(user: UserId, items: tuple[T, ...] = ()) -> object:
    point = Point(fibonacci(10)).moved()
    return point.x, Colour.RED.name, sorted(WORDS), user in {"a", "b"}, (1.0, 1, True)


def test_code_is_whole_in_another_process() -> None:
    """Helpers, classes, caches and type variables of the user's module travel along."""
    assert elsewhere(uses_much, "a") == "(56, 'RED', ['some', 'words'], True, (1.0, 1, True))"


def test_modules_of_the_user_travel_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they import each other."""
    (tmp_path / "cyclic_one.py").write_text(
        "import cyclic_two\ndef f(n):\n    return cyclic_two.g(n) + 1\nBASE = 10\n"
    )
    (tmp_path / "cyclic_two.py").write_text(
        "import cyclic_one\ndef g(n):\n    return n + cyclic_one.BASE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    one = importlib.import_module("cyclic_one")

    def call(n: int) -> object:
        return one.f(n)

    assert elsewhere(call, 5) == "16"


def test_the_registration_of_modules_ends() -> None:
    """What the user registered stays, what was registered for a pickle does not."""
    mine = sys.modules[__name__]
    assert mine in user_modules()
    before = cloudpickle.list_registry_pickle_by_value()
    dumps_code(uses_much)
    assert cloudpickle.list_registry_pickle_by_value() == before
    cloudpickle.register_pickle_by_value(mine)
    try:
        dumps_code(uses_much)
        assert __name__ in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(mine)


@pytest.mark.parametrize("name", ["json", "pytest", "lattice.errors", "numpy", "__main__"])
def test_libraries_are_not_the_users(name: str) -> None:
    """They are installed on the service's machines too."""
    importlib.import_module(name)
    assert name not in [module.__name__ for module in user_modules()]


def test_classes_keep_their_identity() -> None:
    """What comes back is an instance of the class here, and the class is left as it is."""
    method = Point.moved
    data = dumps_value(Point(3), "point")
    received = loads(data)
    assert type(received) is Point
    assert Point.moved is method
    assert type(loads(dumps_value([received], "list"))[0]) is Point  # type: ignore[index]  # a list


def test_classes_from_elsewhere_keep_their_id() -> None:
    """Sent back, they are the classes that they were there."""
    script = (
        "import cloudpickle, sys\n"
        "class Foreign:\n    def hello(self): return 'hello'\n"
        "sys.stdout.buffer.write(cloudpickle.dumps([Foreign(), cloudpickle.cloudpickle."
        "_get_or_create_tracker_id(Foreign)]))\n"
    )
    data = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    foreign, class_id = loads(data)  # type: ignore[misc]  # a list
    assert foreign.hello() == "hello"
    assert type(loads(data)[0]) is type(foreign)  # type: ignore[index]  # a list
    assert class_id.encode() in dumps_value(foreign, "foreign")


def test_equal_values_of_different_types_stay_different() -> None:
    """1, 1.0 and True are equal, and so are 0.0 and -0.0."""
    values = [(1,), (1.0,), (True,), (0.0,), (-0.0,), ("1",), (b"1",), (None,), ((1,),), (1j,)]

    def get() -> object:
        return values

    assert repr(pickle.loads(dumps_code(get))()) == repr(values)


def test_shared_and_recursive_data_keep_their_shape() -> None:
    """What is one object stays one; a list that holds itself does so there."""
    shared = [1]
    data: list[object] = [shared, shared]
    data.append(data)

    def get() -> object:
        return data

    found = pickle.loads(dumps_code(get))()
    assert found[0] is found[1]
    assert found[2] is found


def test_deep_data_go_all_the_same() -> None:
    """Deeper than the stable pickler can go, plain cloudpickle goes on."""
    deep: list[object] = []
    for _ in range(400):
        deep = [deep]

    def get() -> object:
        return deep

    found, depth = pickle.loads(dumps_code(get))(), 0
    while found:
        found, depth = found[0], depth + 1
    assert depth == 400


lock = threading.Lock()
holder = ModuleType("holder")


class Keeper:
    def __init__(self) -> None:
        self.inner = {"locks": [lock]}


keeper = Keeper()


def test_what_cannot_be_sent_is_named() -> None:
    """With the way to it."""

    def helper() -> object:
        return keeper

    def uses() -> object:
        return helper()

    with pytest.raises(UnpicklableError) as caught:
        dumps_code(uses)
    message = str(caught.value)
    assert "helper -> keeper -> inner -> ['locks'] -> [0] (lock)" in message
    assert "cannot pickle '_thread.lock' object" in message
    with pytest.raises(UnpicklableError, match=r"the arguments cannot .* it uses \[0\] \(lock\)"):
        dumps_value((lock,), "the arguments")


class ByName:
    """Pickles as a name in its module, as some libraries' objects do."""

    def __reduce__(self) -> str:
        return "by_name"


by_name = ByName()


def test_names_in_the_users_modules_are_refused() -> None:
    """The service would not find them; better here than there."""

    def get() -> object:
        return by_name

    with pytest.raises(UnpicklableError, match="the service does not have that module"):
        dumps_code(get)


def test_a_function_that_stands_for_another_is_sent_as_that() -> None:
    """As the other, be it the user's or a library's."""

    def original() -> str:
        return "original"

    def substitute() -> str:
        return "substitute"

    substitute.__dict__[stable.STANDS_FOR] = original
    library = functools.wraps(copy.deepcopy)(lambda value: value)
    library.__dict__[stable.STANDS_FOR] = copy.deepcopy

    def get() -> object:
        return substitute(), library

    assert elsewhere(substitute) == "'original'"
    assert pickle.loads(dumps_code(get))() == ("original", copy.deepcopy)
    assert loads(dumps_value(library, "library")) is copy.deepcopy


def test_the_form_on_the_wire() -> None:
    """Base64."""
    assert base64.b64decode(text(b"\x00\xff")) == b"\x00\xff"
