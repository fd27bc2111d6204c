"""Steps by the names of trainers, of ComfyUI, k-diffusion and diffusers, against their formulas.

Theirs run on the linear path from the noise level `v` to `w`, where the network says `eps - z`. A
step is compared as what it is: the mean and the standard deviation of a Gaussian.
"""

import math
import warnings

import pytest
import torch
from covers import each
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from oracles import NO_SDES, STEPS, gaussian_std, mixture, takes

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS, get_diffusion, windowed
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.solvers import SOLVERS, integrate, update
from fm_diffusers.weightings import loss_weight

LEVELS = [1.0, 0.93, 0.7, 0.41, 0.12, 0.03, 0.0]


def draw(seed=0, dtype=torch.float64):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- what trainers call a step -------------------------------------------------------------------


def rebuilt(v, w, x, q, std):
    """The data prediction at the level w with the rest of the old noise: all but the Flow-SDEs."""
    return (1 - w) * (x - v * q) + math.sqrt(max(w**2 - std**2, 0.0)) * (x + (1 - v) * q), std


def drift(v, w, x, q, rate):
    eps = x + (1 - v) * q
    return x - (v - w) * (q + rate**2 / (2 * v) * eps), rate * math.sqrt(v - w)


def flow_grpo(v, w, x, q, eta):
    return drift(v, w, x, q, eta * math.sqrt(v / (1 - (LEVELS[1] if v == 1 else v))))


def dance(v, w, x, q, eta):
    return drift(v, w, x, q, eta)


def ratio(v, w):
    return w * (1 - v) / (v * (1 - w))


def precise(v, w, x, q, eta):
    return rebuilt(v, w, x, q, w * math.sqrt(1 - ratio(v, w) ** eta**2))


def dance_precise(v, w, x, q, eta):
    rho = math.exp(-(eta**2) / 2 * (1 / w - 1 / v)) if w else 0.0
    return rebuilt(v, w, x, q, w * math.sqrt(1 - rho**2))


def cps(v, w, x, q, eta):
    return rebuilt(v, w, x, q, w * math.sin(eta * math.pi / 2))


def nft(v, w, x, q, eta):
    return rebuilt(v, w, x, q, eta * w * math.sqrt(1 - ratio(v, w) ** 2))


def euler_ancestral_rf(v, w, x, q, eta):
    down = w * (1 + eta * (w / v - 1))
    z = x - v * q
    mean = (1 - w) / (1 - down) * (down / v * x + (1 - down / v) * z)
    return mean, math.sqrt(w**2 - (down * (1 - w) / (1 - down)) ** 2)


def er_sde(v, w, x, q, eta):
    """Its first stage; `eta` is ours, theirs is 1. At level 1 the limit: they start below it."""
    before, after = (level / (1 - level) for level in (v, w)) if v < 1 else (math.inf, w / (1 - w))
    kept = (math.exp(after**0.3) + 10) / (math.exp(min(before**0.3, 700)) + 10)
    kept = kept**eta if v < 1 else 0.0
    return rebuilt(v, w, x, q, w * math.sqrt(1 - kept**2))


def refresh(v, w, x, q, eta):
    return (1 - w) * (x - v * q), w


#: The name there, its formula, and the solver and the diffusion here.
TRAINERS = [
    (flow_grpo, "euler_maruyama", "flow_grpo", (0.7, 0.3, 1.2)),
    (dance, "euler_maruyama", "dance", (0.3, 1.0)),
    (dance, "euler_maruyama", "constant", (0.3, 1.0)),
    (precise, "ddim", "precise", (0.7, 1.0)),
    (precise, "ddim", "flow_grpo", (0.7, 1.0)),
    (dance_precise, "ddim", "dance_precise", (0.3, 1.0)),
    (dance_precise, "ddim", "dance", (0.3, 1.0)),
    (cps, "ddim", "cps", (0.7, 0.2, 1.0)),
    (nft, "ddim", "nft", (0.7, 0.2, 1.0)),
    (nft, "ddim", "ancestral", (0.7, 1.0)),
    (euler_ancestral_rf, "ddim", "euler_ancestral_rf", (1.0, 0.5)),
    (er_sde, "ddim", "er_sde", (1.0, 0.5)),
    (refresh, "ddim", "refresh", (1.0,)),
    (refresh, "euler", "refresh", (1.0,)),
]
CASES = [(f, solver, name, eta) for f, solver, name, etas in TRAINERS for eta in etas]


