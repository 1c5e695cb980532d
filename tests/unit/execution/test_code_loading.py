"""Loading what users send: pickles and whole-module source, functions and classes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import cloudpickle
import pytest

from lattice.execution import code as code_module
from lattice.execution import pickling, source
from lattice.execution.code import MAX_LOADED, CodeLoadError, Function, load
from lattice.ids import Digest
from lattice.workflow.task import Code, CodeForm


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    """Each test begins as a worker that has loaded nothing."""
    yield
    while code_module._functions:
        old, _ = code_module._functions.popitem()
        source.forget_module(old.digest)


def _code(data: bytes, form: CodeForm, name: str) -> Code:
    return Code(Digest(hashlib.sha256(data).hexdigest()), form, name)


def load_source(text: str, name: str = "run") -> Function:
    data = textwrap.dedent(text).encode()
    return load(_code(data, CodeForm.SOURCE, name), lambda: data)


def load_pickle(data: bytes, name: str = "run") -> Function:
    return load(_code(data, CodeForm.PICKLE, name), lambda: data)


def refused(loading: Callable[[], object]) -> CodeLoadError:
    with pytest.raises(CodeLoadError) as caught:
        loading()
    return caught.value


def test_a_function_named_like_the_task_is_taken_before_a_later_one() -> None:
    """Source holds helpers and other tasks; the name decides."""
    text = """
        import math
        def helper(x): return math.floor(x)
        def run(params): return {"x": helper(params["x"])}
        def another(params): return {}
    """
    assert load_source(text)({"x": 2.5}) == {"x": 2}


def test_without_such_a_name_the_last_definition_is_taken() -> None:
    """Imports and assignments do not count, `async def` does."""
    text = """
        def first(params): return {}
        async def last(params): return {"last": True}
        from os.path import join
        x = 3
    """
    assert load_source(text, "nothing").__name__ == "last"


def test_a_callable_that_is_assigned_to_the_name_is_taken() -> None:
    """`run = partial(...)` and lambdas are functions too."""
    assert load_source("run = lambda params: {'a': 1}\ndef other(params): return {}\n")({}) == {
        "a": 1
    }


def test_source_is_a_real_module() -> None:
    """Dataclasses, type hints and `sys.modules[__name__]` work in it."""
    text = """
        from __future__ import annotations
        import dataclasses, sys, typing
        @dataclasses.dataclass
        class Point:
            x: int
        def run(params: dict[str, int]) -> dict[str, Point]:
            typing.get_type_hints(run)
            return {"point": sys.modules[__name__].Point(1)}
    """
    assert repr(load_source(text)({})["point"]) == "Point(x=1)"


def test_code_is_fetched_and_executed_once() -> None:
    """What is loaded is kept by digest, form and name."""
    data = b"import builtins\nbuiltins.lattice_loads = getattr(builtins, 'lattice_loads', 0) + 1\ndef run(p): return p\n"
    fetched: list[int] = []

    def fetch() -> bytes:
        fetched.append(1)
        return data

    code = _code(data, CodeForm.SOURCE, "run")
    first = load(code, fetch)
    assert load(code, fetch) is first
    assert len(fetched) == 1
    other = load(_code(data, CodeForm.SOURCE, "other task, same source"), fetch)
    assert other is first, "one module for one source"
    import builtins

    assert builtins.__dict__.pop("lattice_loads") == 1


def test_the_cache_is_bounded() -> None:
    """The least recently used definition goes, with its module."""
    modules = {name for name in sys.modules if name.startswith("lattice_task_")}
    assert not modules
    for number in range(MAX_LOADED + 5):
        load_source(f"def run(params): return {{'n': {number}}}\n")
    assert len(code_module._functions) == MAX_LOADED
    assert sum(name.startswith("lattice_task_") for name in sys.modules) == MAX_LOADED


def test_a_class_is_constructed_once_and_its_instance_called() -> None:
    """The instance keeps its state from call to call."""
    text = """
        class Model:
            def __init__(self): self.calls = 0
            def __call__(self, params):
                self.calls += 1
                return {"calls": self.calls}
    """
    assert load_source(text)({}) == {"calls": 1}
    assert load_source(text)({}) == {"calls": 2}


def test_a_pickled_class_is_constructed() -> None:
    """The same for cloudpickle."""

    class Model:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, params: dict[str, object]) -> dict[str, object]:
            self.calls += 1
            return {"calls": self.calls}

    data = cloudpickle.dumps(Model)
    assert load_pickle(data)({}) == {"calls": 1}
    assert load_pickle(data)({}) == {"calls": 2}


def test_a_constructor_that_raises_is_an_error_and_is_tried_again() -> None:
    """The error has the user's own line; nothing half made is kept."""
    text = """
        import builtins
        class Model:
            def __init__(self):
                builtins.lattice_tries = getattr(builtins, "lattice_tries", 0) + 1
                if builtins.lattice_tries == 1:
                    raise OSError("no weights")
            def __call__(self, params): return {}
    """
    info = refused(lambda: load_source(text)).info
    assert info.type == "OSError"
    assert info.message == "constructing Model failed: no weights"
    assert 'raise OSError("no weights")' in info.traceback
    assert 'File "<lattice task run>", line 7, in __init__' in info.traceback
    assert load_source(text)({}) == {}


def test_a_syntax_error_says_where() -> None:
    """The line is the user's."""
    info = refused(lambda: load_source("def run(params):\n    return {\n")).info
    assert info.type == "SyntaxError"
    assert info.message.startswith("the task's source is not valid Python in line 2: ")
    assert 'File "<lattice task run>", line 2' in info.traceback
    assert "source.py" not in info.traceback
    assert "ast.py" not in info.traceback


