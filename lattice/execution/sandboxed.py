"""Calls in a sandbox, with the same outcomes as `runner` gives of calls in this process."""

from __future__ import annotations

from lattice.execution import capture
from lattice.execution.runner import MAX_OUTPUTS, Failed, Outcome, Succeeded
from lattice.execution.sandbox import worker
from lattice.execution.sandbox.plain import NotPlainError
from lattice.execution.sandbox.request import Request, decode_answer
from lattice.workflow.checks import is_output_key
from lattice.workflow.events import ErrorInfo
from lattice.workflow.sandbox import Sandbox


def run(request: Request, limits: Sandbox) -> Outcome:
    """Runs a call in a sandbox. What it prints goes to the record of the attempt that runs, and nowhere else."""
    try:
        succeeded, found = decode_answer(worker.call(request, limits, capture.take))
    except worker.SandboxError as error:
        return Failed(error.info)
    except NotPlainError as error:
        return _forged(str(error))
    if not succeeded:
        assert isinstance(found, ErrorInfo)
        return Failed(found)
    # Checked once more: what was checked inside may have been replaced there.
    if type(found) is not dict or len(found) > max(MAX_OUTPUTS, len(request.output_keys)):
        return _forged("it is no dict of outputs")
    if not all(is_output_key(key) for key in found):
        return _forged("an output has no proper key")
    if any(key not in found for key in request.output_keys):
        return _forged("a declared output is missing")
    return Succeeded(found)


def _forged(reason: str) -> Failed:
    message = f"what came out of the sandbox is not what Lattice writes there: {reason}"
    return Failed(ErrorInfo("SandboxStopped", message))
