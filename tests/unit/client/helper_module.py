"""A module of the user's own, imported by `determinism_script` as a whole."""

import functools

WEIGHTS = {"heavy": 2, "light": 1}
KNOWN = {"some", "known", "words"}


@functools.cache
def weight(text: str) -> int:
    return WEIGHTS.get(text, 0) + (text in KNOWN)
