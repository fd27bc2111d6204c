r"""Names of classes, `id2label` as diffusers' `DiTPipeline` has it.

A class is asked for by its number or by its name. A name may hold several between commas, as
ImageNet's "tench, Tinca tinca" does: the whole and each part ask for the class. Where two classes
share a part, the one of which it is the whole name has it, and else nobody.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fm_diffusers.pipelines import arguments
from fm_diffusers.pipelines.outputs import shown

#: How many names a message shows.
SHOWN = 5


def by_number(id2label: Any, num_classes: int) -> dict[int, str] | None:
    """Return the names of classes by number, whose keys JSON has turned into texts.

    Args:
        id2label: names by number; None or an empty dictionary for classes without names.
        num_classes: how many classes the network knows.

    Raises:
        ValueError: for something else, numbers that are no classes, or names that are none.

    Example:
        >>> by_number({"1": "square", "0": "circle"}, num_classes=2)
        {0: 'circle', 1: 'square'}
    """
    if id2label is None:
        return None
    if not isinstance(id2label, Mapping):
        raise ValueError(
            "id2label must be a dictionary of the names of classes by their numbers, got "
            f'{shown(id2label)}: {{0: "circle", 1: "square"}} for example'
        )
    names: dict[int, str] = {}
    for key, name in id2label.items():
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        if not arguments.is_whole(number) or not 0 <= number < num_classes:
            known = f"0..{num_classes - 1}" if num_classes else "none: it takes no labels"
            raise ValueError(
                f"id2label must name classes of the network, {known}, got {key!r}: {name!r}; the "
                "label for 'no class' has no name"
            )
        if not isinstance(name, str) or not name.strip(" ,"):
            raise ValueError(f"id2label must hold names, got {key!r}: {name!r}: leave it out")
        if int(number) in names:
            raise ValueError(
                f"id2label names the class {number} twice, {names[number]!r} and {name!r}: drop "
                "one of them"
            )
        names[int(number)] = name
    return dict(sorted(names.items())) or None


def owners(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Return the classes that every name, whole or between commas, may ask for.

    Example:
        >>> owners({0: "maillot", 1: "maillot, tank suit", 2: "crane", 3: "crane"})
        {'crane': [2, 3], 'maillot': [0], 'maillot, tank suit': [1], 'tank suit': [1]}
    """
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for number, text in id2label.items():
        whole.setdefault(text.strip(), []).append(number)
        for part in dict.fromkeys(part.strip() for part in text.split(",")):
            parts.setdefault(part, []).append(number)
    return {name: found for name, found in sorted((parts | whole).items()) if name}


def label_ids(id2label: Mapping[int, str] | None) -> dict[str, int]:
    """Return the class of every name that asks for one alone."""
    return {name: found[0] for name, found in owners(id2label or {}).items() if len(found) == 1}


def numbers_of(
    labels: Any, id2label: Mapping[int, str] | None, num_classes: int, name: str = "class_labels"
) -> list[int]:
    """Return the numbers of classes that are asked for by number or by name.

    Args:
        labels: a label or a flat list of them.
        id2label: names by number.
        num_classes: how many classes the network knows.
        name: of the argument, for messages.

    Raises:
        ValueError: for numbers or names that the network does not know, or a name of several.

    Example:
        >>> numbers_of(["square", 0], {0: "circle", 1: "square"}, num_classes=2)
        [1, 0]
    """
    asked, found = arguments.labels(name, labels), owners(id2label or {})
    named = [label for label in asked if isinstance(label, str)] if found else []
    for label in named:
        if len(numbers := found.get(label.strip(), [])) != 1:
            raise ValueError(f"{name} {label!r} {unclear(label, numbers, [*found], num_classes)}")
    numbers = [found[x.strip()][0] if found and isinstance(x, str) else x for x in asked]
    wrong = [k for k in numbers if type(k) is not int or k not in range(num_classes)]
    if wrong:
        hint = ": the classes have no names, id2label would give them" if no_names(wrong) else ""
        raise ValueError(f"{name} must be integers in 0..{num_classes - 1}, got {wrong}{hint}")
    return numbers


def no_names(wrong: list[Any]) -> bool:
    """Return whether all of some labels are texts."""
    return all(isinstance(label, str) for label in wrong)


def unclear(label: str, numbers: Sequence[int], known: list[str], num_classes: int) -> str:
    """Return why a name asks for no class, and the way out."""
    if numbers:
        those = " and ".join(map(str, numbers))
        return f"is the name of the classes {those}: ask for one of them by its number"
    lower = {name.lower(): name for name in reversed(known)}
    (closest,) = get_close_matches(label.lower(), lower, n=1, cutoff=0.0)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return (
        f"is the name of no class, the closest is {lower[closest]!r}: choose one of "
        f"{', '.join(known[:SHOWN])}{more} (pipe.labels has them all), or a number in "
        f"0..{num_classes - 1}"
    )
