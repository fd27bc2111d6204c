"""Callbacks, interruption, and what a pipeline says of a call, by diffusers' names."""

import threading

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)
from exact_network import exact_pipe, noise
from test_editing import latent_pipe
from test_pipeline import CLASSES, STEPS, draw, make_pipe, make_unet
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_pipe as make_transformer_pipe
from test_pipeline_transformer import make_transformer

from fm_diffusers import FlowMatchingPipeline


def counting(pipe):
    """Record the number of samples that the network is fed at every call."""
    seen, usual = [], pipe.network.forward

    def forward(sample, timestep, condition=None, return_dict=True):
        seen.append(len(sample))
        return usual(sample, timestep, condition, return_dict=return_dict)

    pipe.network.forward = forward
    return seen


@pytest.mark.parametrize("prompts", [["seven"], ["seven"] * 3, "one with three images"])
def test_the_official_callback_ends_the_guidance(prompts):
    pipe = make_text_pipe(solver="euler")
    asked = {"prompt": prompts, "guidance_scale": 3.0}
    if isinstance(prompts, str):
        asked = {"prompt": "seven", "num_images_per_prompt": 3, "guidance_scale": 3.0}
    count = 1 if prompts == ["seven"] else 3
    fed = counting(pipe)
    found = draw(
        pipe,
        **asked,
        num_inference_steps=8,
        callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5),
    )
    assert fed == [2 * count] * 5 + [count] * 3  # steps 0 to 4 are guided
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (0.0, False)
    by_hand = make_text_pipe(solver="euler")

    def halve(pipe, i, t, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]} if i == 4 else None

    expected = draw(
        by_hand,
        **asked,
        num_inference_steps=8,
        callback_on_step_end=halve,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert torch.equal(found, expected)


def test_the_official_callback_keeps_one_prompt_only():
    with pytest.raises(ValueError, match=r"prompt_embeds .* must be .* got .* \(1, 6, 8\)"):
        draw(
            make_text_pipe(),
            prompt=["seven", "zero"],
            guidance_scale=3.0,
            callback_on_step_end=SDCFGCutoffCallback(cutoff_step_index=1, cutoff_step_ratio=None),
        )


def test_several_official_callbacks_work_as_one():
    pipe, fed = make_text_pipe(), []

    class Count(PipelineCallback):
        tensor_inputs = ["latents", "model_output", "pred_original_sample"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            fed.append({name: x.shape for name, x in callback_kwargs.items()})
            return callback_kwargs

    both = MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5), Count()])
    draw(pipe, prompt="seven", guidance_scale=2.0, callback_on_step_end=both)
    assert len(fed) == STEPS and {"latents", "prompt_embeds", "model_output"} <= {*fed[0]}


def test_labels_end_their_guidance_the_same_way():
    class LabelCutoff(SDCFGCutoffCallback):
        tensor_inputs = ["class_labels"]

    pipe = make_pipe()
    fed = counting(pipe)
    draw(pipe, 1, guidance_scale=2.0, callback_on_step_end=LabelCutoff(cutoff_step_ratio=0.5))
    assert fed == [2] * (STEPS // 2 + 1) + [1] * (STEPS - STEPS // 2 - 1)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (SDXLCFGCutoffCallback, r"must be among \['latents', 'prompt_embeds', .*add_text_embeds"),
    ],
)
def test_callbacks_of_other_pipelines_are_refused_by_what_they_look_at(callback, message):
    with pytest.raises(ValueError, match=message):
        draw(make_text_pipe(), prompt="seven", callback_on_step_end=callback())


