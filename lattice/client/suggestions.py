"""Words for a name that is none of those allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """What may stand in place of `name`, the most similar first."""
    names = list(allowed)
    similar = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {similar[0]!r}? " if similar else ""
    return f"{hint}allowed: {', '.join(names)}" if names else "none is allowed"
