"""Parts of a product of tables that the fast run takes; the slow one takes the product."""

from itertools import product

import pytest


def cross(first, second, *defaults):
    """Return all pairs of two tables, slow where neither of the two is one of the defaults."""
    return [
        pytest.param(a, b, marks=() if a in defaults or b in defaults else pytest.mark.slow)
        for a, b in product(first, second)
    ]