def test_a_callback_that_needs_another_pipeline_fails_by_name():
    callback = IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.0)
    with pytest.raises(AttributeError, match="set_ip_adapter_scale"):
        draw(make_text_pipe(), prompt="seven", callback_on_step_end=callback)


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_a_callback_sees_the_prediction_and_the_data_that_it_foretells(diffusion):
    pipe, seen = exact_pipe(diffusion=diffusion), []
    names = ["latents", "model_output", "pred_original_sample", "class_labels"]
    x = noise(2)
    pipe(
        class_labels=[0, 1],
        latents=x,
        num_inference_steps=5,
        callback_on_step_end=lambda p, i, t, k: seen.append((t, k)),
        callback_on_step_end_tensor_inputs=names,
    )
    for t, tensors in seen:
        assert [*tensors] == names
        at = 1 - t.double() / 1000
        velocity = tensors["model_output"]
        expected = x + (1 - at) * velocity
        torch.testing.assert_close(tensors["pred_original_sample"], expected, rtol=1e-5, atol=1e-5)
        x = tensors["latents"]


def test_a_step_that_is_over_cannot_be_replaced():
    names = ["latents", "model_output"]
    for returned in ("model_output", "pred_original_sample"):
        with pytest.raises(ValueError, match=rf"got \['{returned}'\]: what a step has predicted"):
            draw(
                make_pipe(),
                0,
                callback_on_step_end=lambda p, i, t, k, name=returned: {name: k["latents"]},
                callback_on_step_end_tensor_inputs=names,
            )
    # given back as they were, as official callbacks do, they are passed over
    same = draw(
        make_pipe(),
        0,
        callback_on_step_end=lambda p, i, t, k: k,
        callback_on_step_end_tensor_inputs=names,
    )
    assert torch.equal(same, draw(make_pipe(), 0))


def test_the_data_is_seen_of_our_scheduler_only():
    pipe = make_pipe()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="must be among .* got .*pred_original_sample"):
        draw(
            pipe,
            0,
            callback_on_step_end=lambda *a: None,
            callback_on_step_end_tensor_inputs=["pred_original_sample"],
        )


def test_a_callback_changes_the_scale_from_step_to_step():
    pipe, x = exact_pipe(solver="euler"), noise(1)

    def rising(pipe, i, t, tensors):
        pipe._guidance_scale = 1.0 + (i + 1) / 2

    found = pipe(
        class_labels=0,
        latents=x,
        num_inference_steps=4,
        guidance_scale=2.0,
        callback_on_step_end=rising,
        output_type="latent",
    ).images
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    for t, scale in zip(scheduler.timesteps, (2.0, 1.5, 2.0, 2.5), strict=True):
        output = pipe.predict(x, t, torch.tensor([2, 0]), scale)
        x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(found, x)


def test_what_a_pipeline_says_of_its_last_call():
    pipe = make_pipe(solver="heun")
    assert (pipe.guidance_scale, pipe.num_timesteps) == (1.0, 0)
    draw(pipe, 0, guidance_scale=2.0)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (2.0, True)
    assert pipe.num_timesteps == len(pipe.scheduler.timesteps) > STEPS and not pipe.interrupt
    draw(pipe, 0)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (1.0, False)


# --- interruption --------------------------------------------------------------------------------


