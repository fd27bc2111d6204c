"""Scripts that are the first one with a feature more, from the command line on tiny networks."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModel

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.data import load_images
from fm_diffusers.training.text_networks import Prompted, make_text_encoder

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
pytestmark = pytest.mark.usefixtures("few_digits")


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
    images = load_images("digits").images.float() / 127.5 - 1
    with torch.no_grad():
        codes = vae.encode(images).latent_dist.mean
        error = (vae.decode(codes).sample - images).square().mean()
    assert codes.shape == (400, 2, 4, 4)
    assert error < 0.5 * images.var()
    assert abs((vae.config.scaling_factor * codes).std() - 1) < 0.1
    picture = Image.open(tmp_path / "reconstructions.png")
    assert picture.width == 20 * (56 + 4) + 4 < 12 * picture.height


@pytest.mark.parametrize("backbone", ["unet", "transformer"])
def test_a_flow_is_trained_in_latent_space_and_its_samples_decoded(backbone, examples, tmp_path):
    torch.manual_seed(0)
    blocks = {"down_block_types": 2 * ["DownEncoderBlock2D"]}
    blocks |= {"up_block_types": 2 * ["UpDecoderBlock2D"], "block_out_channels": [8, 8]}
    AutoencoderKL(
        1, 1, **blocks, latent_channels=2, norm_num_groups=4, sample_size=8, scaling_factor=0.7
    ).save_pretrained(tmp_path / "vae")
    script, output = examples("train_latent"), tmp_path / "latent"
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    script.main(
        script.LatentArguments(
            **TINY | sizes,
            output_dir=str(output),
            vae=str(tmp_path / "vae"),
            backbone=backbone,
            block_out_channels=[8, 16],
            max_train_steps=3,
        )
    )
    assert draw(output, class_labels=[3, 7], guidance_scale=2.0).shape == (2, 1, 8, 8)
    pipe = FlowMatchingPipeline.from_pretrained(output)
    assert pipe.network.config.sample_size == 4 and pipe.network.config.in_channels == 2
    saved = load_file(output / "vae" / "diffusion_pytorch_model.safetensors")
    given = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name], given[name]) for name in given)


def test_codes_are_what_the_pipeline_decodes(examples, tmp_path, monkeypatch):
    """The flow learns (encode(x) - shift) scale, so that codes have the standard deviation 1."""
    script, seen = examples("train_latent"), []
    blocks = {"block_out_channels": [8, 8], "latent_channels": 2, "norm_num_groups": 4}
    blocks |= {"down_block_types": 2 * ["DownEncoderBlock2D"]}
    blocks |= {"up_block_types": 2 * ["UpDecoderBlock2D"]}
    vae = AutoencoderKL(1, 1, **blocks, scaling_factor=0.7, shift_factor=0.3)
    vae.save_pretrained(tmp_path)
    monkeypatch.setattr(script.train_mnist, "main", lambda args, encode, vae: seen.append(encode))
    script.main(script.LatentArguments(**TINY, vae=str(tmp_path)))
    images = torch.randn(400, 1, 8, 8)
    with torch.no_grad():
        posterior = vae.eval().encode(images).latent_dist
    standard = (seen[0](images) / 0.7 + 0.3 - posterior.mean) / posterior.std
    assert abs(standard.mean()) < 4 / standard.numel() ** 0.5
    assert abs(standard.std() - 1) < 4 / standard.numel() ** 0.5
    with pytest.raises(ValueError, match="takes 1 channels, the images have 3: choose --image_mo"):
        seen[0](torch.randn(1, 3, 8, 8))


def test_prompts_of_class_names_draw_their_classes(examples, tmp_path):
    script = examples("train_text_to_image")
    arguments = TINY | {"output_dir": str(tmp_path), "block_out_channels": [8, 16]}
    script.main(script.TextArguments(**arguments, max_train_steps=3))
    seven = draw(tmp_path, prompt="a handwritten seven", guidance_scale=2.0)
    assert seven.shape == (1, 1, 8, 8)
    assert not torch.equal(seven, draw(tmp_path, prompt="a handwritten three", guidance_scale=2.0))
    assert torch.equal(seven, draw(tmp_path, prompt="A handwritten  seven", guidance_scale=2.0))
    assert "text-to-image" in (tmp_path / "README.md").read_text()
    encoder = CLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, subfolder="tokenizer")
    tokens = tokenizer("a handwritten seven").input_ids
    assert tokenizer.decode(tokens) == "<start> a handwritten seven <end>"
    assert encoder.config.vocab_size == len(tokenizer) == 4 + 2 + 10


@pytest.mark.parametrize("streaming", [False, True])
def test_captions_and_a_frozen_encoder_train_as_well(streaming, examples, tmp_path):
    script, data = examples("train_text_to_image"), tmp_path / "data"
    texts = ["black square", "white square", "grey"]
    rows = [{"file_name": f"{i}.png", "text": texts[i % 3]} for i in range(12)]
    data.mkdir()
    for i, row in enumerate(rows):
        Image.new("L", (8, 8), (0, 255, 128)[i % 3]).save(data / row["file_name"])
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer, encoder = make_text_encoder(texts)
    tokenizer.save_pretrained(tmp_path / "encoder")
    encoder.save_pretrained(tmp_path / "encoder")
    arguments = TINY | {
        "output_dir": str(tmp_path / "out"),
        "block_out_channels": [8, 16],
        "dataset_name": str(data),
        "caption_column": "text",
        "text_encoder": str(tmp_path / "encoder"),
        "train_batch_size": 6,
    }
    arguments |= {"max_train_steps": 3, "streaming": streaming}
    script.main(script.TextArguments(**arguments))
    assert draw(tmp_path / "out", prompt=["grey", "white square"]).shape == (2, 1, 8, 8)
    saved = CLIPTextModel.from_pretrained(tmp_path / "out", subfolder="text_encoder")
    for weight, given in zip(saved.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(weight, given)
    with pytest.raises(ValueError, match="takes prompts: a flow of classes, or without"):
        examples("reflow").load(str(tmp_path / "out"))
    if streaming:
        with pytest.raises(ValueError, match="does not tell the words .* name a --text_encoder"):
            script.main(script.TextArguments(**arguments | {"text_encoder": ""}))


def test_dropout_of_a_frozen_encoder_stays_off():
    """After a picture the network is set to train again, and a run must go on as before it."""
    _, encoder = make_text_encoder(["a", "b"])
    network = Prompted(torch.nn.Dropout(), encoder)
    network.eval().train()
    assert network.unet.training and encoder.training
    encoder.eval().requires_grad_(False)
    network.eval().train()
    assert network.unet.training and not any(m.training for m in encoder.modules())


@pytest.fixture(scope="module")
def trained(few_digits, tmp_path_factory):
    """Train a small flow for a few seconds."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        script = importlib.import_module("train_mnist")
        arguments = TINY | {"output_dir": str(output), "block_out_channels": [8, 16]}
        arguments |= {"train_batch_size": 64, "learning_rate": 3e-3, "ema_decay": 0.98}
        script.main(script.Arguments(**arguments, max_train_steps=100))
    return output


