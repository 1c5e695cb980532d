"""File names that travel with code, and tracebacks that come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattice.client import adapters, sources


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/app.py", "<app.py>"),
        ("<stdin>", "<stdin>"),
        ("<ipython-input-3-abc>", "<cell>"),
        ("/tmp/ipykernel_77/1234.py", "<cell>"),
        (adapters.__file__, "<lattice>"),
    ],
)
def test_labels_do_not_depend_on_the_machine(path: str, expected: str) -> None:
    """Folders and kernels differ from one to the other."""
    assert sources.label(path) == expected


def test_a_traceback_gets_its_lines_back(tmp_path: Path) -> None:
    """Paths and source are put in, and the SDK's frames are taken out."""
    script = tmp_path / "restored_script.py"
    script.write_text("def f():\n    return 1 / 0\n")
    sources.label(str(script))
    text = (
        "Traceback (most recent call last):\n"
        '  File "<lattice>", line 70, in call\n'
        '  File "<restored_script.py>", line 2, in f\n'
        '  File "<unknown.py>", line 9, in g\n'
        '  File "/usr/lib/python3/json.py", line 3, in h\n'
        "    shown()\n"
        "ZeroDivisionError: division by zero"
    )
    assert sources.restored(text) == (
        "Traceback (most recent call last):\n"
        f'  File "{script}", line 2, in f\n'
        "    return 1 / 0\n"
        '  File "<unknown.py>", line 9, in g\n'
        '  File "/usr/lib/python3/json.py", line 3, in h\n'
        "    shown()\n"
        "ZeroDivisionError: division by zero"
    )


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    """Rather no source than the wrong one."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        script = tmp_path / folder / "twice_named.py"
        script.write_text("x = 1\n")
        sources.label(str(script))
    text = '  File "<twice_named.py>", line 1, in f'
    assert sources.restored(text) == text
