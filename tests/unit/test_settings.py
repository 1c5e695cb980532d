"""Settings: what they default to, and what they refuse."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lattice.errors import InvalidRequestError
from lattice.settings import LatticeSettings


def test_what_is_kept_and_bounded_by_default() -> None:
    """Disk and memory are bounded without a setting; tasks and runs are not ended by themselves."""
    settings = LatticeSettings()
    assert settings.retention_seconds == 30 * 86_400
    assert settings.retention_runs == 100_000
    assert settings.idempotency_seconds == 86_400
    assert (settings.max_live_runs, settings.max_unfinished_tasks) == (10_000, 200_000)
    assert (settings.default_retry_attempts, settings.default_retry_backoff) == (1, 1.0)
    assert settings.default_timeout is settings.default_deadline is None


def test_policies_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTICE_RETENTION_RUNS", "7")
    monkeypatch.setenv("LATTICE_DEFAULT_DEADLINE", "60")
    settings = LatticeSettings()
    assert (settings.retention_runs, settings.default_deadline) == (7, 60.0)


def test_what_is_on_by_default_can_be_switched_off_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `null` does in YAML."""
    monkeypatch.setenv("LATTICE_RETENTION_SECONDS", "null")
    assert LatticeSettings().retention_seconds is None


@pytest.mark.parametrize(
    "given",
    [
        {"retention_seconds": 0},
        {"retention_runs": -1},
        {"default_timeout": 0},
        {"default_deadline": -1},
        {"default_retry_attempts": 0},
        {"max_live_runs": 0},
        {"max_open_streams": 9_001},
        {"housekeeping_seconds": 0},
    ],
)
def test_policies_that_make_no_sense_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LatticeSettings(**given)  # type: ignore[arg-type]  # refused, whatever it is
    assert LatticeSettings(retention_seconds=None, retention_runs=None).retention_runs is None


def test_what_stands_in_a_wrong_place_is_not_shown() -> None:
    """It may be a key."""
    with pytest.raises(ValidationError) as refused:
        LatticeSettings.model_validate({"api_key": "lattice_secret"})
    assert "api_key" in str(refused.value)
    assert "lattice_secret" not in str(refused.value)


@pytest.mark.parametrize("what", ["timeout", "deadline"])
def test_a_default_beyond_the_longest_is_refused(what: str) -> None:
    """In words, and wherever the two come from; at the longest it may be."""
    default, longest = f"default_{what}", f"max_{what}"
    with pytest.raises(
        InvalidRequestError, match=rf"{default}: found 10\.5 s; at most 10 s .*setting {longest}"
    ):
        LatticeSettings(**{default: 10.5, longest: 10})  # type: ignore[arg-type]  # names are computed
    for given in ({default: 10, longest: 10}, {default: 99}, {longest: 1}):
        LatticeSettings(**given)  # type: ignore[arg-type]
