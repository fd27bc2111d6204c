"""Guiders of diffusers: the same field has the same guided samples, however it is expressed."""

import copy
import logging

import diffusers
import pytest
import torch
from diffusers import (
    AutoGuidance,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.guiders import MagnitudeAwareGuidance
from exact_network import exact_pipe, noise
from test_editing import KINDS
from test_pipeline import CLASSES, draw, generators, make_pipe, make_unet
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_pipe as make_transformer_pipe
from test_pipeline_transformer import make_transformer

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.pipelines.guidance import GUIDERS, REFUSED

logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)

#: Guiders that work with any network, with what makes them differ from plain guidance.
OF_ANY = {
    "ClassifierFreeGuidance": {"start": 0.2, "stop": 0.7, "guidance_rescale": 0.5},
    "ClassifierFreeZeroStarGuidance": {"zero_init_steps": 2},
    "AdaptiveProjectedGuidance": {
        "adaptive_projected_guidance_momentum": -0.5,
        "adaptive_projected_guidance_rescale": 1.0,
        "eta": 0.5,
    },
    "AdaptiveProjectedMixGuidance": {
        "adaptive_projected_guidance_momentum": -0.5,
        "adaptive_projected_guidance_rescale": 1.0,
        "adaptive_projected_guidance_start_step": 3,
        "eta": 0.5,
    },
    "TangentialClassifierFreeGuidance": {},
}
#: Guiders that make the network worse by hooks on its second layer.
OF_LAYERS = {
    "AutoGuidance": {"auto_guidance_layers": [1], "dropout": 1.0},
    "PerturbedAttentionGuidance": {
        "perturbed_guidance_layers": [1],
        "perturbed_guidance_start": 0.0,
        "perturbed_guidance_stop": 1.0,
    },
    "SkipLayerGuidance": {
        "skip_layer_guidance_layers": [1],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    },
    "SmoothedEnergyGuidance": {"seg_guidance_layers": [1]},
}
PREDICTIONS = ["velocity", "flow_prediction", "sample", "epsilon", "v_prediction", "score"]


def make_guider(name, scale=2.5, **options):
    options = {"guidance_scale": scale, **(OF_ANY | OF_LAYERS)[name], **options}
    return getattr(diffusers, name)(**options)


def test_every_guider_of_diffusers_is_known():
    from diffusers import guiders

    theirs = {name for name in vars(guiders) if name.endswith("Guidance")} - {"BaseGuidance"}
    assert theirs == {*GUIDERS, *REFUSED} == {*OF_ANY, *OF_LAYERS, *REFUSED}


