import json
import math

import pytest
import torch
from oracles import mixture
from test_pipeline import draw, make_pipe

from fm_diffusers import GaussianFlowScheduler, calibration
from fm_diffusers.calibration import calibrate
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.solvers import Multistep, integrate

ANGLES = torch.arange(6, dtype=torch.float64) * math.pi / 3
DATA = GaussianMixture(1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.2)


def noise(n=64, seed=0, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_of(scheduler, data=DATA):
    """The exact field, called as diffusers calls a network."""
    field = data.field(scheduler.path, scheduler.config.prediction_type)
    return lambda x, timestep: field(x, scheduler.to_time(timestep.double()))


def sample(scheduler, eps, n=4, model=None, begin=0, **kwargs):
    scheduler.set_timesteps(*[n] * (not kwargs), **kwargs)
    scheduler.set_begin_index(begin)
    model, x = model or model_of(scheduler), scheduler.init_noise_sigma * eps
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(model(x, t), t, x, generator=torch.Generator()).prev_sample
    return x


def fitted(n=4, **config):
    scheduler = GaussianFlowScheduler(**config)
    return calibrate(scheduler, model_of(scheduler), n, noise(), progress=False)


def plain(scheduler, **changes):
    return GaussianFlowScheduler.from_config(scheduler.config, calibration=None, **changes)


@pytest.fixture(scope="module")
def both():
    return fitted((4, 6))


@pytest.fixture
def fresh(both):
    return GaussianFlowScheduler.from_config(both.config)


@pytest.mark.parametrize("n", [4, 6])
def test_the_error_falls_on_noises_that_were_not_seen(n, fresh):
    eps = noise(200, seed=7)
    exact = sample(plain(fresh), eps, 200)
    errors = [
        (sample(scheduler, eps, n) - exact).norm(dim=1).median()
        for scheduler in (fresh, plain(fresh))
    ]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize(
    "config",
    [
        {"time_convention": "ascending", "num_train_timesteps": 1},
        {"path": "cosine", "sampling_path": "linear"},
        {"path": "discrete", "prediction_type": "epsilon", "time_convention": "index"},
        {"path": "cosine", "prediction_type": "edm", "time_convention": "log_sigma"},
        {
            "path": "cosine",
            "prediction_type": "edm",
            "time_convention": "log_sigma",
            "sampling_path": "noise_level",
        },
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_networks_are_fed_what_the_scheduler_feeds_them(config):
    scheduler = GaussianFlowScheduler(**config, t_min=0.02)
    fed = GaussianFlowScheduler(**config | {"sampling_path": None})
    field = DATA.field(fed.path, fed.config.prediction_type)

    def model(x, timestep):
        return field(x, fed.to_time(timestep.double()))

    def end(scheduler, n):
        def scaled(x, t):
            return model(scheduler.scale_model_input(x, t), t)

        return sample(scheduler, noise(200, seed=7), n, scaled)

    exact, before = end(scheduler, 200), end(scheduler, 4)
    calibrate(scheduler, model, 4, noise(), progress=False)
    errors = [(z - exact).norm(dim=1).median() for z in (end(scheduler, 4), before)]
    assert errors[0] < 0.6 * errors[1]


def test_data_of_mean_zero_say_nothing_at_first():
    """E[z | x] is 0 at pure noise: a slope of the data prediction that no weight belongs to."""
    data = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.2)
    scheduler = GaussianFlowScheduler()
    model = model_of(scheduler, data)
    calibrate(scheduler, model, 4, noise(dim=1), progress=False)
    assert sample(scheduler, noise(dim=1), 4, model).isfinite().all()


def test_calibrations_are_saved_with_the_scheduler(both, tmp_path):
    both.save_pretrained(tmp_path)
    expected, eps = sample(both, noise()), noise()
    loaded = GaussianFlowScheduler.from_pretrained(tmp_path)
    assert torch.equal(sample(loaded, eps), expected)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert torch.equal(sample(GaussianFlowScheduler.from_config(config), eps), expected)
    assert not torch.allclose(sample(plain(both), eps), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("n", "changes"),
    [
        (5, {}),
        (4, {"solver": "heun"}),
        (4, {"solver_kwargs": {"solver_order": 1}}),
        (4, {"grid": "uniform"}),
        (4, {"t_max": 0.9}),
        (4, {"diffusion": "memoryless"}),
        (4, {"use_karras_sigmas": True}),
        (4, {"shift_terminal": 0.1}),
    ],
)
def test_other_samplers_do_not_use_it(n, changes, both):
    changed = GaussianFlowScheduler.from_config(both.config, **changes)
    changed.set_timesteps(n)
    other = plain(both, **changes)
    other.set_timesteps(n)
    assert torch.equal(changed.timesteps, other.timesteps)
    assert changed._plan.steps == other._plan.steps


def test_explicit_timesteps_do_not_use_it(fresh):
    timesteps = [1000.0, 700.0, 400.0, 100.0]
    other = sample(plain(fresh), noise(), timesteps=timesteps)
    with pytest.warns(UserWarning, match="the calibration of 4 steps has no effect on this run"):
        assert torch.equal(sample(fresh, noise(), timesteps=timesteps), other)


def test_switching_back_uses_it_again(both):
    away = GaussianFlowScheduler.from_config(both.config, solver="ddim")
    back = GaussianFlowScheduler.from_config(away.config, solver=both.config.solver)
    assert torch.equal(sample(back, noise()), sample(both, noise()))


def test_one_more_number_of_steps_is_added(both):
    one = fitted(4)
    calibrate(one, model_of(one), 6, noise(), progress=False)
    assert one.config.calibration == both.config.calibration


@pytest.mark.parametrize("path_name", ["linear", "cosine", "polynomial"])
def test_the_same_calibration_serves_every_path(path_name):
    """The log-SNRs are kept, and times in float32 stand for nearly the same ones."""
    first = fitted(4, prediction_type="sample")
    other = GaussianFlowScheduler.from_config(first.config, path=path_name)
    expected = sample(first, noise())
    torch.testing.assert_close(sample(other, noise()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config", [{"path": "variance_exploding"}, {"path": "cosine", "t_max": 0.8}]
)
def test_read_outs_hold_where_alpha_and_beta_do_not_add_up_to_one(config):
    scheduler = fitted(4, **config)
    eps = noise(200, seed=7)
    exact = sample(plain(scheduler), eps, 200)
    error = (sample(scheduler, eps) - exact).norm(dim=1).median()
    assert error < 0.6 * (sample(plain(scheduler), eps) - exact).norm(dim=1).median()


def test_a_loop_that_begins_on_the_way_ends_as_the_method_does(fresh):
    found = sample(fresh, noise(), begin=2)
    method = fresh.config.calibration["steps"]["4"]["method"]
    times = torch.tensor([step.t for step in fresh._plan.steps] + [1.0], dtype=torch.float64)
    start = fresh.init_noise_sigma * noise()
    expected = integrate(Multistep(fresh.path, **method), DATA.field(fresh.path), start, times[2:])
    # the network is fed a time in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_ends_close_to_each_other_bound_the_steps():
    scheduler = fitted(3, t_min=0.45, t_max=0.55)
    scheduler.set_timesteps(3)
    assert (scheduler.timesteps.diff() < 0).all()


def test_conditions_for_each_noise_are_cut_to_the_batch():
    scheduler = GaussianFlowScheduler()
    shift = noise(10, seed=3)

    def model(x, timestep, shift, scale):
        assert len(shift) == len(x)
        return shift - scale * x

    kwargs = {"reference_steps": 10, "progress": False, "shift": shift, "scale": 0.5}
    whole, parts = (
        calibrate(GaussianFlowScheduler(), model, 2, noise(10), batch_size=size, **kwargs)
        for size in (10, 4)
    )
    torch.testing.assert_close(
        sample(whole, noise(), 2, model_of(scheduler)),
        sample(parts, noise(), 2, model_of(scheduler)),
    )


@pytest.mark.parametrize(
    ("n", "eps", "message"),
    [
        (4, None, r"pass noise=torch.randn\(n, ...\) .* got None"),
        (4, noise(3), r"n at least 4 .* got \(3, 2\)"),
        (1, noise(), "num_inference_steps must be at least 2 to be calibrated"),
        ((4, 1), noise(), "num_inference_steps must be at least 2 to be calibrated"),
        ((), noise(), r"num_inference_steps must be at least 2 to be calibrated, got \[\]"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(n, eps, message):
    scheduler = GaussianFlowScheduler()
    with pytest.raises(ValueError, match=message):
        calibrate(scheduler, model_of(scheduler), n, eps, progress=False)


@pytest.mark.parametrize("name", ["reference_steps", "batch_size"])
def test_sizes_of_a_calibration_are_at_least_one(name):
    scheduler = GaussianFlowScheduler()
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        calibrate(scheduler, model_of(scheduler), 4, noise(), progress=False, **{name: 0})


def test_the_progress_bar_ends_at_its_total(monkeypatch):
    bars = []

    class Bar(calibration.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(calibration, "tqdm", Bar)
    scheduler = GaussianFlowScheduler(t_min=0.3, t_max=0.7)
    model = model_of(scheduler, mixture())
    calibrate(scheduler, model, (2, 3), noise(8, dim=3), reference_steps=10)
    (bar,) = bars
    assert bar.n == bar.total


# --- pipelines -----------------------------------------------------------------------------------

QUICK = {"num_samples": 8, "reference_steps": 12, "progress": False}


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("guided", {"class_labels": [0, 2]}),
        ("guided", {"guidance_scale": 2.0}),
        ("conditional", {}),
        ("unconditional", {}),
    ],
)
def test_pipelines_are_calibrated_and_saved(kind, kwargs, tmp_path):
    pipe = make_pipe(kind)
    calibrate(
        pipe.scheduler, pipe, 4, generator=torch.Generator().manual_seed(0), **QUICK, **kwargs
    )
    call = {"batch_size": 2} if kind == "unconditional" else {"class_labels": [0, 1]}
    if "guidance_scale" in kwargs:
        call["guidance_scale"] = 2.0
    expected = draw(pipe, **call)
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert "4" in loaded.scheduler.config.calibration["steps"]
    assert torch.equal(draw(loaded, **call), expected)


@pytest.mark.parametrize("path_name", ["linear", "variance_exploding"])
def test_noise_for_a_pipeline_is_standard_normal_drawn_or_given(path_name):
    pipe = make_pipe("unconditional", path=path_name)
    _, drawn = pipe.calibration_field(6, torch.Generator().manual_seed(0))
    expected = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, expected)
    _, given = pipe.calibration_field(99, noise=expected[:5])
    assert torch.equal(given, expected[:5])