def test_an_error_at_the_top_level_shows_the_users_line() -> None:
    """The module's own frames, and none of Lattice's; nothing stays loaded."""
    info = refused(lambda: load_source("def helper():\n    1 / 0\nhelper()\n")).info
    assert info.type == "ZeroDivisionError"
    assert info.message == (
        "the task's code could not be loaded: ZeroDivisionError: division by zero"
    )
    assert 'File "<lattice task run>", line 3, in <module>\n    helper()' in info.traceback
    assert 'File "<lattice task run>", line 2, in helper\n    1 / 0' in info.traceback
    assert "source.py" not in info.traceback
    assert not any(name.startswith("lattice_task_") for name in sys.modules)


def test_sys_exit_at_the_top_level_is_an_error() -> None:
    """A script's way out does not end the worker."""
    info = refused(lambda: load_source("import sys\nsys.exit(4)\n")).info
    assert info.type == "SystemExit"
    assert "called sys.exit(4)" in info.message


def test_a_module_that_only_the_client_has_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do: in source and in a pickle."""
    info = refused(lambda: load_source("import only_at_home.tools\ndef run(p): return {}\n")).info
    assert info.type == "ModuleNotFoundError"
    assert "needs the module 'only_at_home'" in info.message
    assert '{"pip": ["only_at_home"]}' in info.message

    (tmp_path / "my_helpers.py").write_text("def run(params):\n    return {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_helpers  # type: ignore[import-not-found]  # written two lines above

    data = cloudpickle.dumps(my_helpers.run)
    monkeypatch.undo()
    sys.modules.pop("my_helpers")
    info = refused(lambda: load_pickle(data)).info
    assert info.type == "ModuleNotFoundError"
    assert "needs the module 'my_helpers'" in info.message


@pytest.mark.parametrize("text", ["x = 1\n", "", "import os\n"])
def test_source_without_a_definition_is_refused(text: str) -> None:
    """With an example of what is needed."""
    assert "defines no function or class" in refused(lambda: load_source(text, "t")).info.message


def test_what_cannot_be_called_is_refused() -> None:
    """A class without `__call__`, a name that holds a number, a pickled dict."""
    text = "class Run:\n    pass\n"
    message = refused(lambda: load_source(text)).info.message
    assert "its class Run has no method __call__(self, params)" in message
    assert "it is a int" in refused(lambda: load_source("run = 3\n")).info.message
    assert "it is a dict" in refused(lambda: load_pickle(cloudpickle.dumps({}))).info.message


@pytest.mark.parametrize("data", [b"", b"\x80\x05", b"not a pickle", b"\xff\xfe\x00"])
def test_bytes_that_are_no_pickle_are_refused(data: bytes) -> None:
    """Whatever the unpickler says."""
    message = refused(lambda: load_pickle(data)).info.message
    assert message.startswith("the task's code could not be loaded: ")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"# coding: nonsense\n", b"a\x00b", b"(" * 5000])
def test_bytes_that_are_no_source_are_refused(data: bytes) -> None:
    """Wrong encodings, null bytes, nesting that no parser takes."""
    refused(lambda: load(_code(data, CodeForm.SOURCE, "run"), lambda: data))


SHARED = """
    import dataclasses, enum
    class Colour(enum.Enum):
        RED = 1
    @dataclasses.dataclass
    class Doc:
        colour: Colour
    def make(params): return {"doc": Doc(Colour.RED)}
    def check(params):
        return {
            "is_doc": isinstance(params["doc"], Doc),
            "is_red": params["doc"].colour is Colour.RED,
            "equal": params["doc"] == Doc(Colour.RED),
        }
"""


#: Another worker: prints the pickle of what `make` returned there.
MAKER = """
import sys
from lattice.execution import code, pickling
from lattice.workflow.task import Code, CodeForm
source = sys.argv[2].encode()
function = code.load(Code(sys.argv[1], CodeForm.SOURCE, "make"), lambda: source)
print(pickling.dumps(function({})["doc"]).hex())
"""


def test_values_of_a_sources_classes_keep_their_class_from_task_to_task() -> None:
    """A worker that has loaded the same source takes the class of its own module."""
    text = textwrap.dedent(SHARED)
    digest = hashlib.sha256(text.encode()).hexdigest()
    command = [sys.executable, "-c", MAKER, digest, text]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    data = bytes.fromhex(made)
    check = load_source(SHARED, "check")
    assert check({"doc": pickling.loads(data)}) == {"is_doc": True, "is_red": True, "equal": True}


def test_values_of_a_sources_classes_travel_to_where_the_source_is_not() -> None:
    """The class comes along by value, one class for all values."""
    doc = load_source(SHARED, "make")({})["doc"]
    first, second = pickling.dumps(doc), pickling.dumps([doc])
    digest = Digest(hashlib.sha256(textwrap.dedent(SHARED).encode()).hexdigest())
    source.forget_module(digest)
    code_module._functions.clear()
    del doc
    one, two = pickling.loads(first), cast("list[object]", pickling.loads(second))[0]
    assert type(one).__name__ == "Doc"
    assert type(one) is type(two)
    assert one == two


def test_a_child_that_is_forked_while_code_loads_ends_there() -> None:
    """It never comes back as a second worker."""
    text = """
        import os
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
        def run(params): return {"status": os.waitstatus_to_exitcode(status)}
    """
    assert load_source(text)({}) == {"status": 0}


def test_modules_are_of_the_module_type() -> None:
    """`inspect.getmodule` and pickling by value rely on it."""
    function = load_source("def run(params): return {}\n")
    assert isinstance(sys.modules[function.__module__], types.ModuleType)
