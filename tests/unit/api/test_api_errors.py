"""One table from error to status; every refusal is `{"detail": text}`."""

from __future__ import annotations

import httpx
import pytest

from lattice import errors
from lattice.api.errors import CLOSE_CODES, INTERNAL_DETAIL, STATUS, close_of, describe, status_of
from lattice.errors import LatticeError
from tests.unit.api.scripted import ScriptedService

pytestmark = pytest.mark.anyio

CASES: list[tuple[LatticeError, int]] = [
    (errors.InvalidRequestError("f", "x", "y is allowed"), 400),
    (errors.CycleError("f", ["a", "b", "a"]), 400),
    (errors.UnauthorizedError("a key is needed"), 401),
    (errors.ForbiddenError("Host", "evil"), 403),
    (errors.ProtocolRefusedError("9.0", "9", "1.0", 1, 1), 400),
    (errors.ExposedError("192.0.2.1", "use keys"), 403),
    (errors.AdminOnlyError("alice"), 403),
    (errors.WorkflowNotFoundError("w"), 404),
    (errors.TaskNotFoundError("t", "w"), 404),
    (errors.EdgeNotFoundError("s", "t", "w"), 404),
    (errors.RunNotFoundError("r", "w"), 404),
    (errors.ResultNotFoundError("r", "t", "not finished"), 404),
    (errors.WorkerNotFoundError("n"), 404),
    (errors.ConflictError("k"), 409),
    (errors.TooLargeError("max_tasks", 2, 1, "tasks"), 413),
    (errors.TooManyRequestsError("alice", 2.0, 0.5), 429),
    (errors.UserCodeError("ValueError", "no", "Traceback ...\nValueError: no"), 500),
    (errors.InvalidTransitionError("r", "t", "s", "e", ["a"]), 500),
    (errors.UnavailableError("later", 2.6), 503),
    (errors.OrchestratorNotInitializedError(), 503),
    (errors.StoreUnavailableError("disk"), 503),
    (errors.LeaseLostError(1, 2), 503),
    (errors.OverloadedError("max_live_runs", 3, 2, "runs"), 503),
    (errors.CallTimeoutError(600.0), 504),
]


@pytest.mark.parametrize(("error", "status"), CASES, ids=lambda case: type(case).__name__)
async def test_an_error_is_answered_as_the_table_says(
    client: httpx.AsyncClient, service: ScriptedService, error: LatticeError, status: int
) -> None:
    service.fails = error
    answer = await client.post("/create_workflow")
    assert (answer.status_code, answer.json()) == (status, {"detail": str(error)})
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_every_error_has_a_case_here() -> None:
    leaves = {
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, LatticeError) and "__init__" in vars(cls)
    }
    assert leaves <= {type(error) for error, _ in CASES}
    assert {*STATUS, *CLOSE_CODES} <= {getattr(errors, cls.__name__) for cls in STATUS}


async def test_retry_after_is_whole_seconds_and_not_zero(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    for seconds, header in ((0.0, "1"), (2.6, "3")):
        service.fails = errors.UnavailableError("later", seconds)
        assert (await client.post("/create_workflow")).headers["retry-after"] == header


async def test_an_unknown_error_is_a_plain_500_and_is_logged(
    client: httpx.AsyncClient, service: ScriptedService, caplog: pytest.LogCaptureFixture
) -> None:
    service.fails = KeyError("secret")
    answer = await client.post("/create_workflow")
    assert (answer.status_code, answer.json()) == (500, {"detail": INTERNAL_DETAIL})
    assert "secret" in caplog.text


async def test_a_detail_may_hold_any_text(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    traceback = 'File "\udcff.py"\nValueError: \U0001f388 \0'
    service.fails = errors.UserCodeError("ValueError", "", traceback)
    answer = await client.post("/create_workflow")
    assert (answer.status_code, answer.json()) == (500, {"detail": traceback})


async def test_paths_and_methods_that_do_not_exist_have_a_detail_too(
    client: httpx.AsyncClient,
) -> None:
    for answer in (await client.get("/nope"), await client.get("/create_workflow")):
        assert answer.status_code in (404, 405)
        assert isinstance(answer.json()["detail"], str)


def test_close_codes_and_reasons() -> None:
    assert close_of(errors.RunNotFoundError("r")) == (4404, "Run r not found")
    assert close_of(errors.OrchestratorNotInitializedError())[0] == 1013
    assert close_of(ValueError("secret")) == (1011, INTERNAL_DETAIL)
    code, reason = close_of(errors.RunNotFoundError("\U0001f388" * 100 + "\udcff"))
    assert code == 4404
    assert 120 <= len(reason.encode()) <= 123


def test_the_nearest_class_decides() -> None:
    class Odd(errors.CycleError): ...

    assert status_of(Odd("f", [])) == 400
    assert status_of(LatticeError()) == 500


def test_many_errors_of_one_request_are_summed_up() -> None:
    found = [
        {"type": "missing", "loc": ("body", "a", n), "msg": "Field required"} for n in range(9)
    ]
    text = describe(found, "application/json")
    assert text.startswith("a[0]: found nothing; Field required; a[1]")
    assert text.endswith("; and 4 more")