@pytest.mark.parametrize("path", ["linear", "cosine", "variance_preserving"])
@pytest.mark.parametrize("name", OF_ANY)
def test_samples_do_not_depend_on_what_the_network_predicts(name, path):
    x, found = noise(3), []
    for prediction in PREDICTIONS:
        pipe = exact_pipe(path, prediction, solver="heun" if path == "cosine" else "ddim")
        asked = {"class_labels": [0, 1, 1], "latents": x, "num_inference_steps": 10}
        guider = make_guider(name)
        found.append(pipe(**asked, guider=guider, output_type="latent").images)
        assert guider._step is None  # the user's own is not stepped
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
    plain = pipe(**asked, guidance_scale=2.5, output_type="latent").images
    assert (plain - found[0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", OF_ANY)
def test_samples_do_not_depend_on_the_path(name):
    x, found = noise(3), []
    for path in ("linear", "cosine", "variance_preserving"):
        pipe = exact_pipe(path, "velocity", solver="ddim", sampling_path="linear")
        found.append(
            pipe(
                class_labels=[0, 1, 1],
                latents=x,
                sigmas=[0.95, 0.7, 0.4, 0.1],
                guider=make_guider(name),
                output_type="latent",
            ).images
        )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize(
    "make",
    [make_pipe, make_text_pipe, lambda: make_transformer_pipe(make_transformer(), CLASSES)],
    ids=["unet", "text", "transformer"],
)
def test_classifier_free_guidance_is_ours(make, original):
    pipe = make()
    asked = {"prompt": ["seven", "zero"]} if pipe.takes == "text" else {"class_labels": [0, 2]}
    expected = draw(pipe, **asked, guidance_scale=3.0)
    scale = {"guidance_scale": 2.0 if original else 3.0, "use_original_formulation": original}
    found = draw(pipe, **asked, guider=ClassifierFreeGuidance(**scale))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_interval_asks_the_network_once_outside_of_it():
    pipe = exact_pipe(solver="ddim")
    guider = ClassifierFreeGuidance(guidance_scale=2.0, start=0.25, stop=0.75)
    pipe(class_labels=0, latents=noise(1), num_inference_steps=8, guider=guider)
    assert pipe.unet.calls == [1, 1, 2, 2, 2, 2, 1, 1]


def test_zero_star_takes_no_step_of_the_linear_path_at_first():
    pipe, seen = exact_pipe(solver="euler"), []
    pipe(
        class_labels=0,
        latents=noise(1),
        num_inference_steps=5,
        guider=make_guider("ClassifierFreeZeroStarGuidance"),
        callback_on_step_end=lambda p, i, t, k: seen.append(k["latents"].clone()),
    )
    assert torch.equal(seen[0], noise(1)) and torch.equal(seen[1], noise(1))
    assert not torch.equal(seen[2], noise(1))


# --- guiders that make the network worse ---------------------------------------------------------


@pytest.mark.parametrize("name", OF_LAYERS)
def test_layers_are_skipped_for_one_evaluation_and_then_restored(name):
    transformer = make_transformer()
    pipe = make_transformer_pipe(transformer, CLASSES)
    plain = draw(pipe, [0, 2])
    found = draw(pipe, [0, 2], guider=make_guider(name))
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(draw(pipe, [0, 2]), plain)
    with pytest.raises(RuntimeError, match="half way"):  # restored after an error, too
        transformer.transformer_blocks[0].forward = _raising
        draw(pipe, [0, 2], guider=make_guider(name))
    del transformer.transformer_blocks[0].forward
    assert torch.equal(draw(pipe, [0, 2]), plain)


def _raising(*args, **kwargs):
    raise RuntimeError("half way")


def test_skipping_a_layer_is_written_out():
    """One step of skip-layer guidance without classifier-free guidance, by hand."""
    pipe = make_transformer_pipe(make_transformer(), CLASSES, solver="euler")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    guider = make_guider("SkipLayerGuidance", scale=1.0, skip_layer_guidance_scale=1.5)
    seen = {}
    pipe(
        class_labels=[0, 2],
        latents=x,
        num_inference_steps=3,
        guider=guider,
        callback_on_step_end=lambda p, i, t, k: seen.setdefault(i, k),
        callback_on_step_end_tensor_inputs=["latents", "model_output"],
    )
    worse = copy.deepcopy(pipe.transformer)
    del worse.transformer_blocks[1]
    at, labels = seen[0]["latents"], torch.tensor([0, 2])  # diffusers skips after the first step
    t = pipe.scheduler.timesteps[1].expand(2)
    with torch.no_grad():
        good, bad = (
            network(at, t, labels, return_dict=False)[0] for network in (pipe.transformer, worse)
        )
    expected = bad + 1.5 * (good - bad)
    torch.testing.assert_close(seen[1]["model_output"], expected, rtol=1e-5, atol=1e-5)


def test_a_worse_network_guides_without_a_null_label():
    pipe = make_transformer_pipe(make_transformer(0), null_label=0)
    plain = draw(pipe, batch_size=2)
    for name in OF_LAYERS:
        scale = 2.5 if name == "AutoGuidance" else 1.0
        assert (draw(pipe, batch_size=2, guider=make_guider(name, scale)) - plain).any()


def test_layers_of_a_text_unet_are_told_by_name():
    pipe = make_text_pipe()
    blocks = "mid_block.attentions.0.transformer_blocks"
    config = diffusers.LayerSkipConfig([0], fqn=blocks, skip_attention=False)
    config.skip_attention_scores, config.skip_ff = True, False
    guider = PerturbedAttentionGuidance(
        guidance_scale=2.0,
        perturbed_guidance_config=config,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
    )
    found = draw(pipe, prompt="seven", guider=guider)
    assert (found - draw(pipe, prompt="seven", guidance_scale=2.0)).any()


# --- what cannot be done -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guider", "message"),
    [
        (lambda: MagnitudeAwareGuidance(), "MagnitudeAwareGuidance cannot .* norms"),
        (lambda: _made(diffusers.FrequencyDecoupledGuidance), "cannot guide .* kornia"),
        (lambda: _made(Unknown), r'Unknown is not known: .*GUIDERS\["Unknown"\]'),
        (lambda: 3.0, "must be a guider of diffusers, .* got 3.0"),
        (lambda: make_guider("SkipLayerGuidance"), "cannot skip these layers of a UNet2DModel"),
        (lambda: make_guider("AutoGuidance"), "cannot skip these layers of a UNet2DModel"),
        (lambda: make_guider("SmoothedEnergyGuidance"), "cannot skip these layers"),
    ],
)
def test_guiders_that_cannot_serve_are_refused_and_why(guider, message):
    with pytest.raises(ValueError, match=message):
        draw(make_pipe(), 0, guider=guider())


class Unknown(ClassifierFreeGuidance):
    """Has no ancestor that is known: see `_made`."""


Unknown.__bases__ = (diffusers.guiders.BaseGuidance,)


def _made(cls):
    """Return a guider without its constructor, which wants libraries or the name of a table."""
    return cls.__new__(cls)


@pytest.mark.parametrize("kind", ["conditional", "unconditional"])
def test_a_guider_needs_what_it_compares_with(kind):
    pipe = make_pipe(kind)
    asked = {"class_labels": [0]} if kind == "conditional" else {}
    with pytest.raises(ValueError, match="ClassifierFreeGuidance of 2.5 needs class_labels and"):
        draw(pipe, **asked, guider=make_guider("ClassifierFreeGuidance"))


def test_two_guidances_at_once_are_refused():
    for scale in (1.0, 2.0):
        with pytest.raises(ValueError, match=f"guidance_scale={scale} .* beside the guider Class"):
            draw(
                make_pipe(), 0, guidance_scale=scale, guider=make_guider("ClassifierFreeGuidance")
            )


def test_a_guider_works_with_a_scheduler_of_diffusers():
    ours = exact_pipe("linear", "flow_prediction", solver="euler")
    theirs = FlowMatchingPipeline(
        ours.unet, FlowMatchEulerDiscreteScheduler(), null_label=ours.config.null_label
    )
    theirs.set_progress_bar_config(disable=True)
    sigmas = [0.95, 0.7, 0.4, 0.1]
    ours.scheduler = type(ours.scheduler).from_config(ours.scheduler.config, t_max=1.0)
    asked = {"class_labels": [0, 1], "latents": noise(2), "sigmas": sigmas}
    for name in ("AdaptiveProjectedGuidance", "ClassifierFreeZeroStarGuidance"):
        found, expected = (
            pipe(**asked, guider=make_guider(name), output_type="latent").images
            for pipe in (theirs, ours)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- the component -------------------------------------------------------------------------------


def test_the_guider_of_a_pipeline_is_saved_and_guides_every_call(tmp_path):
    guider = make_guider("AdaptiveProjectedGuidance")
    pipe = make_pipe()
    expected = draw(pipe, [0, 1], guider=guider)
    pipe.guider = guider
    assert torch.equal(draw(pipe, [0, 1]), expected)
    pipe.save_pretrained(tmp_path)
    loaded = FlowMatchingPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.guider) is type(guider) and torch.equal(draw(loaded, [0, 1]), expected)
    other = draw(loaded, [0, 1], guider=make_guider("ClassifierFreeGuidance"))
    assert not torch.equal(other, expected)
    with pytest.raises(ValueError, match="beside the guider AdaptiveProjectedGuidance"):
        draw(loaded, [0, 1], guidance_scale=3.0)


def test_pipelines_without_a_guider_load_as_before(tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    assert FlowMatchingPipeline.from_pretrained(tmp_path).guider is None


def test_a_callback_sees_and_changes_the_scale_of_a_guider():
    pipe, seen = exact_pipe(solver="ddim"), []

    def callback(pipe, i, t, tensors):
        seen.append((pipe.guidance_scale, pipe.do_classifier_free_guidance))
        if i == 3:
            pipe._guidance_scale = 1.0

    asked = {"class_labels": 0, "latents": noise(1), "num_inference_steps": 6}
    pipe(
        **asked,
        guider=make_guider("ClassifierFreeGuidance", start=0.0, stop=1.0, guidance_rescale=0.0),
        callback_on_step_end=callback,
    )
    assert pipe.unet.calls == [2, 2, 2, 2, 1, 1]
    assert seen == [(2.5, True)] * 4 + [(1.0, True)] * 2


def test_unets_without_transformer_blocks_have_no_layers_to_skip():
    assert not hasattr(make_unet(), "transformer_blocks")
    for guider in (AutoGuidance, SkipLayerGuidance, SmoothedEnergyGuidance):
        assert guider.__name__ in GUIDERS


@pytest.mark.parametrize("name", OF_ANY)
@pytest.mark.parametrize("kind", ["text", "latent", "latent text"])
def test_a_guided_image_does_not_depend_on_its_batch(kind, name):
    make, _, side, asked = KINDS[kind]
    pipe, guider = make(), make_guider(name)
    size = {"height": side, "width": side}
    batch = draw(pipe, **asked, **size, guider=guider, generator=generators(0, 1))
    for i in (0, 1):
        one = {key: value[i] for key, value in asked.items()}
        alone = draw(pipe, **one, **size, guider=guider, generator=generators(i))
        torch.testing.assert_close(alone[0], batch[i], rtol=1e-4, atol=1e-4)
