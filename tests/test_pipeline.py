import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

CLASSES, STEPS = 3, 4


def make_unet(num_class_embeds=None, channels=1, seed=0):
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=num_class_embeds,
    ).eval()


def make_pipe(kind="guided", **config):
    unet = {
        "guided": lambda: make_unet(CLASSES + 1),
        "conditional": lambda: make_unet(CLASSES),
        "unconditional": lambda: make_unet(channels=3),
    }[kind]()
    null_label = CLASSES if kind == "guided" else None
    pipe = FlowMatchingPipeline(unet, GaussianFlowScheduler(**config), null_label)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def guided():
    return make_pipe("guided")


@pytest.fixture(scope="module")
def conditional():
    return make_pipe("conditional")


@pytest.fixture(scope="module")
def unconditional():
    return make_pipe("unconditional")


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe, *args, seed=0, **kwargs):
    """Return final samples, in which nothing is clamped or rounded."""
    kwargs.setdefault("generator", torch.Generator().manual_seed(seed))
    kwargs.setdefault("num_inference_steps", STEPS)
    return pipe(*args, output_type="latent", return_dict=False, **kwargs)[0]


def assert_same(x, y):
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


# --- batches and labels --------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_an_image_does_not_depend_on_its_batch(diffusion, guidance_scale):
    pipe, labels = make_pipe(diffusion=diffusion), [2, 0, 2]
    seeds = range(len(labels))
    batch = draw(pipe, labels, guidance_scale=guidance_scale, generator=generators(*seeds))
    for i, label in enumerate(labels):
        alone = draw(pipe, label, guidance_scale=guidance_scale, generator=generators(i))
        assert_same(alone[0], batch[i])
    assert not torch.allclose(batch[0], batch[2], atol=1e-2)  # one label, other noise


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_one_generator_decides_all_noise(diffusion):
    pipe = make_pipe(diffusion=diffusion)
    first = draw(pipe, [0, 1], seed=5)
    torch.manual_seed(99)
    assert torch.equal(first, draw(pipe, [0, 1], seed=5))
    assert not torch.allclose(first, draw(pipe, [0, 1], seed=6), atol=1e-2)


def test_images_of_a_label_lie_next_to_each_other(guided):
    several = draw(guided, [1, 0], num_images_per_label=2)
    assert torch.equal(several, draw(guided, [1, 1, 0, 0]))
    assert not torch.allclose(several, draw(guided, [1, 0, 1, 0]), atol=1e-4)


@pytest.mark.parametrize(
    "labels", [[2], (2,), torch.tensor(2), torch.tensor([2]), np.array([2]), np.int64(2)], ids=repr
)
def test_labels_are_numbers_lists_or_tensors(labels, guided):
    assert torch.equal(draw(guided, labels), draw(guided, 2))


def test_labels_matter(guided, conditional):
    for pipe in (guided, conditional):
        assert not torch.allclose(draw(pipe, 0), draw(pipe, 1), atol=1e-4)


def test_without_labels_the_null_label_is_sampled(guided):
    nothing = make_pipe()
    nothing.register_to_config(null_label=None)  # the last label becomes one like the others
    expected = draw(nothing, [CLASSES, CLASSES])
    assert torch.equal(draw(guided, batch_size=2), expected)
    assert draw(guided).shape == (1, 1, 8, 8)


def test_unconditional_networks_draw_as_many_images_as_asked(unconditional):
    batch = draw(unconditional, batch_size=3, generator=generators(0, 1, 2))
    assert batch.shape == (3, 3, 8, 8)
    assert_same(draw(unconditional, generator=generators(1))[0], batch[1])


def test_pipelines_know_their_classes(guided, conditional, unconditional):
    assert [pipe.num_classes for pipe in (guided, conditional, unconditional)] == [3, 3, 0]


# --- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_guidance_of_zero_is_sampling_without_a_class(diffusion):
    pipe = make_pipe(diffusion=diffusion)
    assert_same(draw(pipe, [0, 2], guidance_scale=0.0), draw(pipe, batch_size=2))