@pytest.mark.parametrize("prediction", ["flow_prediction", "velocity"])
@pytest.mark.parametrize(("formula", "solver", "diffusion", "eta"), CASES)
def test_means_and_stds_from_the_first_step_to_the_last(
    formula, solver, diffusion, eta, prediction
):
    solver = SOLVERS[solver](Linear(), prediction, get_diffusion(diffusion, eta))
    plan = solver.plan(1 - torch.tensor(LEVELS, dtype=torch.float64))
    assert len(plan) == 6 and solver.evaluations == 1
    x, q = draw(0), draw(1)
    for step, v, w in zip(plan, LEVELS[:-1], LEVELS[1:], strict=True):
        output = q if prediction == "flow_prediction" else -q
        mean, _ = update(step, (), x, output, torch.zeros_like(x))
        expected, std = formula(v, w, x, q, eta)
        torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-9)
        assert math.isclose(step.std, std, rel_tol=1e-6, abs_tol=1e-12), (v, w)


def test_flow_grpo_is_noisy_on_the_last_step_and_ddim_is_not():
    times = 1 - torch.tensor(LEVELS, dtype=torch.float64)
    flow_sde = SOLVERS["euler_maruyama"](Linear(), diffusion=DIFFUSIONS["flow_grpo"])
    exact = SOLVERS["ddim"](Linear(), diffusion=DIFFUSIONS["flow_grpo"])
    assert flow_sde.plan(times)[-1].std > 0 == exact.plan(times)[-1].std


@pytest.mark.parametrize("name", ["memoryless", "flow_grpo", "er_sde"])
@pytest.mark.parametrize("solver", ["euler_maruyama", "stochastic_heun"])
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_solvers_of_the_sde_start_at_pure_noise(path, solver, name):
    """And nothing of how they do so is left at the data."""
    solver = SOLVERS[solver](PATHS[path](), diffusion=DIFFUSIONS[name])
    assert solver.exists(0.0)
    bias = [
        abs(gaussian_std(solver, torch.linspace(0, 1, n + 1, dtype=torch.float64)) / 0.5 - 1)
        for n in (10, 40, 640)
    ]
    assert max(bias) < 0.08 and bias[2] < 0.015


@pytest.mark.parametrize("name", NO_SDES)
def test_a_step_that_does_not_shrink_is_of_no_sde(name):
    """However short the steps, data is drawn together; a solver of higher order keeps its spread.

    The standard deviations of CPS are those that its own code has.
    """
    fine = torch.linspace(0, 1, 251, dtype=torch.float64)
    exact = SOLVERS["ddim"](Linear(), diffusion=DIFFUSIONS[name])
    assert gaussian_std(exact, fine) < 0.43
    with pytest.warns(UserWarning, match="asks for steps of K"):
        second = SOLVERS["predictor_corrector"](Linear(), diffusion=DIFFUSIONS[name])
        assert math.isclose(gaussian_std(second, fine), 0.5, rel_tol=0.01)


