"""Fine-tuning by adapters, from the command line on tiny networks."""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer, Repo, run
from PIL import Image
from safetensors.torch import load_file

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.data import load_images
from fm_diffusers.training.networks import BACKBONES, NetworkArguments
from fm_diffusers.training.text_networks import make_text_encoder, make_text_unet

datasets = pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"
WEIGHTS = "pytorch_lora_weights.safetensors"
COUNT = 192  # images, three batches
#: Of an untrained base, whose last layer alone can learn.
LAST = {"unet": ["to_q", "to_v", "conv_out"], "transformer": ["to_q", "to_v", "proj_out_2"]}
TINY = {
    "lr_warmup_steps": 2,
    "validation_steps": 10**6,
    "checkpointing_steps": 10**6,
    "report_to": "none",
    "train_batch_size": 64,
    "rank": 2,
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_lora")


@pytest.fixture(scope="module")
def inverted(tmp_path_factory):
    """Write the digits dark on white."""
    folder, data = tmp_path_factory.mktemp("inverted"), load_images("digits")
    images = [Image.fromarray(image) for image in 255 - data.images[:COUNT, 0].numpy()]
    names = datasets.ClassLabel(names=list("0123456789"))
    features = datasets.Features(image=datasets.Image(), label=names)
    columns = {"image": images, "label": data.labels[:COUNT].tolist()}
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def make_base(folder, backbone="unet", classes=10, side=8):
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    args = NetworkArguments(backbone=backbone, block_out_channels=[8, 16], **sizes)
    network = BACKBONES[backbone](args, (1, side, side), classes)
    for weight in network.parameters():  # else the last layer of a new DiT stops all gradients
        torch.nn.init.normal_(weight, std=0.05)
    null = classes if classes or backbone == "transformer" else None
    parts = {backbone: network, "scheduler": GaussianFlowScheduler(), "null_label": null}
    FlowMatchingPipeline(**parts).save_pretrained(folder)
    return str(folder)


def fine_tune(script, folder, **kwargs):
    """Train, and return the folder of the base and that of the adapter."""
    base = kwargs.pop("model", None) or make_base(folder / "base")
    output = str(folder / "output")
    script.main(script.LoraArguments(**TINY | {"model": base, "output_dir": output} | kwargs))
    return base, folder / "output"


def draw(pipe, **asked):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(**asked, num_inference_steps=3, generator=generator, output_type="pt").images


def figures(output):
    return json.loads((output / "training.json").read_text())


# --- what is learned and left --------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["unet", "transformer"])
def test_the_loss_on_other_images_falls_and_the_base_stays(backbone, script, inverted, tmp_path):
    base = make_base(tmp_path / "base", backbone)
    files = {f: f.read_bytes() for f in Path(base).rglob("*") if f.is_file()}
    run = {"max_train_steps": 40, "learning_rate": 1e-2, "lora_alpha": 16}
    run["lora_target_modules"] = LAST[backbone]
    _, output = fine_tune(script, tmp_path, model=base, dataset_name=inverted, **run)
    assert {f: f.read_bytes() for f in Path(base).rglob("*") if f.is_file()} == files
    left = {path.name for path in output.iterdir()}
    assert left - {".run.lock"} == {
        WEIGHTS,
        "README.md",
        "samples.png",
        "training.json",
        "checkpoint-40",
    }
    found = figures(output)
    assert found["steps"] == 40 and found["loss"] < 0.9 * found["loss before"]

    state = load_file(output / WEIGHTS)
    assert all(key.startswith(f"{backbone}.") and ".lora_" in key for key in state)
    trained = sum(weight.numel() for weight in state.values())
    assert found["parameters"].startswith(f"{trained:,} of ")
    pipe = FlowMatchingPipeline.from_pretrained(base)
    before = draw(pipe, class_labels=[3, 7])
    pipe.load_lora_weights(output)
    after = draw(pipe, class_labels=[3, 7])
    assert (after - before).abs().mean() > 0.01
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe, class_labels=[3, 7]), before)


