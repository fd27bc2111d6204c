"""A diffusion transformer in the pipeline: the loop of diffusers' own DiT pipeline."""

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, SD3Transformer2DModel
from test_pipeline import CLASSES, STEPS, assert_same, draw, generators, make_unet
from tiny_networks import unet, vae

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler


def make_transformer(classes=CLASSES, channels=1, **config):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
    transformer = DiTTransformer2DModel(
        in_channels=channels, num_embeds_ada_norm=classes, **sizes | config
    )
    return transformer.eval()


def make_pipe(transformer, null_label=None, autoencoder=None, **config):
    pipe = FlowMatchingPipeline(
        transformer=transformer,
        scheduler=GaussianFlowScheduler(**config),
        null_label=null_label,
        vae=autoencoder,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipe(make_transformer(), CLASSES)


@pytest.mark.parametrize("out_channels", [None, 8], ids=["plain", "learned variance"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_pipeline_is_diffusers_dit_pipeline_over_the_same_components(
    guidance_scale, out_channels
):
    transformer = make_transformer(1000, 4, out_channels=out_channels or 4)
    ours = make_pipe(transformer, 1000, vae().eval())
    theirs = DiTPipeline(transformer, ours.vae, ours.scheduler)
    theirs.set_progress_bar_config(disable=True)
    asked = {"class_labels": [1, 207], "guidance_scale": guidance_scale, "output_type": "np"}
    found, expected = (
        call(**asked, num_inference_steps=STEPS, generator=generators(0, 1)).images
        for call in (ours, theirs)
    )
    assert found.shape == expected.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found[0], found[1], atol=1e-2)


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_an_image_does_not_depend_on_its_batch(diffusion):
    pipe = make_pipe(make_transformer(), CLASSES, diffusion=diffusion)
    batch = draw(pipe, [2, 0], guidance_scale=2.0, generator=generators(0, 1))
    for i, label in enumerate((2, 0)):
        alone = draw(pipe, label, guidance_scale=2.0, generator=generators(i))
        assert_same(alone[0], batch[i])


def test_the_null_label_is_the_last_row_and_guidance_starts_from_it(pipe):
    rows = pipe.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    assert pipe.num_classes == CLASSES and rows.num_embeddings == CLASSES + 1
    nothing = draw(pipe, batch_size=2)
    assert_same(draw(pipe, [0, 2], guidance_scale=0.0), nothing)
    assert not torch.allclose(draw(pipe, [0, 2]), nothing, atol=1e-4)


def test_a_transformer_without_classes_is_fed_its_only_label():
    pipe = make_pipe(make_transformer(0), null_label=0)
    assert (pipe.num_classes, pipe.takes, pipe.network_takes_labels) == (0, "nothing", True)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, labels = x, torch.zeros(2, dtype=torch.long)
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = pipe.transformer(expected, t.expand(2), labels).sample
            expected = scheduler.step(output, t, expected).prev_sample
    assert_same(draw(pipe, batch_size=2), expected)
    with pytest.raises(ValueError, match="class_labels was given, but .* is unconditional"):
        draw(pipe, class_labels=[0])


def test_a_transformer_without_null_label_needs_labels():
    pipe = make_pipe(make_transformer())
    assert pipe.num_classes == CLASSES
    with pytest.raises(ValueError, match="has no null label: pass class_labels, each in 0..2"):
        draw(pipe)
    assert torch.equal(draw(pipe, 1), draw(make_pipe(make_transformer(), CLASSES), 1))


def test_saved_pipelines_draw_the_same_images(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = FlowMatchingPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.unet is None and type(again.transformer) is DiTTransformer2DModel
    assert {file.name for file in tmp_path.iterdir() if file.is_dir()} == {
        "scheduler",
        "transformer",
    }
    asked = {"class_labels": [0, 1], "guidance_scale": 2.0}
    torch.testing.assert_close(draw(again, **asked), draw(pipe, **asked), rtol=1e-5, atol=1e-5)


def test_larger_square_images_are_drawn_and_others_are_refused(pipe):
    assert draw(pipe, 0, height=16, width=16).shape == (1, 1, 16, 16)
    for asked in (
        {"height": 16},
        {"height": 9, "width": 9},
        {"latents": torch.zeros(1, 1, 8, 16)},
    ):
        with pytest.raises(ValueError, match=r"square images, samples of a multiple of 2: got \("):
            draw(pipe, 0, **asked)


def test_compiled_networks_are_accepted():
    unet = torch.compile(make_unet(CLASSES + 1))
    pipe = FlowMatchingPipeline(unet, GaussianFlowScheduler(), CLASSES)
    assert pipe.network is unet and pipe.num_classes == CLASSES


def sd3():
    return SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "a pipeline needs a scheduler, and a unet or a transformer, not both"),
        ({"transformer": make_transformer(), "unet": make_unet()}, "not both"),
        ({"transformer": make_transformer(), "scheduler": None}, "needs a scheduler"),
        ({"transformer": make_transformer(), "null_label": 2}, "got 2 for 4 labels"),
        (
            {"transformer": sd3()},
            r"called as \(sample, timestep, .* SD3.* \('hidden_states', 'enc",
        ),
        ({"unet": unet(in_channels=9)}, "must return its in_channels=9 channels, .*channels=4"),
        (
            {"transformer": make_transformer(), "vae": vae()},
            "vae has latent_channels=4, but the network has in_channels=1",
        ),
    ],
)
def test_components_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchingPipeline(**{"scheduler": GaussianFlowScheduler()} | parts)
