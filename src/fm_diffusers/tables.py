"""Entries of tables by name, and objects made from them by a JSON configuration."""

import inspect
from collections.abc import Callable, Mapping
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
    if not isinstance(name, str) or name not in table:
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
        ValueError: if the table has no such name, the entry no such parameter, it cannot be called
            with these, or it or what it makes has another form; it shows one.
    """
    entry = look_up(kind, table, name)
    if not isinstance(parameters or {}, Mapping):
        raise ValueError(
            f"{kind}_kwargs must be a dictionary of parameters of {name!r} by name, got "
            f"{parameters!r}: {name!r} has {_free(entry, given)}"
        )
    unknown = set(parameters or {}) - (_names(entry) - set(given))
    if unknown:
        raise ValueError(
            f"{kind}_kwargs {sorted(map(str, unknown))} are no parameters of {name!r}; it has: "
            f"{_free(entry, given)}; take these, or leave {kind}_kwargs out"
        )
    arguments = given | dict(parameters or {})
    try:
        inspect.signature(entry).bind(**arguments)
    except TypeError as error:
        called = f"it is called with {', '.join(arguments) or 'nothing'}"
        raise misfit(kind, name, f"{called}, and {error}") from error
    try:
        made = entry(**arguments)
    except (TypeError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{kind} {name!r} cannot be made with {kind}_kwargs={dict(parameters or {})}: "
            f"{error}; it is called as {name}{inspect.signature(entry)} with "
            f"{', '.join(sorted(given)) or 'nothing'} given"
        ) from error
    if kind in FORMS and (fault := FORMS[kind].of_made(made, arguments)):
        raise misfit(kind, name, fault)
    return made


def _names(entry: Callable) -> set[str]:
    return set(inspect.signature(entry).parameters)


def _free(entry: Callable, given: dict[str, Any]) -> str:
    """Return what a configuration may say of an entry, for messages."""
    return ", ".join(sorted(_names(entry) - set(given))) or "none"
