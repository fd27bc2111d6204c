"""What runs where the samples are: no float64 but on the CPU, and nothing that waits for a device.

Tensors of the meta device have no values: asking one for a number raises, as waiting would.
"""

import pytest
import torch
from covers import covering
from loops import told
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS
from fm_diffusers.paths import PATHS
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.solvers import SOLVERS

DRIVEN = ("euler_maruyama", "stochastic_heun")
SAMPLES = torch.zeros(4, 3, 8, 8, device="meta")


class NoFloat64(TorchDispatchMode):
    """Refuses operations that make float64 anywhere but on the CPU, as Apple's GPUs do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu":
                assert leaf.dtype != torch.float64, f"{func} made float64 on {leaf.device}"
        return result


def exercise(**config):
    scheduler = GaussianFlowScheduler(**config)
    x = SAMPLES
    with NoFloat64():
        whole = torch.tensor([3, 700, 1, 999]).to("meta")
        for timesteps in (whole, whole.float(), torch.tensor([700])):
            scheduler.add_noise(x, x, timesteps)
            scheduler.get_velocity(x, x, timesteps)
            scheduler.scale_model_input(x, timesteps)
        scheduler.set_timesteps(4, device="meta")
        for t in scheduler.timesteps:
            output = scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, **told(scheduler, t)).prev_sample
        for each in (scheduler.timesteps[0].expand(4), torch.rand(4, device="meta")):
            scheduler.step(x, each, x, **told(scheduler, each))
        tokens = torch.rand(4, 3, device="meta")
        options = {"per_token_timesteps": tokens} | told(scheduler, tokens)
        x = scheduler.step(x, scheduler.timesteps[0], x, **options).prev_sample
    assert x.dtype == torch.float32 and x.shape == SAMPLES.shape


@pytest.mark.parametrize(("path", "diffusion"), covering(PATHS, [None, *DIFFUSIONS]))
def test_no_float64_leaves_the_cpu_on_any_path(path, diffusion):
    exercise(path=path, diffusion=diffusion)


@pytest.mark.parametrize(("solver", "diffusion"), covering(SOLVERS, [None, "memoryless"]))
def test_no_float64_leaves_the_cpu_with_any_solver(solver, diffusion):
    exercise(solver=solver, diffusion=diffusion)


@pytest.mark.parametrize(("sampling_path", "prediction"), covering(PATHS, PREDICTIONS))
def test_no_float64_leaves_the_cpu_on_another_path(sampling_path, prediction):
    exercise(path="discrete", sampling_path=sampling_path, prediction_type=prediction)


@pytest.mark.parametrize("bounds", [{"clip_sample": True}, {"thresholding": True}], ids=str)
def test_no_float64_leaves_the_cpu_within_bounds(bounds):
    exercise(path="discrete", prediction_type="epsilon", time_convention="index", **bounds)
