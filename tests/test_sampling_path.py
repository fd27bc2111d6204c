"""A network of one path, sampled along another."""

import pytest
import torch
from covers import covering
from oracles import mixture

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.paths import PATHS
from fm_diffusers.predictions import PREDICTIONS

DATA = mixture(seed=3)
NOISE = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
#: Networks are not trained with a prediction that their path lacks at an end, or jumps.
TRAINED = [(path, "sample") for path in PATHS] + [("linear", kind) for kind in PREDICTIONS]


def loop(scheduler, x, generator=None):
    field = DATA.field(scheduler.path, scheduler.config.prediction_type)
    n = scheduler.config.num_train_timesteps
    for t in scheduler.timesteps:
        asked = scheduler.scale_model_input(x, t)
        x = scheduler.step(field(asked, 1 - t.double() / n), t, x, generator=generator).prev_sample
    return x


def start(scheduler):
    """Return noise on the path of the training, carried to that of the samples."""
    first = torch.tensor(scheduler._plan.steps[0].t, dtype=torch.float64)
    return NOISE / scheduler.solver.rescaling(first)


@pytest.mark.parametrize(
    ("trained", "sampling_path", "solver"),
    covering(TRAINED, PATHS, ["predictor_corrector", "ddim"]),
)
def test_the_ode_ends_at_the_same_data_along_every_path(trained, sampling_path, solver):
    path, prediction = trained
    ends = []
    # between SNRs that all paths have
    grid = {"timesteps": (1000 * (1 - PATHS[path]().time(torch.linspace(-3.0, 3, 9)))).tolist()}
    for other in (None, sampling_path):
        scheduler = GaussianFlowScheduler(
            path=path, prediction_type=prediction, solver=solver, sampling_path=other
        )
        scheduler.set_timesteps(**grid)
        # the last data prediction, since not every path has an end without noise
        field = DATA.field(scheduler.path, prediction)
        x = start(scheduler)
        for t in scheduler.timesteps:
            output = field(scheduler.scale_model_input(x, t), 1 - t.double() / 1000)
            x, data = scheduler.step(output, t, x, return_dict=False)
        ends.append(data)
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("trained", "sampling_path", "diffusion", "solver"),
    covering(TRAINED, PATHS, [None, "memoryless"], ["predictor_corrector", "heun"]),
)
def test_samples_are_finite_from_end_to_end(trained, sampling_path, diffusion, solver):
    path, prediction = trained
    scheduler = GaussianFlowScheduler(
        path=path,
        prediction_type=prediction,
        sampling_path=sampling_path,
        diffusion=diffusion,
        solver=solver,
    )
    scheduler.set_timesteps(2)
    x = scheduler.init_noise_sigma * NOISE
    assert loop(scheduler, x, torch.Generator().manual_seed(1)).isfinite().all()


def test_noise_is_added_on_the_path_of_the_samples():
    scheduler = GaussianFlowScheduler(sampling_path="noise_level")
    z = torch.ones_like(NOISE)
    x = scheduler.add_noise(z, NOISE, torch.tensor([250.0]))
    # the SNR of t = 0.75 on the linear path is 3
    torch.testing.assert_close(x, z + NOISE / 3)
    asked = scheduler.scale_model_input(x, torch.tensor(250.0))
    torch.testing.assert_close(asked, 0.75 * z + 0.25 * NOISE)


def test_labels_and_guidance_act_along_another_path(untrained):
    pipe = FlowMatchingPipeline(*untrained, null_label=3)
    pipe.set_progress_bar_config(disable=True)

    def draw(**kwargs):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            [0, 2], num_inference_steps=40, generator=generator, output_type="pt", **kwargs
        )[0]

    expected = [draw(), draw(guidance_scale=3.0)]
    config = pipe.scheduler.config
    pipe.scheduler = GaussianFlowScheduler.from_config(config, sampling_path="cosine")
    found = [draw(), draw(guidance_scale=3.0)]
    assert (expected[0] - expected[1]).abs().mean() > 0.01
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


@pytest.fixture
def untrained():
    from test_pipeline import make_unet

    return make_unet(num_class_embeds=4), GaussianFlowScheduler()


def test_the_timesteps_of_a_table_are_asked_along_another_path():
    table = {"path": "discrete", "prediction_type": "epsilon", "time_convention": "index"}
    scheduler = GaussianFlowScheduler(**table, grid="ddim", sampling_path="linear")
    scheduler.set_timesteps(4)
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([750.0, 500, 250, 0]))