# --- diffusers' own classes ----------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_the_ancestral_scheduler_of_ltx(eta):
    from diffusers.schedulers.scheduling_ltx_euler_ancestral_rf import (
        LTXEulerAncestralRFScheduler,
    )

    theirs = LTXEulerAncestralRFScheduler(eta=eta)
    theirs.set_timesteps(sigmas=LEVELS)
    levels = theirs.sigmas.double()
    solver = SOLVERS["ddim"](Linear(), "flow_prediction", get_diffusion("euler_ancestral_rf", eta))
    x, q = draw(0, torch.float32), draw(1, torch.float32)
    for i, step in enumerate(solver.plan(1 - levels)):
        y = theirs.step(
            q, theirs.timesteps[i], x, torch.Generator().manual_seed(i), return_dict=False
        )[0]
        noise = draw(i, torch.float32).double()
        ours, _ = update(step, (), x.double(), q.double(), noise)
        torch.testing.assert_close(ours, y.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_stochastic_sampling_of_flow_match_euler_is_a_full_refresh(name, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)
    theirs.set_timesteps(6)
    solver = SOLVERS[name](Linear(), "flow_prediction", DIFFUSIONS["refresh"])
    x, q = draw(0, torch.float32), draw(1, torch.float32)
    for i, step in enumerate(solver.plan(1 - theirs.sigmas.double())):
        generator = torch.Generator().manual_seed(i)
        y = theirs.step(q, theirs.timesteps[i], x, generator=generator, return_dict=False)[0]
        ours, _ = update(step, (), x.double(), q.double(), draw(i, torch.float32).double())
        torch.testing.assert_close(ours, y.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_eta_of_ddim_is_ancestral(eta):
    theirs = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    theirs.set_timesteps(8)
    path = PATHS["discrete"]()
    times = torch.cat([1 - (theirs.timesteps.double() + 1) / 1000, torch.ones(1).double()])
    solver = SOLVERS["ddim"](path, "epsilon", get_diffusion("ancestral", eta))
    x, q = draw(0), draw(1)
    for t, step in zip(theirs.timesteps, solver.plan(times), strict=True):
        noise = draw(int(t))
        y = theirs.step(q, t, x, eta=eta, variance_noise=noise, return_dict=False)[0]
        ours, _ = update(step, (), x, q, noise)
        torch.testing.assert_close(ours, y, rtol=1e-5, atol=1e-5)


def test_the_ancestral_sampler_of_k_diffusion_is_ancestral():
    theirs = EulerAncestralDiscreteScheduler()
    theirs.set_timesteps(8)
    path = PATHS["noise_level"](sigma_max=theirs.sigmas[0].item())
    times = 1 - theirs.sigmas.double() / theirs.sigmas[0].double()
    solver = SOLVERS["ddim"](path, "epsilon", DIFFUSIONS["ancestral"])
    x, q = draw(0, torch.float32), draw(1, torch.float32)
    for i, step in enumerate(solver.plan(times)):
        theirs.scale_model_input(x, theirs.timesteps[i])
        generator = torch.Generator().manual_seed(i)
        y = theirs.step(q, theirs.timesteps[i], x, generator=generator, return_dict=False)[0]
        ours, _ = update(step, (), x.double(), q.double(), draw(i, torch.float32).double())
        torch.testing.assert_close(ours, y.double(), rtol=1e-5, atol=1e-5)


# --- RES -----------------------------------------------------------------------------------------


def refined(x, field, levels):
    """RES of order 2 in -log of the noise level of x = alpha z + level eps, with data outputs."""
    before = None
    for i in range(len(levels) - 1):
        data = field(x, i)
        h = -math.log(levels[i + 1] / levels[i]) if levels[i + 1] else math.inf
        if before is None or math.isinf(h):
            x = levels[i + 1] / levels[i] * x + (1 - levels[i + 1] / levels[i]) * data
        else:
            c = math.log(levels[i] / levels[i - 1]) / h
            phi_1 = -math.expm1(-h) / h
            phi_2 = (1 - phi_1) / h
            x = math.exp(-h) * x + h * ((phi_1 - phi_2 / c) * data + phi_2 / c * before)
        before = data
    return x


@pytest.mark.parametrize("last", [0.0, 0.05])
def test_res_multistep_on_the_samples_of_edm(last):
    levels = torch.tensor([80.0, 30.0, 9.0, 2.5, 0.8, 0.2, last], dtype=torch.float64)
    path = PATHS["noise_level"](sigma_max=80.0)
    field = mixture().field(path, "sample")
    x = 80 * draw()
    expected = refined(x, lambda x, i: field(x, 1 - levels[i] / 80), levels.tolist())
    solver = SOLVERS["res_multistep"](path, "sample")
    ours = integrate(solver, field, x, 1 - levels / 80)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)
    (_, _, step, *_) = solver.plan(1 - levels / 80)
    h, c = math.log(9 / 2.5), math.log(9 / 30) / math.log(9 / 2.5)
    phi_2 = (1 + math.expm1(-h) / h) / h
    weights = (math.exp(-h), -math.expm1(-h) - h * phi_2 / c, h * phi_2 / c)
    for ours, theirs in zip(step.row(1), weights, strict=True):
        assert math.isclose(ours, theirs, rel_tol=1e-14, abs_tol=1e-15)


def test_res_multistep_as_comfyui_takes_it_on_flow_models():
    """There the logarithm is that of the flow's noise level, finite at pure noise."""
    levels = torch.tensor([1.0, 0.93, 0.7, 0.41, 0.05, 0.0], dtype=torch.float64)
    field = mixture().field(Linear(), "sample")
    expected = refined(draw(), lambda x, i: field(x, 1 - levels[i]), levels.tolist())
    solver = SOLVERS["res_multistep"](Linear(), "sample", variable="log_noise")
    ours = integrate(solver, field, draw(), 1 - levels)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


def test_dpmpp_2m_as_k_diffusion_takes_it_on_flow_models():
    levels = [1.0, 0.93, 0.7, 0.41, 0.05, 0.0]
    field = mixture().field(Linear(), "sample")
    x, before = draw(), None
    for i, (v, w) in enumerate(zip(levels, levels[1:], strict=False)):
        data = used = field(x, torch.tensor(1 - v, dtype=torch.float64))
        if before is not None and w:
            r = math.log(levels[i - 1] / v) / math.log(v / w)
            used = (1 + 1 / (2 * r)) * data - before / (2 * r)
        x = w / v * x + (1 - w / v) * used
        before = data
    solver = SOLVERS["dpm_solver++"](Linear(), "sample", variable="log_noise")
    ours = integrate(solver, field, draw(), 1 - torch.tensor(levels, dtype=torch.float64))
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-13)


