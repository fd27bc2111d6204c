"""Scripts that are the first one with a feature more, from the command line on tiny networks."""

import importlib
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.training.data import load_images

pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "dataset_name": "digits",
    "lr_warmup_steps": 2,
    "validation_steps": 10**6,
    "checkpointing_steps": 10**6,
    "report_to": "none",
    "train_batch_size": 32,
}


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def draw(output, **kwargs):
    pipe = FlowMatchingPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(num_inference_steps=2, output_type="pt", generator=generator, **kwargs).images


@pytest.mark.parametrize("label_column", ["label", ""])
def test_a_transformer_trains_with_and_without_classes(label_column, examples, tmp_path):
    script = examples("train_mnist")
    script.main(
        script.Arguments(
            **TINY,
            output_dir=str(tmp_path),
            backbone="transformer",
            label_column=label_column,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            max_train_steps=3,
        )
    )
    asked = {"class_labels": [3, 7], "guidance_scale": 2.0} if label_column else {"batch_size": 2}
    assert draw(tmp_path, **asked).shape == (2, 1, 8, 8)


def test_an_autoencoder_learns_to_reconstruct_and_has_codes_of_standard_deviation_one(
    examples, tmp_path
):
    script = examples("train_autoencoder")
    widths = {"block_out_channels": [8, 16], "latent_channels": 2}
    arguments = TINY | widths | {"output_dir": str(tmp_path), "learning_rate": 3e-3}
    script.main(script.AutoencoderArguments(**arguments, max_train_steps=60))
    vae = AutoencoderKL.from_pretrained(tmp_path).eval()
    images = load_images("digits").images[:500].float() / 127.5 - 1
    with torch.no_grad():
        codes = vae.encode(images).latent_dist.mean
        error = (vae.decode(codes).sample - images).square().mean()
    assert codes.shape == (500, 2, 4, 4)
    assert error < 0.5 * images.var()
    assert abs((vae.config.scaling_factor * codes).std() - 1) < 0.1
    assert Image.open(tmp_path / "reconstructions.png").size == (20 * 8, 2 * 8)
