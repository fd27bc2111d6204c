"""Plans are consistent: constants are carried exactly, and what cannot be planned says why."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from covers import covering
from oracles import gaussian_std, gaussian_std_by_sources, marginal_std, moments, slope

from fm_diffusers.diffusions import Diffusion, get_diffusion
from fm_diffusers.grids import GRIDS, default_parameters
from fm_diffusers.paths import PATHS, Linear, NoiseLevel, VarianceExploding
from fm_diffusers.solvers import (
    FORMS,
    RULES,
    SOLVERS,
    VARIABLES,
    Calibrated,
    Multistep,
    RungeKutta,
    Solver,
    Step,
    Tableau,
    integrate,
)

MULTISTEP = [
    "adams_bashforth",
    "exponential_multistep",
    "dpm_solver++",
    "unipc",
    "predictor_corrector",
]
#: Paths that end at pure data.
WHOLE = [name for name in PATHS if PATHS[name]().beta(1.0) == 0]
ORDERS = list(itertools.product(MULTISTEP, (1, 2, 3, 4)))


def grid(n, path, noisy=True):
    return GRIDS["logistic"](n, path, **default_parameters(n, noisy))


# --- weights that sum to one ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "solver_order", "scale"), covering(MULTISTEP, (1, 2, 3, 4), [1.0, 10.0, 1e4])
)
def test_data_at_one_point_is_reached_whatever_the_strength(name, solver_order, scale):
    """A data prediction that never changes is integrated exactly, however long the overshoot."""
    for path_name in WHOLE:
        path, n = PATHS[path_name](), 20
        diffusion = get_diffusion("constant", scale)
        solver = SOLVERS[name](path, "sample", diffusion, solver_order=solver_order)
        times = torch.linspace(0.05, 1, n + 1, dtype=torch.float64)
        point = torch.tensor([[2.5]], dtype=torch.float64)
        x = path.flow_map(point, torch.ones_like(point), times[0])
        end = integrate(solver, lambda x, t, z=point: z, x, times, lambda t, s: 0.3)
        torch.testing.assert_close(end, point, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "scale", "path_name"), covering(MULTISTEP, [1.0, 10.0, 1e4], PATHS)
)
def test_one_slope_is_ddim_whatever_the_strength(name, scale, path_name):
    """The exact Ornstein-Uhlenbeck step has no quadrature."""
    path, diffusion = PATHS[path_name](), get_diffusion("constant", scale)
    times = torch.linspace(0.05, 1, 61, dtype=torch.float64)
    options = {"solver_order": 1}
    ours = moments(SOLVERS[name](path, diffusion=diffusion, **options), times)
    theirs = moments(SOLVERS["ddim"](path, diffusion=diffusion), times)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize(
    ("scale", "n", "worst"), [(10.0, 250, 0.02), (1.0, 1000, 0.002), (0.3, 250, 0.006)]
)
@pytest.mark.parametrize(("name", "solver_order"), ORDERS)
def test_strong_constant_coefficients_keep_the_distribution(name, solver_order, scale, n, worst):
    """Of N(.7, .5^2); with one slope the bias of DDIM remains, which holds the data prediction."""
    options = {"solver_order": solver_order}
    solver = SOLVERS[name](Linear(), diffusion=get_diffusion("constant", scale), **options)
    mean, std = moments(solver, grid(n, Linear()))
    assert mean == pytest.approx(0.7, rel=1e-6 if solver_order == 1 else 1e-3)
    if solver_order > 1:
        assert std == pytest.approx(0.5, rel=worst)


def test_moments_agree_with_sources_carried_one_by_one():
    for name, diffusion in itertools.product(SOLVERS, (None, get_diffusion("beta"))):
        solver = SOLVERS[name](PATHS["cosine"](), diffusion=diffusion)
        times = torch.linspace(0.1, 1, 13, dtype=torch.float64)
        std = gaussian_std_by_sources(solver, times)
        assert moments(solver, times, mean=0.0)[1] == pytest.approx(std, rel=1e-9)


# --- rules for the slope -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "variable", "solver_type", "corrector"),
    covering(FORMS, VARIABLES, RULES, [False, True]),
)
def test_every_rule_is_of_second_order_and_finite_from_end_to_end(
    form, variable, solver_type, corrector
):
    path = Linear()
    options = {"form": form, "variable": variable, "corrector": corrector}
    solver = Multistep(path, solver_type=solver_type, **options)
    grids = [torch.linspace(0.1, 0.9, n + 1, dtype=torch.float64) for n in (80, 160)]
    exact = marginal_std(path, 0.9).item()
    assert slope([abs(gaussian_std(solver, times) - exact) for times in grids]) > 1.7
    # the step on to the data in log-SNR is of first order
    mean, std = moments(solver, grid(100, path, noisy=False))
    assert (mean, std) == (pytest.approx(0.7, abs=1e-3), pytest.approx(0.5, rel=0.02))


@pytest.mark.parametrize(("name", "solver_type", "path_name"), covering(MULTISTEP, RULES, PATHS))
def test_every_rule_of_every_solver_samples_every_path(name, solver_type, path_name):
    path = PATHS[path_name]()
    for diffusion in (None, get_diffusion("beta", 0.3)):
        solver = SOLVERS[name](path, "sample", diffusion, solver_type=solver_type)
        mean, std = moments(solver, grid(60, path, diffusion is not None))
        end = path(1.0)
        wanted = math.sqrt(end.alpha**2 * 0.25 + end.beta**2)
        assert (mean, std) == (pytest.approx(0.7, abs=0.01), pytest.approx(wanted, rel=0.05))


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "sample"])
@pytest.mark.parametrize("diffusion", [None, "beta"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_last_step_that_stands_still_changes_nothing(name, diffusion, prediction):
    """A last start that rounds to the data in float32."""
    path, std = Linear(), []
    solver = SOLVERS[name](path, prediction, diffusion and get_diffusion(diffusion))
    times = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    if not solver.exists(1.0):
        with pytest.raises(ValueError, match="at t = 1.0 a model that predicts 'sample' does not"):
            solver.plan(torch.cat([times, times[-1:]]))
        return
    for grid_ in (times, torch.cat([times, times[-1:]])):
        std.append(moments(solver, grid_)[1])
    assert std[0] == pytest.approx(std[1], rel=1e-12)


def test_samples_on_a_path_that_the_model_does_not_reach_are_told_so():
    solver = SOLVERS["euler"](Linear(), model_path=VarianceExploding())
    # its first ratio, 50, is that of this time; rounding takes it no further
    first = Linear().time(-torch.tensor(50.0).double().log()).item()
    assert solver.exists(first)
    with pytest.raises(ValueError, match=r"at t = 0.999.* the samples' path .* t_min and t_max"):
        solver.plan(torch.tensor([first, 0.5, 0.999, 1.0]))


# --- plans that cannot be made -------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Solver):
    """A solver with a weight that is not a number."""

    order, evaluations = 1, 1

    def slope(self, t):
        return torch.zeros_like(t), torch.ones_like(t)

    def steps(self, grid):
        yield Step(0.0, (0.0, 1.0), (0.0, 1.0), ((1.0, math.nan),))


WRONG = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 3))
NEGATIVE = Diffusion(lambda path, t, scale: torch.where(t < 0.5, -1.0, 1.0), power=1)


@pytest.mark.parametrize(
    ("solver", "times", "message"),
    [
        (
            RungeKutta(Linear(), tableau=WRONG),
            [0.0, 0.5, 1.0],
            r"RungeKutta: step 1 of 4, from t = 0.0 to 0.5 does not carry a constant slope "
            r"exactly: .* slopes 0.41.* where 1.0 and 0.5 are right; .* \(b of a Tableau to 1\)",
        ),
        (Broken(Linear()), [0.0, 1.0], r"Broken: step 0 of 1, .* \(1.0, nan\) .* be finite: keep"),
        (
            SOLVERS["ddim"](Linear(), diffusion=NEGATIVE),
            [0.0, 0.25, 1.0],
            r"RungeKutta: step 0 of 2, from t = 0.0 to 0.25 .* noise of nan, which must be finite",
        ),
        (
            Multistep(Linear(), "sample", form="data"),
            [1.0, 0.5],
            r"Multistep: step 0 of 1, from t = 1.0 to 0.5 .* must be finite: keep times strictly",
        ),
        (
            Calibrated(Linear(), rows=((1.0, math.nan, 0.0),)),
            [0.0, 0.5, 1.0],
            r"Calibrated: step 1 of 2, from t = 0.5 to 1.0 .* must be finite",
        ),
        (SOLVERS["euler"](Linear()), [], r"at least two, .* got \[\]: give one step or more"),
        (SOLVERS["euler"](Linear()), [0.1, math.nan, 1.0], r"finite, got nan at place 1 of 3"),
        (SOLVERS["euler"](Linear()), [0.1, 0.6, 0.4, 1.0], r"got t = 0.6.* then 0.4 at place 2"),
        (SOLVERS["euler"](Linear()), [0.1, 1.2], r"at t = 1.2 the path does not exist"),
        (SOLVERS["euler"](Linear()), [1.2, 0.5], r"at t = 1.2 the path does not exist: times go"),
        (
            SOLVERS["ddim"](Linear(), diffusion=get_diffusion("beta")),
            [0.9, 0.1],
            r"strictly increasing .* for an SDE, which does not run back; .* pass diffusion=None",
        ),
    ],
)
def test_what_cannot_be_planned_says_why(solver, times, message):
    with pytest.raises(ValueError, match=message):
        solver.plan(torch.tensor(times, dtype=torch.float64))


def test_a_calibrated_last_step_need_not_be_consistent():
    solver = Calibrated(Linear(), rows=((0.9, 0.3, 0.2),))
    assert solver.plan(torch.tensor([0.0, 0.5, 1.0]).double())[-1].row(1)[0] == 0.9


def test_a_question_that_is_asked_at_every_step_is_answered_once():
    calls = []

    def profile(path, t, scale):
        calls.append(len(t))
        return torch.ones_like(t)

    solver = SOLVERS["ddim"](Linear(), diffusion=Diffusion(profile, power=1))
    assert solver.noisy and solver.noisy
    assert len(calls) == 1
    assert not replace(solver, diffusion=None).noisy


# --- one long step -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [NoiseLevel(500.0), VarianceExploding(0.01, 500.0)])
@pytest.mark.parametrize("grid_name", ["karras", "log_snr"])
@pytest.mark.parametrize("name", ["heun", "ddim", "rk4", "predictor_corrector"])
def test_cut_grids_reach_the_ends_of_paths_that_have_finite_ones(name, grid_name, path):
    """More steps remove the error; cut at 50, a path that starts at 500 kept it."""
    error = [
        abs(moments(SOLVERS[name](path), GRIDS[grid_name](n, path))[1] / 0.5 - 1)
        for n in (60, 240)
    ]
    assert error[1] < 0.02
    assert error[1] < error[0] / 3 or error[1] < 1e-3
