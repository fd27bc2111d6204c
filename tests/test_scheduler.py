"""Times and `step` of `GaussianFlowScheduler`."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from covers import covering
from diffusers import FlowMatchEulerDiscreteScheduler
from loops import STARTS, loop, model_of, start
from torch._dynamo.testing import CompileCounter

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.grids import GRIDS
from fm_diffusers.scheduling.parts import CONFIGURED
from fm_diffusers.solvers import SOLVERS

# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", [None, "beta_squared"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_timesteps_descend_and_number_order_times_n(solver, diffusion):
    scheduler = GaussianFlowScheduler(solver=solver, diffusion=diffusion, grid="uniform")
    scheduler.set_timesteps(7)
    timesteps, sigmas = scheduler.timesteps, scheduler.sigmas
    assert scheduler.num_inference_steps == 7
    assert len(timesteps) == 7 * scheduler.order
    assert len(sigmas) == len(timesteps) + 1
    assert timesteps.dtype == torch.float32 and timesteps[0] == 1000 and sigmas[-1] == 0
    assert (sigmas[:-1] - timesteps / 1000).abs().max() < 1e-6
    starts = timesteps[:: scheduler.order]
    expected = torch.arange(7, 0, -1) * 1000 / 7
    torch.testing.assert_close(starts, expected)
    if diffusion is None or scheduler.order == 1:  # overshooting stages ask beyond the interval
        assert (timesteps.diff() <= 0).all()


@pytest.mark.parametrize("grid", [name for name in GRIDS if name not in CONFIGURED])
def test_timesteps_are_those_of_the_grid(grid):
    scheduler = GaussianFlowScheduler(grid=grid, t_min=0.1, t_max=0.9)
    scheduler.set_timesteps(6)
    times = scheduler.to_time(scheduler.timesteps)
    torch.testing.assert_close(
        times.double(), GRIDS[grid](6, scheduler.path, 0.1, 0.9)[:-1], rtol=0, atol=1e-6
    )
    assert math.isclose(scheduler.sigmas[-1], 0.1, abs_tol=1e-6)


def test_before_set_timesteps_there_are_the_timesteps_of_the_training():
    ours, theirs = GaussianFlowScheduler(), FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(ours.timesteps, torch.arange(1000.0, 0, -1))
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)
    assert len(ours) == len(theirs) == 1000
    assert ours.step_index is None and ours.begin_index is None


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor])
def test_sigmas_and_timesteps_say_the_same_in_every_container(kind):
    by_sigma, by_timestep = GaussianFlowScheduler(), GaussianFlowScheduler()
    by_sigma.set_timesteps(sigmas=kind([1.0, 0.75, 0.3]), mu=1.15)
    by_timestep.set_timesteps(timesteps=kind([1000.0, 750.0, 300.0]))
    assert by_sigma.timesteps.tolist() == by_timestep.timesteps.tolist() == [1000, 750, 300]
    assert by_sigma.num_inference_steps == by_timestep.num_inference_steps == 3
    assert torch.equal(by_sigma.sigmas, by_timestep.sigmas)


def test_the_number_of_steps_is_any_integer():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(np.int64(5))
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 5


def test_timesteps_live_on_the_wanted_device():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(3, device="meta")
    assert scheduler.timesteps.device.type == scheduler.sigmas.device.type == "meta"


def test_init_noise_sigma_is_the_deviation_of_unit_data_at_the_first_time():
    scheduler = GaussianFlowScheduler(
        path="variance_exploding", path_kwargs={"sigma_min": 0.02, "sigma_max": 30.0}
    )
    assert scheduler.init_noise_sigma == math.hypot(1, 30)
    scheduler.set_timesteps(4)
    assert scheduler.init_noise_sigma == math.hypot(1, 30)
    assert GaussianFlowScheduler().init_noise_sigma == 1


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@pytest.mark.parametrize("path", ["linear", "cosine", "polynomial"])
def test_default_grid_of_a_noise_model_starts_inside(path, prediction):
    scheduler = GaussianFlowScheduler(path=path, prediction_type=prediction)
    scheduler.set_timesteps(5)
    c = scheduler.path(scheduler.to_time(scheduler.timesteps[0].double()))
    assert math.isclose(c.alpha / (c.alpha + c.beta), 0.01, rel_tol=1e-4)
    assert math.isclose(scheduler.init_noise_sigma, math.hypot(*c[:2]), rel_tol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@pytest.mark.parametrize("path", ["variance_preserving", "variance_exploding"])
def test_default_grid_starts_at_pure_noise_where_data_is_left_in_it(path, prediction):
    scheduler = GaussianFlowScheduler(path=path, prediction_type=prediction)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps[0] == 1000


# --- step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_step_computes_in_float32_and_returns_the_wider_dtype_of_the_two(diffusion):
    generator = torch.Generator().manual_seed(0)
    x, q = torch.randn(2, 2, 3, 4, 4, generator=generator)
    x, q = x.to(torch.bfloat16), q.to(torch.bfloat16)
    results = []
    for sample, output in ((x, q), (x.float(), q), (x, q.float()), (x.float(), q.float())):
        scheduler = GaussianFlowScheduler(solver="ddim", diffusion=diffusion)
        scheduler.set_timesteps(4)
        noise = torch.Generator().manual_seed(1)
        results.append(scheduler.step(output, scheduler.timesteps[0], sample, noise))
    for name in ("prev_sample", "pred_original_sample"):
        rounded, *others, exact = (getattr(result, name) for result in results)
        assert (rounded.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(rounded, exact.to(torch.bfloat16))
        assert all(torch.equal(other, exact) for other in others)


def test_step_returns_exactly_two_things_as_output_or_as_tuple():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(4)
    x, q, t = torch.ones(2, 3), torch.full((2, 3), 2.0), scheduler.timesteps[0]
    output = copy.deepcopy(scheduler).step(q, t, x)
    plain = scheduler.step(q, t, x, return_dict=False)
    assert list(output.keys()) == ["prev_sample", "pred_original_sample"]
    assert isinstance(plain, tuple) and len(plain) == 2
    assert torch.equal(plain[0], output.prev_sample)
    assert torch.equal(plain[1], output.pred_original_sample)
    assert torch.equal(plain[1], x + q)  # z = x + (1 - t) u at t = 0


def test_step_leaves_its_arguments_as_they_were():
    scheduler = GaussianFlowScheduler(solver="heun", diffusion="memoryless", t_min=0.1)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        x, q = torch.full((2, 3), 0.5), torch.full((2, 3), -1.0)
        scheduler.step(q, t, x)
        assert (x == 0.5).all() and (q == -1).all()


def test_step_ignores_what_pipelines_pass_to_other_schedulers():
    scheduler = GaussianFlowScheduler(diffusion="memoryless")
    scheduler.set_timesteps(4)
    twin, t, x = copy.deepcopy(scheduler), scheduler.timesteps[1], torch.ones(2, 3)
    plain = scheduler.step(x, t, x, torch.Generator().manual_seed(0)).prev_sample
    other = twin.step(
        x, t, x, generator=torch.Generator().manual_seed(0), eta=0.0, use_clipped_model_output=True
    ).prev_sample
    assert torch.equal(plain, other)


def test_signatures_are_those_that_pipelines_probe():
    step = inspect.signature(GaussianFlowScheduler.step).parameters
    assert list(step)[1:4] == ["model_output", "timestep", "sample"]
    assert "generator" in step and "eta" not in step
    set_timesteps = inspect.signature(GaussianFlowScheduler.set_timesteps).parameters
    assert list(set_timesteps)[1:3] == ["num_inference_steps", "device"]
    assert {"sigmas", "timesteps", "mu"} <= set(set_timesteps)


def test_list_of_generators_gives_each_sample_its_own_noise():
    scheduler = GaussianFlowScheduler(diffusion="memoryless")
    scheduler.set_timesteps(timesteps=STARTS)
    x = start(scheduler, batch=3)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    batch = loop(scheduler, x, generator=generators())
    for i, generator in enumerate(generators()):
        scheduler.set_timesteps(timesteps=STARTS)
        alone = loop(scheduler, x[i : i + 1], generator=[generator])
        torch.testing.assert_close(alone[0], batch[i], rtol=1e-10, atol=1e-10)


def test_step_before_set_timesteps_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        GaussianFlowScheduler().step(x, 1000, x)


def test_unequal_shapes_are_refused():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 6\) and \(2, 3\)"):
        scheduler.step(torch.zeros(2, 6), scheduler.timesteps[0], torch.zeros(2, 3))


# --- speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "diffusion"),
    covering(["predictor_corrector", "euler", "rk4", "unipc"], [None, "memoryless"]),
)
def test_a_compiled_loop_has_one_graph_for_its_first_step_and_one_for_all_others(
    solver, diffusion
):
    torch.compiler.reset()
    counter = CompileCounter()
    schedulers = [GaussianFlowScheduler(solver=solver, diffusion=diffusion) for _ in range(2)]
    compiled = torch.compile(schedulers[0].step, fullgraph=True, backend=counter)
    for run in range(2):
        x = y = torch.randn(2, 3, generator=torch.Generator().manual_seed(run))
        for scheduler in schedulers:
            scheduler.set_timesteps(8)
        for i, t in enumerate(schedulers[0].timesteps):
            torch.manual_seed(i)
            x = compiled(torch.tanh(x), t, x, return_dict=False)[0]
            torch.manual_seed(i)
            y = schedulers[1].step(torch.tanh(y), t, y, return_dict=False)[0]
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
        assert counter.frame_count == 2
        assert schedulers[0].step_index == len(schedulers[0].timesteps)


@pytest.mark.parametrize("config", [{}, {"diffusion": "memoryless"}, {"solver": "heun"}], ids=str)
def test_a_compiled_step_serves_every_number_of_steps(config):
    """Two graphs for the first number, and two more in which the number is free."""
    torch.compiler.reset()
    counter, scheduler = CompileCounter(), GaussianFlowScheduler(**config)
    compiled = torch.compile(scheduler.step, fullgraph=True, backend=counter)
    for n in (8, 20, 50, 9, 30, 12):
        scheduler.set_timesteps(n)
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(n))
        for t in scheduler.timesteps:
            x = compiled(torch.tanh(x), t, x, return_dict=False)[0]
    assert counter.frame_count <= 4


def test_step_on_timesteps_of_a_device_asks_the_device_for_nothing():
    """The first timestep is found by its place in memory: meta tensors have no values to ask."""
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(4, device="meta")
    x = torch.zeros(2, 3, device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    assert x.shape == (2, 3) and scheduler.step_index == 4


@pytest.mark.parametrize("solver", ["predictor_corrector", "unipc", "dpm_solver++"])
def test_a_bfloat16_model_with_a_float32_state_loses_nothing_over_many_steps(solver):
    data = GaussianMixture(torch.eye(8).double() * 2 - 0.25, 0.1)
    samples = []
    for dtype in (torch.float32, torch.bfloat16):
        scheduler = GaussianFlowScheduler(solver=solver)
        scheduler.set_timesteps(50)
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            output = model_of(scheduler, data)(x.double(), t).to(dtype)
            x = scheduler.step(output, t, x).prev_sample
        samples.append(x)
    assert (samples[0] - samples[1]).square().mean(1).sqrt().median() < 1e-3
