import math

import pytest
import torch
from covers import covering
from oracles import (
    GAUSSIAN,
    NO_SDES,
    STEPS,
    gaussian_std,
    is_tame,
    marginal_std,
    mixture,
    moments,
    nonlinear_error,
    slope,
    takes,
)

from fm_diffusers.diffusions import DIFFUSIONS, get_diffusion
from fm_diffusers.fields import converted
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import CANONICAL, PREDICTIONS, convert
from fm_diffusers.solvers import (
    SOLVERS,
    integrate,
    trajectory,
    update,
)

#: A table is smooth between its entries only, and the steps of `noise_level` in its own time are
#: far apart in signal-to-noise ratio: methods on the path's time have no order there.
SMOOTH = [name for name in PATHS if name not in ("discrete", "noise_level")]
# On the time clock the velocity of the VP path is singular at t = 1: its orders hold inside.
END = {"variance_preserving": 0.97}
ORDERS = {
    "euler": 1,
    "midpoint": 2,
    "heun": 2,
    "rk4": 4,
    "ddim": 1,
    "flow_map": 1,
    "adams_bashforth": 2,
    "exponential_multistep": 2,
    "res_multistep": 2,
    "dpm_solver++": 2,
    "unipc": 2,
    "predictor_corrector": 2,
    "euler_maruyama": 1,
    "stochastic_heun": 2,
}


MULTISTEP = [
    "adams_bashforth",
    "exponential_multistep",
    "res_multistep",
    "dpm_solver++",
    "unipc",
    "predictor_corrector",
]
#: Where the order shows with short steps only.
LATE = [("dpm_solver++", "variance_preserving")]
#: Interpolation in log-SNR is of lower order on the intervals where that is infinite.
LOGARITHMIC = ("res_multistep", "dpm_solver++", "unipc")


def grid(name, solver, n, end=1.0):
    inside = name in LOGARITHMIC or not solver.exists(0.0)
    start, end = (0.1, min(end, 0.9)) if inside else (0.0, end)
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def test_every_solver_states_the_order_that_is_measured_here():
    assert {name: make(Linear()).order for name, make in SOLVERS.items()} == ORDERS


@pytest.mark.parametrize("path_name", SMOOTH)
@pytest.mark.parametrize("name", SOLVERS)
def test_orders_of_convergence_against_the_exact_flow_of_a_gaussian(name, path_name):
    path = PATHS[path_name]()
    solver, errors = SOLVERS[name](path), []
    counts = (200, 400) if ORDERS[name] < 4 else (40, 80)
    for n in (800, 1600) if (name, path_name) in LATE else counts:
        times = grid(name, solver, n, END.get(path_name, 1.0))
        # the flow is linear: what it makes of one number is what it makes of them all
        start, end = marginal_std(path, times[[0, -1]]).tolist()
        errors.append(abs(gaussian_std(solver, times) - end) / start)
    # a cancellation may only make a method better than its order
    assert slope(errors) > ORDERS[name] - 0.2
    assert slope(errors) < ORDERS[name] + 0.2 or errors[-1] < 1e-5


@pytest.mark.parametrize("name", SOLVERS)
def test_orders_of_convergence_on_a_nonlinear_field(name):
    solver = SOLVERS[name](PATHS["cosine"]())
    # that one begins with a step of lower order, from alpha = 0
    counts = (320, 640) if name == "exponential_multistep" else (40, 80)
    errors = [nonlinear_error(solver, grid(name, solver, n)) for n in counts]
    assert slope(errors) == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize(
    ("name", "path_name", "diffusion"),
    covering(["ddim", *MULTISTEP], PATHS, [None, "memoryless"]),
)
def test_samples_on_the_snr_clock_depend_on_the_snr_alone(name, path_name, diffusion):
    """The same samples from fields on any path, and from any prediction, at equal SNRs."""
    data = mixture()
    eps = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_snr = torch.linspace(-3.5, 2.5, 6, dtype=torch.float64)
    diffusion = diffusion and get_diffusion(diffusion)

    def sample(path, prediction):
        generator = torch.Generator().manual_seed(1)
        times = path.time(log_snr)
        scale = path.alpha(times) + path.beta(times)
        x = integrate(
            SOLVERS[name](path, prediction, diffusion),
            data.field(path, prediction),
            scale[0] * eps,
            times,
            lambda t, s: torch.randn(8, 3, generator=generator, dtype=torch.float64),
        )
        return x / scale[-1]

    reference = sample(Linear(), "velocity")
    for prediction in PREDICTIONS:
        samples = sample(PATHS[path_name](), prediction)
        torch.testing.assert_close(samples, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("path_name", PATHS)
def test_ddim_with_noise_is_the_exact_ornstein_uhlenbeck_step(path_name):
    path = PATHS[path_name]()
    x, z = torch.tensor([[0.7]]).double(), torch.tensor([[-0.4]]).double()
    noise = torch.tensor([[1.3]]).double()
    t, s = 0.4, 0.55
    eps = convert(path, "sample", "epsilon", x, z, t)
    for diffusion in DIFFUSIONS.values():
        solver = SOLVERS["ddim"](path, "sample", diffusion)
        (step,) = solver.plan(torch.tensor([t, s]).double())
        moved, _ = update(step, (), x, z, noise)
        left = path.log_snr(1.0) - path.log_snr(step.interval[1])  # until the end of the path
        k = torch.minimum(diffusion.integral(path, *step.interval), left)
        c = path(step.interval[1])
        expected = c.alpha * z + c.beta * (
            torch.exp(-k) * eps + torch.sqrt(-torch.expm1(-2 * k)) * noise
        )
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-6)


