"""`lattice key`: prints a key once, and what goes into the settings."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from lattice.cli.main import main
from lattice.keys import KeyRing, parse_keys
from lattice.settings import LatticeSettings


def test_what_it_prints_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands: in the YAML of a configuration, and in the environment."""
    assert main(["key", "alice", "--expires", "30d", "--requests-per-second", "5"]) == 0
    printed = capsys.readouterr().out
    (key,) = re.findall(r"^  (lattice_\S+)$", printed, re.MULTILINE)
    block = re.search(r"^  api_keys:\n    - .*$", printed, re.MULTILINE)
    assert block is not None
    found = LatticeSettings(**yaml.safe_load(block[0])).api_keys
    alice = KeyRing(found).find(key, datetime.now(UTC))
    assert (alice.name, alice.admin, alice.requests_per_second) == ("alice", False, 5)
    assert alice.expires is not None
    assert timedelta(days=29) < alice.expires - datetime.now(UTC) <= timedelta(days=30)
    variable = re.search(r"LATTICE_API_KEYS='(.*)'$", printed, re.MULTILINE)
    assert variable is not None
    monkeypatch.setenv("LATTICE_API_KEYS", variable[1])
    assert LatticeSettings().api_keys == found


def test_json_is_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--admin", "--max-concurrent-tasks", "3", "--expires", "2999-01-01T00:00:00+00:00"]
    assert main(["key", "ops", "--json", *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    (setting,) = parse_keys([printed["setting"]])
    assert KeyRing([setting]).find(printed["key"], datetime.now(UTC)) == setting
    assert (setting.admin, setting.max_concurrent_tasks) == (True, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["al ice"],
        ["a", "--expires", "soon"],
        ["a", "--expires", "2020-01-01T00:00:00+00:00"],
        ["a", "--expires", "2999-01-01T00:00:00"],
        ["a", "--requests-per-second", "0"],
    ],
    ids=str,
)
def test_nonsense_is_refused_without_a_key(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["key", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lattice key: ")
