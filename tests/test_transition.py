"""The Gaussian of a step: its density, its divergence, and that a step draws from it."""

import copy
import math
import pickle
import re

import pytest
import torch
from covers import covering
from loops import DATA, STARTS, loop, model_of, start, told
from torch.distributions import Normal, kl_divergence

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS
from fm_diffusers.paths import PATHS
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.solvers import SOLVERS

#: Solvers that ask the model once a step.
SINGLE = [name for name, make in SOLVERS.items() if make(PATHS["linear"]()).evaluations == 1]
#: Coefficients that have a rate, as the solvers driven by Brownian increments need it.
RATES = [name for name, row in DIFFUSIONS.items() if row.profile is not None]
DRIVEN = ("euler_maruyama", "stochastic_heun")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def planned(**config):
    scheduler = GaussianFlowScheduler(**config)
    scheduler.set_timesteps(timesteps=STARTS)
    return scheduler


def noisy():
    """Return all combinations of solvers and coefficients that exist."""
    return [
        (solver, name)
        for solver in SINGLE
        for name in (RATES if solver in DRIVEN else DIFFUSIONS)
        if name != "refresh"
    ]


# --- a step draws from it ------------------------------------------------------------------------


def check_densities(**config):
    scheduler = planned(**config)
    x, model, place = start(scheduler), model_of(scheduler), None
    for t in scheduler.timesteps:
        options = told(scheduler, t)
        one = scheduler.transition(model(x, t), t, x, place, **options)
        other = scheduler.transition(model(x, t) + 0.1, t, x, place, **options)
        following, place = one.sample(seeded()), one.place
        if one.std == 0:
            with pytest.raises(ValueError, match="log_prob needs noise"):
                one.log_prob(following)
            continue
        normal, normal_other = Normal(one.mean, one.std), Normal(other.mean, other.std)
        values, exact = normal.log_prob(following), {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(one.log_prob(following, "none"), values, **exact)
        torch.testing.assert_close(one.log_prob(following), values.sum(1), **exact)
        torch.testing.assert_close(one.log_prob(following, "mean"), values.mean(1), **exact)
        divergence = kl_divergence(normal, normal_other).sum(1)
        torch.testing.assert_close(one.kl(other), divergence, rtol=1e-9, atol=1e-12)
        x = following


@pytest.mark.parametrize(("solver", "diffusion"), noisy())
def test_log_prob_and_kl_are_those_of_the_normal_distribution(solver, diffusion):
    check_densities(solver=solver, diffusion=diffusion)


@pytest.mark.parametrize(("prediction", "path"), covering(PREDICTIONS, PATHS))
def test_log_prob_and_kl_are_so_for_every_network(prediction, path):
    check_densities(path=path, prediction_type=prediction, diffusion="memoryless")


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("solver", "diffusion"), noisy())
def test_log_prob_and_kl_are_so_in_every_combination(solver, diffusion, path):
    for prediction in PREDICTIONS:
        check_densities(path=path, solver=solver, diffusion=diffusion, prediction_type=prediction)