def test_reflow_straightens_a_flow_and_few_steps_come_nearer(
    trained, examples, tmp_path, monkeypatch
):
    script = examples("reflow")
    monkeypatch.setattr(script.measure, "__defaults__", (40, 40))  # samples, and many steps
    arguments = {name: value for name, value in TINY.items() if name != "dataset_name"}
    arguments |= {"model": str(trained), "output_dir": str(tmp_path), "ema_decay": 0.98}
    script.main(
        script.ReflowArguments(
            **arguments, num_pairs=320, pair_steps=8, max_train_steps=60, learning_rate=2e-3
        )
    )
    before, after = (script.measure(script.load(folder), seed=5) for folder in (trained, tmp_path))
    assert after["straightness"] < 0.6 * before["straightness"]
    assert after["euler 1"] < 0.8 * before["euler 1"]
    assert after["euler 2"] < 0.8 * before["euler 2"]
    card = (tmp_path / "README.md").read_text()
    assert "straightness, before and after" in card and "diffusion=" not in card
    config = FlowMatchingPipeline.from_pretrained(tmp_path).scheduler.config
    with pytest.raises(ValueError, match="paired in the training, so that the velocity does not"):
        GaussianFlowScheduler.from_config(config, diffusion="memoryless")
    assert draw(tmp_path, class_labels=[3, 7], guidance_scale=2.0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": "cosine"}, "a flow on the path 'cosine': straight lines are those of the line"),
        ({"prediction_type": "epsilon"}, "predicts 'epsilon', which has no velocity at the noise"),
    ],
)
def test_flows_without_straight_lines_are_refused(config, message, trained, examples, tmp_path):
    pipe = FlowMatchingPipeline.from_pretrained(trained)
    pipe.scheduler = GaussianFlowScheduler(**config)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        examples("reflow").load(str(tmp_path))
