"""Entries of tables: what a configuration says of them wrongly is told with their signature."""

import inspect
import math

import pytest
import torch

from fm_diffusers.grids import GRIDS
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.solvers import SOLVERS
from fm_diffusers.tables import look_up, make

GRID = {"n": 4, "path": Linear(), "t_min": 0.0, "t_max": 1.0}
#: Values that no parameter of an entry can mean.
WRONG = ["3", None, [1.0], {"a": 1}, math.nan, -1.0, len]


def parameters(table, given):
    for name, entry in table.items():
        for parameter in inspect.signature(entry).parameters.values():
            if parameter.name not in given:
                yield name, parameter.name


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize(
    ("kind", "table", "given"),
    [
        ("grid", GRIDS, GRID),
        ("path", PATHS, {}),
        (
            "solver",
            SOLVERS,
            {"path": Linear(), "prediction": "velocity", "diffusion": None, "model_path": None},
        ),
    ],
)
def test_wrong_parameters_are_value_errors(kind, table, given, wrong):
    for name, parameter in parameters(table, given):
        try:
            made = make(kind, table, name, {parameter: wrong}, **given)
            if kind == "path":  # a table is made when it is asked
                made(torch.tensor(0.5))
        except ValueError as error:
            assert str(error)
        else:  # what an entry takes for a value of its own
            assert wrong in (None, -1.0) or parameter in ("tableau", "use_dynamic_shifting"), (
                name,
                parameter,
            )


def entry(path, power, base=2.0):
    return path**power + base


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"power": "2"},
            r"own 'mine' cannot be made with own_kwargs=\{'power': '2'\}: unsupported .*; it is "
            r"called as mine\(path, power, base=2.0\) with path given",
        ),
        ({"powr": 2}, r"own_kwargs \['powr'\] are no parameters of 'mine'; it has: base, power"),
        ([2], r"own_kwargs must be a dictionary of parameters of 'mine' by name, got \[2\]"),
        ({3: 2}, r"own_kwargs \['3'\] are no parameters of 'mine'"),
    ],
)
def test_what_an_entry_cannot_be_called_with_shows_its_signature(given, message):
    with pytest.raises(ValueError, match=message):
        make("own", {"mine": entry}, "mine", given, path=2.0)
    assert make("own", {"mine": entry}, "mine", {"power": 3}, path=2.0) == 10


@pytest.mark.parametrize("name", ["heum", None, ["heun"], 3, math.nan])
def test_names_that_are_in_no_table_are_told_which_are(name):
    with pytest.raises(ValueError, match="unknown solver .*: choose one of euler, midpoint"):
        look_up("solver", SOLVERS, name)


def test_what_overflows_in_an_entry_is_told_with_its_signature():
    with pytest.raises(ValueError, match="path 'discrete' cannot be made .* overflow; it is call"):
        make("path", PATHS, "discrete", {"beta_start": 1e300})