def test_guidance_of_one_is_no_guidance(guided):
    plain = draw(guided, [0, 2])
    assert torch.equal(draw(guided, [0, 2], guidance_scale=1.0), plain)
    assert_same(draw(guided, [0, 2], guidance_scale=1 + 1e-6), plain)  # through the guided branch


def test_one_step_is_affine_in_the_guidance():
    pipe = make_pipe(solver="euler")
    low, one, high = (
        draw(pipe, [0, 2], guidance_scale=w, num_inference_steps=1) for w in (-1.5, 1.0, 4.0)
    )
    uncond = draw(pipe, batch_size=2, num_inference_steps=1)
    assert (one - uncond).abs().max() > 1e-2
    assert_same(low, uncond - 1.5 * (one - uncond))
    assert_same(high, uncond + 4 * (one - uncond))


# --- the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["exponential_multistep", "heun"])
def test_the_pipeline_is_the_scheduler_loop_over_the_network(solver):
    pipe = make_pipe("unconditional", solver=solver)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, scheduler = x, GaussianFlowScheduler(solver=solver)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            expected = scheduler.step(pipe.unet(expected, t).sample, t, expected).prev_sample
    assert torch.equal(draw(pipe, latents=x, batch_size=2), expected)
    assert torch.equal(draw(pipe, batch_size=2), expected)


def test_latents_are_the_samples_at_the_first_timestep():
    pipe = make_pipe(path="variance_exploding", path_kwargs={"sigma_max": 20.0})
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = draw(pipe, [0, 1], seed=3)
    assert torch.equal(draw(pipe, [0, 1], latents=math.hypot(1, 20) * noise), expected)
    assert (noise == torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))).all()


def test_latents_of_another_size_give_images_of_that_size(unconditional):
    latents = torch.zeros(2, 3, 16, 8)
    assert draw(unconditional, latents=latents, batch_size=2).shape == (2, 3, 16, 8)


def test_timesteps_replace_the_grid(unconditional):
    asked = []

    def callback(pipe, i, t, tensors):
        asked.append(t.item())
        return {}

    timesteps = [1000.0, 700.0, 100.0]
    by_user = draw(
        unconditional,
        timesteps=timesteps,
        num_inference_steps=None,
        callback_on_step_end=callback,
    )
    assert asked == timesteps
    assert not torch.allclose(by_user, draw(unconditional, num_inference_steps=3), atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_callback_is_called_once_a_step_with_the_sample(solver):
    pipe, calls = make_pipe(solver=solver), []

    def callback(pipe, i, t, tensors):
        calls.append((i, t.item(), tensors["latents"]))
        assert list(tensors) == ["latents"]
        return tensors

    final = draw(pipe, [0, 1], callback_on_step_end=callback)
    indices, timesteps, latents = zip(*calls, strict=True)
    assert list(indices) == list(range(STEPS * pipe.scheduler.order))
    assert list(timesteps) == pipe.scheduler.timesteps.tolist()
    assert torch.equal(latents[-1], final) and torch.equal(draw(pipe, [0, 1]), final)


@pytest.mark.parametrize("place", [1, STEPS - 1])
def test_latents_of_the_callback_are_used(place):
    pipe, seen = make_pipe(solver="euler"), []
    other = draw(pipe, 1, seed=1, callback_on_step_end=lambda p, i, t, k: seen.append(k) or {})

    def replace(pipe, i, t, tensors):
        return {"latents": seen[i]["latents"]} if i == place else {}

    assert torch.equal(draw(pipe, 1, seed=0, callback_on_step_end=replace), other)
    assert not torch.allclose(draw(pipe, 1, seed=0), other, atol=1e-2)


def test_progress_bar_counts_the_steps_and_can_be_switched_off(capsys):
    pipe = make_pipe()
    draw(pipe, 0)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False, desc="drawing")
    draw(pipe, 0)
    shown = capsys.readouterr().err
    assert "drawing" in shown and f"{STEPS}/{STEPS}" in shown


