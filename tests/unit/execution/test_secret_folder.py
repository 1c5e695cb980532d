"""Secrets in a folder: what is no value is said, in words that say what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lattice.execution.secrets import SecretFolder
from lattice.ports.secrets import SecretError, SecretNotFoundError


def test_what_cannot_be_looked_at_is_not_there(tmp_path: Path) -> None:
    """As in a folder that may not be entered; here a name that is too long."""
    folder = SecretFolder(tmp_path)
    key = f"{'a' * 300}/KEY"
    assert not folder.has(key)
    with pytest.raises(SecretNotFoundError):
        folder.value(key)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """By the kind of error."""
    (tmp_path / "KEY").symlink_to("/proc/self/mem")
    with pytest.raises(SecretError, match=r"'KEY' cannot be read as text \(OSError\)"):
        SecretFolder(tmp_path).value("KEY")


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """It may be one that is just being written."""
    (tmp_path / "KEY").write_bytes(data)
    with pytest.raises(SecretError, match=r"'KEY' is empty; .*rename"):
        SecretFolder(tmp_path).value("KEY")


def test_no_more_is_read_than_a_value_may_have(tmp_path: Path) -> None:
    """However large the file is."""
    path = tmp_path / "KEY"
    path.write_bytes(b"x" * 32 * 1024)
    assert len(SecretFolder(tmp_path).value("KEY")) == 32 * 1024
    os.truncate(path, 1 << 40)
    with pytest.raises(SecretError, match="more than 32768 bytes"):
        SecretFolder(tmp_path).value("KEY")


def test_a_zero_byte_is_refused(tmp_path: Path) -> None:
    """No environment can hold it."""
    (tmp_path / "KEY").write_bytes(b"a\0b")
    with pytest.raises(SecretError, match="zero byte"):
        SecretFolder(tmp_path).value("KEY")
