"""An exact flow map gives exact samples, in any number of steps, on every path, ODE and SDE."""

import copy
import pickle

import pytest
import torch
from covers import covering
from diffusers import FlowMapEulerDiscreteScheduler

from fm_diffusers import DIFFUSIONS, PATHS, GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.flow_maps import exact_average_slope, mapped
from fm_diffusers.predictions import CANONICAL, PREDICTIONS, convert

MEAN, STD = 0.7, 0.3
DATA = GaussianMixture(torch.tensor([[MEAN]], dtype=torch.float64), STD)
SLOPE = exact_average_slope(DATA)
X = torch.tensor([[-1.3], [0.0], [0.4], [2.1]], dtype=torch.float64)
COUNTS = (1, 2, 4, 7)


def make(steps=None, **config):
    scheduler = GaussianFlowScheduler(solver="flow_map", **config)
    if steps is not None:
        scheduler.set_timesteps(steps)
    return scheduler


def clock_of(path, t):
    c = path(t)
    return c.alpha / (c.alpha + c.beta)


def ask(scheduler, x, timestep, advance):
    """Return what a network predicts that has learned the exact map."""
    clock = scheduler.clock
    path, fed = scheduler.path, torch.as_tensor(timestep).double()
    t = clock.convention.time(clock.path, clock.num_train_timesteps, fed).expand(len(x))
    x = scheduler.scale_model_input(x, timestep)
    c, u = path(t), clock_of(path, t)
    slope = SLOPE(x / (c.alpha + c.beta)[:, None], u, u + advance.double())
    kind = scheduler.config.prediction_type
    return slope if kind == CANONICAL else convert(path, CANONICAL, kind, x, slope, t)


def run(scheduler, x, **options):
    for t in scheduler.timesteps:
        advance = scheduler.advance(t)
        output = ask(scheduler, x, t, advance)
        x = scheduler.step(output, t, x, advance=advance, **options).prev_sample
    return x


def started(scheduler, noise=X):
    """Return samples at the first timestep, and where the flow leads them."""
    path, first = scheduler.sampling_path, scheduler.timesteps[:1].double()
    ends = (path(t) for t in (scheduler.clock.to_time(first), torch.ones(1).double()))
    return [c.alpha * MEAN + (c.alpha**2 * STD**2 + c.beta**2).sqrt() * noise for c in ends]


@pytest.mark.parametrize(("path", "prediction_type"), covering(PATHS, PREDICTIONS))
def test_any_number_of_steps_gives_the_exact_end(path, prediction_type):
    for steps in COUNTS:
        scheduler = make(steps, path=path, prediction_type=prediction_type)
        x, end = started(scheduler)
        torch.testing.assert_close(run(scheduler, x), end, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [{"shift": 3.0}, {"grid": "karras"}, {"grid": "uniform"}])
def test_the_grid_does_not_matter(config):
    scheduler = make(4, **config)
    x, end = started(scheduler)
    torch.testing.assert_close(run(scheduler, x), end, rtol=0, atol=1e-5)


@pytest.mark.parametrize("time_convention", ["descending", "ascending", "log_sigma", "angle"])
@pytest.mark.parametrize("sampling_path", [None, "cosine", "variance_preserving", "noise_level"])
def test_what_the_network_is_fed_does_not_matter(sampling_path, time_convention):
    for path in ("linear", "cosine"):
        config = {"sampling_path": sampling_path, "time_convention": time_convention}
        scheduler = make(3, path=path, t_min=0.02, **config)
        x, end = started(scheduler)
        torch.testing.assert_close(run(scheduler, x), end, rtol=0, atol=1e-4)


def moments(scheduler):
    """Return mean and standard deviation of a run: affine in its noises, a row of x for each."""
    (c,) = started(scheduler, torch.zeros(1, 1, dtype=torch.float64))[:1]
    one = started(scheduler, torch.ones(1, 1, dtype=torch.float64))[0]
    x = torch.cat([c, one])
    for t in scheduler.timesteps:
        advance = scheduler.advance(t)
        found = scheduler.transition(ask(scheduler, x, t, advance), t, x, advance=advance)
        x = found.mean
        if scheduler.diffusion is not None:
            x = torch.cat([x, x[:1] + found.std])
    return x[0, 0], (x[1:] - x[:1]).norm()


