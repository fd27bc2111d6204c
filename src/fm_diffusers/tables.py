"""Entries of tables by name, and objects made from them by a JSON configuration."""

import inspect
from collections.abc import Callable
from typing import Any


def look_up(kind: str, table: dict[str, Any], name: str) -> Any:
    """Return the entry of a table.

    Args:
        kind: what the table holds, for the message.
        table: entries by name.
        name: the wanted one.

    Raises:
        ValueError: if the table has no such name.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(table)}")
    return table[name]


def make(
    kind: str,
    table: dict[str, Callable],
    name: str,
    parameters: dict[str, Any] | None,
    **given: Any,
) -> Any:
    """Call the entry of a table with the parameters of a configuration.

    Args:
        kind: what the table holds, for messages.
        table: callables by name.
        name: the wanted one.
        parameters: its keyword arguments from the configuration, none of those given.
        **given: keyword arguments that do not come from the configuration.

    Raises:
        ValueError: if the table has no such name, or the entry no such parameter.
    """
    entry = look_up(kind, table, name)
    signature = inspect.signature(entry)
    unknown = set(parameters or {}) - (set(signature.parameters) - set(given))
    if unknown:
        free = ", ".join(sorted(set(signature.parameters) - set(given))) or "none"
        raise ValueError(
            f"{kind}_kwargs {sorted(unknown)} are no parameters of {name!r}; it has: {free}"
        )
    return entry(**given, **(parameters or {}))