@pytest.mark.parametrize("diffusion", [None, "memoryless", "constant"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_step_is_a_sample_of_the_transition_which_changes_nothing(solver, diffusion):
    scheduler = planned(solver=solver, diffusion=diffusion)
    x, model, place, generators = start(scheduler), model_of(scheduler), None, (seeded(), seeded())
    for t in scheduler.timesteps:
        q = model(x, t)
        options = told(scheduler, t)
        transition = scheduler.transition(q, t, x, place, **options)
        assert scheduler.transition(q, t, x, place, **options).mean.equal(transition.mean)
        own = transition.sample(generators[0])
        x, z = scheduler.step(q, t, x, generators[1], return_dict=False, **options)
        assert torch.equal(own, x) and torch.equal(transition.pred_original_sample, z)
        place = transition.place


def test_two_seeds_differ_and_those_of_an_ode_do_not():
    for diffusion in (None, "memoryless"):
        scheduler = planned(diffusion=diffusion)
        samples = [loop(scheduler, start(scheduler), generator=seeded(i)) for i in range(2)]
        assert torch.equal(*samples) == (diffusion is None)


def test_the_density_of_a_trajectory_integrates_to_the_closed_form():
    """Linear-Gaussian: summed over steps, the marginal of the last sample is known."""
    std, scheduler = 0.5, planned(solver="ddim", diffusion="memoryless")
    path = scheduler.path

    def model(x, t):
        c = path(scheduler.to_time(t.double()))
        variance = c.alpha**2 * std**2 + c.beta**2
        return (c.alpha * c.d_alpha * std**2 + c.beta * c.d_beta) / variance * x

    # the exact variance of a run, from the two numbers of every transition
    x = torch.linspace(-8, 8, 1601, dtype=torch.float64)[:, None]
    first = path(scheduler.to_time(scheduler.timesteps[0].double()))
    deviation = math.hypot(first.alpha * std, first.beta)
    density = Normal(0.0, deviation).log_prob(x).exp()
    variance = deviation**2
    for t in scheduler.timesteps[:-1]:
        transition = scheduler.transition(model(x, t), t, x)
        slope = (transition.mean[-1] - transition.mean[0]) / (x[-1] - x[0])
        variance = slope.item() ** 2 * variance + transition.std**2
        # Chapman-Kolmogorov: p(x') = integral of p(x' | x) p(x) dx, by the trapezoidal rule
        kernel = Normal(transition.mean.T, transition.std).log_prob(x).exp()
        density = torch.trapezoid(kernel * density.T, x.T, dim=1)[:, None]
        expected = Normal(0.0, variance**0.5).log_prob(x).exp()
        torch.testing.assert_close(density, expected, rtol=0, atol=1e-6)


def test_the_policy_gradient_of_a_linear_gaussian_is_the_closed_form():
    """d/da E[-x'^2/2] of x' ~ N(m x + w a x, s^2) is -w E[x x'], by score function and exactly."""
    scheduler = planned(solver="ddim", diffusion="memoryless")
    t, n = scheduler.timesteps[1], 400_000
    x = torch.full((n, 1), 1.3, dtype=torch.float64)
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    transition = scheduler.transition(a * x, t, x)
    following = transition.sample(seeded()).detach()
    weight = (transition.mean[0, 0] - scheduler.transition(0 * x, t, x).mean[0, 0]) / (a * 1.3)
    reward = -following.square()[:, 0] / 2
    estimate = (transition.log_prob(following) * (reward - reward.mean())).mean()
    (gradient,) = torch.autograd.grad(estimate, a)
    exact = -weight.detach() * 1.3 * transition.mean[0, 0].detach()
    torch.testing.assert_close(gradient, exact, rtol=0.02, atol=0)


# --- times of their own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "path", "diffusion"),
    covering(SINGLE, PATHS, [None, "memoryless", "flow_grpo", "constant"]),
)
def test_a_batch_of_different_timesteps_equals_as_many_calls(solver, path, diffusion):
    scheduler = GaussianFlowScheduler(path=path, solver=solver, diffusion=diffusion, t_min=0.02)
    scheduler.set_timesteps(6)
    own = scheduler.timesteps[[3, 0, 5, 2]].double()
    between = scheduler.to_timestep(torch.tensor([0.1, 0.33, 0.6, 0.71], dtype=torch.float64))
    timesteps = torch.cat([own, between])
    x = torch.randn(8, 3, generator=seeded(), dtype=torch.float64)
    q = torch.randn(8, 3, generator=seeded(1), dtype=torch.float64)
    options = told(scheduler, timesteps)
    together = scheduler.transition(q, timesteps, x, **options)
    for i, t in enumerate(timesteps):
        one = q[i : i + 1], t.item(), x[i : i + 1]
        alone = scheduler.transition(*one, **told(scheduler, t.item()))
        torch.testing.assert_close(together.mean[i], alone.mean[0], rtol=1e-6, atol=1e-7)
        std = torch.as_tensor(together.std, dtype=torch.float64).expand(8, 1)[i].item()
        assert math.isclose(std, alone.std, rel_tol=1e-6, abs_tol=1e-9)
        torch.testing.assert_close(
            together.pred_original_sample[i], alone.pred_original_sample[0], rtol=1e-6, atol=1e-7
        )
    draws = [scheduler.step(q, timesteps, x, seeded(i), **options) for i in range(2)]
    samples = [drawn.prev_sample for drawn in draws]
    assert torch.equal(*samples) == (diffusion is None)


# --- the timestep decides ------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SINGLE)
def test_another_timestep_of_the_plan_goes_there_with_nothing_remembered(solver):
    """RePaint: back in time and forward again."""
    scheduler, fresh = planned(solver=solver), planned(solver=solver)
    x, model = start(scheduler), model_of(scheduler)
    x = loop(scheduler, x, scheduler.timesteps[:3])
    for i in (1, 2, 0, 3):
        t = scheduler.timesteps[i]
        fresh.set_timesteps(timesteps=STARTS)
        fresh.set_begin_index(i)
        expected = fresh.step(model(x, t), fresh.timesteps[i], x)
        found = scheduler.step(model(x, t), t.clone() if i == 2 else t, x)
        if i != 2:  # after 1 comes 2, which is the expected one: it remembers
            assert torch.equal(found.prev_sample, expected.prev_sample)
        assert torch.equal(found.pred_original_sample, expected.pred_original_sample)
        assert scheduler.step_index == i + 1


@pytest.mark.parametrize("kind", [float, int, torch.tensor])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_data_is_predicted_at_any_time(prediction, kind):
    scheduler = planned(prediction_type=prediction)
    x, model = start(scheduler), model_of(scheduler)
    loop(scheduler, x, scheduler.timesteps[:2])
    t = torch.tensor(201.0)
    z, _ = DATA.sample_and_score(scheduler.path, x, scheduler.to_time(t.double()))
    found = scheduler.step(model(x, t), kind(201), x).pred_original_sample
    torch.testing.assert_close(found, z, rtol=1e-6, atol=1e-6)
    assert scheduler.step_index == 3  # it has stepped to the next of the plan


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_a_time_between_steps_to_the_next_of_the_plan(diffusion):
    scheduler, other = planned(diffusion=diffusion), GaussianFlowScheduler(diffusion=diffusion)
    other.set_timesteps(timesteps=[500.0, *STARTS[2:].tolist()])
    x, model = start(scheduler), model_of(scheduler)
    t = torch.tensor(500.0)
    found = scheduler.step(model(x, t), t, x, seeded()).prev_sample
    expected = other.step(model(x, t), other.timesteps[0], x, seeded()).prev_sample
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("number", [int, torch.tensor])
def test_an_index_in_place_of_its_timestep_is_refused(number):
    scheduler = planned()
    x = start(scheduler)
    for i, t in enumerate(scheduler.timesteps):
        with pytest.raises(ValueError, match=rf"index of the step: .* = {t:g}"):
            scheduler.step(x, number(i), x)
        x = scheduler.step(x, t, x).prev_sample


@pytest.mark.parametrize("timestep", [-3.0, 0.0, 1000.1, 1e6, math.nan, math.inf])
def test_a_timestep_outside_the_plan_is_refused(timestep):
    scheduler = planned()
    x = start(scheduler)
    with pytest.raises(ValueError, match=re.escape(f"timestep {timestep:g} is not between")):
        scheduler.step(x, timestep, x)


def test_a_place_at_another_timestep_is_refused():
    scheduler = planned()
    x = start(scheduler)
    place = scheduler.transition(x, scheduler.timesteps[0], x).place
    with pytest.raises(ValueError, match=r"the place is at timestep \[700.0\]"):
        scheduler.transition(x, scheduler.timesteps[2], x, place)


# --- noise where it is wanted --------------------------------------------------------------------


@pytest.mark.parametrize("solver", SINGLE)
def test_noise_is_drawn_in_the_window_only_and_never_on_the_last_step(solver):
    scheduler = GaussianFlowScheduler(solver=solver, diffusion="flow_grpo", t_min=0.02)
    scheduler.set_timesteps(6, noisy_steps=[1, 3])
    q = x = torch.ones(1, 3, dtype=torch.float64)
    found = [scheduler.transition(q, t, x, **told(scheduler, t)) for t in scheduler.timesteps]
    stds = [transition.std for transition in found]
    assert [std > 0 for std in stds] == [False, True, False, True, False, False]
    for bad in ([5], [-1], [6], [1.5]):
        with pytest.raises(
            ValueError, match="noisy_steps must be intervals by their numbers, from 0 to 4"
        ):
            scheduler.set_timesteps(6, noisy_steps=bad)
    with pytest.raises(ValueError, match="need a coefficient of noise"):
        GaussianFlowScheduler(solver=solver).set_timesteps(6, noisy_steps=[1])


@pytest.mark.parametrize(("solver", "diffusion"), covering(SINGLE, RATES))
def test_a_noise_level_is_the_scale_of_the_diffusion(solver, diffusion):
    plain = planned(solver=solver, diffusion=diffusion)
    scaled = planned(solver=solver, diffusion=diffusion, diffusion_kwargs={"scale": 0.3})
    x, t = start(plain), plain.timesteps[1]
    expected = scaled.transition(x, t, x, **told(scaled, t))
    options = {"noise_level": 0.3} | told(plain, t, noise_level=0.3)
    found = plain.transition(x, t, x, **options)
    assert torch.equal(found.mean, expected.mean) and found.std == expected.std
    assert torch.equal(
        plain.step(x, t, x, seeded(), **options).prev_sample, expected.sample(seeded())
    )
    with pytest.raises(ValueError, match="the scheduler has none"):
        planned(solver=solver).transition(x, t, x, noise_level=0.3)


# --- nothing hidden ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", SINGLE)
def test_a_stored_trajectory_replays_to_a_ratio_of_one(solver, dtype, tmp_path):
    scheduler = planned(solver=solver, diffusion="memoryless")
    x, stored = start(scheduler).to(dtype), []

    def model(x, t):
        return torch.tanh(x.float() * t / 500).to(dtype)

    place, generator = None, seeded()
    for t in scheduler.timesteps[:-1]:
        transition = scheduler.transition(model(x, t), t, x, place, **told(scheduler, t))
        following, place = transition.sample(generator), transition.place
        assert following.dtype == dtype
        stored.append((x, following, transition.log_prob(following)))
        x = following
    torch.save(stored, tmp_path / "trajectory.pt")
    place = None
    for t, (x, following, old) in zip(
        scheduler.timesteps, torch.load(tmp_path / "trajectory.pt"), strict=False
    ):
        transition = scheduler.transition(model(x, t), t, x, place, **told(scheduler, t))
        place = transition.place
        assert torch.equal((transition.log_prob(following) - old).exp(), torch.ones(5))


def test_the_gradient_of_a_bfloat16_sample_is_whole():
    """z = x + (1 - t) u at t = 1/2 with u = 3 x is 2.5 x: the sample's own path included."""
    scheduler = GaussianFlowScheduler(solver="euler")
    scheduler.set_timesteps(timesteps=[750.0, 500.0, 250.0])
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample.requires_grad_()
    z = scheduler.step(3 * x, scheduler.timesteps[1], x).pred_original_sample
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2.5))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_a_place_and_a_transition_are_values(way, diffusion):
    scheduler = planned(diffusion=diffusion)
    x, model = start(scheduler), model_of(scheduler)
    first = scheduler.transition(model(x, scheduler.timesteps[0]), scheduler.timesteps[0], x)
    x = first.sample(seeded())
    q = model(x, scheduler.timesteps[1])
    one = scheduler.transition(q, scheduler.timesteps[1], x, first.place)
    twin = way(scheduler)
    other = twin.transition(q, twin.timesteps[1], x, way(first.place))
    assert torch.equal(one.mean, other.mean) and one.std == other.std


