"""Calls of one pipeline have places of their own: in threads, within each other, and after."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from test_pipeline import CLASSES, FLOW, STEPS, draw, make_pipe, make_unet
from test_pipeline_text import make_text_pipe

from fm_diffusers import FlowMatchingPipeline

THREADS, DRAWS = 4, 8
SCHEDULERS = {
    "default": {},
    "sde": {"diffusion": "memoryless"},
    "heun": {"solver": "heun"},
    "other path": {"solver": "unipc", "sampling_path": "variance_preserving"},
    "flow euler": FlowMatchEulerDiscreteScheduler,
    "flow heun": FlowMatchHeunDiscreteScheduler,
    "unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "dpm": lambda: DPMSolverMultistepScheduler(**FLOW),
}


@pytest.fixture
def switching():
    """Let threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def in_threads(function, count=THREADS * DRAWS):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, range(count)))


def pipe_with(scheduler):
    if isinstance(scheduler, dict):
        return make_pipe(**scheduler)
    pipe = make_pipe(prediction_type="flow_prediction")
    pipe.scheduler = scheduler()
    return pipe


@pytest.mark.parametrize("name", SCHEDULERS)
def test_threads_that_share_a_pipeline_draw_what_one_draws(name, switching):
    pipe = pipe_with(SCHEDULERS[name])

    def one(i):
        labels, steps = [i % CLASSES] * (1 + i % 2), 1 + i % 4
        return draw(pipe, labels, seed=i, num_inference_steps=steps, guidance_scale=1.0 + i % 3)

    count = THREADS * DRAWS if name == "sde" else THREADS * 2
    alone = [one(i) for i in range(count)]
    together = in_threads(one, count)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_threads_that_share_a_tokenizer_draw_what_one_draws(kind, switching):
    pipe, prompts = make_text_pipe(kind, autoencoder=True), ["seven", "a zero", "dark digit"]

    def one(i):
        draws = {"num_inference_steps": 2, "guidance_scale": 1.0 + i % 2, "output_type": "pt"}
        generator = torch.Generator().manual_seed(i)
        return pipe(prompt=prompts[i % 3], generator=generator, **draws).images

    together = in_threads(one, 16)
    # the tokenizer of another pipeline has not been called before the threads call it
    assert all(torch.equal(one(i), image) for i, image in enumerate(together))


def test_after_a_call_the_scheduler_shows_the_call_that_ended_last():
    pipe = make_pipe(solver="heun")
    scheduler, before = pipe.scheduler, pipe.scheduler.timesteps
    seen = []

    def callback(own, i, t, tensors):
        seen.append((own.scheduler.step_index, len(own.scheduler.timesteps)))
        assert scheduler.timesteps is before  # the pipeline's own is not stepped with

    draw(pipe, 0, callback_on_step_end=callback)
    count = 2 * STEPS - 1
    assert pipe.scheduler is scheduler and len(scheduler.timesteps) == len(scheduler.sigmas) - 1
    assert seen == [(i + 1, len(scheduler.timesteps)) for i in range(len(scheduler.timesteps))]
    assert len(scheduler.timesteps) in (count, 2 * STEPS)
    draw(pipe, 0, num_inference_steps=2)
    assert len(scheduler.timesteps) in (3, 4)


def test_a_call_that_fails_leaves_the_scheduler_as_it_was():
    pipe = make_pipe()
    draw(pipe, 0)
    before = pipe.scheduler.timesteps

    def callback(own, i, t, tensors):
        raise KeyError(i)

    with pytest.raises(KeyError):
        draw(pipe, 0, num_inference_steps=2, callback_on_step_end=callback)
    assert pipe.scheduler.timesteps is before


@pytest.mark.parametrize("inner", ["outer pipeline", "pipeline of the call"])
def test_a_call_within_a_call_does_not_disturb_it(inner):
    pipe, previews = make_pipe(diffusion="memoryless"), []
    expected = draw(pipe, [0, 1], num_inference_steps=5)

    def callback(own, i, t, tensors):
        asked = pipe if inner == "outer pipeline" else own
        previews.append(draw(asked, 2, num_inference_steps=2, guidance_scale=2.0))

    found = draw(pipe, [0, 1], num_inference_steps=5, callback_on_step_end=callback)
    assert torch.equal(found, expected)
    single = draw(pipe, 2, num_inference_steps=2, guidance_scale=2.0)
    assert all(torch.equal(preview, single) for preview in previews)


def test_what_a_callback_writes_on_its_pipe_ends_with_the_call():
    pipe = make_pipe()

    def callback(own, i, t, tensors):
        assert type(own) is FlowMatchingPipeline and own.unet is pipe.unet
        own.notes = [*getattr(own, "notes", []), i]
        if i == STEPS - 1:
            assert own.notes == list(range(STEPS))

    draw(pipe, 0, callback_on_step_end=callback)
    assert not hasattr(pipe, "notes")


def test_the_generator_of_a_scheduler_goes_on_from_call_to_call():
    def stream():
        return torch.Generator().manual_seed(7)

    pipe, x = make_pipe(diffusion="memoryless"), torch.zeros(1, 1, 8, 8)
    generator, other = stream(), stream()
    pipe.scheduler.set_generator(generator)
    found = [draw(pipe, 0, latents=x, generator=None) for _ in range(2)]
    expected = [draw(pipe, 0, latents=x, generator=other) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(*found) and torch.equal(generator.get_state(), other.get_state())


def test_a_setting_made_during_a_call_stays():
    pipe, generator = make_pipe(diffusion="memoryless"), torch.Generator()

    def callback(own, i, t, tensors):
        pipe.scheduler.set_generator(generator)

    draw(pipe, 0, callback_on_step_end=callback)
    before = generator.get_state()
    draw(pipe, 0, generator=None)
    assert not torch.equal(generator.get_state(), before)


def test_a_scheduler_that_is_swapped_between_calls_is_used():
    pipe = FlowMatchingPipeline(make_unet(), make_pipe().scheduler)
    pipe.set_progress_bar_config(disable=True)
    first = draw(pipe)
    pipe.scheduler = make_pipe(solver="euler").scheduler
    assert len(pipe.scheduler.timesteps) == 1000  # its own: no call has been made with it
    assert not torch.equal(draw(pipe), first) and len(pipe.scheduler.timesteps) == STEPS
