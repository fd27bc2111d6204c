"""A loop of `step` is `integrate`: whole, begun inside, copied and begun anew."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from covers import covering
from diffusers import FlowMatchEulerDiscreteScheduler
from loops import DATA, STARTS, TIMES, loop, model_of, reference, start, told
from oracles import takes

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS, get_diffusion
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.paths import PATHS
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.solvers import SOLVERS

# --- the loop is `integrate` ---------------------------------------------------------------------

#: Every solver on every path, with the coefficients that it takes in turn.
LOOPS = [
    (solver, path, taken[(i + 3 * j) % len(taken)])
    for i, solver in enumerate(SOLVERS)
    for taken in [[name for name in DIFFUSIONS if takes(solver, name)]]
    for j, path in enumerate(PATHS)
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_ode_loop_equals_integrate_bit_for_bit(solver, path):
    scheduler = GaussianFlowScheduler(path=path, solver=solver)
    scheduler.set_timesteps(timesteps=STARTS)
    x = start(scheduler)
    assert torch.equal(loop(scheduler, x), reference(scheduler, x, TIMES))


@pytest.mark.parametrize(("solver", "path"), covering(SOLVERS, PATHS))
def test_loop_on_the_default_grid_equals_integrate_bit_for_bit(solver, path):
    scheduler = GaussianFlowScheduler(path=path, solver=solver)
    scheduler.set_timesteps(4)
    x = start(scheduler)
    starts = scheduler.to_time(scheduler.timesteps[:: scheduler.order].double())
    times = torch.cat([starts, torch.ones(1, dtype=torch.float64)])
    assert torch.equal(loop(scheduler, x), reference(scheduler, x, times))


@pytest.mark.parametrize(("solver", "path", "diffusion"), LOOPS)
@pytest.mark.filterwarnings("ignore:the diffusion .* asks for steps of K")
def test_sde_loop_equals_integrate_bit_for_bit(solver, path, diffusion):
    scheduler = GaussianFlowScheduler(path=path, solver=solver, diffusion=diffusion)
    scheduler.set_timesteps(timesteps=STARTS)
    x = start(scheduler)
    ours = loop(scheduler, x, generator=torch.Generator().manual_seed(1))
    theirs = reference(scheduler, x, TIMES, torch.Generator().manual_seed(1))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("solver", "diffusion"), covering(SOLVERS, DIFFUSIONS))
def test_diffusion_of_scale_zero_is_the_ode_bit_for_bit(solver, diffusion):
    zero = {"diffusion": diffusion, "diffusion_kwargs": {"scale": 0.0}}
    if not takes(solver, diffusion) or get_diffusion(diffusion, 0.0).acts(PATHS["linear"]()):
        pytest.skip("it needs a rate, or this coefficient does not vanish at scale 0")
    samples = []
    for kwargs in ({}, zero):
        scheduler = GaussianFlowScheduler(solver=solver, **kwargs)
        scheduler.set_timesteps(4)
        samples.append(loop(scheduler, start(scheduler)))
    assert torch.equal(*samples)


@pytest.mark.parametrize(("solver", "path"), covering(SOLVERS, PATHS))
def test_samples_do_not_depend_on_the_prediction_type(solver, path):
    samples = []
    # the velocity of a table jumps at its entries: no network of that kind is trained on one
    discrete = path == "discrete" and solver in ("midpoint", "rk4")
    for prediction in PREDICTIONS if not discrete else ["epsilon", "sample", "v_prediction"]:
        # until t = 0.95: on the last interval a prediction that is singular at the data costs an
        # evaluation, hence accuracy
        scheduler = GaussianFlowScheduler(
            path=path, solver=solver, prediction_type=prediction, t_max=0.95
        )
        scheduler.set_timesteps(timesteps=STARTS[1:])
        samples.append(loop(scheduler, start(scheduler)))
    for other in samples[1:]:
        torch.testing.assert_close(other, samples[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_pred_original_sample_is_the_posterior_mean(prediction):
    scheduler = GaussianFlowScheduler(path="cosine", prediction_type=prediction)
    scheduler.set_timesteps(timesteps=STARTS)
    x, model = start(scheduler), model_of(scheduler)
    for t in scheduler.timesteps:
        z, _ = DATA.sample_and_score(scheduler.path, x, scheduler.to_time(t.double()))
        x, original = scheduler.step(model(x, t), t, x, return_dict=False)
        torch.testing.assert_close(original, z, rtol=1e-6, atol=1e-6)


def test_euler_equals_diffusers_flow_match_euler():
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator) for shape in ((8, 8), (2, 3, 8, 8)))

    def model(x, t):
        return torch.tanh(x @ weight + t / 1000) - 0.5 * x.cos()

    ours = GaussianFlowScheduler(solver="euler", prediction_type="flow_prediction")
    theirs = FlowMatchEulerDiscreteScheduler()
    sigmas, y = np.linspace(1.0, 1 / 20, 20) ** 1.5, x
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=sigmas.tolist())
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-7)
    for t, s in zip(ours.timesteps, theirs.timesteps, strict=True):
        x = ours.step(model(x, t), t, x).prev_sample
        y = theirs.step(model(y, s), s, y).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


# --- starting inside (img2img) -------------------------------------------------------------------


@pytest.mark.parametrize("by", ["begin_index", "value", "integer value"])
@pytest.mark.parametrize("diffusion", [None, "zero_ends"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_beginning_inside_equals_integrating_the_tail_of_the_grid(solver, diffusion, by):
    scheduler = GaussianFlowScheduler(solver=solver, diffusion=diffusion)
    scheduler.set_timesteps(timesteps=STARTS)
    x, first = start(scheduler), 2 * scheduler.order
    timesteps = scheduler.timesteps[first:]
    if by == "begin_index":
        scheduler.set_begin_index(first)
        assert scheduler.begin_index == first
    elif by == "integer value":
        timesteps = timesteps.round().long()
    model = model_of(scheduler)
    generator, place = torch.Generator().manual_seed(1), first
    y = x
    for t, exact in zip(timesteps, scheduler.timesteps[first:], strict=True):
        options = told(scheduler, t)
        y = scheduler.step(model(y, exact), t, y, generator=generator, **options).prev_sample
        place += 1
        assert scheduler.step_index == place
    expected = reference(scheduler, x, TIMES[2:], torch.Generator().manual_seed(1))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_begin_index_zero_is_the_default(solver):
    scheduler = GaussianFlowScheduler(solver=solver)
    scheduler.set_timesteps(6)
    x = start(scheduler)
    default = loop(scheduler, x)
    scheduler.set_begin_index(0)
    assert torch.equal(loop(scheduler, x), default)


@pytest.mark.parametrize("solver", SOLVERS)
def test_set_timesteps_forgets_an_interrupted_loop(solver):
    scheduler = GaussianFlowScheduler(solver=solver)
    scheduler.set_timesteps(6)
    x = start(scheduler)
    clean = loop(scheduler, x)
    scheduler.set_timesteps(9)
    scheduler.set_begin_index(2 * scheduler.order)
    loop(scheduler, x, timesteps=scheduler.timesteps[2 * scheduler.order :][:3])
    scheduler.set_timesteps(6)
    assert scheduler.step_index is None and scheduler.begin_index is None
    assert torch.equal(loop(scheduler, x), clean)


@pytest.mark.parametrize("solver", SOLVERS)
def test_deepcopy_in_the_middle_goes_on_identically_and_independently(solver):
    scheduler = GaussianFlowScheduler(solver=solver)
    scheduler.set_timesteps(6)
    x, model = start(scheduler), model_of(scheduler)
    middle = 3 * scheduler.order - 1  # inside an interval, where there are stages
    x = loop(scheduler, x, scheduler.timesteps[:middle])
    rest, other = scheduler.timesteps[middle:], copy.deepcopy(scheduler)
    loop(other, torch.zeros_like(x), rest)  # moves nothing in the original
    assert (scheduler.step_index, other.step_index) == (middle, len(scheduler.timesteps))
    twin = copy.deepcopy(scheduler)
    ours, theirs = x, x
    for t in rest:
        ours = scheduler.step(model(ours, t), t, ours).prev_sample
        theirs = twin.step(model(theirs, t), t, theirs).prev_sample
        assert torch.equal(ours, theirs)


# --- beginning anew ------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", SOLVERS)
def test_after_the_last_step_a_loop_begins_anew(solver):
    scheduler = GaussianFlowScheduler(solver=solver)
    scheduler.set_timesteps(4)
    first, again = (loop(scheduler, start(scheduler)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("solver", "index"), [("heun", 3), ("rk4", 6), ("euler", 4), ("euler", -1)]
)
def test_beginning_inside_an_interval_is_refused(solver, index):
    scheduler = GaussianFlowScheduler(solver=solver)
    scheduler.set_timesteps(4)
    x = torch.zeros(2, 3)
    message = rf"start of an interval, one of the indices \[0, .*\], got index {index}"
    with pytest.raises(ValueError, match=message):
        scheduler.set_begin_index(index)
        scheduler.step(x, scheduler.timesteps[index % 4], x)


def test_a_timestep_inside_an_interval_begins_no_loop():
    """Heun asks at both ends of an interval: the second of `timesteps` is the end of the first."""
    scheduler = GaussianFlowScheduler(solver="heun")
    scheduler.set_timesteps(4)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="start of an interval, one of the indices .* index 1"):
        scheduler.step(x, scheduler.timesteps[1], x)


def test_a_loop_begun_in_the_middle_leaves_no_trace_on_the_next():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(6)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))

    def run(begin):
        scheduler.set_begin_index(begin)
        sample = x
        for t in scheduler.timesteps[begin:]:
            sample = scheduler.step(torch.tanh(sample) * t / 1000, t, sample).prev_sample
        return sample

    whole = run(0)
    run(3)
    assert torch.equal(run(0), whole)


# --- one step and more ---------------------------------------------------------------------------
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.filterwarnings("ignore:the diffusion .* asks for steps of K")
@pytest.mark.parametrize("share", [60, pytest.param(1, marks=pytest.mark.slow)])
def test_every_combination_of_the_tables_samples_from_one_step_up(path, solver, share):
    """Data at -1 and 1: solvers on the signal-to-noise clock stay with it however long a step.

    The fast run takes one combination in 60, others for each path and solver: every two rows of
    any two tables meet.
    """
    data = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.3)
    generator = torch.Generator().manual_seed(0)
    diffusions = [name for name in DIFFUSIONS if takes(solver, name)]
    cases = list(product(PREDICTIONS, [None, *diffusions], (1, 3)))
    first = 5 * list(PATHS).index(path) + 3 * list(SOLVERS).index(solver)
    for case in cases[first % share :: share]:
        prediction, diffusion, n = case
        scheduler = GaussianFlowScheduler(
            path=path, prediction_type=prediction, solver=solver, diffusion=diffusion
        )
        scheduler.set_timesteps(n)
        field = data.field(scheduler.path, prediction)
        x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
        x = x * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            t = scheduler.to_time(timestep.double())
            given = (field(x, t), timestep, x, generator, False)
            x, z = scheduler.step(*given, **told(scheduler, timestep))
            assert x.isfinite().all() and z.isfinite().all(), case
        assert x.abs().max() < 5 or solver not in ("ddim", "predictor_corrector"), case
