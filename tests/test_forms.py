"""Rows of users: every table shows a complete one, and says what is wrong with another."""

import pytest
import torch
from oracles import GAUSSIAN, STD, gaussian_std

import fm_diffusers
from fm_diffusers import (
    COUPLINGS,
    GRIDS,
    PATHS,
    PREDICTIONS,
    SOLVERS,
    TIME_CONVENTIONS,
    TIME_SAMPLERS,
    WEIGHTINGS,
    Coefficients,
    Convention,
    GaussianFlowScheduler,
    GaussianPath,
    Weighting,
)
from fm_diffusers.couplings import couple
from fm_diffusers.forms import FORMS
from fm_diffusers.objectives import sample_times
from fm_diffusers.paths import Linear
from fm_diffusers.predictions import convert
from fm_diffusers.solvers import integrate
from fm_diffusers.weightings import loss_weight

#: The table of each kind, and what uses an entry by its name.
TABLES = {
    "path": (PATHS, lambda name: GaussianFlowScheduler(path=name).set_timesteps(4)),
    "prediction type": (
        PREDICTIONS,
        lambda name: GaussianFlowScheduler(prediction_type=name).set_timesteps(4),
    ),
    "solver": (SOLVERS, lambda name: GaussianFlowScheduler(solver=name).set_timesteps(4)),
    "grid": (GRIDS, lambda name: GaussianFlowScheduler(grid=name).set_timesteps(4)),
    "time_sampler": (TIME_SAMPLERS, lambda name: sample_times(5, name)),
    "coupling": (COUPLINGS, lambda name: couple(torch.randn(5, 2), torch.randn(5, 2), name)),
    "weighting": (
        WEIGHTINGS,
        lambda name: loss_weight(Linear(), torch.linspace(0.1, 0.9, 4), weighting=name),
    ),
    "time_convention": (
        TIME_CONVENTIONS,
        lambda name: GaussianFlowScheduler(time_convention=name).set_timesteps(4),
    ),
}


@pytest.fixture
def tables(monkeypatch):
    """Let rows be added, and take them out again."""
    for table, _ in TABLES.values():
        for name in table:
            monkeypatch.setitem(table, name, table[name])
    before = {kind: dict(table) for kind, (table, _) in TABLES.items()}
    yield TABLES
    for kind, (table, _) in TABLES.items():
        table.clear()
        table.update(before[kind])


def written(kind):
    """Return the name of the row that an example adds, after running it."""
    import dataclasses

    from fm_diffusers import solvers

    known = vars(fm_diffusers) | {"torch": torch, "dataclass": dataclasses.dataclass}
    known |= {name: getattr(solvers, name) for name in ("RungeKutta", "Tableau", "HEUN")}
    table = TABLES[kind][0]
    before = set(table)
    exec(FORMS[kind].example, known)
    (name,) = set(table) - before
    return name


def test_every_table_at_the_top_shows_a_row():
    top = {name: getattr(fm_diffusers, name) for name in fm_diffusers.__all__ if name.isupper()}
    shown = {id(table) for table, _ in TABLES.values()}
    assert {name for name, table in top.items() if id(table) not in shown} == {"DIFFUSIONS"}
    assert set(TABLES) == set(FORMS)


@pytest.mark.parametrize("kind", FORMS)
def test_the_row_that_is_shown_works(kind, tables):
    use, name = tables[kind][1], written(kind)
    use(name)


def test_rows_of_users_sample_and_train_as_ours_do(tables):
    times = torch.linspace(0, 1, 101).double()
    square = PATHS[written("path")]()
    assert abs(gaussian_std(SOLVERS["heun"](square), times) / STD - 1) < 1e-3
    kind, x = written("prediction type"), torch.ones(3, 1).double()
    field, t = GAUSSIAN.field(Linear(), kind), torch.tensor(0.3).double()
    velocity = convert(Linear(), kind, "velocity", x, field(x, t), t)
    torch.testing.assert_close(velocity, GAUSSIAN.field(Linear())(x, t))
    ends = [
        integrate(SOLVERS["heun"](Linear(), prediction), field, x, times)
        for prediction, field in ((kind, field), ("velocity", GAUSSIAN.field(Linear())))
    ]
    torch.testing.assert_close(*ends)
    drawn = sample_times(4000, written("time_sampler"), torch.Generator().manual_seed(0))
    assert abs(drawn.mean() - 2 / 3) < 0.02
    z = torch.tensor([[0.0], [5.0], [9.0]])
    assert torch.equal(couple(z, z[[2, 0, 1]], written("coupling")), z)
    t = torch.linspace(0.1, 0.9, 4)
    found = loss_weight(Linear(), t, weighting=written("weighting"), power=3.0)
    torch.testing.assert_close(found, t**3)
    scheduler = GaussianFlowScheduler(
        time_convention=written("time_convention"), grid=written("grid"), grid_kwargs={"power": 1}
    )
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [100.0, 75.0, 50.0, 25.0]


