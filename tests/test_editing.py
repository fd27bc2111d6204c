"""Image to image, inpainting and differential masks: what is held is held bit for bit."""

import numpy as np
import pytest
import torch
from covers import covering
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from exact_network import exact_pipe
from PIL import Image
from test_pipeline import CLASSES, generators, make_pipe, make_unet
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_pipe as make_transformer_pipe
from test_pipeline_transformer import make_transformer
from tiny_networks import vae

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.pipelines.editing import begin_of

STEPS = 6


def latent_pipe(**config):
    pipe = FlowMatchingPipeline(
        make_unet(CLASSES + 1, channels=4),
        GaussianFlowScheduler(**config),
        CLASSES,
        vae=vae().eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


#: Pipelines by name, the mode of their pictures and the side in pixels.
KINDS = {
    "labels": (lambda **config: make_pipe("guided", **config), 1, 8, {"class_labels": [0, 2]}),
    "unconditional": (lambda **config: make_pipe("unconditional", **config), 3, 8, {}),
    "text": (lambda **config: make_text_pipe(**config), 4, 8, {"prompt": ["seven", "zero"]}),
    "latent": (latent_pipe, 3, 16, {"class_labels": [0, 2]}),
    "latent text": (
        lambda **config: make_text_pipe(autoencoder=True, **config),
        3,
        16,
        {"prompt": ["seven", "zero"]},
    ),
    "transformer": (
        lambda **config: make_transformer_pipe(make_transformer(), CLASSES, **config),
        1,
        8,
        {"class_labels": [0, 2]},
    ),
}


def pictures(channels, side, count=2, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def as_tensor(bytes_):
    return torch.from_numpy(bytes_).movedim(-1, 1).float() / 255


def as_pil(bytes_):
    return [Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x) for x in bytes_]


def edit(pipe, image, steps=STEPS, seed=0, output_type="pt", **kwargs):
    count = len(image) if isinstance(image, list | torch.Tensor | np.ndarray) else 1
    return pipe(
        image=image,
        num_inference_steps=steps,
        generator=generators(*range(seed, seed + count)),
        output_type=output_type,
        **kwargs,
    ).images


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.mark.parametrize(
    ("kind", "diffusion"), covering(KINDS, [None, "memoryless"]), indirect=["kind"]
)
def test_strength_goes_from_the_image_to_one_drawn_from_noise(kind, diffusion):
    make, channels, side, asked = kind
    pipe, image = make(diffusion=diffusion), as_tensor(pictures(channels, side))
    assert torch.equal(edit(pipe, image, strength=0.0, **asked), image)
    size = {} if asked else {"batch_size": 2}
    drawn = pipe(
        **asked,
        **size,
        height=side,
        width=side,
        num_inference_steps=STEPS,
        generator=generators(0, 1),
        output_type="pt",
    ).images
    assert torch.equal(edit(pipe, image, strength=1.0, **asked), drawn)
    between = [edit(pipe, image, strength=s, **asked) for s in (0.2, 0.6)]
    assert not any(torch.equal(x, y) for x in between for y in (image, drawn))
    assert torch.equal(edit(pipe, image, **asked), edit(pipe, image, strength=0.8, **asked))


@pytest.mark.parametrize(
    ("kind", "strength", "diffusion"),
    covering(KINDS, [1.0, 0.5], [None, "memoryless"]),
    indirect=["kind"],
)
def test_black_pixels_of_a_mask_come_back_bit_for_bit(kind, strength, diffusion):
    make, channels, side, asked = kind
    pipe, bytes_ = make(diffusion=diffusion), pictures(channels, side)
    mask = np.zeros((side, side), np.uint8)
    mask[: side // 2, 3:] = 255
    asked = asked | {"mask_image": Image.fromarray(mask), "strength": strength}
    known = mask == 0
    found = edit(pipe, as_pil(bytes_), output_type="pil", **asked)
    for x, y in zip(found, bytes_, strict=True):
        x = np.asarray(x).reshape(y.shape)
        assert (x[known] == y[known]).all() and (x[~known] != y[~known]).mean() > 0.8
    floats = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    for output_type in ("pt", "np"):
        found = edit(pipe, floats, output_type=output_type, **asked)
        found = torch.as_tensor(found) if output_type == "pt" else as_channels_first(found)
        assert torch.equal(found[:, :, known], floats[:, :, known])
    if pipe.vae is None:
        found = edit(pipe, floats, output_type="latent", **asked)
        assert torch.equal(found[:, :, known], (2 * floats - 1)[:, :, known])


def as_channels_first(found):
    return torch.from_numpy(np.ascontiguousarray(found)).movedim(-1, 1)


def test_codes_are_as_free_as_the_freest_of_their_pixels():
    pipe, image = latent_pipe(), as_tensor(pictures(3, 16, 1))
    mask = torch.zeros(16, 16)
    mask[5, 9] = 1.0
    found = edit(pipe, image, mask_image=mask, class_labels=1, output_type="latent")
    codes = pipe.canvas.encode(image)
    changed = (found != codes).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 4]]


