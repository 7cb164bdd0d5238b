from __future__ import annotations

import re

from resilience import signals


def documented_arguments() -> dict[str, set[str]]:
    """Return the arguments of each signal as the table in `signals` tells them."""
    table: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (`[^|]+) \|[^|]*\| ([^|]+)\|$", signals.__doc__ or "", re.MULTILINE):
        arguments = re.search(r"`([a-z_, ]+)`", row[1])
        for name in re.findall(r"`(\w+)`", row[0]):
            table[name] = set(arguments[1].replace(" ", "").split(",")) if arguments else set()
    return table