def test_an_interrupted_call_returns_the_samples_as_they_are():
    pipe, seen = make_pipe(), []

    def stop(pipe, i, t, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = i == 1

    found = draw(pipe, 0, callback_on_step_end=stop)
    assert len(seen) == 2 and torch.equal(found, seen[-1])
    assert not pipe.interrupt and torch.equal(draw(pipe, 0), draw(make_pipe(), 0))


def test_another_thread_interrupts_all_running_calls():
    pipe, running, go_on = make_pipe(), threading.Barrier(3), threading.Event()
    counts = [0, 0]

    def call(number):
        def callback(own, i, t, tensors):
            counts[number] += 1
            if i == 0:
                running.wait(20)
                go_on.wait(20)

        draw(pipe, 0, callback_on_step_end=callback)

    threads = [threading.Thread(target=call, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    running.wait(20)
    pipe._interrupt = True
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert counts == [1, 1] and not pipe._calls


def test_a_call_that_fails_is_not_left_running():
    pipe = make_pipe()
    with pytest.raises(RuntimeError, match="stop"):
        draw(pipe, 0, callback_on_step_end=_raise)
    assert not pipe._calls


def _raise(*args):
    raise RuntimeError("stop")


# --- sigmas and sizes ----------------------------------------------------------------------------


# the latter are equal steps, which from diffusers' pipelines would say only how many
@pytest.mark.parametrize("sigmas", [[1.0, 0.7, 0.25], [1.0, 0.75, 0.5, 0.25]], ids=str)
@pytest.mark.parametrize("form", [list, tuple, torch.tensor])
def test_sigmas_say_where_the_steps_start(form, sigmas):
    pipe = make_pipe()
    found = draw(pipe, 0, num_inference_steps=None, sigmas=form(sigmas))
    torch.testing.assert_close(pipe.scheduler.sigmas, torch.tensor([*sigmas, 0.0]))
    by_time = draw(pipe, 0, num_inference_steps=None, timesteps=[1000 * s for s in sigmas])
    torch.testing.assert_close(found, by_time)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"timesteps": [900.0]}, "timesteps and sigmas both say where"),
        ({"sigmas": []}, "sigmas must be a list of at least one number"),
        ({"sigmas": "all"}, "sigmas must be a list of at least one number"),
        ({"num_inference_steps": 3}, "num_inference_steps=3 contradicts 2 sigmas"),
        ({"sigmas": [1.0, None]}, "each of sigmas must be a finite number"),
        ({"sigmas": [1.0, 1.5]}, "sigmas must be numbers from 1, pure noise"),
    ],
)
def test_sigmas_that_say_nothing_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_pipe()(**{"class_labels": 0, "sigmas": [1.0, 0.5]} | kwargs)


SIZES = {
    "unet": (make_pipe, {"class_labels": 0, "height": 9, "width": 8}, "multiples of 2 pixels"),
    "deep": (
        lambda: FlowMatchingPipeline(make_deep(), make_pipe().scheduler),
        {"height": 12, "width": 12},
        "multiples of 8 pixels, since the U-Net halves samples 3 times, got 12 and 12",
    ),
    "latent": (
        latent_pipe,
        {"class_labels": 0, "height": 18, "width": 16},
        "multiples of 4 pixels.* got 18 and 16: samples of \\(9, 8\\)",
    ),
    "vae": (latent_pipe, {"class_labels": 0, "height": 17}, "height must be a multiple of 2"),
    "latents": (
        make_pipe,
        {"class_labels": 0, "latents": torch.zeros(1, 1, 7, 8)},
        r"multiples of 2 pixels.* samples of \(7, 8\)",
    ),
    "transformer": (
        lambda: make_transformer_pipe(make_transformer(), CLASSES),
        {"class_labels": 0, "height": 8, "width": 10},
        r"takes square images, samples of a multiple of 2: got \(8, 10\)",
    ),
}


def make_deep():
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 4, "up_block_types": ("UpBlock2D",) * 4}
    sizes = {"sample_size": 16, "block_out_channels": (4,) * 4, "norm_num_groups": 2}
    return UNet2DModel(in_channels=1, out_channels=1, layers_per_block=1, **sizes, **blocks)


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_a_network_cannot_take_are_refused_in_our_words(case):
    make, kwargs, message = SIZES[case]
    with pytest.raises(ValueError, match=message):
        make()(num_inference_steps=2, **kwargs)


def test_sizes_that_it_can_take_are_drawn():
    asked = {"num_inference_steps": 2, "output_type": "pt"}
    assert make_pipe()(class_labels=0, height=6, width=10, **asked).images.shape[2:] == (6, 10)
    pipe = make_text_pipe()  # its network pads what it cannot halve
    assert pipe(prompt="seven", height=7, width=9, **asked).images.shape[2:] == (7, 9)
    assert make_unet().config.sample_size == 8