def test_lms_of_k_diffusion_on_flow_models_is_adams_bashforth():
    """The polynomial through the last velocities in the noise level, integrated exactly."""
    levels = [1.0, 0.9, 0.72, 0.5, 0.23, 0.0]
    field = mixture().field(Linear(), "flow_prediction")
    x, slopes = draw(), []
    for i, (v, w) in enumerate(zip(levels, levels[1:], strict=False)):
        slopes.insert(0, field(x, torch.tensor(1 - v, dtype=torch.float64)))
        nodes = levels[i::-1][:4]
        for j, slope in enumerate(slopes[:4]):
            basis = torch.ones(1, dtype=torch.float64)
            for other in [node for node in nodes if node != nodes[j]]:
                factor = torch.tensor([-other, 1.0], dtype=torch.float64) / (nodes[j] - other)
                basis = torch.nn.functional.conv1d(
                    basis[None, None], factor.flip(0)[None, None], padding=1
                )[0, 0]
            weight = sum(a / (k + 1) * (w ** (k + 1) - v ** (k + 1)) for k, a in enumerate(basis))
            x = x + weight * slope
    solver = SOLVERS["adams_bashforth"](Linear(), "flow_prediction", solver_order=4)
    ours = integrate(solver, field, draw(), 1 - torch.tensor(levels, dtype=torch.float64))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("name", "method"), [("midpoint", "midpoint"), ("heun", "heun2")])
