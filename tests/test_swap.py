"""`pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config)` in pipelines."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from tiny_pipelines import PIPELINES, build

from fm_diffusers import GaussianFlowScheduler

diffusers.utils.logging.set_verbosity_error()

STEPS = 4
SOLVERS = ("predictor_corrector", "ddim")
SDE = {"diffusion": "memoryless"}


def pipelines():
    marks = {name: pytest.mark.slow if row.slow else () for name, row in PIPELINES.items()}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in marks.items()])


def draw(pipe, arguments, scheduler=None, **config):
    """Return what the pipeline makes of seed 0, after the swap if there is a configuration."""
    theirs = pipe.scheduler
    pipe.scheduler = scheduler or swapped(pipe, **config) if scheduler or config else theirs
    known = inspect.signature(pipe.__call__).parameters
    given = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0)}
    if "output_type" in known:
        given["output_type"] = "np" if "ensemble_size" in known else "latent"
    torch.manual_seed(0)
    output = pipe(**given | arguments, return_dict=False)[0]
    pipe.scheduler = theirs
    return torch.as_tensor(np.asarray(output)) if not isinstance(output, torch.Tensor) else output


def swapped(pipe, **config):
    return GaussianFlowScheduler.from_config(pipe.scheduler.config, **config)


def distance(x, y):
    """Return the distance of two results in standard deviations of the first."""
    return ((x - y).abs().max() / x.std()).item()


# --- every pipeline ------------------------------------------------------------------------------


@pipelines()
def test_pipelines_draw_the_same_with_the_solver_of_theirs_and_as_sde_in_both_precisions(name):
    row, (pipe, arguments) = PIPELINES[name], build(name)
    same = {"solver": row.solver} if row.solver else {"diffusion": None}
    ode, sde = draw(pipe, arguments, **same), draw(pipe, arguments, **SDE)
    assert not row.solver or distance(draw(pipe, arguments), ode) < 1e-4
    results = [ode, sde]
    if row.bfloat16:
        results.append(draw(*build(name, torch.bfloat16), **SDE))
    assert all(result.isfinite().all() and result.shape == ode.shape for result in results)
    # LTX gives each token a time of its own, for which there is the ODE alone
    assert distance(ode, sde) > 0.01 or name == "ltx_condition"


# --- one of each family --------------------------------------------------------------------------

FAMILIES = {
    "table": "dit",
    "table of v": "sd_v",
    "flow": "sd3",
    "shifted flow": "flux",
    "ascending flow": "mochi",
    "edm": "cosmos",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("few", "many", "factor"), [(10, 50, 3), pytest.param(10, 250, 8, marks=pytest.mark.slow)]
)
def test_solvers_converge_to_the_same_picture(family, few, many, factor):
    pipe, arguments = build(FAMILIES[family])
    first, last = (
        distance(*(draw(pipe, arguments | steps, solver=solver) for solver in SOLVERS))
        for steps in ({"num_inference_steps": few}, {"num_inference_steps": many})
    )
    assert last < first / factor


@pytest.mark.parametrize("name", ["flux", "wan_flow", "sd3"])
def test_the_noise_of_an_sde_is_that_of_set_generator(name):
    """These pipelines hand no generator to `step`."""
    pipe, arguments = build(name)

    def sde(seed):
        scheduler = swapped(pipe, **SDE)
        scheduler.set_generator(torch.Generator().manual_seed(seed))
        return draw(pipe, arguments, scheduler)

    first = sde(0)
    assert torch.equal(sde(0), first)
    assert distance(first, sde(1)) > 0.05


def test_published_sigmas_mean_the_same():
    pipe, arguments = build("svd")
    sigmas = AysSchedules["StableDiffusionVideoSigmas"]  # end with 0, which is no start of a step
    arguments = arguments | {"sigmas": sigmas, "num_inference_steps": None}
    assert distance(draw(pipe, arguments), draw(pipe, arguments, solver="ddim")) < 1e-4


def test_sigmas_of_tables_are_theirs():
    theirs = build("sdxl")[0].scheduler
    ours = GaussianFlowScheduler.from_config(theirs.config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=1e-6)
    ours.set_timesteps(sigmas=theirs.sigmas.tolist())
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=0.02)


@pytest.mark.parametrize("solver", ["predictor_corrector", "heun", "unipc"])
def test_a_step_taken_back_and_taken_again_with_its_data_prediction_is_that_step(solver):
    """Cosmos asks for data predictions, guides them and steps with the outcome."""
    once, twice = (GaussianFlowScheduler(solver=solver) for _ in range(2))
    x = y = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for scheduler in (once, twice):
        scheduler.set_timesteps(5)
    for t in once.timesteps:
        x = once.step(torch.sin(x) + t / 1000, t, x).prev_sample
        output, pair = torch.sin(y) + t / 1000, torch.cat([y, y])
        known = twice.step(torch.cat([output, output]), t, pair).pred_original_sample[:2]
        twice._step_index -= 1
        y = twice.step(output, t, y, pred_original_sample=known).prev_sample
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
