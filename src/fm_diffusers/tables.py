"""Entries of tables by name, and objects made from them by a JSON configuration."""

import inspect
from collections.abc import Callable
from typing import Any

from fm_diffusers.forms import FORMS, misfit


def look_up(kind: str, table: dict[str, Any], name: str) -> Any:
    """Return the entry of a table.

    Args:
        kind: what the table holds, for the message.
        table: entries by name.
        name: the wanted one.

    Raises:
        ValueError: if the table has no such name, or the entry another form; it shows one.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(table)}")
    entry = table[name]
    if kind in FORMS and (fault := FORMS[kind].of_entry(entry)):
        raise misfit(kind, name, fault)
    return entry


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
        ValueError: if the table has no such name, the entry no such parameter, or it or what it
            makes another form; it shows one.
    """
    entry = look_up(kind, table, name)
    signature = inspect.signature(entry)
    unknown = set(parameters or {}) - (set(signature.parameters) - set(given))
    if unknown:
        free = ", ".join(sorted(set(signature.parameters) - set(given))) or "none"
        raise ValueError(
            f"{kind}_kwargs {sorted(unknown)} are no parameters of {name!r}; it has: {free}"
        )
    arguments = given | (parameters or {})
    if kind not in FORMS:
        return entry(**arguments)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        called = f"it is called with {', '.join(arguments) or 'nothing'}"
        raise misfit(kind, name, f"{called}, and {error}") from error
    made = entry(**arguments)
    if fault := FORMS[kind].of_made(made, arguments):
        raise misfit(kind, name, fault)
    return made