def test_the_picture_shows_the_noise_without_and_with_the_adapter(script, inverted, tmp_path):
    base, output = fine_tune(script, tmp_path, dataset_name=inverted, max_train_steps=3)
    picture = Image.open(output / "samples.png")
    pipe = FlowMatchingPipeline.from_pretrained(base)
    asked, options = {"class_labels": list(range(10))}, {"rows": 2, "stochastic": False}
    parts = {}
    for word in ("without", "with"):
        ((title, samples),) = script.sample_parts(pipe, asked, **options).items()
        parts[f"{title}, {word} the adapter"] = samples
        pipe.load_lora_weights(output)
    assert [*parts][1] == "ODE, 20 steps, with the adapter"
    assert np.array_equal(picture, script.contact_sheet(parts, [str(i) for i in range(10)]))


def test_a_resumed_run_ends_with_the_same_adapter_bit_for_bit(script, inverted, tmp_path):
    run = {"dataset_name": inverted, "max_train_steps": 6, "checkpointing_steps": 3}
    base, output = fine_tune(script, tmp_path, **run)
    straight = load_file(output / WEIGHTS)
    (output / WEIGHTS).unlink()
    fine_tune(script, tmp_path, model=base, resume_from_checkpoint="checkpoint-3", **run)
    again = load_file(output / WEIGHTS)
    assert again.keys() == straight.keys()
    assert all(torch.equal(again[key], straight[key]) for key in straight)


def test_rank_alpha_and_layers_are_those_of_the_flags(script, inverted, tmp_path):
    flags = {"rank": 3, "lora_alpha": 6, "lora_target_modules": ["to_q", "conv_in"]}
    base, output = fine_tune(script, tmp_path, dataset_name=inverted, max_train_steps=2, **flags)
    pipe = FlowMatchingPipeline.from_pretrained(base)
    pipe.load_lora_weights(output, adapter_name="style")
    config = pipe.unet.peft_config["style"]
    assert (config.r, config.lora_alpha) == (3, 6)
    assert set(config.target_modules) == {"to_q", "conv_in"}


# --- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "classes", "column"),
    [("unet", 0, "label"), ("transformer", 0, "label"), ("unet", 10, ""), ("unet", 12, "label")],
)
def test_networks_are_told_what_they_know(backbone, classes, column, script, inverted, tmp_path):
    base = make_base(tmp_path / "base", backbone, classes)
    run = {"dataset_name": inverted, "max_train_steps": 2, "label_column": column}
    _, output = fine_tune(script, tmp_path, model=base, **run)
    pipe = FlowMatchingPipeline.from_pretrained(base)
    pipe.load_lora_weights(output)
    assert draw(pipe, batch_size=2).shape == (2, 1, 8, 8)


def test_images_are_brought_to_the_size_and_channels_of_the_network(script, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (64, 20, 20, 3), dtype=np.uint8)
    folder = tmp_path / "colours"
    folder.mkdir()
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(image) for image in colours]})
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    base = make_base(tmp_path / "base", classes=0, side=16)
    run = {"dataset_name": str(folder), "label_column": "", "max_train_steps": 1}
    fine_tune(script, tmp_path, model=base, **run)


