"""Multistep methods: their orders in every form, their twins in diffusers, their strength."""

import dataclasses
import math

import pytest
import torch
from covers import covering
from oracles import gaussian_std, marginal_std, mixture, nonlinear_error, slope

from fm_diffusers.diffusions import DIFFUSIONS, Diffusion, get_diffusion
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.grids import GRIDS, default_parameters
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.solvers import (
    FORMS,
    SOLVERS,
    VARIABLES,
    Multistep,
    integrate,
)

# --- multistep methods ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "form", "solver_order", "corrector"),
    covering(VARIABLES, FORMS, [1, 2, 3], [False, True]),
)
def test_orders_of_multistep_methods_in_every_form_and_variable(
    variable, form, solver_order, corrector
):
    kwargs = {"form": form, "variable": variable}
    solver = Multistep(PATHS["cosine"](), solver_order=solver_order, corrector=corrector, **kwargs)
    grids = [torch.linspace(0.1, 0.9, n + 1, dtype=torch.float64) for n in (40, 80)]
    errors = [nonlinear_error(solver, times) for times in grids]
    # a method that starts itself takes its first step with one slope
    assert solver.order == min(solver_order, 2) + corrector
    assert slope(errors) > solver.order - 0.25


#: diffusers' schedulers and what they are here. `solver_order=1` needs no table: it is DDIM.
TWINS = {
    "2M midpoint": ("DPMSolverMultistepScheduler", {}, "dpm_solver++", {}),
    "2M heun": (
        "DPMSolverMultistepScheduler",
        {"solver_type": "heun"},
        "dpm_solver++",
        {"solver_type": "heun"},
    ),
    "UniPC-2 bh2": ("UniPCMultistepScheduler", {}, "unipc", {}),
    "UniPC-1 bh2": ("UniPCMultistepScheduler", {"solver_order": 1}, "unipc", {"solver_order": 1}),
    "UniPC-3 bh2": ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc", {"solver_order": 3}),
}


