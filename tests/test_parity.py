"""Swapped for diffusers' own schedulers, from memory or from JSON, ours samples as they do."""

from itertools import product

import diffusers
import numpy as np
import pytest
import torch
from covers import covering
from swapping import X, assert_same, network, sample, timeless

# --- flow models ---------------------------------------------------------------------------------

DYNAMIC = {"use_dynamic_shifting": True}
FLOWS = {
    "plain": {},
    "sd3": {"shift": 3.0},
    "flux": {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, **DYNAMIC},
    "linear": {"time_shift_type": "linear", **DYNAMIC},
    "ltx": {"base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1, **DYNAMIC},
    "static terminal": {"shift": 2.0, "shift_terminal": 0.05},
    "wan": {"shift": 5.0},
    "mochi": {"invert_sigmas": True},
    "karras": {"shift": 3.0, "use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True, **DYNAMIC},
    "beta": {"shift": 3.0, "use_beta_sigmas": True},
    "500": {"num_train_timesteps": 500, "shift": 2.0},
}
LEVELS = np.linspace(1.0, 1 / 7, 7)
CALLS = {
    "number": {"num_inference_steps": 7},
    "array": {"sigmas": LEVELS},
    "list": {"sigmas": LEVELS.tolist(), "num_inference_steps": 7},
    "both": {"sigmas": [0.9, 0.5, 0.1], "timesteps": [900, 480, 120]},
}
# with invert_sigmas FlowMatchEuler replaces the timesteps that it is given
PAIRS = [pair for pair in product(FLOWS, CALLS) if pair != ("mochi", "both")]


@pytest.mark.parametrize(("flow", "call"), PAIRS)
def test_euler_is_flow_match_euler(flow, call, convert):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**FLOWS[flow])
    ours = convert(theirs, solver="euler")
    mu = {"mu": 1.3} if theirs.config.use_dynamic_shifting else {}
    assert_same(ours, theirs, **CALLS[call], **mu)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-6)


SPACINGS = ["leading", "trailing", "linspace"]
MULTISTEP = {
    "dpm_solver++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
ORDERS = [("dpm_solver++", 1), ("dpm_solver++", 2), ("unipc", 1), ("unipc", 2), ("unipc", 3)]
USE_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MODELS = [{"timestep_spacing": spacing} for spacing in SPACINGS]
MODELS += [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
MODELS += [{"flow_shift": shift, **USE_FLOW} for shift in (1.0, 3.0)]


@pytest.mark.parametrize(("scheme", "model", "n"), covering(ORDERS, MODELS, [10, 20]))
def test_multistep_solvers_are_theirs(scheme, model, n, convert):
    solver, order = scheme
    theirs = MULTISTEP[solver](solver_order=order, **model)
    last = {"lower_order_final": n < 15} if solver == "dpm_solver++" else {}
    ours = convert(theirs, solver=solver, solver_kwargs={"solver_order": order, **last})
    # they round or truncate such timesteps: a network that sees none makes them equal
    exact = "timestep_spacing" in model
    net = network if exact else timeless
    assert_same(ours, theirs, net=net, num_inference_steps=n)
    assert (ours.timesteps - theirs.timesteps).abs().max() <= (0 if exact else 1)


# --- tables --------------------------------------------------------------------------------------

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLES = {
    "default": {},
    "sd": {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, **SD},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 2.0},
    "threshold": {"thresholding": True, "sample_max_value": 1.5, "clip_sample": False},
    "trained": {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist(), "clip_sample": False},
    "500": {"num_train_timesteps": 500, "clip_sample": False},
    "zero snr": {"rescale_betas_zero_snr": True, "clip_sample": False},
}


@pytest.mark.parametrize(
    ("theirs", "table", "spacing"), covering(["DDIM", "DDPM"], TABLES, SPACINGS)
)
def test_ddim_is_ddim_and_memoryless_it_is_ddpm(theirs, table, spacing, convert):
    cls, seed = getattr(diffusers, f"{theirs}Scheduler"), 3 if theirs == "DDPM" else None
    known = {k: v for k, v in TABLES[table].items() if k in cls().config}
    diffusion = None if seed is None else "memoryless"
    for kind, n in (("epsilon", 10), ("v_prediction", 7), ("sample", 10)):
        source = cls(prediction_type=kind, timestep_spacing=spacing, **known)
        ours = convert(source, solver="ddim", diffusion=diffusion)
        torch.testing.assert_close(ours.betas, source.betas, rtol=1e-3, atol=1e-6)
        if (table, kind) == ("zero snr", "epsilon") and spacing != "leading":
            with pytest.raises(ValueError, match="predicts 'epsilon' .* stay strictly inside"):
                ours.set_timesteps(n)
            continue
        # diffusers divides the noise of the cosine's last step by alpha = 5e-5 in float32
        rtol = 1e-3 if table == "cosine" else 1e-5
        assert_same(ours, source, rtol, seed=seed, num_inference_steps=n)
        assert ours.timesteps.tolist() == source.timesteps.tolist()


def test_other_tables_are_kept(convert):
    theirs = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    ours = convert(theirs, solver="ddim", diffusion="memoryless")
    assert_same(ours, theirs, seed=0, num_inference_steps=9)
    video = {"snr_shift_scale": 3.0, "rescale_betas_zero_snr": True}
    for spacing in ("linspace", "trailing"):
        video |= {"timestep_spacing": spacing, "prediction_type": "v_prediction"}
        theirs = diffusers.CogVideoXDDIMScheduler(**video)
        assert_same(convert(theirs, solver="ddim"), theirs, num_inference_steps=20)
    prior = diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)  # Kandinsky
    ours = convert(prior, solver="ddim", diffusion="memoryless")
    for scheduler in (ours, prior):
        scheduler.set_timesteps(25)
    assert ours.timesteps.tolist() == prior.timesteps.tolist()
    torch.testing.assert_close(ours.betas, prior.betas, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("respacing", [{}, {"use_karras_sigmas": True}], ids=str)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_is_euler_of_sdxl_whose_samples_are_divided_by_alpha(spacing, respacing, convert):
    theirs = diffusers.EulerDiscreteScheduler(
        timestep_spacing=spacing, steps_offset=1, **SD, **respacing
    )
    ours = convert(theirs, solver="ddim")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    sigma = theirs.sigmas[0]
    y = sample(theirs, x=X * sigma, num_inference_steps=20)
    x = sample(ours, x=X * sigma / (sigma**2 + 1).sqrt(), num_inference_steps=20)
    assert (x - y).norm() < 1e-5 * y.norm()
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=0.05)


LEVELED = [
    ("EDMEuler", {}),
    ("EDMEuler", {"sigma_schedule": "exponential"}),
    ("EDMEuler", {"sigma_data": 1.0, "prediction_type": "v_prediction"}),
    ("EulerDiscrete", {"sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True}),  # SVD
]


@pytest.mark.parametrize(("name", "config"), LEVELED)
def test_euler_is_euler_on_noise_levels(name, config, convert):
    if name == "EulerDiscrete":
        config = {"timestep_type": "continuous", "prediction_type": "v_prediction", **config}
    theirs = getattr(diffusers, f"{name}Scheduler")(**config)
    ours = convert(theirs, solver="euler")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(12)
    sigma = float(theirs.init_noise_sigma)
    assert ours.init_noise_sigma == pytest.approx(sigma, rel=1e-5)

    def net(x, t):
        return network(x, 500 * t)

    assert_same(ours, theirs, x=X * sigma, net=net, num_inference_steps=12)