def test_prompts_and_codes_are_fine_tuned(script, tmp_path):
    """A pipeline of text in a latent space, by the scripts that make one."""
    text = importlib.import_module("train_text_to_image")
    from diffusers import AutoencoderKL

    captions = [f"a {word}" for word in text.DIGITS]
    tokenizer, encoder = make_text_encoder(captions)
    unet = make_text_unet([8, 16], 1, (2, 8, 8), encoder.config.hidden_size)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "norm_num_groups": 8}
    blocks |= {"up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 8]}
    vae = AutoencoderKL(1, 1, latent_channels=2, scaling_factor=0.5, **blocks)
    FlowMatchingPipeline(
        unet, GaussianFlowScheduler(), vae=vae, text_encoder=encoder, tokenizer=tokenizer
    ).save_pretrained(tmp_path / "base")
    data = load_images("digits", resolution=16)
    rows = {"image": [Image.fromarray(image) for image in data.images[:80, 0].numpy()]}
    rows["text"] = [captions[label] for label in data.labels[:80].tolist()]
    folder = tmp_path / "captions"
    folder.mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    run = {"dataset_name": str(folder), "caption_column": "text", "max_train_steps": 2}
    base, output = fine_tune(
        script, tmp_path, model=str(tmp_path / "base"), **run, label_dropout=0.5
    )
    assert not [key for key in load_file(output / WEIGHTS) if not key.startswith("unet.")]
    pipe = FlowMatchingPipeline.from_pretrained(base)
    pipe.load_lora_weights(output)
    assert draw(pipe, prompt="a seven", guidance_scale=2.0).shape == (1, 1, 16, 16)


# --- the Hub -------------------------------------------------------------------------------------


def load():
    pipe = FlowMatchingPipeline.from_pretrained("user/base")
    base = draw(pipe, class_labels=[3])
    pipe.load_lora_weights("user/style", adapter_name="style")
    return {
        "changed": not torch.equal(draw(pipe, class_labels=[3]), base)
    } | pipe.get_list_adapters()


def train_and_load():
    sys.path.insert(0, str(EXAMPLES))
    sys.argv = os.environ["COMMAND"].split()
    runpy.run_path(sys.argv[0], run_name="__main__")
    return load()


@pytest.mark.slow
def test_the_adapter_alone_is_pushed_and_loaded_back(inverted, tmp_path):
    with HubServer() as hub:
        base = Path(make_base(tmp_path / "base"))
        files = [file for file in base.rglob("*") if file.is_file()]
        hub.repos["model", "user/base"] = Repo(
            {str(file.relative_to(base)): file.read_bytes() for file in files}
        )
        command = (
            f"{EXAMPLES / 'train_lora.py'} --model user/base --dataset_name {inverted} "
            f"--output_dir {tmp_path / 'out'} --rank 2 --train_batch_size 64 --max_train_steps 2 "
            "--lr_warmup_steps 0 --checkpointing_steps 2 --report_to none "
            f"--push_to_hub --hub_model_id user/style --hub_token {hub.token}"
        )
        loaded = run(train_and_load, hub.env | {"COMMAND": command})
        assert loaded == {"changed": True, "unet": ["style"]}
        pushed = hub.repos["model", "user/style"].files
        assert set(pushed) == {"README.md", WEIGHTS, "samples.png", "training.json"}
        assert (tmp_path / "out" / "checkpoint-2" / "optimizer.bin").is_file()
        card = pushed["README.md"].decode()
        assert "base_model: user/base" in card and "base_model_relation: adapter" in card
        assert "- lora" in card and 'pipe.load_lora_weights("user/style")' in card
        assert hub.token not in card


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"label_dropout": 2.0}, r"--label_dropout must lie in \[0, 1\], got 2.0"),
        ({"rank": 0}, r"--rank must be at least 1, got 0"),
        (
            {"lora_target_modules": ["to_q", "query"]},
            r"--lora_target_modules 'query' is the end of no layer's name in the unet",
        ),
        ({"classes": 3}, r"has 10 classes, the network of .* knows 3: choose another --label_col"),
        ({"model": "no/such/folder"}, r"there is no folder 'no/such/folder'"),
        ({"image_mode": "RGB"}, r"takes 1 channels, the images have 3: drop --image_mode"),
    ],
)
def test_what_cannot_be_trained_is_refused(kwargs, message, script, inverted, tmp_path):
    if "model" not in kwargs:
        base = make_base(tmp_path / "base", classes=kwargs.pop("classes", 10))
        kwargs = {"model": base} | kwargs
    with pytest.raises(ValueError, match=message):
        fine_tune(script, tmp_path, dataset_name=inverted, max_train_steps=1, **kwargs)
