"""Responses that hold whatever users' code returned or raised."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


class SafeJSONResponse(JSONResponse):
    """JSON in ASCII.

    Escapes hold every string, also one with lone surrogates (a file name in a traceback can have
    them), which UTF-8 cannot.
    """

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
