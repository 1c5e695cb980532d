"""Code for the tests of what runs it."""

from __future__ import annotations

import hashlib

import cloudpickle

from lattice.ids import Digest
from lattice.workflow.task import Code, CodeForm


def pickled(function: object) -> tuple[Code, bytes]:
    """A function as code; a `str` is source."""
    is_source = isinstance(function, str)
    data = function.encode() if isinstance(function, str) else cloudpickle.dumps(function)
    form = CodeForm.SOURCE if is_source else CodeForm.PICKLE
    return Code(Digest(hashlib.sha256(data).hexdigest()), form, "work"), data
