"""What diffusers' pipelines and training scripts touch, each against its own schedulers."""

import copy
import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.training_utils import compute_snr
from swapping import X, network, sample

from fm_diffusers import GaussianFlowScheduler

FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
TABLE = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
EDM = diffusers.EDMEulerScheduler()
SOURCES = pytest.mark.parametrize("source", [FLOW, TABLE, EDM], ids=["flow", "table", "edm"])
NOISE = torch.randn(X.shape, generator=torch.Generator().manual_seed(2))


def swap(source, **kwargs):
    return GaussianFlowScheduler.from_config(source.config, **kwargs)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- set_timesteps -------------------------------------------------------------------------------


def test_pipelines_find_the_arguments_that_they_probe_for():
    signature = inspect.signature(GaussianFlowScheduler.set_timesteps).parameters
    assert list(signature)[1:6] == ["num_inference_steps", "device", "sigmas", "mu", "timesteps"]
    step = inspect.signature(GaussianFlowScheduler.step).parameters
    assert list(step)[1:4] == ["model_output", "timestep", "sample"]
    assert {"generator", "return_dict", "kwargs"} <= set(step) and "eta" not in step
    assert "kwargs" not in inspect.signature(GaussianFlowScheduler.__init__).parameters


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_flux_retrieves_timesteps_from_sigmas_of_every_kind_and_passes_mu_always(kind):
    ours, mu = swap(FLOW), calculate_shift(1024, 256, 4096, 0.5, 1.15)
    timesteps, n = retrieve_timesteps(ours, device="cpu", sigmas=kind([1.0, 0.6, 0.2]), mu=mu)
    FLOW.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    assert n == 3 and torch.allclose(timesteps, FLOW.timesteps)


def test_mu_is_needed_where_shifting_is_dynamic():
    dynamic = GaussianFlowScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="pass mu to set_timesteps"):
        dynamic.set_timesteps(4)
    dynamic.set_timesteps(4, mu=0.5)


@SOURCES
def test_timesteps_are_floats_of_no_dimension_beside_one_more_sigma(source):
    ours = swap(source)
    ours.set_timesteps(6)
    assert ours.timesteps.dtype == torch.float32 and len(ours.sigmas) == len(ours.timesteps) + 1
    assert (ours.timesteps.diff() < 0).all() and all(t.ndim == 0 for t in ours.timesteps)
    assert ours.timesteps[0].expand(3).shape == (3,) and float(ours.sigmas[-1]) == 0
    assert ours.order == 1 and ours.num_inference_steps == 6


@SOURCES
def test_before_set_timesteps_there_is_the_grid_of_the_training(source):
    ours, theirs = swap(source), type(source).from_config(source.config)
    assert len(ours) == len(ours.timesteps) == len(ours.sigmas) == len(ours.timesteps.unique())
    assert (ours.step_index, ours.begin_index, ours.num_inference_steps) == (None,) * 3
    assert ours.scale_model_input(X, 0.0).shape == X.shape and ours.init_noise_sigma > 0
    if source is not EDM:
        torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), rtol=1e-5, atol=1e-4)
    if source is FLOW:
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-7)
        i = torch.tensor([3, 700])  # as training scripts look a sigma up
        found = [(ours.timesteps == t).nonzero().item() for t in ours.timesteps[i]]
        assert found == i.tolist()


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [[3, 700], [700], [3.5, 700.25]], ids=str)
def test_noise_is_that_of_the_timestep_before_begun_and_inside_a_loop(timesteps):
    ours, table, theirs = swap(FLOW), swap(TABLE), diffusers.DDIMScheduler()
    t = torch.tensor(timesteps)
    s = (t / 1000).reshape(-1, 1, 1, 1)

    def check():
        expected = (1 - s) * X + s * NOISE
        torch.testing.assert_close(ours.scale_noise(X, t, NOISE), expected)
        torch.testing.assert_close(ours.add_noise(X, NOISE, t), expected)
        if not t.is_floating_point():
            noisy, velocity = theirs.add_noise(X, NOISE, t), theirs.get_velocity(X, NOISE, t)
            torch.testing.assert_close(table.add_noise(X, NOISE, t), noisy)
            torch.testing.assert_close(table.get_velocity(X, NOISE, t), velocity)

    check()  # training
    for scheduler in (ours, table):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(2)
    check()  # image-to-image
    for scheduler in (ours, table):
        scheduler.step(X, scheduler.timesteps[2], X)
    check()  # inpainting
    after = torch.tensor([ours.timesteps[3]])  # which makes a tensor of its own
    assert torch.equal(ours.scale_noise(X, after, NOISE), ours.scale_noise(X, after[0], NOISE))


def test_training_scripts_find_the_table():
    ours, theirs, t = swap(TABLE), diffusers.DDIMScheduler(), torch.tensor([0, 10, 999])
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(compute_snr(ours, t), compute_snr(theirs, t))
    # a flow model has the table with its signal-to-noise ratios
    torch.testing.assert_close(
        swap(FLOW).alphas_cumprod[[0, 250, 500]], torch.tensor([1, 0.9, 0.5])
    )


# --- the place in a loop -------------------------------------------------------------------------