# --- output --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["guided", "unconditional"])
def test_output_types_are_one_image_in_four_forms(kind):
    pipe = make_pipe(kind)
    channels = pipe.unet.config.in_channels
    what = {"num_inference_steps": STEPS, "batch_size": 2}
    latent, pt, array, pil = (
        pipe(**what, output_type=output_type, generator=generators(0, 1)).images
        for output_type in ("latent", "pt", "np", "pil")
    )
    assert latent.shape == (2, channels, 8, 8)
    torch.testing.assert_close(pt, (latent / 2 + 0.5).clamp(0, 1))
    assert array.shape == (2, 8, 8, channels)
    np.testing.assert_allclose(array, pt.permute(0, 2, 3, 1).numpy())
    assert isinstance(pil, list) and all(isinstance(image, PIL.Image.Image) for image in pil)
    assert [(image.size, image.mode) for image in pil] == 2 * [
        ((8, 8), "L" if channels == 1 else "RGB")
    ]
    pixels = np.stack([np.asarray(image) for image in pil]).reshape(array.shape)
    np.testing.assert_array_equal(pixels, (255 * array).round())


def test_pil_is_the_default_and_return_dict_false_gives_a_tuple(unconditional):
    output = unconditional(num_inference_steps=1)
    assert isinstance(output.images[0], PIL.Image.Image)
    plain = unconditional(num_inference_steps=1, return_dict=False)
    assert isinstance(plain, tuple) and isinstance(plain[0][0], PIL.Image.Image)


def test_samples_stay_in_float32_where_the_network_is_in_bfloat16():
    pipe = make_pipe()
    exact = draw(pipe, [0, 1])
    low = draw(pipe.to(torch.bfloat16), [0, 1])
    assert low.dtype == torch.float32
    assert not torch.equal(low, low.to(torch.bfloat16).float())
    torch.testing.assert_close(low, exact, rtol=0.1, atol=0.1)


# --- components ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["guided", "unconditional"])
def test_saved_pipelines_draw_the_same_images(kind, tmp_path):
    pipe = make_pipe(kind, path="cosine", solver="heun", diffusion="memoryless", t_min=0.05)
    pipe.save_pretrained(tmp_path)
    again = FlowMatchingPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], weight)
    ours, theirs = dict(again.scheduler.config), dict(pipe.scheduler.config)
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {
        k: v for k, v in theirs.items() if k[0] != "_"
    }
    assert again.config.null_label == pipe.config.null_label
    labels = [0, 1] if kind == "guided" else None
    torch.testing.assert_close(draw(again, labels), draw(pipe, labels), rtol=1e-5, atol=1e-5)


