"""Retry policies: what they read, what they cover, and how long they wait."""

from __future__ import annotations

import pytest

from lattice.errors import InvalidRequestError
from lattice.ids import RunId, TaskId
from lattice.workflow.events import ErrorInfo
from lattice.workflow.retry import RetryPolicy, chance_of, with_defaults


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"max_attempts": 0}, "retry.max_attempts"),
        ({"backoff": -1}, "retry.backoff"),
        ({"max_backoff": "1"}, "retry.max_backoff"),
        ({"tries": 3}, "retry.tries"),
        ({"on": "ValueError"}, "retry.on"),
        ({"on": []}, "retry.on"),
        ({"on": [""]}, "retry.on"),
        ({"on": [1]}, "retry.on"),
        ({"on": ["Value Error"]}, "retry.on"),
        ({"on": ["requests..Timeout"]}, "retry.on"),
        ({"on": ["E" * 501]}, "retry.on"),
        ({"on": ["E"] * 101}, "retry.on"),
        ([], "retry"),
    ],
)
def test_bad_policies_are_refused(document: object, field: str) -> None:
    """With the field that is wrong."""
    with pytest.raises(InvalidRequestError) as caught:
        RetryPolicy.parse(document)
    assert caught.value.field == field


def test_a_policy_is_read_back_as_it_was_written() -> None:
    """With and without names; what was written before there were names has the same document."""
    for policy in (RetryPolicy(3, 0.5, 7.0), RetryPolicy(on=("a.B", "C"))):
        assert RetryPolicy.parse(policy.document()) == policy
    assert "on" not in RetryPolicy().document()


@pytest.mark.parametrize(
    ("on", "covered"),
    [
        (None, True),
        (["Timeout"], True),
        (["requests.exceptions.Timeout"], True),
        (["ConnectTimeout"], True),
        (["OSError"], True),
        (["builtins.OSError"], True),
        (["ValueError", "Exception"], True),
        (["ValueError"], False),
        (["other.Timeout"], False),
        (["exceptions.Timeout"], False),
        (["timeout"], False),
    ],
)
def test_an_exception_is_named_by_itself_or_a_base(on: list[str] | None, covered: bool) -> None:
    """By the last part or the whole name; nothing in between, and case counts."""
    error = ErrorInfo(
        "requests.exceptions.ConnectTimeout",
        "",
        "",
        (
            "requests.exceptions.ConnectTimeout",
            "requests.exceptions.Timeout",
            "OSError",
            "Exception",
        ),
    )
    assert RetryPolicy.parse({"on": on}).covers(error) is covered


def test_an_error_without_bases_is_known_by_its_type() -> None:
    """As those that the service itself reports."""
    policy = RetryPolicy(on=("TaskTimeoutError",))
    assert policy.covers(ErrorInfo("TaskTimeoutError", ""))
    assert not policy.covers(ErrorInfo("KeyError", ""))


def test_backoff_doubles_up_to_its_maximum() -> None:
    """The wait before the second try is at most `backoff`, then twice that, up to `max_backoff`."""
    policy = RetryPolicy(max_attempts=5, backoff=1, max_backoff=5)
    assert [policy.wait(failures, 1.0) for failures in (1, 2, 3, 4, 2000)] == [1, 2, 4, 5, 5]
    assert [policy.wait(failures, 0.0) for failures in (1, 2, 3, 4)] == [0.5, 1, 2, 2.5]


def test_chance_is_even_and_the_same_again() -> None:
    """Other runs, tasks and attempts get other numbers."""
    numbers = [chance_of(RunId("r"), TaskId(str(number)), 1) for number in range(1000)]
    assert 0.45 < sum(numbers) / 1000 < 0.55
    assert all(0 <= number < 1 for number in numbers)
    first = chance_of(RunId("r"), TaskId("t"), 1)
    assert first == chance_of(RunId("r"), TaskId("t"), 1)
    others = {chance_of(RunId("r"), TaskId("t"), 2), chance_of(RunId("s"), TaskId("t"), 1)}
    assert first not in others


def test_defaults_fill_in_what_a_task_does_not_say() -> None:
    """Field by field; what is malformed is left to be refused."""
    defaults = RetryPolicy(max_attempts=4, backoff=2.0)
    assert RetryPolicy.parse(with_defaults({}, defaults)["retry"]) == defaults
    filled = with_defaults({"retry": {"max_attempts": 1, "on": ["KeyError"]}}, defaults)
    assert RetryPolicy.parse(filled["retry"]) == RetryPolicy(1, 2.0, on=("KeyError",))
    assert with_defaults({"retry": 3}, defaults) == {"retry": 3}
