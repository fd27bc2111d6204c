"""What a swap keeps: their noise and their levels, so that the samples are theirs."""

import diffusers
import pytest
import torch
from scheduler_keys import keys_of
from swapping import X, assert_same, network, sample, timeless
from test_families import CLASSES, is_replaced

from fm_diffusers import GaussianFlowScheduler


@pytest.mark.parametrize(
    "config",
    [{}, {"shift": 3.0}, {"use_karras_sigmas": True}, {"shift_terminal": 0.1}],
    ids=str,
)
def test_stochastic_sampling_is_a_full_refresh(config, convert):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, **config)
    ours = convert(theirs)
    assert (ours.config.diffusion, ours.config.solver) == ("refresh", "ddim")
    assert_same(ours, theirs, seed=1, num_inference_steps=8)
    assert_same(ours, theirs, seed=1, sigmas=[1.0, 0.7, 0.2])
    ode = convert(theirs, diffusion=None, solver="euler")
    assert_same(ode, type(theirs)(**config), num_inference_steps=8)
    assert ode.config.stochastic_sampling is False


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("name", ["DPMSolverMultistep", "EDMDPMSolverMultistep"])
def test_an_sde_of_dpm_solver_stays_this_sde(name, form, order, n, convert):
    theirs = getattr(diffusers, f"{name}Scheduler")(
        algorithm_type="sde-dpmsolver++", solver_order=order, solver_type=form
    )
    theirs.set_timesteps(n)
    x = X * float(theirs.init_noise_sigma)
    assert_same(convert(theirs), theirs, x=x, seed=1, num_inference_steps=n)
    assert convert(theirs, diffusion=None).config.solver == "predictor_corrector"


@pytest.mark.parametrize(("eta", "rtol"), [(0.0, 1e-5), (0.7, 0.1), (1.0, 1e-5)])
def test_eta_of_repaint_is_the_sde_of_a_table(eta, rtol, convert):
    theirs = diffusers.RePaintScheduler(eta=eta, clip_sample=False)
    ours = convert(theirs, solver="ddim")
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    x, y, none = X, X, torch.zeros_like(X)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    for t, s in zip(ours.timesteps, theirs.timesteps, strict=True):
        x = ours.step(network(x, t), t, x, generator=generators[0]).prev_sample
        y = theirs.step(network(y, s), s, y, none, none, generator=generators[1]).prev_sample
    assert (x - y).norm() < rtol * y.norm()


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta_of_a_flow_is_the_same_sde_as_steps_shrink(eta, convert):
    """The variance that a step puts in is theirs up to one part in its length."""
    theirs = diffusers.LTXEulerAncestralRFScheduler(eta=eta)
    ours, off = convert(theirs, solver="ddim"), []
    for n in (50, 500):
        stds = []
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(n)
            half = n // 2
            scheduler.set_begin_index(half)
            t, many = scheduler.timesteps[half], torch.zeros(100_000)
            noise = torch.Generator().manual_seed(0)
            stds.append(scheduler.step(many, t, many, generator=noise).prev_sample.std().item())
        off.append(abs(stds[0] / stds[1] - 1))
    assert off[1] < 0.2 * off[0] and off[1] < 0.01


@pytest.mark.parametrize("solver", ["unipc", "dpm_solver++"])
def test_tables_end_at_their_last_level_where_theirs_do(solver, convert):
    name = {"unipc": "UniPCMultistep", "dpm_solver++": "DPMSolverMultistep"}[solver]
    theirs = getattr(diffusers, f"{name}Scheduler")(final_sigmas_type="sigma_min")
    options = {"solver_order": 2} | ({} if solver == "unipc" else {"lower_order_final": True})
    ours = convert(theirs, solver=solver, solver_kwargs=options)
    assert_same(ours, theirs, num_inference_steps=10)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=0)


FLOWS = [
    {"shift_terminal": 0.1, "flow_shift": 2.0},
    {"shift_terminal": 0.1, "use_dynamic_shifting": True},
    {"time_shift_type": "linear", "use_dynamic_shifting": True},
    {"use_karras_sigmas": True},
    {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 100.0, "flow_shift": 3.0},
]


@pytest.mark.parametrize("config", [*FLOWS, None], ids=str)
def test_levels_of_unipc_are_kept(config, convert):
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    table = {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}
    theirs = diffusers.UniPCMultistepScheduler(**(table if config is None else config | flow))
    ours = convert(theirs, solver="unipc", solver_kwargs={"solver_order": 2})
    mu = {"mu": 1.3} if theirs.config.use_dynamic_shifting else {}
    assert_same(ours, theirs, net=timeless, num_inference_steps=10, **mu)


CONTINUOUS = [
    {},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_exponential_sigmas": True, "sigma_min": 0.01, "sigma_max": 300.0},
]


@pytest.mark.parametrize("config", CONTINUOUS, ids=str)
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_networks_fed_log_sigma_are_on_the_levels_of_theirs(config, kind, convert):
    """With another prediction `timestep_type="continuous"` changes nothing, there and here."""
    if kind == "epsilon" and "sigma_max" in config:
        pytest.skip("levels beyond the table have no index")
    theirs = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type=kind, **config
    )
    ours = convert(theirs, solver="ddim")

    def net(x, t):
        return network(x, 500 * t if kind == "v_prediction" else t)

    for scheduler in (ours, theirs):
        scheduler.set_timesteps(12)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=0.02)
    sigma = theirs.sigmas[0]
    start = X * sigma if ours.config.sampling_path else X * sigma / (sigma**2 + 1).sqrt()
    y = sample(theirs, net=net, x=X * sigma, num_inference_steps=12)
    x = sample(ours, net=net, x=start, num_inference_steps=12)
    assert (x - y).norm() < 1e-5 * y.norm()


SPACED = [
    {},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
]


# KDPM2's grid is that of Heun, and takes it seconds
FORWARD = [n for n in CLASSES if is_replaced(n) and "Inverse" not in n and "KDPM2" not in n]


@pytest.mark.parametrize("name", FORWARD)
def test_steps_start_where_theirs_do(name):
    """To the rounding of theirs to whole timesteps, below 1; some put more between them."""
    cls = getattr(diffusers, f"{name}Scheduler")
    for config in SPACED:
        if not set(config) <= keys_of(name):
            continue
        theirs = cls(**config)
        ours = GaussianFlowScheduler.from_config(
            {**theirs.config, "_class_name": f"{name}Scheduler"}, solver="ddim", diffusion=None
        )
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(10)
        gaps = (ours.timesteps[:, None].double() - theirs.timesteps.double()).abs().min(1).values
        assert gaps.max() < 1, config