def test_swapping_the_scheduler_changes_the_images_and_keeps_the_network():
    pipe = make_pipe()
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    ode, first, unet = draw(pipe, [0, 1]), pipe.scheduler, pipe.unet
    pipe.scheduler = GaussianFlowScheduler.from_config(first.config, diffusion="memoryless")
    sde = draw(pipe, [0, 1])
    assert pipe.unet is unet and first.config.diffusion is None
    assert all(torch.equal(weights[k], v) for k, v in pipe.unet.state_dict().items())
    assert not torch.allclose(ode, sde, atol=1e-2)
    pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion=None)
    assert torch.equal(draw(pipe, [0, 1]), ode)


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no pipeline here")
    with pytest.raises(ValueError, match="no model_index.json: pass the folder that") as error:
        FlowMatchingPipeline.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_that_does_not_exist_is_refused(tmp_path, kind):
    missing = tmp_path / "missing"
    with pytest.raises(ValueError, match="there is no folder .* or a Hub id") as error:
        FlowMatchingPipeline.from_pretrained(kind(missing))
    assert str(missing) in str(error.value)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("guided", {"class_labels": [0, 3]}, r"class_labels must be integers in 0..2, got \[3\]"),
        ("guided", {"class_labels": -1}, r"class_labels must be integers in 0..2, got \[-1\]"),
        ("conditional", {"class_labels": 7}, r"class_labels must be integers in 0..2, got \[7\]"),
        ("guided", {"class_labels": [0.5]}, r"class_labels"),
        ("guided", {"class_labels": []}, r"give class_labels, at least one"),
        ("unconditional", {"class_labels": 0}, r"the network is unconditional: drop them"),
        ("conditional", {}, r"has no null label: pass class_labels, each in 0..2"),
        (
            "guided",
            {"class_labels": [0, 1], "batch_size": 2},
            r"class_labels, at least one, or batch_size, got \[0, 1\] and 2; num_images_per_label",
        ),
        ("guided", {"prompt": "a"}, r"prompt was given, but the network takes class labels: pass"),
        ("guided", {"num_images_per_label": 2}, r"2 images of nothing: pass class_labels, or bat"),
        ("unconditional", {"num_images_per_label": 2}, r"num_images_per_label was given, but the"),
        ("guided", {"batch_size": 0}, r"batch_size must be at least 1, got 0"),
        ("unconditional", {"batch_size": -2}, r"batch_size must be at least 1, got -2"),
        (
            "guided",
            {"class_labels": 0, "num_images_per_label": 0},
            r"num_images_per_label must be at least 1, got 0",
        ),
        (
            "guided",
            {"guidance_scale": 2.0},
            r"guidance_scale=2.0 needs class_labels .* 1 is no guidance",
        ),
        (
            "conditional",
            {"class_labels": 0, "guidance_scale": 2.0},
            r"guidance_scale=2.0 needs .* a network trained with a null label",
        ),
        ("unconditional", {"guidance_scale": 0.0}, r"guidance_scale=0.0 needs class_labels"),
        (
            "unconditional",
            {"latents": torch.zeros(2, 3, 8, 8)},
            r"latents must have the shape \(1, 3, 8, 8\), got \(2, 3, 8, 8\)",
        ),
        (
            "guided",
            {"class_labels": 0, "latents": torch.zeros(1, 3, 8, 8)},
            r"latents must have the shape \(1, 1, 8, 8\), got \(1, 3, 8, 8\)",
        ),
        (
            "guided",
            {"class_labels": 0, "latents": torch.zeros(1, 8, 8)},
            r"latents must have the shape \(1, 1, 8, 8\), got \(1, 8, 8\)",
        ),
        (
            "guided",
            {"class_labels": [0, 1], "generator": generators(0, 1, 2)},
            r"one for each of the 2 images, got 3",
        ),
        (
            "guided",
            {"class_labels": 0, "output_type": "jpeg"},
            r"output_type must be one of \('pil', .*\), got 'jpeg'",
        ),
        (
            "guided",
            {"class_labels": 0, "callback_on_step_end_tensor_inputs": ["noise"]},
            r"must be among \['latents', .*\], got \['noise'\]",
        ),
        (
            "guided",
            {"class_labels": 0, "num_inference_steps": 0},
            r"num_inference_steps must be an integer of at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(kind, kwargs, message, request):
    with pytest.raises(ValueError, match=message):
        request.getfixturevalue(kind)(**kwargs)


# --- diffusers' own schedulers -------------------------------------------------------------------

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("scheduler", "error"),
    [
        (FlowMatchEulerDiscreteScheduler(), 0.1),
        (FlowMatchHeunDiscreteScheduler(), 0.02),
        (UniPCMultistepScheduler(**FLOW), 0.02),
        (DPMSolverMultistepScheduler(**FLOW), 0.02),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_flow_prediction_runs_under_diffusers_own_schedulers(scheduler, error):
    ours = make_pipe("guided", prediction_type="flow_prediction")
    expected = draw(ours, [0, 2], num_inference_steps=40, guidance_scale=2.0)
    ours.scheduler = scheduler
    found = draw(ours, [0, 2], num_inference_steps=40, guidance_scale=2.0)
    assert (found - expected).norm() < error * expected.norm()