@pytest.mark.parametrize("cast", ["long", "bfloat16", "double", "item", "clone"])
def test_the_first_step_is_found_at_the_nearest_timestep(cast):
    ours = swap(FLOW)
    ours.set_timesteps(8)
    ours.step(X, getattr(ours.timesteps[3], cast)(), X)
    assert ours.step_index == 4 and ours.index_for_timestep(ours.timesteps[5]) == 5


def test_a_step_is_taken_again_when_step_index_is_put_back():
    ours = swap(FLOW)
    ours.set_timesteps(4)
    ours.set_begin_index(1)
    first = ours.step(X, ours.timesteps[1], X).prev_sample
    ours._step_index -= 1
    assert torch.equal(ours.step(X, ours.timesteps[1], X).prev_sample, first)
    assert (ours.step_index, ours.begin_index, ours._begin_index) == (2, 1, 1)
    ours.set_timesteps(4)
    assert (ours.step_index, ours.begin_index) == (None, None)


def test_an_index_that_is_put_back_twice_is_where_it_was_put():
    ours = swap(FLOW)
    ours.set_timesteps(6)
    x = X
    for t in ours.timesteps[:4]:
        x = ours.step(X, t, x).prev_sample
    ours.step_index -= 1
    ours.step_index -= 1
    assert ours.step_index == 2
    fresh = swap(FLOW)
    fresh.set_timesteps(6)
    step = [s.step(X, s.timesteps[2], X).prev_sample for s in (ours, fresh)]
    assert torch.equal(*step)  # one place is remembered, not two


@pytest.mark.parametrize("solver", ["predictor_corrector", "unipc", "heun"])
def test_a_tail_begun_by_index_or_by_timestep_is_one_of_its_own(solver):
    ours = swap(FLOW, solver=solver)
    ours.set_timesteps(6)
    begin, results = 2 * ours.order, []
    for by_index in (True, False):
        ours.set_timesteps(6)
        if by_index:
            ours.set_begin_index(begin)
        x = X
        for t in ours.timesteps[begin:]:
            x = ours.step(network(x, t), t, x, return_dict=False)[0]
        results.append(x)
    tail = ours.sigmas[begin :: ours.order][:-1]
    fresh = swap(FLOW, solver=solver, shift=1.0)
    results.append(sample(fresh, sigmas=tail))
    assert torch.equal(*results[:2])
    torch.testing.assert_close(results[2], results[0], rtol=1e-4, atol=1e-4)


# --- step ----------------------------------------------------------------------------------------


def test_step_returns_two_things_and_takes_what_it_does_not_know():
    ours = swap(FLOW, solver="euler")
    ours.set_timesteps(4)
    t, sigma = ours.timesteps[1], float(ours.sigmas[1])
    extra = {"eta": 0.0, "use_clipped_model_output": None, "generator": None}
    result = copy.deepcopy(ours).step(model_output=NOISE, timestep=t, sample=X, **extra)
    x, z = ours.step(NOISE, t, X, return_dict=False)
    assert list(result) == ["prev_sample", "pred_original_sample"]
    assert torch.equal(result.prev_sample, x) and torch.equal(result.pred_original_sample, z)
    torch.testing.assert_close(z, X - sigma * NOISE)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_learned_variance_beside_the_prediction_is_left_aside(kind):
    ours, plain = swap(TABLE, variance_type=kind), swap(TABLE)
    for scheduler in (ours, plain):
        scheduler.set_timesteps(4)
    both = torch.cat([NOISE, 100 * NOISE], 1)
    assert torch.equal(ours.step(both, 751, X).prev_sample, plain.step(NOISE, 751, X).prev_sample)
    with pytest.raises(ValueError, match="must have one shape"):
        plain.step(both, 501, X)


def test_tokens_of_their_own_times_step_as_those_of_flow_match_euler():
    theirs, ours = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), swap(FLOW, solver="euler")
    tokens = torch.tensor([[1000.0, 900.0, 431.0], [750.0, 1.0, 0.0]])
    x, q = torch.randn(2, 2, 3, 8, generator=seeded())
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6)
    t = theirs.timesteps[0]
    moved = [s.step(q, t, x, per_token_timesteps=tokens).prev_sample for s in (ours, theirs)]
    torch.testing.assert_close(*moved)


def test_samples_of_their_own_timesteps_step_as_each_alone():
    ours = swap(FLOW, solver="euler")
    ours.set_timesteps(6)
    t = ours.timesteps[[1, 4]]
    together = ours.step(NOISE, t, X).prev_sample
    for i in range(2):
        ours.set_timesteps(6)
        alone = ours.step(NOISE[i : i + 1], t[i], X[i : i + 1]).prev_sample
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("bounds", [{"clip_sample": True}, {"thresholding": True}], ids=str)
def test_data_predictions_are_bounded(bounds):
    ours = swap(TABLE, **bounds)
    ours.set_timesteps(4)
    result = ours.step(3 * NOISE, ours.timesteps[0], X)
    assert result.pred_original_sample.abs().max() <= 1


def test_the_index_of_a_timestep_is_found_in_another_schedule_too():
    ours = GaussianFlowScheduler()
    assert ours.index_for_timestep(998.6) == 1  # before set_timesteps, of all that were trained
    ours.set_timesteps(4)
    schedule = torch.tensor([900.0, 500.0, 100.0])
    assert ours.index_for_timestep(torch.tensor(480.0), schedule) == 1
    assert ours.index_for_timestep(ours.timesteps[2]) == 2
