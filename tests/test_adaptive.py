import sys

import pytest
import torch
from covers import covering
from oracles import GAUSSIAN, marginal_std, mixture

from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.solvers import SOLVERS, Multistep, integrate, integrate_adaptive
from fm_diffusers.solvers.adaptive import METHODS

TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def ends(path, prediction):
    """The widest interval at whose ends the prediction says where to go."""
    solver = Multistep(path, prediction)
    inside = path.time(torch.logit(torch.tensor([0.02, 0.98], dtype=torch.float64))).tolist()
    return [t if solver.exists(t) else other for t, other in zip((0.0, 1.0), inside, strict=True)]


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def counted(field):
    times = []

    def count(x, t):
        times.append(t.item())
        return field(x, t)

    return count, times


@pytest.mark.parametrize(("path_name", "prediction"), covering(PATHS, PREDICTIONS))
def test_the_flow_of_a_gaussian_is_exact(path_name, prediction):
    """From one end to the other and back; no evaluation lies beyond."""
    path = PATHS[path_name]()
    start, end = ends(path, prediction)
    field, times = counted(GAUSSIAN.field(path, prediction))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * marginal_std(path, start)
    there = integrate_adaptive(path, field, x, start, end, prediction, **TIGHT)
    exact = x * marginal_std(path, end) / marginal_std(path, start)
    torch.testing.assert_close(there, exact, rtol=1e-6, atol=1e-6)
    back = integrate_adaptive(path, field, there, end, start, prediction, **TIGHT)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    assert min(times) >= start - 1e-12
    assert max(times) <= end + 1e-12


@pytest.mark.parametrize("path_name", ["linear", "cosine", "variance_preserving"])
def test_the_data_is_reached_from_the_noise(path_name):
    """The velocity of the variance-preserving path is infinite there, the clock's slope is not."""
    path, data = PATHS[path_name](), mixture()
    prediction = "v_prediction" if path_name == "variance_preserving" else "velocity"
    x = noise(16, 3) * path.beta(0.0)
    found = integrate_adaptive(
        path, data.field(path, prediction), x, prediction=prediction, **TIGHT
    )
    solver = SOLVERS["predictor_corrector"](path, prediction)
    times = path.time(torch.logit(torch.linspace(path.alpha(0).item(), 1, 801).double()))
    times[[0, -1]] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = integrate(solver, data.field(path, prediction), x, times)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("path_name", PATHS)
def test_endpoints_and_steps_do_not_depend_on_path_and_prediction(path_name):
    data, log_snr = mixture(), torch.tensor([-3.5, 3.0], dtype=torch.float64)

    def sample(path, prediction):
        t_min, t_max = path.time(log_snr).tolist()
        first, last = (sum(path(t)[:2]) for t in (t_min, t_max))
        field, times = counted(data.field(path, prediction))
        x = integrate_adaptive(path, field, noise(8, 3) * first, t_min, t_max, prediction)
        return x / last, len(times)

    reference, evaluations = sample(Linear(), "velocity")
    for prediction in PREDICTIONS:
        samples, count = sample(PATHS[path_name](), prediction)
        torch.testing.assert_close(samples, reference, rtol=0, atol=1e-8)
        assert count == evaluations


@pytest.mark.parametrize("method", METHODS)
def test_a_tighter_tolerance_costs_more_and_errs_less(method):
    path, data, x = Linear(), mixture(), noise(8, 3)
    exact = integrate_adaptive(path, data.field(path), x, rtol=1e-11, atol=1e-11, method="dopri8")
    errors, counts = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        field, times = counted(data.field(path))
        found = integrate_adaptive(path, field, x, rtol=tolerance, atol=tolerance, method=method)
        errors.append((found - exact).square().mean().sqrt().item())
        counts.append(len(times))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 2e-4
    assert counts == sorted(set(counts))


def test_an_easy_flow_takes_few_evaluations():
    field, times = counted(GAUSSIAN.field(Linear()))
    found = integrate_adaptive(Linear(), field, torch.ones(1, 1, dtype=torch.float64))
    assert found.item() == pytest.approx(0.5, abs=1e-4)
    assert len(times) < 60


def test_a_short_interval_is_not_left():
    field, times = counted(mixture().field(Linear()))
    integrate_adaptive(Linear(), field, noise(4, 3), 0.5, 0.5001)
    assert all(0.5 <= t <= 0.5001 + 1e-12 for t in times)


def test_single_precision_stays_and_agrees():
    path, data = PATHS["cosine"](), mixture()
    x = noise(8, 3)
    double = integrate_adaptive(path, data.field(path), x)
    seen = []

    def field(x, t):
        seen.append((x.dtype, t.dtype))
        return data.field(path)(x.double(), t).float()

    single = integrate_adaptive(path, field, x.float())
    assert single.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float64)}
    torch.testing.assert_close(single, double.float(), rtol=0, atol=1e-4)


def test_gradients_flow():
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    end = integrate_adaptive(Linear(), GAUSSIAN.field(Linear()), x, **TIGHT)
    (gradient,) = torch.autograd.grad(end.sum(), x)
    torch.testing.assert_close(gradient, end.detach())  # the flow is linear


@pytest.mark.parametrize(
    ("path_name", "kwargs", "message"),
    [
        ("linear", {"prediction": "epsilon"}, r"at t = 0.0 a model that predicts 'epsilon' does"),
        ("linear", {"prediction": "sample"}, r"at t = 1.0 .* 'sample' .*t_max strictly inside"),
        ("variance_preserving", {}, r"at t = 1.0 a model that predicts 'velocity'"),
        ("polynomial", {}, r"at t = 0.0 a model that predicts 'velocity'"),
        ("linear", {"t_max": 1.5}, r"at t = 1.5"),
        ("linear", {"t_min": 0.5, "t_max": 0.5}, r"t_min and t_max must differ, got 0.5"),
        ("linear", {"prediction": "speed"}, r"unknown prediction type 'speed'"),
        ("linear", {"method": "euler"}, r"unknown method 'euler': choose one of dopri5"),
    ],
)
def test_what_cannot_be_integrated_is_refused(path_name, kwargs, message):
    path = PATHS[path_name]()
    with pytest.raises(ValueError, match=message):
        integrate_adaptive(path, GAUSSIAN.field(path), torch.ones(1, 1), **kwargs)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install fm_diffusers\[ode\]"):
        integrate_adaptive(Linear(), GAUSSIAN.field(Linear()), torch.ones(1, 1))