@pytest.mark.parametrize("twin", TWINS)
def test_diffusers_multistep_schedulers_are_special_cases(twin):
    import diffusers

    name, options, ours, kwargs = TWINS[twin]
    common = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
    scheduler = getattr(diffusers, name)(**common, **options)
    scheduler.set_timesteps(9)
    sigmas = scheduler.sigmas.double()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = mixture().field(Linear(), "flow_prediction")
    y = x
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        y = scheduler.step(field(y, 1 - sigma), t, y, return_dict=False)[0]
    solver = SOLVERS[ours](Linear(), "flow_prediction", **kwargs)
    torch.testing.assert_close(integrate(solver, field, x, 1 - sigmas), y, rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_memoryless_dpm_solver_is_diffusers_sde_dpm_solver(solver_type):
    """Overshooting by the length of the step and noising back: its formula, at equal noise."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        algorithm_type="sde-dpmsolver++",
        solver_type=solver_type,
    )
    scheduler.set_timesteps(8)
    sigmas = scheduler.sigmas.double()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field = mixture().field(Linear(), "flow_prediction")
    noises = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    y = x
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(
            field(y, 1 - sigmas[i]), t, y, variance_noise=noises[i], return_dict=False
        )[0]
    solver = SOLVERS["dpm_solver++"](
        Linear(), "flow_prediction", DIFFUSIONS["memoryless"], solver_type=solver_type
    )
    drawn = iter(noises)
    ours = integrate(solver, field, x, 1 - sigmas, lambda t, s: next(drawn))
    torch.testing.assert_close(ours, y, rtol=0, atol=2e-6)


# --- strength ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("diffusion", "scale"), covering(DIFFUSIONS, [0.01, 1.0, 30.0]))
@pytest.mark.filterwarnings("ignore:the diffusion .* asks for steps of K")
def test_any_strength_is_finite_from_one_step_up_and_exact_at_250(diffusion, scale):
    path, scale = Linear(), min(scale, DIFFUSIONS[diffusion].largest_scale)
    solver = SOLVERS["predictor_corrector"](path, diffusion=get_diffusion(diffusion, scale))

    def std(n):
        times = GRIDS["logistic"](n, path, **default_parameters(n, noisy=True))
        return gaussian_std(solver, times)

    assert all(math.isfinite(std(n)) and std(n) < 2 for n in (1, 2, 3, 5))
    assert std(250) == pytest.approx(0.5, rel=0.01)


def test_memoryless_steps_of_the_default_on_a_unit_gaussian():
    """The bias of the standard deviation at 8, 16 and 32 steps, computed without sampling."""
    data = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 1.0)
    solver = SOLVERS["predictor_corrector"](Linear(), diffusion=DIFFUSIONS["memoryless"])
    bias = []
    for n in (8, 16, 32, 64):
        times = GRIDS["logistic"](n, Linear(), **default_parameters(n, noisy=True))
        x = torch.zeros(n, 1, dtype=torch.float64)
        x[0] = 1.0
        sources = iter(torch.eye(n, dtype=torch.float64)[1:, :, None])
        end = integrate(solver, data.field(Linear()), x, times, lambda t, s, i=sources: next(i))
        bias.append(abs(end.norm().item() - 1))
    assert bias[0] < 0.03 and bias[1] < 0.005 and bias[2] < 0.0006
    assert math.log2(bias[0] / bias[3]) / 3 > 1.8


@pytest.mark.parametrize(("length", "slopes"), [(0.02, 2), (0.2, 1)])
def test_slopes_are_not_extrapolated_over_a_step_much_longer_than_the_last(length, slopes):
    times = torch.cat([torch.linspace(0, 0.5, 51), torch.tensor([0.5 + length])]).double()
    last = Multistep(Linear()).plan(times)[-1].row(3)
    assert sum(weight != 0 for weight in last[1:]) == slopes
    # diffusers' methods take such steps, and are the same here
    last = SOLVERS["dpm_solver++"](Linear()).plan(times)[-1].row(3)
    assert sum(weight != 0 for weight in last[1:]) == 2


def test_a_slope_with_hardly_any_noise_left_does_not_correct_a_long_step():
    """The end of diffusers' FlowMatchEuler grid: sigma = ..., 0.1, 0.001, 0."""
    inner = torch.linspace(0, 0.9, 10).double()
    for last, corrected in ((0.95, True), (0.999, False)):
        times = torch.cat([inner, torch.tensor([last, 1.0]).double()])
        plain, full = (
            Multistep(Linear(), corrector=corrector).plan(times)[-1].row(3)
            for corrector in (False, True)
        )
        # a correction adds to the weights of past slopes
        assert (not math.isclose(full[2], plain[2], abs_tol=1e-12)) == corrected
    # the short last step is not the one at which the order falls
    kinds = {"lower_order_final": True, "corrector": False}
    times = torch.cat([inner, torch.tensor([0.999, 1.0]).double()])
    before_last = Multistep(Linear(), **kinds).plan(times)[-2].row(3)
    assert sum(weight != 0 for weight in before_last[1:]) == 1


def test_a_coefficient_that_acts_in_a_window_only_is_noise():
    def window(path, t, scale):
        return scale * ((t > 0.5) & (t < 0.8)).to(t.dtype)

    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    solver = SOLVERS["predictor_corrector"](Linear(), diffusion=Diffusion(window, power=1))
    assert solver.noisy
    noised = [step.interval for step in solver.plan(times) if step.std]
    assert noised and all(0.4 < t and s < 0.9 for t, s in noised)


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("solver_order", [1, 2])
def test_the_order_of_an_sde_counts_no_correction(solver_order, corrector):
    options = {"solver_order": solver_order, "corrector": corrector}
    solver = SOLVERS["predictor_corrector"](
        Linear(), diffusion=DIFFUSIONS["memoryless"], **options, lower_order_final=False
    )
    assert solver.order == solver_order
    assert dataclasses.replace(solver, diffusion=None).order == solver_order + corrector
    exact = marginal_std(Linear(), 0.9).item()
    grids = [torch.linspace(0, 0.9, n + 1, dtype=torch.float64) for n in (80, 160, 320)]
    errors = [abs(gaussian_std(solver, times) / exact - 1) for times in grids]
    assert slope(errors) == pytest.approx(solver_order, abs=0.25)