# --- errors --------------------------------------------------------------------------------------


def test_wrong_shapes_and_reductions_are_refused():
    scheduler = planned(diffusion="memoryless")
    x, t = start(scheduler), scheduler.timesteps[0]
    transition = scheduler.transition(x, t, x)
    with pytest.raises(ValueError, match=r"next_sample and mean .* got \(5, 2\) and \(5, 3\)"):
        transition.log_prob(x[:, :2])
    with pytest.raises(ValueError, match="reduction must be one of sum, mean, none, got 'max'"):
        transition.log_prob(x, "max")
    with pytest.raises(ValueError, match="pred_original_sample and sample must have one shape"):
        scheduler.step(x, t, x, pred_original_sample=x[:1])
    with pytest.raises(ValueError, match="kl needs noise"):
        transition.kl(planned().transition(x, t, x))
    for other in (x[:1], x[:, :1]):
        with pytest.raises(ValueError, match=r"mean and others must have one shape, got \(5, 3\)"):
            transition.kl(scheduler.transition(other, t, other))


def test_carried_rounding_keeps_the_precision_of_a_half_precision_sample():
    """As in compensated sums; the sample's own gradient stays whole."""

    def run(dtype, **config):
        scheduler = GaussianFlowScheduler(**config)
        scheduler.set_timesteps(50)
        x = torch.linspace(-2, 2, 64).reshape(2, 32).to(torch.bfloat16).to(dtype)
        for t in scheduler.timesteps:
            output = torch.tanh(x.float() + t / 500).to(torch.bfloat16)
            x = scheduler.step(output, t, x).prev_sample
        return x.float()

    exact, plain = run(torch.float32), run(torch.bfloat16)
    carried = run(torch.bfloat16, carry_rounding=True)
    error, error_plain = ((x - exact).square().mean().sqrt() for x in (carried, plain))
    assert error < 0.5 * error_plain
    assert torch.equal(run(torch.float32, carry_rounding=True), exact)
    scheduler = GaussianFlowScheduler(solver="euler", carry_rounding=True)
    scheduler.set_timesteps(timesteps=[750.0, 500.0, 250.0])
    x = torch.full((2, 3), 0.1, dtype=torch.bfloat16)
    x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample.requires_grad_()
    z = scheduler.step(3 * x, scheduler.timesteps[1], x).pred_original_sample
    (gradient,) = torch.autograd.grad(z.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2.5))


@pytest.mark.parametrize("levels", [(1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("solver", SINGLE)
def test_a_step_of_the_other_process_looks_back_at_nothing(solver, levels):
    """Slopes of the ODE are velocities, those of an SDE are data: they are not mixed."""
    before, after = levels
    scheduler = GaussianFlowScheduler(solver=solver, diffusion="memoryless")
    scheduler.set_timesteps(6)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    seeds = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps[:3]:
        options = {"noise_level": before} | told(scheduler, t, noise_level=before)
        x = scheduler.step(-x, t, x, generator=seeds, **options).prev_sample
    t = scheduler.timesteps[3]
    options = {"noise_level": after} | told(scheduler, t, noise_level=after)
    found = scheduler.step(-x, t, x, generator=seeds.manual_seed(1), **options)
    afresh = scheduler.transition(-x, t, x, **options)
    expected = afresh.sample(seeds.manual_seed(1))
    torch.testing.assert_close(found.prev_sample, expected)