@pytest.mark.parametrize("solver", ["euler", "ddim", "heun", "predictor_corrector"])
@pytest.mark.parametrize("grey", [0.25, 0.5, 1.0])
def test_a_grey_mask_is_a_strength_for_every_pixel(grey, solver):
    """A pixel that is held until half of the steps are left is changed as by strength 0.5."""
    pipe, image = make_pipe(solver=solver), as_tensor(pictures(1, 8, 1))
    asked = {"class_labels": 0, "steps": 8}
    expected = edit(pipe, image, strength=grey, **asked)
    found = edit(pipe, image, mask_image=torch.full((8, 8), grey), **asked)
    if solver == "predictor_corrector" and grey < 1:  # which has looked back at held steps
        assert 0 < (found - expected).abs().max() < 0.1
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_changes_pixels_more_the_whiter_they_are():
    data = [GaussianMixture(torch.full((1, 4), 0.8, dtype=torch.float64), 0.3)] * 2
    pipe = exact_pipe(data=data, solver="ddim")
    image = torch.full((200, 1, 2, 2), 0.5, dtype=torch.float32)
    mask = torch.tensor([[0.0, 0.2], [0.6, 1.0]])
    generator = torch.Generator().manual_seed(0)
    asked = {"class_labels": [0] * 200, "num_inference_steps": 20, "generator": generator}
    found = pipe(image=image, mask_image=mask, output_type="pt", **asked).images
    changed = (found - image).square().mean((0, 1)).flatten().tolist()
    assert changed[0] == 0 and changed[1] < changed[2] < changed[3]


def test_held_pixels_lie_on_the_path_of_the_image_at_every_step():
    pipe, seen = make_pipe(solver="ddim"), []
    image = as_tensor(pictures(1, 8, 1))
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe(
        class_labels=0,
        image=image,
        mask_image=mask,
        latents=noise,
        num_inference_steps=5,
        callback_on_step_end=lambda p, i, t, k: seen.append(k["latents"]),
    )
    t = torch.cat([1 - pipe.scheduler.timesteps[1:] / 1000, torch.ones(1)])
    for x, at in zip(seen, t, strict=True):
        expected = at * (2 * image - 1) + (1 - at) * noise
        torch.testing.assert_close(x[..., 4:, :], expected[..., 4:, :], rtol=1e-5, atol=1e-5)
        assert (x - expected)[..., :4, :].abs().max() > 1e-3


