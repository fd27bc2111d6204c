"""Our scheduler in the modular pipelines of diffusers: their blocks, tiny networks.

Text encoders are left out and prompts are embeddings; all other blocks run: those that encode
images and masks, the timesteps, the noise, the loop with its guider, and those that decode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import ComponentSpec, ModularPipeline
from tiny_inputs import WIDTH, make, noise, picture, static
from tiny_pipelines import PIPELINES, build
from tiny_transformers import HEADS
from tiny_video import clip, wan

from fm_diffusers import GaussianFlowScheduler

diffusers.utils.logging.set_verbosity_error()

STEPS = 4


class Task(NamedTuple):
    """Which blocks are run, on the tiny networks and the arguments of which pipeline."""

    blocks: str
    row: str
    more: Callable[[], dict[str, Any]] = dict
    arguments: Callable[[], dict[str, Any]] = dict


def second():
    """Return the network that Wan 2.2 takes at low noise levels."""
    return {"transformer_2": wan()["transformer"]}


def wan_image():
    """Return a network that is told of the picture by CLIP, and without it by nothing."""
    return {"transformer": wan(36, image_dim=WIDTH, added_kv_proj_dim=24)["transformer"]}


def embedded():
    return clip(image=picture(), image_embeds=noise(1, 257, WIDTH))


def controlled():
    return {"control_image": picture()}


def qwen_controlnet():
    shape = HEADS | {"attention_head_dim": 16} | {"axes_dims_rope": (4, 6, 6)}
    net = make("QwenImageControlNetModel", **shape, joint_attention_dim=WIDTH, in_channels=64)
    return {"controlnet": net}


TASKS = {
    "sd3 text2image": Task("StableDiffusion3AutoBlocks", "sd3"),
    "sd3 image2image": Task("StableDiffusion3AutoBlocks", "sd3_img2img"),
    "wan text2video": Task("WanBlocks", "wan"),
    "wan 2.2 text2video": Task("Wan22Blocks", "wan", second),
    "wan image2video": Task("WanImage2VideoAutoBlocks", "wan_i2v", wan_image, embedded),
    "wan 2.2 image2video": Task(
        "Wan22Image2VideoBlocks", "wan_i2v", lambda: {"transformer_2": wan(36)["transformer"]}
    ),
    "qwen text2image": Task("QwenImageAutoBlocks", "qwen"),
    "qwen image2image": Task("QwenImageAutoBlocks", "qwen_img2img"),
    "qwen inpainting": Task("QwenImageAutoBlocks", "qwen_inpaint"),
    "qwen controlnet": Task("QwenImageAutoBlocks", "qwen", qwen_controlnet, controlled),
    "qwen edit": Task("QwenImageEditAutoBlocks", "qwen_img2img"),
    "z_image text2image": Task("ZImageAutoBlocks", "z_image"),
    "z_image image2image": Task("ZImageAutoBlocks", "z_image_img2img"),
    "ltx text2video": Task("LTXAutoBlocks", "ltx"),
    "ltx image2video": Task("LTXAutoBlocks", "ltx_i2v"),
    "flux text2image": Task("FluxAutoBlocks", "flux"),
    "flux 2 text2image": Task("Flux2AutoBlocks", "flux2"),
    "sdxl text2image": Task("StableDiffusionXLAutoBlocks", "sdxl"),
    "sdxl image2image": Task("StableDiffusionXLAutoBlocks", "sdxl_img2img"),
}


def those(wanted=lambda task: True):
    # its pictures are enlarged to a million pixels
    marks = {"qwen edit": pytest.mark.slow}
    names = [pytest.param(n, marks=marks.get(n, ())) for n, t in TASKS.items() if wanted(t)]
    return pytest.mark.parametrize("name", names)


def solver_of(task):
    return PIPELINES[task.row].solver


def modular(name):
    """Return the modular pipeline of a task, and what it is called with."""
    task = TASKS[name]
    pipe, arguments = build(task.row)
    blocks = getattr(diffusers, task.blocks)()
    for encoder in ("text_encoder", "image_encoder"):
        blocks.sub_blocks.pop(encoder, None)
    made = blocks.init_pipeline()
    made.update_components(
        **{name: part for name, part in pipe.components.items() if part is not None} | task.more()
    )
    known = {i.name for i in blocks.inputs}
    return made, {k: v for k, v in arguments.items() if k in known} | task.arguments()


def draw(pipe, arguments, scheduler=None, steps=STEPS):
    """Return what the pipeline makes of seed 0, with another scheduler if there is one."""
    if scheduler is not None:
        pipe.update_components(scheduler=scheduler)
    given = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0)}
    torch.manual_seed(0)
    state = pipe(**given | arguments, output_type="pil")
    return state.get("latents"), state.get("images") or state.get("videos")


def swapped(pipe, **config):
    return GaussianFlowScheduler.from_config(pipe.scheduler.config, **config)


def assert_close(found, expected, rtol):
    assert (found - expected).norm() < rtol * expected.norm()


# --- the same samples, and others ----------------------------------------------------------------


@those()
def test_with_the_solver_of_their_scheduler_the_blocks_draw_the_same(name):
    pipe, arguments = modular(name)
    solver = solver_of(TASKS[name])
    if solver is None:  # Wan's own is UniPC, see below
        pipe.update_components(scheduler=static())
    theirs, pictures = draw(pipe, arguments)
    ours, same = draw(pipe, arguments, swapped(pipe, solver=solver or "euler"))
    assert_close(ours, theirs, 1e-5)
    for x, y in zip(flat(same), flat(pictures), strict=True):
        assert abs(np.asarray(x, int) - np.asarray(y, int)).max() <= 1


def flat(pictures):
    return [p for frames in pictures for p in (frames if isinstance(frames, list) else [frames])]


@those(lambda task: solver_of(task) is None)
def test_unipc_draws_what_wans_blocks_draw_where_the_network_is_fed_whole_timesteps(name):
    def whole(network, args, kwargs):  # as UniPC cuts them
        return args, kwargs | {"timestep": kwargs["timestep"].floor()}

    pipe, arguments = modular(name)
    for part in pipe.components.values():
        if isinstance(part, diffusers.WanTransformer3DModel):
            part.register_forward_pre_hook(whole, with_kwargs=True)
    theirs, _ = draw(pipe, arguments)
    ours, _ = draw(pipe, arguments, swapped(pipe, solver="unipc"))
    assert_close(ours, theirs, 1e-3)


@those()
def test_the_blocks_draw_as_an_ode_and_as_an_sde(name):
    pipe, arguments = modular(name)
    theirs, _ = draw(pipe, arguments)
    drawn = [theirs]
    for config in ({}, {"diffusion": "memoryless"}):
        found, pictures = draw(pipe, arguments, swapped(pipe, **config))
        assert found.isfinite().all() and pictures
        assert found.shape == theirs.shape
        assert all((found - other).norm() > 1e-3 * theirs.norm() for other in drawn)
        drawn.append(found)


@pytest.mark.parametrize("name", ["sd3 text2image", "wan text2video"])
def test_an_sdes_noise_is_that_of_set_generator(name):
    pipe, arguments = modular(name)
    scheduler = swapped(pipe, diffusion="memoryless")

    def seeded(seed):
        scheduler.set_generator(torch.Generator().manual_seed(seed))
        return draw(pipe, arguments, scheduler)[0]

    first = seeded(1)
    assert torch.equal(first, seeded(1))
    assert not torch.allclose(first, seeded(2), rtol=1e-2)


# --- specifications, folders ---------------------------------------------------------------------


def test_a_component_specification_makes_our_scheduler_again():
    ours = swapped(modular("ltx text2video")[0], diffusion="memoryless")
    made = ComponentSpec.from_component("scheduler", ours).create()
    assert type(made) is GaussianFlowScheduler
    assert {**made.config} == {**ours.config}
    theirs = ComponentSpec(
        "scheduler",
        GaussianFlowScheduler,
        config=static().config,
        default_creation_method="from_config",
    )
    assert theirs.create().config.shift == 3.0


def test_a_modular_pipeline_is_saved_and_loaded_with_our_scheduler(tmp_path):
    pipe, arguments = modular("sd3 text2image")
    expected, _ = draw(pipe, arguments, swapped(pipe, solver="heun"))
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    loaded = ModularPipeline.from_pretrained(str(tmp_path))
    loaded.load_components()
    assert type(loaded.scheduler) is GaussianFlowScheduler
    blocks = loaded.blocks
    blocks.sub_blocks.pop("text_encoder")
    again = blocks.init_pipeline(str(tmp_path))
    again.update_components(**{n: c for n, c in loaded.components.items() if c is not None})
    assert torch.equal(draw(again, arguments)[0], expected)
