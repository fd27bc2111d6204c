"""Parts of a product of tables that the fast run takes, and many short cases in one test."""

import functools
import inspect
import random
from itertools import combinations, product

import pytest


def covering(*tables):
    """Return all combinations of tables, slow but for a few in which any two of their rows meet.

    Of two tables, a few in which every row stands.
    """
    met, kept, width = set(), set(), min(2, len(tables) - 1)
    tables = [list(table) for table in tables]
    indices = [*product(*(range(len(table)) for table in tables))]
    random.Random(0).shuffle(indices)
    for least in reversed(range(len([*combinations(tables, width)]))):
        for case in indices:
            new = {*combinations(enumerate(case), width)} - met
            if len(new) > least:
                kept.add(case)
                met |= new
    return [
        pytest.param(
            *(table[i] for table, i in zip(tables, case, strict=True)),
            marks=() if case in kept else pytest.mark.slow,
        )
        for case in sorted(indices)
    ]


def each(names, values):
    """Run a test for all values as `pytest.mark.parametrize` does, but as one test.

    For cases of a few milliseconds, in which pytest takes more time than the test. The case that
    failed is named.
    """
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else [*names]

    def decorate(test):
        @functools.wraps(test)
        def run(**others):
            for value in values:
                case = dict(zip(names, value if len(names) > 1 else [value], strict=True))
                try:
                    test(**others, **case)
                except pytest.skip.Exception:
                    continue
                except Exception as error:
                    raise AssertionError(f"for {case}: {error}") from error

        signature = inspect.signature(test)
        left = [p for name, p in signature.parameters.items() if name not in names]
        run.__signature__ = signature.replace(parameters=left)
        return run

    return decorate
