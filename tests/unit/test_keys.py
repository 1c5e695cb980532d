"""API keys: what one is, who is let in with it, and that settings say what is wrong without telling one."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta

import pytest

from lattice.errors import InvalidRequestError, UnauthorizedError
from lattice.keys import PREFIX, ApiKey, KeyRing, hash_of, new_key, parse_keys
from lattice.settings import LatticeSettings

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def entry(name: str, key: str, **more: object) -> dict[str, object]:
    return {"name": name, "sha256": hash_of(key), **more}


def test_a_key_is_long_random_and_needs_no_quotes() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith(PREFIX)
        assert len(key) == len(PREFIX) + 43
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def test_a_key_finds_its_owner() -> None:
    """Of several, also of one name."""
    keys = [new_key() for _ in range(3)]
    ring = KeyRing(parse_keys([entry(name, key) for name, key in zip("aab", keys, strict=True)]))
    assert [ring.find(key, NOW).name for key in keys] == ["a", "a", "b"]


@pytest.mark.parametrize("given", ["", "x", PREFIX, "\udc80é", "Bearer", " "])
def test_what_is_nobodys_key_is_refused(given: str) -> None:
    ring = KeyRing(parse_keys([entry("a", new_key())]))
    with pytest.raises(UnauthorizedError, match="lattice key NAME") as refused:
        ring.find(given, NOW)
    assert refused.value.rejected


def test_the_hash_of_a_key_is_no_key() -> None:
    """Who reads the settings does not get in."""
    key = new_key()
    ring = KeyRing(parse_keys([entry("a", key)]))
    for wrong in (hash_of(key), key[:-1], key + "A", key.upper(), new_key()):
        with pytest.raises(UnauthorizedError):
            ring.find(wrong, NOW)


def test_a_key_expires_at_its_time() -> None:
    key = new_key()
    ring = KeyRing(parse_keys([entry("alice", key, expires="2030-01-01T00:00:00+00:00")]))
    assert ring.find(key, NOW - timedelta(microseconds=1)).name == "alice"
    with pytest.raises(UnauthorizedError, match=r"'alice' expired at 2030-01-01T00:00:00\+00:00"):
        ring.find(key, NOW)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"name": "a b"}, "api_keys[1].name"),
        ({"name": ""}, "api_keys[1].name"),
        ({"name": "x" * 65}, "api_keys[1].name"),
        ({"sha256": "SECRET"}, "api_keys[1].sha256"),
        ({"key": "SECRET"}, "api_keys[1].key"),
        ({"expires": "2030-01-01T00:00:00"}, "api_keys[1].expires"),
        ({"requests_per_second": 0}, "api_keys[1].requests_per_second"),
        ({"max_concurrent_tasks": 0}, "api_keys[1].max_concurrent_tasks"),
    ],
)
def test_settings_say_what_is_wrong_and_show_no_key(wrong: dict[str, object], where: str) -> None:
    """A key that stands where its hash should is not repeated in an error, which gets into logs."""
    good = entry("a", new_key())
    with pytest.raises(InvalidRequestError) as refused:
        LatticeSettings(api_keys=[good, {**entry("b", new_key()), **wrong}])  # type: ignore[arg-type,list-item]
    assert str(refused.value).startswith(f"{where}: ")
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("wrong", ["SECRET", {"SECRET": 1}, 5, ["SECRET"]])
def test_settings_that_are_no_list_of_keys(wrong: object) -> None:
    with pytest.raises(InvalidRequestError, match="api_keys") as refused:
        LatticeSettings(api_keys=wrong)  # type: ignore[arg-type]
    assert "SECRET" not in str(refused.value)


def test_one_key_stands_there_once_and_keys_of_one_name_agree() -> None:
    one, two = new_key(), new_key()
    with pytest.raises(InvalidRequestError, match="one sha256 twice"):
        parse_keys([entry("a", one), entry("b", one)])
    with pytest.raises(InvalidRequestError, match=r"api_keys\.a\.requests_per_second"):
        parse_keys([entry("a", one, requests_per_second=1), entry("a", two)])
    assert len(parse_keys([entry("a", one, admin=True), entry("a", two)])) == 2


def test_keys_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    monkeypatch.setenv("LATTICE_API_KEYS", json.dumps([entry("alice", key, admin=True)]))
    (found,) = LatticeSettings().api_keys
    assert found == ApiKey(name="alice", sha256=hash_of(key), admin=True)
    monkeypatch.setenv("LATTICE_API_KEYS", key)
    with pytest.raises(
        InvalidRequestError, match="LATTICE_API_KEYS: found what is no JSON"
    ) as wrong:
        LatticeSettings()
    assert key not in str(wrong.value)


def test_settings_with_keys_travel_and_show_no_hash() -> None:
    """Serve pickles them on their way to the replicas."""
    settings = LatticeSettings(api_keys=parse_keys([entry("a", new_key())]))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.api_keys[0].sha256 not in repr(settings)
