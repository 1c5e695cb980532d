"""`lattice key NAME`: makes an API key. Needs no service; only its hash goes into the settings."""

from __future__ import annotations

import argparse
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from lattice.errors import InvalidRequestError
from lattice.keys import hash_of, new_key, parse_keys

_DAYS = re.compile(r"([0-9]{1,5})d")


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = commands.add_parser("key", help="make an API key", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="whose it is: the tenant")
    parser.add_argument(
        "--expires",
        metavar="WHEN",
        help="days from now, such as 90d, or a time with its zone (ISO 8601)",
    )
    parser.add_argument(
        "--admin",
        action="store_true",
        help="for operators: worker nodes, metrics, and what all tenants have",
    )
    parser.add_argument("--requests-per-second", type=float, metavar="N", help="most requests")
    parser.add_argument(
        "--max-concurrent-tasks", type=int, metavar="N", help="most tasks at a time"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints a new key, and what goes into the settings.

    Raises:
        InvalidRequestError: a name, a time or a limit that makes no sense.
    """
    key = new_key()
    entry: dict[str, object] = {"name": arguments.name, "sha256": hash_of(key)}
    if arguments.expires is not None:
        entry["expires"] = _expiry(arguments.expires, datetime.now(UTC))
    if arguments.admin:
        entry["admin"] = True
    for limit in ("requests_per_second", "max_concurrent_tasks"):
        if getattr(arguments, limit) is not None:
            entry[limit] = getattr(arguments, limit)
    parse_keys([entry])
    text = json.dumps(entry)
    if arguments.json:
        print(json.dumps({"key": key, "setting": entry}))
        return 0
    print(
        f"The key of {arguments.name}, which is shown only now (programs take it from LATTICE_API_KEY):\n\n"
        f"  {key}\n\n"
        "For the settings, which hold nothing but its hash: in the configuration, below `args`,\n\n"
        f"  api_keys:\n    - {text}\n\n"
        "or in the environment of the service, with other keys in the same list,\n\n"
        f"  LATTICE_API_KEYS='[{text}]'"
    )
    return 0


def _expiry(text: str, now: datetime) -> str:
    days = _DAYS.fullmatch(text)
    if days:
        return (now + timedelta(days=int(days[1]))).isoformat(timespec="seconds")
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None or when <= now:
        raise InvalidRequestError(
            "--expires",
            repr(text),
            "days from now, such as 90d, or a later time with its zone is allowed",
        )
    return when.isoformat()
