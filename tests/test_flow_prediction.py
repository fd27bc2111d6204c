"""Networks with any prediction on any path under diffusers' own flow schedulers."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from oracles import mixture
from test_pipeline import make_pipe

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.flow_prediction import FlowPrediction
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import PREDICTIONS

DATA = mixture(seed=3)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


class Exact(torch.nn.Module):
    """The field that a network of this scheduler regresses."""

    dtype, device, config = torch.float64, torch.device("cpu"), SimpleNamespace()

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler
        self.field = DATA.field(scheduler.path, scheduler.config.prediction_type)

    def forward(self, sample, timestep, return_dict=True):
        t = self.scheduler.to_time(timestep.double())
        return (
            torch.stack([self.field(x[None], one)[0] for x, one in zip(sample, t, strict=True)]),
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_answer_is_the_field_of_diffusers(path, prediction):
    scheduler = GaussianFlowScheduler(
        path=path,
        prediction_type=prediction,
        time_convention="index" if path == "discrete" else "descending",
    )
    network = FlowPrediction(Exact(scheduler), scheduler)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = torch.tensor([850.0, 600.0, 300.0, 60.0], dtype=torch.float64)
    found = network(x, steps).sample
    field = DATA.field(Linear(), "flow_prediction")
    expected = torch.stack(
        [field(one[None], 1 - step / 1000)[0] for one, step in zip(x, steps, strict=True)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "error"),
    [
        (FlowMatchEulerDiscreteScheduler(), 0.1),
        (FlowMatchHeunDiscreteScheduler(), 0.03),
        (UniPCMultistepScheduler(**FLOW), 0.03),
        (DPMSolverMultistepScheduler(**FLOW), 0.03),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_pipeline_with_another_prediction_runs_under_them(scheduler, error):
    pipe = make_pipe(path="cosine", prediction_type="v_prediction")

    def draw():
        generator = torch.Generator().manual_seed(0)
        kwargs = {"guidance_scale": 2.0, "generator": generator, "output_type": "latent"}
        return pipe([0, 2], num_inference_steps=40, **kwargs).images

    expected = draw()
    pipe.unet = FlowPrediction(pipe.unet, pipe.scheduler)
    pipe.scheduler = scheduler
    assert (draw() - expected).norm() < error * expected.norm()