def test_a_full_refresh_is_the_data_prediction_noised_afresh():
    z, noise = torch.tensor([[0.3]]).double(), torch.tensor([[2.0]]).double()
    solver = SOLVERS["ddim"](Linear(), "sample", DIFFUSIONS["memoryless"])
    (step,) = solver.plan(torch.tensor([0.0, 0.25]))
    moved, _ = update(step, (), torch.tensor([[-9.0]]).double(), z, noise)
    torch.testing.assert_close(moved, 0.25 * z + 0.75 * noise)


@pytest.mark.parametrize(
    ("name", "diffusion", "path_name"),
    covering(["predictor_corrector", "heun", "stochastic_heun"], DIFFUSIONS, SMOOTH),
)
@pytest.mark.filterwarnings("ignore:the diffusion .* asks for steps of K")
def test_sde_marginals_are_exact_and_the_bias_falls_with_the_step(name, diffusion, path_name):
    if not takes(name, diffusion):
        pytest.skip("it needs a rate")
    path = PATHS[path_name]()
    solver = SOLVERS[name](path, diffusion=get_diffusion(diffusion))
    bias = []
    for n in (50, 250):
        start = 0.0 if is_tame(solver) else path.time(torch.logit(torch.tensor(0.01))).item()
        times = torch.linspace(start, 1, n + 1, dtype=torch.float64)
        bias.append(abs(gaussian_std(solver, times) / marginal_std(path, 1.0).item() - 1))
    assert bias[1] < 0.01
    # what is left of steps that do not shrink, or that is past its change of sign
    assert bias[1] < bias[0] / 3 or bias[1] < (3e-3 if diffusion in STEPS else 1e-3)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("name", ["ddim", "euler_maruyama"])
def test_first_order_sde_solvers_converge(name, diffusion):
    if not takes(name, diffusion) or diffusion in NO_SDES:
        pytest.skip("it needs a rate, or there is no SDE to converge to")
    path = Linear()
    solver = SOLVERS[name](path, diffusion=get_diffusion(diffusion, 0.7))
    start = 0.0 if is_tame(solver) else 0.01
    bias = [
        abs(gaussian_std(solver, torch.linspace(start, 1, n + 1, dtype=torch.float64)) / 0.5 - 1)
        for n in (60, 240)
    ]
    # these forget all noise at the data: order 1/2 for a frozen z
    constant = diffusion in ("constant", "dance", "dance_precise")
    assert bias[1] < bias[0] * (0.6 if constant else 0.3) or bias[1] < 1e-3


@pytest.mark.parametrize(
    "name", ["ddim", "exponential_multistep", "predictor_corrector", "heun", "stochastic_heun"]
)
def test_weak_orders_of_the_sde(name):
    """At the worst of three widths: a fitted error may change its sign at one."""
    solver = SOLVERS[name](Linear(), diffusion=get_diffusion("beta", 0.5))
    exact = {std: math.hypot(0.9 * std, 0.1) for std in (0.1, 0.5, 2.0)}
    errors = [
        max(abs(moments(solver, times, 0.0, std)[1] / end - 1) for std, end in exact.items())
        for n in (80, 160, 320)
        for times in [torch.linspace(0, 0.9, n + 1, dtype=torch.float64)]
    ]
    # stochastic steps are predicted with two values, and not corrected
    assert slope(errors) == pytest.approx(min(ORDERS[name], 2), abs=0.2)