def test_methods_of_torchdiffeq(name, method):
    odeint = pytest.importorskip("torchdiffeq").odeint
    times, field = torch.linspace(0, 1, 8, dtype=torch.float64), mixture().field(Linear())
    ours = integrate(SOLVERS[name](Linear()), field, draw(), times)
    theirs = odeint(lambda t, x: field(x, t), draw(), times, method=method)[-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# --- every path, every solver --------------------------------------------------------------------


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("diffusion", [*STEPS, "er_sde", "precise"])
def test_named_steps_depend_on_the_snr_alone(diffusion, path_name):
    log_snr = torch.tensor([-3.0, -1.2, -0.4, 0.5, 2.2], dtype=torch.float64)
    data, samples = mixture(), []
    for path in (Linear(), PATHS[path_name]()):
        times = path.time(log_snr)
        scale = path.alpha(times) + path.beta(times)
        noises = iter([draw(7), draw(8), draw(9), draw(10)])
        solver = SOLVERS["ddim"](path, "velocity", get_diffusion(diffusion))
        field = data.field(path, "velocity")
        end = integrate(solver, field, scale[0] * draw(), times, lambda t, s, n=noises: next(n))
        samples.append(end / scale[-1])
    exact = path_name not in ("variance_exploding", "variance_preserving", "discrete")
    if exact or diffusion != "refresh":  # these keep some of the noise at their end
        torch.testing.assert_close(*samples, rtol=0, atol=1e-9)


@pytest.mark.parametrize("diffusion", STEPS)
@pytest.mark.parametrize("solver", ["euler_maruyama", "stochastic_heun"])
def test_solvers_that_need_a_rate_refuse_rows_without_one(solver, diffusion):
    with pytest.raises(ValueError, match=f"'{diffusion}'.* take another solver such as 'ddim'"):
        SOLVERS[solver](Linear(), diffusion=DIFFUSIONS[diffusion])


@pytest.mark.parametrize("solver", ["heun", "predictor_corrector", "dpm_solver++", "rk4"])
def test_what_a_solver_of_higher_order_cannot_follow_is_told(solver):
    times = torch.linspace(0.2, 1, 17, dtype=torch.float64)
    for name in ("cps", "refresh"):
        with pytest.warns(UserWarning, match=f"'{name}' asks for steps of K = .* Take 'ddim' or"):
            SOLVERS[solver](Linear(), diffusion=DIFFUSIONS[name]).plan(times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("precise", "nft", "ancestral", "euler_ancestral_rf", "flow_grpo"):
            SOLVERS[solver](Linear(), diffusion=DIFFUSIONS[name]).plan(times)
        for name in STEPS:
            SOLVERS["ddim"](Linear(), diffusion=DIFFUSIONS[name]).plan(times)


# --- noise where it is wanted --------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@each("path_name", ["linear", "cosine", "variance_exploding"])
@each("name", ["euler", "ddim", "euler_maruyama"])
def test_steps_outside_a_window_are_those_of_the_ode_bit_for_bit(name, diffusion, path_name):
    if not takes(name, diffusion):
        pytest.skip("it needs a rate")
    path = PATHS[path_name]()
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    within = windowed(DIFFUSIONS[diffusion], [(0.2, 0.4), (0.7, 0.8)])
    plans = [
        SOLVERS[name](path, diffusion=chosen).plan(times)
        for chosen in (within, DIFFUSIONS[diffusion], None)
    ]
    for i, (step, noisy, ode) in enumerate(zip(*plans, strict=True)):
        assert step == (noisy if i in (2, 3, 7) else ode)
        assert (step.std > 0) == (i in (2, 3, 7))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_noisy_inside_windows_alone(name):
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    within = windowed(DIFFUSIONS["flow_grpo"], [(0.2, 0.4), (0.9, 1.0)])
    solver = SOLVERS[name](Linear(), diffusion=within)
    noised = {step.interval for step in solver.plan(times) if step.std}
    expected = {tuple(times[i : i + 2].tolist()) for i in (2, 3)}
    if name in ("euler_maruyama", "stochastic_heun"):
        expected.add(tuple(times[9:].tolist()))  # the others end without noise
    assert noised == expected


def test_no_window_at_all_is_the_ode():
    for name in SOLVERS:
        never = SOLVERS[name](Linear(), diffusion=windowed(DIFFUSIONS["beta"], []))
        times = torch.linspace(0, 1, 8, dtype=torch.float64)
        assert not never.noisy and never.plan(times) == SOLVERS[name](Linear()).plan(times)


def test_what_else_asks_for_a_rate_refuses_rows_without_one():
    with pytest.raises(ValueError, match="'cps'.* take another solver such as 'ddim'"):
        GaussianFlowScheduler(solver="euler_maruyama", diffusion="cps")
    with pytest.raises(ValueError, match="'cps'.* and the weighting 'sde_likelihood' ask for"):
        loss_weight(Linear(), 0.5, "velocity", "sde_likelihood", diffusion="cps")