def test_the_conditional_distribution_of_pixels_that_depend_on_each_other():
    """Two pixels are equal in the data: the free one follows the one that is held."""
    means = torch.tensor([[-0.6] * 4, [0.6] * 4], dtype=torch.float64)
    data = [GaussianMixture(means, 0.05)] * 2
    pipe = exact_pipe(data=data, diffusion="memoryless")
    count = 300
    side = torch.arange(count) % 2
    image = (0.2 + 0.6 * side)[:, None, None, None].expand(-1, 1, 2, 2).float()
    mask = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    found = pipe(
        class_labels=[0] * count,
        image=image,
        mask_image=mask,
        num_inference_steps=30,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    agrees = ((found[:, 0, 1, 1] > 0.5) == (side == 1)).double().mean()
    assert agrees > 0.97


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, DDIMScheduler]
)
def test_schedulers_of_diffusers_edit_too(scheduler):
    theirs, ours = make_pipe(), make_pipe(prediction_type="flow_prediction", solver="euler")
    theirs.scheduler, image = scheduler(), as_tensor(pictures(1, 8))
    mask = torch.zeros(8, 8)
    mask[2:5, 2:5] = 1
    asked = {"class_labels": [0, 2]}
    assert torch.equal(edit(theirs, image, strength=0.0, **asked), image)
    found = edit(theirs, image, mask_image=mask, strength=0.7, **asked)
    assert torch.equal(found[..., mask == 0], image[..., mask == 0])
    assert (found != image)[..., mask == 1].any()
    if scheduler is FlowMatchEulerDiscreteScheduler:
        sigmas = [1.0, 0.8, 0.6, 0.4, 0.2]
        found, expected = (
            pipe(
                **asked,
                image=image,
                strength=0.6,
                sigmas=sigmas,
                generator=generators(0, 1),
                output_type="latent",
            ).images
            for pipe in (theirs, ours)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_forms_of_pictures_mean_the_same():
    pipe, bytes_ = make_pipe(), pictures(1, 8, 2)
    expected = edit(pipe, as_pil(bytes_), class_labels=[0, 1])
    floats = bytes_.astype(np.float32) / 255
    forms = [
        bytes_,
        floats,
        as_tensor(bytes_),
        [*bytes_],
        [*as_tensor(bytes_)],
        tuple(as_pil(bytes_)),
        torch.from_numpy(bytes_).movedim(-1, 1),
        as_tensor(bytes_).double(),
        [*bytes_.squeeze(-1)],
    ]
    for form in forms:
        found = pipe(
            image=form,
            class_labels=[0, 1],
            num_inference_steps=STEPS,
            generator=generators(0, 1),
            output_type="pt",
        ).images
        assert torch.equal(found, expected)


def test_colours_are_taken_from_pictures_without_a_loss_only():
    pipe = make_pipe("unconditional")
    grey = Image.fromarray(pictures(1, 8, 1)[0, :, :, 0])
    assert torch.equal(edit(pipe, grey), edit(pipe, grey.convert("RGB")))
    palette = Image.fromarray(pictures(3, 8, 1)[0]).quantize(8)
    assert torch.equal(edit(pipe, palette), edit(pipe, palette.convert("RGB")))
    for mode in ("RGBA", "CMYK", "LA", "I;16"):
        with pytest.raises(ValueError, match=r"3 channels \(RGB\), got a picture in mode .*lost"):
            edit(pipe, Image.new(mode, (8, 8)))
    with pytest.raises(ValueError, match=r"1 channels \(L\), got a picture in mode RGB"):
        edit(make_pipe(), Image.new("RGB", (8, 8)), class_labels=0)


def test_one_image_serves_all_and_one_each_or_one_a_label():
    pipe, image = make_pipe(), as_tensor(pictures(1, 8, 2))
    asked = {"num_inference_steps": STEPS, "output_type": "pt"}
    seeds = generators(0, 1, 2, 3)
    found = pipe(
        class_labels=[0, 2], num_images_per_label=2, image=image, generator=seeds, **asked
    ).images
    for i, (label, of) in enumerate([(0, 0), (0, 0), (2, 1), (2, 1)]):
        alone = pipe(class_labels=label, image=image[of], generator=generators(i), **asked).images
        torch.testing.assert_close(found[i], alone[0], rtol=1e-5, atol=1e-5)
    pipe(class_labels=[0, 2, 1], image=image[0], **asked)
    unconditional = make_pipe("unconditional")
    colour = as_tensor(pictures(3, 8, 3))
    assert len(unconditional(image=colour, **asked).images) == 3


def test_a_latent_pipeline_encodes_what_it_decodes():
    pipe, image = latent_pipe(), as_tensor(pictures(3, 16))
    with torch.no_grad():
        expected = (
            pipe.vae.encode(2 * image - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        )
    codes = edit(pipe, image, strength=0.0, class_labels=[0, 1], output_type="latent")
    torch.testing.assert_close(codes, expected)


def test_the_loop_is_as_long_as_the_strength_says():
    for strength, steps, left in ((0.58, 50, 29), (0.3, 10, 3), (0.1, 10, 1), (0.99, 10, 9)):
        assert steps - begin_of(strength, steps, 1) == left
    pipe, calls = make_pipe(), []
    edit(
        pipe,
        as_tensor(pictures(1, 8, 1)),
        10,
        strength=0.3,
        class_labels=0,
        callback_on_step_end=lambda p, i, t, k: calls.append((i, p.num_timesteps)),
    )
    assert calls == [(0, 3), (1, 3), (2, 3)] and pipe.num_timesteps == 3


IMAGE = torch.rand(1, 1, 8, 8)
REFUSED = {
    "strength without image": ({"strength": 0.5}, "strength was given without an image"),
    "mask without image": ({"mask_image": IMAGE}, "mask_image was given without an image"),
    "strength": ({"image": IMAGE, "strength": 1.5}, r"must lie in \[0, 1\], got 1.5"),
    "negative": ({"image": IMAGE, "strength": -0.1}, r"must lie in \[0, 1\], got -0.1"),
    "no number": ({"image": IMAGE, "strength": "half"}, "strength must be a finite number"),
    "no step": ({"image": IMAGE, "strength": 0.1}, "strength=0.1 of 6 steps is none: .* 0.1666"),
    "size": ({"image": torch.rand(1, 1, 7, 8)}, "height and width must be multiples of 2 pixels"),
    "height": ({"image": IMAGE, "height": 4}, "height=4 contradicts the image, which has 8"),
    "channels": ({"image": torch.rand(1, 3, 8, 8)}, "must have 1 channels"),
    "scale": ({"image": 2 * IMAGE - 1}, r"in \[0, 1\], got .* become these by x / 2"),
    "bytes as floats": ({"image": 255 * IMAGE}, r"in \[0, 1\], got"),
    "integers": ({"image": (255 * IMAGE).long()}, "must be bytes, or floating-point"),
    "NaN": ({"image": IMAGE * float("nan")}, r"in \[0, 1\], got"),
    "path": ({"image": "cat.png"}, "must be a PIL picture, an array, a tensor"),
    "nothing": ({"image": []}, "must be at least one picture"),
    "sizes": ({"image": [IMAGE, torch.rand(1, 1, 4, 4)]}, r"one size, got \[\(4, 4\), \(8, 8\)\]"),
    "number": ({"image": torch.rand(3, 1, 8, 8), "class_labels": [0, 1]}, "the 2 images .* got 3"),
    "mask size": ({"image": IMAGE, "mask_image": torch.rand(4, 4)}, r"\(8, 8\) of the 1 images"),
    "mask number": ({"image": IMAGE, "mask_image": torch.rand(2, 1, 8, 8)}, "got 2 of"),
    "mask colours": ({"image": IMAGE, "mask_image": torch.rand(3, 8, 8)}, "must have 1 channels"),
    "latents": ({"image": IMAGE, "latents": torch.zeros(1, 1, 4, 4)}, "must have the shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_edited_is_refused(case):
    kwargs, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make_pipe()(**{"class_labels": 0, "num_inference_steps": STEPS} | kwargs)


@pytest.mark.parametrize("kind, made_for", [("labels", "8 x 8"), ("latent", "16 x 16")])
def test_a_picture_of_another_size_gives_a_warning(kind, made_for, recwarn):
    make, channels, side, asked = KINDS[kind]
    pipe = make()
    draws, loose = {"num_inference_steps": 2, **asked}, {"tolerance": 1.0}
    for given in (pictures(channels, side), pictures(channels, 2 * side)):
        height, width = given.shape[1:3]
        recwarn.clear()
        pipe(image=given, strength=0.5, height=height, width=width, **draws)
        assert not recwarn.list
        for call in (
            lambda given=given: pipe(image=given, strength=0.5, **draws),
            lambda given=given: pipe.invert(given, **loose, **draws),
            lambda given=given: pipe.log_likelihood(given, num_probes=1, **draws),
        ):
            recwarn.clear()
            call()
            said = [str(each.message) for each in recwarn.list]
            told = f"has {2 * side} x {2 * side} pixels, and the network was made for {made_for}"
            assert [told in text for text in said] == [True] * (height != side)
