"""Large values in storage: whole or not at all, and never outside the root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lattice.execution.storage import FsspecStorage, location_of
from lattice.ids import RunId, TaskId


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> FsspecStorage:
    """The same behaviour on every file system."""
    name = tmp_path.name
    return FsspecStorage(tmp_path.as_uri() if request.param == "local" else f"memory://{name}/x")


def write(storage: FsspecStorage, location: str, data: bytes) -> None:
    with storage.write(location) as file:
        file.write(data)


def test_what_was_written_is_read(storage: FsspecStorage) -> None:
    """Under its location, also when it is written again."""
    write(storage, "runs/r/t/1/out", b"first")
    write(storage, "runs/r/t/1/out", b"second")
    assert storage.read("runs/r/t/1/out") == b"second"
    assert storage.read("runs/r/t/1/out", 2, 3) == b"con"
    assert storage.read("runs/r/t/1/out", 6, 3) == b""


def test_what_is_not_there_is_not_found(storage: FsspecStorage) -> None:
    """Nor is a folder."""
    write(storage, "runs/r/t/1/out", b"")
    assert storage.read("runs/r/t/1/out") == b""
    for location in ("runs/r/t/1/other", "runs/r/t/1", "runs/r/t/1/out/below"):
        with pytest.raises(FileNotFoundError):
            storage.read(location)


def test_a_write_that_fails_leaves_nothing(storage: FsspecStorage) -> None:
    """Neither half a file nor a temporary one, and what was there before stays."""
    write(storage, "runs/r/t/1/out", b"before")

    def fail(location: str) -> None:
        with storage.write(location) as file:
            file.write(b"half")
            raise ZeroDivisionError

    for location in ("runs/r/t/1/out", "runs/r/t/1/new"):
        with pytest.raises(ZeroDivisionError):
            fail(location)
    assert storage.read("runs/r/t/1/out") == b"before"
    folder = storage._filesystem.ls(f"{storage._root}/runs/r/t/1", detail=False)
    assert [path.rpartition("/")[2] for path in folder] == ["out"]


def test_a_file_is_not_seen_before_it_is_complete(storage: FsspecStorage) -> None:
    """Readers find nothing while it is written."""
    with storage.write("runs/r/t/1/out") as file:
        file.write(b"data")
        with pytest.raises(FileNotFoundError):
            storage.read("runs/r/t/1/out")
    assert storage.read("runs/r/t/1/out") == b"data"


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "runs/../../secret",
        "/etc/passwd",
        "",
        "runs//x",
        "runs/./x",
        "runs/..",
        "a\\b",
        "a\0b",
    ],
)
def test_no_location_leads_outside(storage: FsspecStorage, location: str) -> None:
    """Whatever a location says."""
    with pytest.raises(FileNotFoundError):
        storage.read(location)
    with pytest.raises(FileNotFoundError):
        write(storage, location, b"x")


def test_no_link_leads_outside(tmp_path: Path) -> None:
    """User code can make links where its values are written."""
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "values"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    storage = FsspecStorage(root.as_uri())
    with pytest.raises(FileNotFoundError):
        storage.read("link/secret")
    with pytest.raises(FileNotFoundError):
        write(storage, "link/new", b"x")
    assert not (tmp_path / "new").exists()


def test_a_root_that_is_a_link_works(tmp_path: Path) -> None:
    """The operator may put the folder elsewhere."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage = FsspecStorage((tmp_path / "link").as_uri())
    write(storage, "runs/x", b"x")
    assert (tmp_path / "real" / "runs" / "x").read_bytes() == b"x"


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "ü" * 300, "x" * 5000, "%2E", "a b", "\ud800", "\0", "C:\\x"]
)
def test_any_name_makes_a_location(tmp_path: Path, name: str) -> None:
    """Of one path part each, short enough for a file system."""
    location = location_of(RunId("r"), TaskId(name), 2, name)
    parts = location.split("/")
    assert len(parts) == 5
    assert all(0 < len(part) <= 200 and part not in (".", "..") for part in parts)
    storage = FsspecStorage(tmp_path.as_uri())
    write(storage, location, b"x")
    assert storage.read(location) == b"x"


def test_different_names_make_different_locations() -> None:
    """Also where they are too long to be spelt out."""
    names = ["x" * 5000, "x" * 5001, "a/b", "a%2Fb", "", ".", "%2E", "a"]
    assert len({location_of(RunId("r"), TaskId("t"), 1, name) for name in names}) == len(names)


def test_a_local_file_is_synced_before_it_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content first, then its name."""
    steps: list[str] = []

    def noting(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def noted(*args: object) -> None:
            steps.append(name)
            function(*args)

        return noted

    monkeypatch.setattr(os, "fsync", noting("sync", os.fsync))
    monkeypatch.setattr(os, "replace", noting("rename", os.replace))
    write(FsspecStorage(tmp_path.as_uri()), "runs/x", b"x")
    assert steps == ["sync", "rename", "sync"]


def test_all_that_a_run_has_left_is_found_and_removed(storage: FsspecStorage) -> None:
    """Whole values and what a killed writer left; other runs, even of a longer name, are not touched."""
    run, other = RunId("r"), RunId("r2")
    kept = location_of(other, TaskId("t"), 1, "out")
    written = [location_of(run, TaskId(task), 1, "a/b.c") for task in ("t", "u")]
    for location in (kept, *written):
        write(storage, location, b"x")
    storage._filesystem.pipe_file(f"{storage._root}/runs/r/t/1/.half", b"x")
    assert sorted(storage.stored_by(run)) == sorted([*written, "runs/r/t/1/.half"])
    assert storage.stored_by(RunId("none")) == []
    assert {storage.owner(location) for location in written} == {run}
    storage.delete([written[0], "runs/r/t/1/not there", "runs/none/t/1/out"])
    assert sorted(storage.stored_by(run)) == sorted([written[1], "runs/r/t/1/.half"])
    storage.delete(storage.stored_by(run))
    assert storage.stored_by(run) == []
    assert storage.stored_by(other) == [kept]
    assert storage.read(kept) == b"x"


def test_an_id_of_any_text_is_read_back_from_a_location(storage: FsspecStorage) -> None:
    run = RunId("a/b .c%")
    assert storage.owner(location_of(run, TaskId("t"), 1, "out")) == run


def test_folders_go_when_they_are_empty(tmp_path: Path) -> None:
    storage = FsspecStorage(tmp_path.as_uri())
    write(storage, "runs/r/t/1/out", b"x")
    write(storage, "runs/r/t/2/out", b"x")
    storage.delete(["runs/r/t/1/out"])
    assert not (tmp_path / "runs/r/t/1").exists()
    storage.delete(["runs/r/t/2/out"])
    assert list((tmp_path / "runs").iterdir()) == []


def test_links_of_user_code_are_removed_and_not_followed(tmp_path: Path) -> None:
    """Whatever they lead to stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    storage = FsspecStorage((tmp_path / "values").as_uri())
    write(storage, "runs/r/t/1/out", b"x")
    folder = tmp_path / "values/runs/r"
    (folder / "t/1/file").symlink_to(outside / "precious")
    (folder / "t/folder").symlink_to(outside)
    (tmp_path / "values/runs/link").symlink_to(outside)
    storage.delete(storage.stored_by(RunId("r")))
    storage.delete(storage.stored_by(RunId("link")))
    assert list((tmp_path / "values/runs").iterdir()) == []
    assert (outside / "precious").exists()
    (tmp_path / "values/runs/link").symlink_to(outside)
    with pytest.raises(FileNotFoundError):
        storage.delete(["runs/link/precious"])
