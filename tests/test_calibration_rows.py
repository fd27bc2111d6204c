"""Rows of all steps: what a fit is, where its targets lie, and what is asked of the model."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from oracles import GAUSSIAN, marginal_std
from test_calibration import DATA, fitted, model_of, noise, plain, sample

from fm_diffusers import PATHS, GaussianFlowScheduler
from fm_diffusers.calibration import calibrate
from fm_diffusers.calibration.fitting import fit, gram, square_errors
from fm_diffusers.calibration.problem import CONVERGED, Problem, Trial, own_row
from fm_diffusers.calibration.searching import search, trials
from fm_diffusers.solvers import Calibrated, Multistep, integrate


def problem_of(model, eps, batch_size=64, reference_steps=100, **config):
    scheduler = GaussianFlowScheduler(**config)

    def field(x, t, part):
        return model(x, t)

    return Problem(scheduler, field, eps, batch_size, reference_steps)


def counted(field):
    def counting(x, t):
        counting.calls += 1
        return field(x, t)

    counting.calls = 0
    return counting


@pytest.fixture(scope="module")
def problem():
    return problem_of(DATA.field(PATHS["linear"]()), noise(256))


@pytest.fixture(scope="module")
def every(problem):
    """A calibration with rows for all of four steps."""
    trial = problem.judged(Trial(problem.log_snr(4), CONVERGED, every=True))
    method = {"log_snr": trial.log_snr, "method": trial.method, "rows": list(trial.rows)}
    return {"for": {}, "steps": {"4": method}}, trial


# --- least squares -------------------------------------------------------------------------------


def test_a_combination_is_found_whatever_a_few_samples_are():
    columns = [noise(32, seed, dim=5) for seed in range(3)]
    weights = (0.5, -1.0, 2.0)
    target = sum(w * column for w, column in zip(weights, columns, strict=True))
    target[::8] += 10.0
    products = gram([*columns, target])
    # as close as the ridge lets it
    torch.testing.assert_close(fit(products, (0.0,) * 3), weights, rtol=0, atol=1e-4)
    own = tuple(w + 1e-6 for w in weights)
    residual = (sum(w * c for w, c in zip(own, columns, strict=True)) - target).square().mean(1)
    torch.testing.assert_close(square_errors(products, own), residual)


# --- a row in place of the method's --------------------------------------------------------------


@pytest.mark.parametrize("path_name", ["linear", "cosine", "variance_exploding"])
@pytest.mark.parametrize("form", ["velocity", "data"])
def test_the_methods_own_rows_give_the_method(form, path_name):
    path = PATHS[path_name]()
    method = CONVERGED | {"form": form}
    solver = Multistep(path, **method)
    times = torch.tensor([0.05, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    sizes = sum(path(times)[:2]).tolist()
    rows = [own_row(step, n, sizes) for n, step in enumerate(solver.steps(times))]
    field = DATA.field(path)
    expected = integrate(solver, field, noise(), times)
    for count in range(5):
        own = Calibrated(path, **method, rows=tuple(rows[4 - count :]))
        torch.testing.assert_close(integrate(own, field, noise(), times), expected)


def test_rows_are_for_the_last_steps_of_a_grid_of_their_length():
    solver = Calibrated(PATHS["linear"](), rows=((1.0, 0.3), (1.0, 0.3, 0.2)))
    with pytest.raises(ValueError, match=r"rows of \[2, 3\] weights .* of 2, .* got a grid of 3"):
        solver.plan(torch.tensor([0.0, 0.2, 0.5, 1.0]))


def test_a_readout_of_an_older_file_is_the_last_row(every):
    fit = every[0]["steps"]["4"]
    eps, rows = noise(), fit["rows"][-1:]
    old, new = (
        {"log_snr": fit["log_snr"], "method": fit["method"]} | last
        for last in ({"readout": rows[0]}, {"rows": rows})
    )
    samples = [
        sample(GaussianFlowScheduler(calibration={"for": {}, "steps": {"4": one}}), eps)
        for one in (old, new)
    ]
    assert torch.equal(*samples)
    assert not torch.allclose(samples[0], sample(GaussianFlowScheduler(), eps), atol=1e-3)


def test_the_scheduler_takes_the_steps_that_were_judged(every):
    calibration, trial = every
    eps = noise(256)
    found = sample(GaussianFlowScheduler(calibration=calibration), eps)
    exact = sample(GaussianFlowScheduler(), eps, 200)
    distance = (found - exact)[128:].square().mean(1)
    # the network is fed times in float32
    assert distance.mean().sqrt().item() == pytest.approx(trial.rms, rel=1e-2)
    assert distance.sqrt().median().item() == pytest.approx(trial.median, rel=1e-2)


def test_rows_of_all_steps_are_saved_and_copied(every, tmp_path):
    scheduler = GaussianFlowScheduler(calibration=every[0])
    expected = sample(scheduler, noise())
    scheduler.save_pretrained(tmp_path)
    for other in (
        GaussianFlowScheduler.from_pretrained(tmp_path),
        GaussianFlowScheduler.from_config(scheduler.config),
        copy.deepcopy(scheduler),
    ):
        assert torch.equal(sample(other, noise()), expected)


@pytest.mark.parametrize("begin", [1, 3])
def test_a_loop_that_begins_on_the_way_takes_the_steps_of_the_method(begin, every):
    scheduler = GaussianFlowScheduler(calibration=every[0])
    found = sample(scheduler, noise(), begin=begin)
    times = torch.tensor([step.t for step in scheduler._plan.steps] + [1.0], dtype=torch.float64)
    solver = Multistep(scheduler.path, **CONVERGED)
    expected = integrate(solver, DATA.field(scheduler.path), noise(), times[begin:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path_name", ["cosine", "polynomial"])
def test_rows_serve_every_path(path_name, every):
    first, other = (
        GaussianFlowScheduler(prediction_type="sample", path=path, calibration=every[0])
        for path in ("linear", path_name)
    )
    expected = sample(first, noise())
    torch.testing.assert_close(sample(other, noise()), expected, rtol=0, atol=1e-6)


# --- the trials ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path_name", ["linear", "cosine", "variance_exploding"])
@pytest.mark.parametrize(("reference_steps", "tolerance"), [(2, 0.3), (100, 1e-4)])
def test_a_row_aims_at_the_converged_trajectory(reference_steps, tolerance, path_name):
    """The flow of a Gaussian multiplies a sample by the ratio of the standard deviations."""
    path = PATHS[path_name]()
    field, eps = GAUSSIAN.field(path), noise(8, dim=1)
    problem = problem_of(field, eps, reference_steps=reference_steps, path=path_name)
    times = problem.times([-2.0, -0.7, 0.9])
    for t, size in zip(times, problem.sizes(times), strict=True):
        exact = problem.start * problem.sizes(times)[0]
        exact = exact * marginal_std(path, t) / marginal_std(path, times[0]) / size
        torch.testing.assert_close(problem.target(t), exact, rtol=0, atol=tolerance)


def test_the_model_is_not_asked_again_what_it_said():
    field = counted(DATA.field(PATHS["linear"]()))
    problem = problem_of(field, noise(16), batch_size=4, reference_steps=12)
    field.calls = 0
    best = problem.judged(Trial(problem.log_snr(4), CONVERGED))
    assert field.calls == 4 * 4
    for i in range(3):
        moved = [value + 0.1 * (i == j) for j, value in enumerate(best.log_snr)]
        field.calls = 0
        trial = Trial(moved, CONVERGED)
        found = problem.judged(trial, best.seen)
        assert field.calls == 4 * (3 - i)
        assert found.rows == problem.judged(trial).rows


def test_a_search_costs_less_than_its_trials_from_scratch():
    model = counted(model_of(GaussianFlowScheduler()))
    kwargs = {"reference_steps": 10, "progress": False}
    calibrate(GaussianFlowScheduler(), model, (2, 6), noise(8), **kwargs)
    # one evaluation of the start; a step that is moved keeps the ones before it
    most = sum(1 + 14 * (n - 1) + 3 * n * (n - 1) // 2 for n in (2, 6))
    assert model.calls <= 10 + most < 10 + 0.7 * sum(n * trials(n) for n in (2, 6))


@pytest.mark.parametrize(("n", "size", "every"), [(2, 64, True), (4, 64, False), (6, 4, False)])
def test_all_steps_are_fitted_where_noises_that_were_not_seen_say_so(n, size, every):
    """The last case has two noises in the plane, fewer numbers than the last row has weights."""
    field = DATA.field(PATHS["linear"]())
    problem = problem_of(field, noise(size), reference_steps=60)
    best = search(problem, n, lambda steps: None)
    other = problem.judged(replace(best, every=not every))
    assert best.every is every and best.score < other.score


def test_what_is_reported_is_measured_on_noises_that_were_not_fitted():
    scheduler = fitted(4)
    report = scheduler.config.calibration["steps"]["4"]
    eps = noise()
    distance = (sample(scheduler, eps) - sample(plain(scheduler), eps, 200)).square().mean(1)
    assert distance[32:].mean().sqrt().item() == pytest.approx(report["rms"], rel=1e-2)
    assert distance[32:].sqrt().median().item() == pytest.approx(report["median"], rel=1e-2)


def test_a_model_that_gives_no_numbers_is_refused():
    scheduler = GaussianFlowScheduler()
    with pytest.raises(ValueError, match="the samples of 100 steps are not finite"):
        calibrate(scheduler, lambda x, t: x * math.nan, 4, noise(), progress=False)
    assert scheduler.config.calibration is None
