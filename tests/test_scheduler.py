import copy
import inspect
import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from oracles import mixture
from torch._dynamo.testing import CompileCounter

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.diffusions import DIFFUSIONS, get_diffusion
from fm_diffusers.fields import GaussianMixture, from_model
from fm_diffusers.grids import GRIDS
from fm_diffusers.paths import PATHS
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.solvers import SOLVERS, EulerMaruyama, StochasticHeun, integrate
from fm_diffusers.timetable import CONFIGURED

DATA = mixture(seed=3)
#: Where the intervals start, strictly inside: every coefficient and conversion exists there.
STARTS = torch.tensor([950.0, 700.0, 410.0, 90.0], dtype=torch.float64)
TIMES = torch.cat([1 - STARTS / 1000, torch.ones(1, dtype=torch.float64)])


def model_of(scheduler, data=DATA):
    """Return the exact field as a network, called as `model(x, timestep)`."""
    field = data.field(scheduler.path, scheduler.config.prediction_type)
    return lambda x, timestep: field(x, scheduler.to_time(timestep.double()))


def start(scheduler, batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    return scheduler.init_noise_sigma * noise


def loop(scheduler, x, timesteps=None, generator=None, model=None):
    """Sample as a diffusers pipeline does."""
    model = model or model_of(scheduler)
    for t in scheduler.timesteps if timesteps is None else timesteps:
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x


def reference(scheduler, x, times, generator=None):
    """Return what `integrate` makes of the same field, asked at the same float32 timesteps."""
    c = scheduler.config
    solver = SOLVERS[c.solver](
        path=scheduler.path,
        prediction=c.prediction_type,
        diffusion=scheduler.diffusion,
        **(c.solver_kwargs or {}),
    )

    def noise(t, s):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return integrate(solver, from_model(model_of(scheduler)), x, times, noise)


# --- the loop is `integrate` ---------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_ode_loop_equals_integrate_bit_for_bit(solver, path):
    scheduler = GaussianFlowScheduler(path=path, solver=solver)
    scheduler.set_timesteps(timesteps=STARTS)
    x = start(scheduler)
    assert torch.equal(loop(scheduler, x), reference(scheduler, x, TIMES))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_loop_on_the_default_grid_equals_integrate_bit_for_bit(solver, path):
    scheduler = GaussianFlowScheduler(path=path, solver=solver)
    scheduler.set_timesteps(4)
    x = start(scheduler)
    starts = scheduler.to_time(scheduler.timesteps[:: scheduler.order].double())
    times = torch.cat([starts, torch.ones(1, dtype=torch.float64)])
    assert torch.equal(loop(scheduler, x), reference(scheduler, x, times))


@pytest.mark.parametrize(
    ("path", "diffusion"),
    [("linear", name) for name in DIFFUSIONS] + [(path, "zero_ends") for path in PATHS],
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_sde_loop_equals_integrate_bit_for_bit(solver, path, diffusion):
    scheduler = GaussianFlowScheduler(path=path, solver=solver, diffusion=diffusion)
    scheduler.set_timesteps(timesteps=STARTS)
    x = start(scheduler)
    ours = loop(scheduler, x, generator=torch.Generator().manual_seed(1))
    theirs = reference(scheduler, x, TIMES, torch.Generator().manual_seed(1))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_diffusion_of_scale_zero_is_the_ode_bit_for_bit(solver, diffusion):
    zero = {"diffusion": diffusion, "diffusion_kwargs": {"scale": 0.0}}
    if get_diffusion(diffusion, scale=0.0).squared(PATHS["linear"](), 0.5) != 0:
        pytest.skip("this coefficient does not vanish at scale 0")
    # solvers of the SDE itself need a drift, which is finite inside
    needs_drift = SOLVERS[solver] in (EulerMaruyama, StochasticHeun)
    ends = {"t_min": 0.05, "t_max": 0.95} if needs_drift else {}
    samples = []
    for kwargs in ({}, zero):
        scheduler = GaussianFlowScheduler(solver=solver, **ends, **kwargs)
        scheduler.set_timesteps(4)
        samples.append(loop(scheduler, start(scheduler)))
    assert torch.equal(*samples)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
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
        y = scheduler.step(model(y, exact), t, y, generator=generator).prev_sample
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


def test_a_bfloat16_sample_that_comes_back_unchanged_goes_on_from_its_float32_value():
    """Rounding happens to what is handed out, not to the state: as with a float32 sample."""

    def run(dtype, change=lambda x: x):
        scheduler = GaussianFlowScheduler()
        scheduler.set_timesteps(50)
        x = torch.linspace(-2, 2, 64).reshape(2, 32).to(torch.bfloat16).to(dtype)
        for t in scheduler.timesteps:
            output = torch.tanh(x.float() + t / 500).to(torch.bfloat16)
            x = change(scheduler.step(output, t, x).prev_sample)
        return x.float()

    exact, kept, lost = run(torch.float32), run(torch.bfloat16), run(torch.bfloat16, torch.clone)
    error, error_lost = ((other - exact).square().mean().sqrt() for other in (kept, lost))
    assert error < 0.5 * error_lost


def test_a_sample_changed_in_place_is_taken_as_it_is():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(4)
    q = torch.ones(2, 3, dtype=torch.bfloat16)
    x = scheduler.step(q, scheduler.timesteps[0], 2 * q).prev_sample
    x.zero_()
    assert scheduler.step(q, scheduler.timesteps[1], x).prev_sample.abs().max() < 1


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


# --- training ------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 3, 8, 8, generator=generator, dtype=torch.float64)


TIMESTEP_BATCHES = [
    torch.tensor([1, 250, 600, 999]),
    torch.tensor([0, 250, 600, 1000], dtype=torch.int32),
    torch.tensor([0.5, 250.25, 600.0, 999.5]),
    torch.tensor([250.25] * 4, dtype=torch.float64),
    torch.tensor([250]),
    torch.tensor([600.5]),
    torch.tensor(250),
]


@pytest.mark.parametrize("timesteps", TIMESTEP_BATCHES, ids=repr)
@pytest.mark.parametrize("path", PATHS)
def test_noise_is_added_by_value_of_the_timestep_in_every_situation(path, timesteps, pair):
    (z, eps), scheduler = pair, GaussianFlowScheduler(path=path)
    expected, velocity = [], []
    for i, timestep in enumerate(timesteps.double().expand(4)):
        alpha, beta = scheduler.path(1 - timestep / 1000)[:2]
        expected.append(alpha * z[i] + beta * eps[i])
        velocity.append(alpha * eps[i] - beta * z[i])
    expected, velocity = torch.stack(expected), torch.stack(velocity)

    def check():
        for noisy in (
            scheduler.add_noise(z, eps, timesteps),
            scheduler.add_noise(original_samples=z, noise=eps, timesteps=timesteps),
            scheduler.scale_noise(z, timesteps, eps),
            scheduler.scale_noise(sample=z, timestep=timesteps, noise=eps),
        ):
            torch.testing.assert_close(noisy, expected, rtol=1e-10, atol=1e-10)
        found = scheduler.get_velocity(sample=z, noise=eps, timesteps=timesteps)
        torch.testing.assert_close(found, velocity, rtol=1e-10, atol=1e-10)

    check()  # in training, before there is a grid
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    check()  # at the start of image-to-image
    scheduler.step(z, scheduler.timesteps[2], z)
    check()  # in the loop of inpainting
    assert scheduler.step_index == 3


def test_noise_is_added_in_the_dtype_of_the_samples(pair):
    z, eps = pair.to(torch.bfloat16)
    scheduler = GaussianFlowScheduler()
    timesteps = torch.tensor([1, 250, 600, 999])
    noisy = scheduler.add_noise(z, eps, timesteps)
    exact = scheduler.add_noise(z.float(), eps.float(), timesteps)
    assert noisy.dtype == torch.bfloat16
    torch.testing.assert_close(noisy.float(), exact, rtol=2e-2, atol=2e-2)


# --- configuration -------------------------------------------------------------------------------

UNUSUAL = {
    "num_train_timesteps": 500,
    "path": "polynomial",
    "path_kwargs": {"degree": 3.0},
    "prediction_type": "v_prediction",
    "solver": "unipc",
    "solver_kwargs": {"solver_order": 1, "solver_type": "bh1"},
    "diffusion": "flow_grpo",
    "diffusion_kwargs": {"scale": 0.4},
    "grid": "shifted",
    "grid_kwargs": {"shift": 5.0},
    "t_min": 0.05,
    "t_max": 0.975,
    "calibration": {"for": {}, "steps": {}},
    "sampling_path": "cosine",
    "sampling_path_kwargs": {"data_std": 1.0},
    "time_convention": "ascending",
    "shift": 2.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.6,
    "max_shift": 1.2,
    "base_image_seq_len": 128,
    "max_image_seq_len": 512,
    "shift_terminal": 0.3,
    "time_shift_type": "linear",
    "invert_sigmas": True,
    "use_karras_sigmas": True,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "sigma_min": 0.1,
    "sigma_max": 0.95,
    "beta_start": 0.001,
    "beta_end": 0.03,
    "beta_schedule": "scaled_linear",
    "trained_betas": [0.1] * 500,
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 2.0,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "variance_type": "learned",
    "clip_sample": True,
    "clip_sample_range": 2.0,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.9,
    "sample_max_value": 3.0,
}


def test_unusual_values_are_every_argument_and_differ_from_the_defaults():
    parameters = inspect.signature(GaussianFlowScheduler.__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    assert UNUSUAL.keys() == defaults.keys()
    # only one of the three may be on
    same = ["use_exponential_sigmas", "use_beta_sigmas"]
    assert [name for name in defaults if UNUSUAL[name] == defaults[name]] == same


@pytest.mark.parametrize("way", ["from_pretrained", "from_config", "json"])
def test_configuration_survives_saving(way, tmp_path):
    scheduler = GaussianFlowScheduler(**UNUSUAL)
    if way == "from_pretrained":
        scheduler.save_pretrained(tmp_path)
        again = GaussianFlowScheduler.from_pretrained(tmp_path)
    elif way == "from_config":
        again = GaussianFlowScheduler.from_config(scheduler.config)
    else:
        scheduler.save_config(tmp_path)
        saved = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert saved.pop("_class_name") == "GaussianFlowScheduler"
        assert {name: value for name, value in saved.items() if name[0] != "_"} == UNUSUAL
        again = GaussianFlowScheduler.from_config(saved)
    assert {name: again.config[name] for name in UNUSUAL} == UNUSUAL
    assert again.path == scheduler.path and again.diffusion == scheduler.diffusion
    results = []
    for one in (scheduler, again):
        one.set_timesteps(5, mu=1.5)
        results.append(loop(one, start(one), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*results)


def test_from_config_changes_only_what_it_is_told():
    scheduler = GaussianFlowScheduler(**UNUSUAL)
    other = GaussianFlowScheduler.from_config(
        scheduler.config, diffusion="memoryless", diffusion_kwargs=None
    )
    changed = {name for name in UNUSUAL if other.config[name] != scheduler.config[name]}
    assert changed == {"diffusion", "diffusion_kwargs"}
    assert scheduler.config.diffusion == "flow_grpo"


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_diffusion_is_the_coefficient_of_the_table(diffusion):
    assert GaussianFlowScheduler(diffusion=diffusion).diffusion == DIFFUSIONS[diffusion]
    scaled = GaussianFlowScheduler(diffusion=diffusion, diffusion_kwargs={"scale": 0.3}).diffusion
    assert scaled == get_diffusion(diffusion, scale=0.3)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"path": "geodesic"}, r"unknown path 'geodesic': choose one of linear, cosine"),
        ({"solver": "rk5"}, r"unknown solver 'rk5': choose one of euler, midpoint"),
        ({"grid": "random"}, r"unknown grid 'random': choose one of uniform, logistic"),
        ({"prediction_type": "x0"}, r"unknown prediction type 'x0': choose one of velocity"),
        ({"diffusion": "brownian"}, r"unknown diffusion 'brownian': choose one of constant"),
        (
            {"diffusion": "beta", "diffusion_kwargs": {"scale": -1.0}},
            r"scale of a diffusion must be finite and at least 0, got -1.0",
        ),
        ({"path": "polynomial", "path_kwargs": {"degree": 0.5}}, r"degree must be at least 1"),
        ({"solver_kwargs": {"solver_order": 5}}, r"solver_order must be 1, 2, 3 or 4, got 5"),
        ({"solver_kwargs": {"variable": "t"}}, r"unknown variable 't': choose one of clock"),
        ({"solver_kwargs": {"form": "noise"}}, r"unknown form 'noise': choose one of velocity"),
        ({"grid_kwargs": {"scale": 0.0}}, r"scale must be positive and finite, got 0.0"),
        (
            {"grid": "karras", "grid_kwargs": {"sigma_min": 9.0, "sigma_max": 1.0}},
            r"0 < sigma_min < sigma_max must hold, got 9.0 and 1.0",
        ),
        ({"t_min": 0.8, "t_max": 0.2}, r"0 <= t_min < t_max <= 1 must hold, got 0.8 and 0.2"),
        ({"t_min": -0.1}, r"0 <= t_min < t_max <= 1 must hold, got -0.1"),
        (
            {"t_min": 0.1, "grid": "flow_match"},
            r"grid='flow_match' starts where .* t_min=0.1 would have no effect: leave it out",
        ),
        ({"t_max": 1.5}, r"0 <= t_min < t_max <= 1 must hold, got None and 1.5"),
    ],
)
def test_impossible_configurations_are_refused_at_once(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GaussianFlowScheduler(**kwargs)


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        (
            {},
            {},
            r"must be an integer of at least 1, got None; or give sigmas or timesteps",
        ),
        (
            {},
            {"num_inference_steps": 0},
            r"num_inference_steps must be an integer of at least 1, got 0",
        ),
        (
            {},
            {"num_inference_steps": -3},
            r"num_inference_steps must be an integer of at least 1, got -3",
        ),
        ({}, {"sigmas": [1.0, 0.5], "timesteps": [1000]}, r"differ in length: 2, 1"),
        ({}, {"sigmas": [1.0, 0.5], "num_inference_steps": 3}, r"contradicts 2 sigmas"),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 3}, r"pass mu to set_timesteps"),
        ({}, {"timesteps": [100.0, 900.0]}, r"must descend strictly and stop before the end"),
        ({}, {"timesteps": [900.0, 0.0]}, r"the end of the grid, 0 as a timestep, which is added"),
        ({}, {"timesteps": []}, r"times must be at least two"),
        (
            {"prediction_type": "epsilon"},
            {"timesteps": [1000.0, 500.0]},
            r"at t = 0.0 a model that predicts 'epsilon' .* stay strictly inside",
        ),
        (
            {"prediction_type": "score", "solver": "ddim"},
            {"sigmas": [1.0, 0.5]},
            r"at t = 0.0 a model that predicts 'score' .* stay strictly inside",
        ),
        ({}, {"timesteps": [1200.0, 500.0]}, r"strictly inside"),
        ({"t_max": 0.5}, {"timesteps": [100.0]}, r"stop before the end of the grid, 500 as"),
    ],
)
def test_impossible_grids_are_refused(config, kwargs, message):
    scheduler = GaussianFlowScheduler(**config)
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**kwargs)


def test_step_before_set_timesteps_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        GaussianFlowScheduler().step(x, 1000, x)


def test_unequal_shapes_are_refused():
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 6\) and \(2, 3\)"):
        scheduler.step(torch.zeros(2, 6), scheduler.timesteps[0], torch.zeros(2, 3))


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


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_combination_of_the_tables_samples_from_one_step_up(path, solver):
    """Data at -1 and 1: solvers on the signal-to-noise clock stay with it however long a step."""
    data = GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.3)
    generator = torch.Generator().manual_seed(0)
    for case in product(PREDICTIONS, [None, *DIFFUSIONS], (1, 3)):
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
            x, z = scheduler.step(field(x, t), timestep, x, generator, return_dict=False)
            assert x.isfinite().all() and z.isfinite().all(), case
        assert x.abs().max() < 5 or solver not in ("ddim", "predictor_corrector"), case


# --- speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
@pytest.mark.parametrize("solver", ["predictor_corrector", "euler", "rk4", "unipc"])
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
