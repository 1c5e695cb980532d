"""Hostile pickles and hostile code, and the marks they leave where they run.

A mark is a line in a file: which place the pickle was sent to, and the process that unpickled it. So a run
of the service can prove that pickles ran where user tasks run, and nowhere else.
"""

from __future__ import annotations

import base64
import pickle
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

#: Written into every piece of code and every pickle: appends one line in one write.
_LEAVE = (
    "import os as o\n"
    "c = open('/proc/self/cmdline', 'rb').read().replace(b'\\0', b' ').strip()\n"
    "f = o.open({path!r}, o.O_WRONLY | o.O_APPEND | o.O_CREAT, 0o666)\n"
    "o.write(f, b'{place}\\t%d\\t' % o.getpid() + c + b'\\n')\n"
    "o.close(f)\n"
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A line that a process left: where the pickle had been sent, and the process."""

    place: str
    pid: int
    command: str


class _Bomb:
    """Runs Python source when it is unpickled; what comes out is `after`."""

    def __init__(self, source: str, after: str) -> None:
        self._code = f"exec({source!r}, {{}}) or {after}"

    def __reduce__(self) -> Any:
        return eval, (self._code, {})


class Marks:
    """Makes what leaves marks in the file `path`, and reads them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def source(self, place: str) -> str:
        """Python source that leaves a mark."""
        return _LEAVE.format(path=str(self._path), place=place)

    def pickle(self, place: str, after: str) -> str:
        """Base64 of a pickle that leaves a mark and stands for what the expression `after` gives."""
        return base64.b64encode(pickle.dumps(_Bomb(self.source(place), after))).decode()

    def read(self) -> list[Mark]:
        """All marks that were left."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(errors="replace").splitlines()
        split = (line.split("\t", 2) for line in lines)
        return [Mark(place, int(pid), command) for place, pid, command in split]

    def _class(self, place: str, base: str) -> str:
        """Source of a class whose instances leave a mark wherever they are unpickled."""
        return f"class Trap({base}):\n    def __reduce__(self):\n        return exec, ({self.source(place)!r},)\n"

    # -- tasks that run ---------------------------------------------------------------------

    def code(self, rng: Random) -> dict[str, Any]:
        """Code of a task that runs: good, failing or hostile."""
        name, fields = rng.choice(self._menu())
        return {"task_name": name, **fields}

    def _menu(self) -> list[tuple[str, dict[str, Any]]]:
        good = ("good", {"code_str": GOOD})
        return [
            *[good] * 6,
            ("fails", {"code_str": "def fails(p):\n    raise ValueError('\\ud800' * 9)\n"}),
            ("exits", {"code_str": "def exits(p):\n    raise SystemExit('bye')\n"}),
            ("interrupts", {"code_str": "def interrupts(p):\n    raise GeneratorExit\n"}),
            ("broken", {"code_str": "def broken(p:\n"}),
            ("slow", {"code_str": SLOW}),
            ("odd", {"code_str": ODD}),
            ("deep", {"code_str": DEEP}),
            ("large", {"code_str": "def large(p):\n    return {'out': 'x' * 200_000}\n"}),
            ("trap", {"code_str": self.returning("returned")}),
            ("thrown", {"code_str": self.raising("raised")}),
            ("code_ser", {"code_ser": self.pickle("code_ser", RETURNS)}),
            ("serialized", {"serialized_code": self.pickle("serialized_code", RETURNS)}),
            ("nonsense", {"code_ser": base64.b64encode(b"\x80\x05nonsense.").decode()}),
            ("missing", {"code_ser": base64.b64encode(b"cno_such_module\nname\n.").decode()}),
        ]

    def returning(self, place: str) -> str:
        """Source of a task whose output leaves a mark where the next task takes it."""
        return self._class(place, "object") + "def trap(p):\n    return {'out': Trap()}\n"

    def raising(self, place: str) -> str:
        """Source of a task whose exception leaves a mark where it is unpickled, and cannot be shown."""
        methods = (
            "    def __str__(self):\n        raise Trap('again')\n"
            "    def __getattribute__(self, name):\n        raise RecursionError\n"
        )
        return self._class(place, "Exception") + methods + "def thrown(p):\n    raise Trap\n"


#: What a pickle of code stands for once it has left its mark.
RETURNS = "(lambda *a, **k: {'out': 1})"

GOOD = "def good(p):\n    return {'out': len(p)}\n"
SLOW = "import time\ndef slow(p):\n    time.sleep(0.2)\n    return {'out': 1}\n"
ODD = """
import random
def odd(p):
    return {'out': random.choice([
        float('nan'), '\\ud800', 10 ** 6000, {1: 2}, {'\\ud800': 1}, b'\\xff', object, lambda: 1, open,
        {1, 2}, [1, [2, {'a': ()}]], 1e308, '\\0', range(3), print, Exception('a'), type, ...,
    ])}
"""
DEEP = """
def deep(p):
    value = []
    for _ in range(10_000):
        value = [value]
    return {'out': value}
"""
#: Each ends its process, which the engine has to replace: few of them, in runs of their own.
DEADLY = (
    "import os\ndef deadly(p):\n    os._exit(1)\n",
    "import os, signal\ndef deadly(p):\n    os.kill(os.getpid(), signal.SIGSEGV)\n",
    "import sys\ndef deadly(p):\n    sys.setrecursionlimit(10**9)\n    f = lambda: f()\n    f()\n",
)


def arguments(rng: Random, marks: Marks, place: str, after: str) -> Any:
    """Pickled arguments of a call: good, hostile or no pickle at all."""
    makers = (
        lambda: marks.pickle(place, after),
        lambda: base64.b64encode(pickle.dumps(_Bomb("", after))).decode(),
        lambda: base64.b64encode(pickle.dumps(rng.choice((None, 1, [], {}, "a")))).decode(),
        lambda: base64.b64encode(_tower(rng.choice((500, 10_000, 100_000)))).decode(),
        lambda: base64.b64encode(rng.randbytes(rng.randrange(100))).decode(),
        lambda: base64.b64encode(b"\x80\x05\x95" + b"\xff" * 8 + b".").decode(),
        lambda: base64.b64encode(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.").decode(),
        lambda: base64.b64encode(b"I" + b"9" * 5_000 + b"\n.").decode(),
        lambda: base64.b64encode(b"(" * 10_000 + b".").decode(),
        lambda: base64.b64encode(b"cos\n_no_such\n)R.").decode(),
        lambda: base64.b64encode(b"cbuiltins\nexit\n)R.").decode(),
    )
    return rng.choice(makers)()


def _tower(depth: int) -> bytes:
    """A pickle of a tuple in a tuple, `depth` deep, which is read without recursion."""
    return b")" + b"\x85" * depth + b"."