class NoTime(GaussianPath):
    def coefficients(self, t):
        return Coefficients(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


class NoCoefficients(GaussianPath):
    def time(self, log_snr):
        return torch.sigmoid(log_snr)


class Good(NoTime, NoCoefficients):
    def time(self, log_snr):
        return torch.sigmoid(log_snr)


def path(**functions):
    return type("Mine", (Good,), {k: lambda self, t, f=f: f(t) for k, f in functions.items()})


ONE = torch.ones_like
WRONG = [
    ("path", NoTime, "'NoTime' .* it has no time"),
    ("path", NoCoefficients, "'NoCoefficients' .* it has no coefficients"),
    ("path", Good(), "it is called with nothing, and missing a required argument: 't'"),
    ("path", lambda: 3.0, "a float has no coefficients, time, log_snr, tangent"),
    ("path", "linear", "a str cannot be called"),
    ("path", path(coefficients=lambda t: (t, 1 - t)), "return Coefficients, .* got a tuple"),
    ("path", path(coefficients=lambda t: t), "tensors in the shape of t, got a Tensor"),
    ("path", path(coefficients=lambda t: Coefficients(t, 1 - t, 1, -1)), "in the shape of t"),
    (
        "path",
        path(coefficients=lambda t: Coefficients(t, 1 - t, -ONE(t), ONE(t))),
        "d_alpha must be the derivative of alpha",
    ),
    (
        "path",
        path(coefficients=lambda t: Coefficients(1 - t, t, -ONE(t), ONE(t))),
        r"alpha/beta must increase from noise \(t = 0\) to data",
    ),
    ("path", path(time=lambda log_snr: log_snr), "time must be the inverse of log_snr"),
    ("path", path(time=lambda log_snr: 0.5), "time must be the inverse .* got float"),
    ("prediction type", lambda path, t: (t, t, t), "two functions, got a function"),
    ("prediction type", (lambda path, t: t,), "two functions, got a tuple"),
    (
        "prediction type",
        (lambda path, t: (t, 1 - t), lambda path, t: ONE(t)),
        r"row\(path, t\) must return three, got 2",
    ),
    ("solver", lambda path: None, "is called with path, prediction, .* and got an unexpected"),
    ("solver", lambda **given: 3, "a int has no plan, exists, convert"),
    ("solver", SOLVERS["heun"](Linear()), "a RungeKutta cannot be called"),
    ("grid", lambda n, t_min, t_max: None, "is called with n, path, .* 'path'"),
    (
        "grid",
        lambda n, path, t_min, t_max: torch.linspace(0, 1, n),
        r"must return 3 times .* shape \(2,\)",
    ),
    ("grid", lambda n, path, t_min, t_max: [0.0, 0.5, 1.0], "must return 3 times .* got list"),
    ("grid", torch.linspace(0, 1, 5), "a Tensor cannot be called"),
    ("time_sampler", lambda n: torch.rand(n), "is called with n, generator, device, and"),
    ("time_sampler", lambda n, generator, device: torch.rand(n, 1), r"5 times.* shape \(5, 1\)"),
    ("time_sampler", lambda n, generator, device: torch.arange(n), "got torch.int64 of shape"),
    ("time_sampler", lambda n, generator, device: [0.5] * n, "must return 5 times, .* got list"),
    (
        "time_sampler",
        lambda n, generator, device: torch.linspace(0, 1000, n),
        r"times must lie in \[0, 1\], 0 is noise and 1 is data, got 0 to 1000",
    ),
    ("coupling", lambda z, eps: eps, "is called with n, cost, generator, and"),
    ("coupling", lambda n, cost, generator: cost(), r"5 indices, .* of shape \(5, 5\)"),
    ("coupling", lambda n, cost, generator: list(range(n)), "5 indices, got list"),
    ("coupling", lambda n, cost, generator: cost().argmin(1) * 0, "every index from 0 to n - 1"),
    ("weighting", lambda path, t, u: u, "is called with nothing, and missing"),
    ("weighting", Weighting(("velocity",), lambda path, t, u: u), "a Weighting cannot be called"),
    ("weighting", lambda: torch.ones(4), "must return a Weighting .* got a Tensor"),
    (
        "weighting",
        lambda: Weighting(("velocity",), lambda path, t: t),
        "called with path, t and 1 squared errors, and too many positional",
    ),
    (
        "weighting",
        lambda: Weighting(("velocity",), lambda path, t, u: u.sum()),
        r"loss must have the shape \(4,\) of t, got \(\)",
    ),
    ("weighting", lambda: Weighting(("velocity",), lambda path, t, u: 1.0), "got float"),
    ("time_convention", lambda path, n, t: t, "a function has no timestep, time, sigma, time_of_"),
    ("time_convention", (1, 2, 3, 4), "a tuple has no timestep, time, sigma, time_of_sigma"),
    (
        "time_convention",
        Convention(lambda path, n, t: t, None, None, None),
        "a Convention has no time, sigma, time_of_sigma",
    ),
]


@pytest.mark.parametrize(("kind", "entry", "message"), WRONG)
def test_a_row_of_another_form_is_told_the_right_one(kind, entry, message, tables):
    table, use = tables[kind]
    table["mine"] = entry
    with pytest.raises(ValueError, match=f"(?s){message}.*; write it as") as found:
        use("mine")
    assert str(found.value).endswith(f"write it as\n\n{FORMS[kind].example}")


@pytest.mark.parametrize("entry", [NoTime(), NoCoefficients(), path(time=lambda x: x)()])
def test_a_solver_that_is_given_such_a_path_says_so_too(entry):
    with pytest.raises(ValueError, match="(?s)has not the form of its table.*class Square"):
        SOLVERS["heun"](entry)
    with pytest.raises(ValueError, match="a float is no GaussianPath"):
        SOLVERS["heun"](0.5)


def test_every_path_of_ours_has_the_form():
    for make in PATHS.values():
        SOLVERS["heun"](make())
    for count in (2, 5, 100):
        SOLVERS["heun"](PATHS["discrete"](num_train_timesteps=count))
