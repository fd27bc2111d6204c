"""AnyFlow's pipeline in diffusers, whose network is a flow map, with our scheduler in it."""

import diffusers
import pytest
import torch
from tiny_inputs import WIDTH, given
from tiny_networks import video_vae
from tiny_transformers import HEADS, network
from tiny_video import clip

from fm_diffusers import GaussianFlowScheduler

pytest.importorskip("diffusers", "0.42")
THEIRS = diffusers.FlowMapEulerDiscreteScheduler
#: What its configuration does not say in memory, where it is that of `FlowMatchHeun`.
MAP = {"path": "linear", "prediction_type": "flow_prediction", "solver": "flow_map"}


@pytest.fixture(scope="module")
def pipe():
    components = network(
        "AnyFlowTransformer3DModel",
        video_vae("Wan"),
        **HEADS | {"attention_head_dim": 12},
        in_channels=16,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        rope_max_seq_len=32,
    )
    made = diffusers.AnyFlowPipeline(
        **given("AnyFlowPipeline", scheduler=THEIRS(shift=5.0), **components)
    )
    made.set_progress_bar_config(disable=True)
    return made


def swapped(**config):
    theirs = THEIRS(shift=5.0).config
    return GaussianFlowScheduler.from_config(theirs, grid="uniform", **MAP, **config)


def draw(pipe, scheduler, **told):
    pipe.scheduler = scheduler
    generator = torch.Generator().manual_seed(0)
    given = clip() | {"output_type": "latent", "generator": generator}
    return pipe(**given | told, return_dict=False)[0]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_our_scheduler_draws_what_theirs_does(pipe, steps):
    told = {"num_inference_steps": steps, "guidance_scale": 3.0}
    theirs = draw(pipe, THEIRS(shift=5.0), **told)
    ours = draw(pipe, swapped(), **told)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_noisy_step_is_refused_where_the_loop_feeds_the_network_the_next_time(pipe):
    with pytest.raises(ValueError, match="advance"):
        draw(pipe, swapped(diffusion="memoryless"), num_inference_steps=2)