@pytest.mark.parametrize(
    ("diffusion", "path"),
    covering(DIFFUSIONS, ["linear", "cosine", "variance_preserving", "polynomial"]),
)
def test_the_marginal_of_an_sde_is_exact(diffusion, path):
    for steps in (1, 2, 4):
        mean, std = moments(make(steps, path=path, diffusion=diffusion))
        assert abs(mean - MEAN) < 1e-5 and abs(std - STD) < 1e-5


def test_an_sde_draws_noise_that_the_generator_decides():
    scheduler = make(4, diffusion="memoryless")
    x = started(scheduler)[0]
    draws = []
    for seed in (0, 0, 1):
        scheduler.set_timesteps(4)
        draws.append(run(scheduler, x, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(draws[0], draws[1])
    assert (draws[0] - draws[2]).abs().min() > 1e-3


# --- advance -------------------------------------------------------------------------------------


def test_advances_of_the_ode_go_from_noise_to_data():
    scheduler = make(5)
    advances = torch.stack([scheduler.advance(t) for t in scheduler.timesteps])
    assert advances.dtype == torch.float32 and (advances > 0).all()
    torch.testing.assert_close(advances, scheduler.sigmas[:-1] - scheduler.sigmas[1:])


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_the_advance_of_times_of_their_own_is_that_of_their_step(diffusion):
    """Elements of `timesteps`, and others, alone and as a batch."""
    scheduler = make(4, path="cosine", diffusion=diffusion)
    between = (scheduler.timesteps[:-1] + scheduler.timesteps[1:]) / 2
    for times in (scheduler.timesteps, between):
        batch = scheduler.advance(times)
        single = torch.stack([scheduler.advance(float(t)) for t in times])
        torch.testing.assert_close(batch, single, rtol=0, atol=1e-6)
        assert batch.dtype == torch.float32


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_a_step_from_another_time_is_exact_too(diffusion):
    scheduler = make(3, diffusion=diffusion)
    times = torch.tensor([930.0, 700.0, 410.0, 77.0], dtype=torch.float64)
    sigma = times[:, None] / 1000
    x = (1 - sigma) * MEAN + ((1 - sigma) ** 2 * STD**2 + sigma**2).sqrt() * X
    advance = scheduler.advance(times)
    together = scheduler.transition(ask(scheduler, x, times, advance), times, x, advance=advance)
    for i, t in enumerate(times.tolist()):
        alone, one = scheduler.advance(t), x[i : i + 1]
        found = scheduler.transition(ask(scheduler, one, t, alone), t, one, advance=alone)
        torch.testing.assert_close(found.mean, together.mean[i : i + 1], rtol=0, atol=1e-5)
        after = min(s for s in (1 - scheduler.sigmas).tolist() if s > 1 - t / 1000)
        size = ((after * STD) ** 2 + (1 - after) ** 2) ** 0.5
        std = float(torch.as_tensor(found.std).flatten()[0])
        kept = (found.mean.item() - after * MEAN) ** 2 / X[i].item() ** 2 if X[i] else None
        if kept is not None:
            assert abs((kept + std**2) ** 0.5 - size) < 1e-5


def test_another_noise_level_leads_elsewhere_and_keeps_the_marginal():
    scheduler = make(3, diffusion="memoryless")
    t = scheduler.timesteps[1]
    sigma = t.double() / 1000
    x = (1 - sigma) * MEAN + ((1 - sigma) ** 2 * STD**2 + sigma**2).sqrt() * torch.tensor(
        [[0.0], [1.0]], dtype=torch.float64
    )
    plain, advances = scheduler.advance(t), []
    for level in (0.0, 0.3, 1.0):
        advance = scheduler.advance(t, noise_level=level)
        advances.append(advance)
        options = {"noise_level": level, "advance": advance}
        found = scheduler.transition(ask(scheduler, x, t, advance), t, x, **options)
        after = 1 - scheduler.sigmas[2].double()
        kept = (found.mean[1] - found.mean[0]).item()
        size = ((after * STD) ** 2 + (1 - after) ** 2) ** 0.5
        assert abs((kept**2 + float(torch.as_tensor(found.std)) ** 2) ** 0.5 - size) < 1e-5
        assert abs(found.mean[0].item() - after * MEAN) < 1e-5
    assert advances[0] < advances[1] < advances[2] == plain


def test_a_loop_that_begins_inside_and_a_copy_are_told_the_same():
    scheduler = make(4, diffusion="memoryless")
    expected = [scheduler.advance(t).item() for t in scheduler.timesteps]
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert [other.advance(t).item() for t in other.timesteps] == expected
    scheduler.set_begin_index(2)
    assert [scheduler.advance(t).item() for t in scheduler.timesteps[2:]] == expected[2:]


# --- what is refused -----------------------------------------------------------------------------


def test_a_noisy_step_is_not_taken_without_what_the_network_was_told():
    scheduler = make(3, diffusion="memoryless")
    for call in (scheduler.step, scheduler.transition):
        with pytest.raises(ValueError, match=r"scheduler\.advance\(timestep\)"):
            call(X, scheduler.timesteps[0], X)
    make(3).step(X, make(3).timesteps[0], X)  # the ODE leads to the next timestep


def test_other_solvers_have_no_advance():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match='solver="flow_map"'):
        scheduler.advance(scheduler.timesteps[0])
    with pytest.raises(ValueError, match="set_timesteps"):
        make().advance(1000.0)


@pytest.mark.parametrize("kwargs", [{"clock": "time"}, {"tableau": "heun"}, {"solver_order": 2}])
def test_a_flow_map_has_no_options(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        make(solver_kwargs=kwargs)


def test_a_step_to_another_time_than_the_next_is_refused():
    scheduler = make(3)
    with pytest.raises(ValueError, match="r_timestep"):
        scheduler.step(X, scheduler.timesteps[0], X, r_timestep=0.0)


# --- diffusers' own ------------------------------------------------------------------------------


def theirs_of(steps, **config):
    scheduler = FlowMapEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def run_as_anyflow(scheduler, network, x):
    """Sample as `AnyFlowPipeline` does, whose network is told both timesteps."""
    for i, t in enumerate(scheduler.timesteps):
        r = scheduler.sigmas[i + 1] * scheduler.config.num_train_timesteps
        x = scheduler.step(network(x, t, r), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_diffusers_flow_maps_are_sampled_as_there(shift, convert):
    def network(x, t, r):  # what AnyFlow's predicts has diffusers' sign
        u, v = 1 - t.double() / 1000, 1 - r.double() / 1000
        return -SLOPE(x, u, v)

    if convert.way == "memory":
        pytest.skip("in memory it has the configuration of FlowMatchHeun's")
    for steps in COUNTS:
        theirs = theirs_of(steps, shift=shift)
        ours = convert(theirs)
        assert (ours.config.solver, ours.config.shift) == ("flow_map", shift)
        ours.set_timesteps(steps)
        found, expected = (run_as_anyflow(s, network, X) for s in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(expected, MEAN + STD * X, rtol=0, atol=1e-5)


def test_ours_goes_to_diffusers_and_back():
    ours = make(shift=5.0, prediction_type="flow_prediction", grid="uniform")
    theirs = FlowMapEulerDiscreteScheduler.from_config(ours.config)
    assert theirs.config.shift == 5.0
    again = GaussianFlowScheduler.from_config(theirs.config)
    assert (again.config.solver, again.config.prediction_type) == ("flow_map", "flow_prediction")
    for scheduler in (ours, theirs, again):
        scheduler.set_timesteps(4)
        torch.testing.assert_close(scheduler.sigmas.float(), ours.sigmas)


def test_the_exact_map_of_the_clock_is_the_one_of_the_linear_path():
    """The oracle itself: y on the clock u is x on the linear path at t = u."""
    u, v = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    torch.testing.assert_close(mapped(X, u, v, SLOPE(X, u, v)), MEAN + STD * X)


@pytest.mark.slow
def test_a_compiled_loop_is_told_the_same():
    torch.compiler.reset()
    schedulers = [make(4, diffusion="memoryless") for _ in range(2)]

    def step(scheduler, x, t):
        advance = scheduler.advance(t)
        return scheduler.step(torch.tanh(x) * advance, t, x, advance=advance).prev_sample

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    x = y = X.float()
    for i, (s, t) in enumerate(zip(*(one.timesteps for one in schedulers), strict=True)):
        torch.manual_seed(i)
        x = compiled(schedulers[0], x, s)
        torch.manual_seed(i)
        y = step(schedulers[1], y, t)
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