def test_sde_samples_of_a_nonlinear_field_have_the_moments_of_the_data():
    data, path = mixture(seed=4, dim=2), Linear()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    expected = data.sample(20_000, generator)
    for diffusion in ("memoryless", "constant"):
        samples = integrate(
            SOLVERS["predictor_corrector"](path, diffusion=get_diffusion(diffusion)),
            data.field(path),
            x,
            torch.linspace(0, 1, 61),
            lambda t, s: torch.randn(20_000, 2, generator=generator, dtype=torch.float64),
        )
        torch.testing.assert_close(samples.mean(0), expected.mean(0), rtol=0, atol=0.03)
        torch.testing.assert_close(samples.T.cov(), expected.T.cov(), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", SOLVERS)
def test_no_noise_is_put_back_at_the_data(name):
    solver = SOLVERS[name](Linear(), diffusion=get_diffusion("beta"))
    *_, last = solver.plan(torch.linspace(0, 1, 6))
    assert last.std == 0 or name in ("euler_maruyama", "stochastic_heun")


@pytest.mark.parametrize("name", SOLVERS)
def test_scale_zero_is_the_ode_bit_for_bit(name):
    data, x = mixture().field(Linear()), torch.ones(2, 3, dtype=torch.float64)
    still, ode = (
        integrate(SOLVERS[name](Linear(), diffusion=diffusion), data, x, torch.linspace(0, 1, 8))
        for diffusion in (get_diffusion("beta", 0.0), None)
    )
    assert torch.equal(still, ode)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_ode_runs_back(name):
    path, data = Linear(), mixture()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver, field = SOLVERS[name](path), data.field(path)
    times = torch.linspace(0.02, 0.98, 101, dtype=torch.float64)
    there = integrate(solver, field, x, times)
    torch.testing.assert_close(integrate(solver, field, there, times.flip(0)), x, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_fields_of_every_prediction_give_the_same_samples(name):
    path, data = PATHS["cosine"](), mixture()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.linspace(0.05, 0.95, 13, dtype=torch.float64)
    reference = integrate(SOLVERS[name](path), data.field(path), x, times)
    for prediction in PREDICTIONS:
        solver = SOLVERS[name](path, prediction)
        for field in (
            data.field(path, prediction),
            converted(data.field(path, "sample"), path, "sample", prediction),
        ):
            torch.testing.assert_close(integrate(solver, field, x, times), reference)


def test_intervals_that_end_where_the_model_is_silent_take_one_evaluation():
    times = torch.linspace(0, 1, 4, dtype=torch.float64)
    assert len(SOLVERS["heun"](Linear(), "velocity").nodes(times)) == 6
    assert len(SOLVERS["heun"](Linear(), "sample").nodes(times)) == 5


def test_trajectories_visit_the_grid():
    field, x = GAUSSIAN.field(Linear()), torch.ones(1, 1, dtype=torch.float64)
    times = torch.linspace(0, 1, 6, dtype=torch.float64)
    for name in SOLVERS:
        *_, last = samples = list(trajectory(SOLVERS[name](Linear()), field, x, times))
        assert len(samples) == 5
        assert torch.equal(last, integrate(SOLVERS[name](Linear()), field, x, times))


def test_gradients_flow_through_a_solver():
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    end = integrate(
        SOLVERS["heun"](Linear()), GAUSSIAN.field(Linear()), x, torch.linspace(0, 1, 9)
    )
    (gradient,) = torch.autograd.grad(end.sum(), x)
    torch.testing.assert_close(gradient, end.detach())  # the flow is linear


@pytest.mark.parametrize(
    ("times", "prediction", "message"),
    [
        ([0.0, 0.5, 0.5, 1.0], "velocity", "strictly increasing"),
        ([0.3], "velocity", "at least two"),
        ([0.0, 1.0], "epsilon", "at t = 0.0 a model that predicts 'epsilon'"),
        ([-0.1, 1.0], "velocity", "at t = -0.1"),
    ],
)
def test_impossible_times_are_refused(times, prediction, message):
    with pytest.raises(ValueError, match=message):
        SOLVERS["euler"](Linear(), prediction).plan(torch.tensor(times, dtype=torch.float64))


def test_an_sde_asks_for_noise_and_runs_forward_only():
    solver = SOLVERS["ddim"](Linear(), diffusion=get_diffusion("beta"))
    field, x = GAUSSIAN.field(Linear()), torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="an SDE needs noise: pass noise="):
        integrate(solver, field, x, torch.linspace(0, 1, 4))
    with pytest.raises(ValueError, match="strictly increasing"):
        solver.plan(torch.linspace(1, 0, 4))


def test_canonical_is_the_velocity_of_the_linear_path_at_equal_snr():
    path, data = PATHS["variance_preserving"](), mixture()
    t = torch.tensor(0.6, dtype=torch.float64)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = path.alpha(t) + path.beta(t)
    moved = data.field(Linear())(x / scale, path.alpha(t) / scale)
    converted_ = convert(path, "velocity", CANONICAL, x, data.field(path)(x, t), t)
    torch.testing.assert_close(converted_, moved)
    assert math.isclose(Linear().log_snr(path.alpha(t) / scale), path.log_snr(t), rel_tol=1e-9)
