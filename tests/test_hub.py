"""Our pipeline on the Hub: what one process pushes, another loads without trust flags.

A client is a function of this file that runs in a process of its own and returns plain data.
"""

import subprocess
import sys
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hub_server import HubServer, Repo, run

SCRIPT = Path(__file__).parents[1] / "examples" / "train_mnist.py"


@pytest.fixture
def hub():
    with HubServer() as hub:
        yield hub


def tiny_pipeline():
    import torch
    from diffusers import UNet2DModel

    from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

    torch.manual_seed(0)
    unet = UNet2DModel(
        8,
        1,
        1,
        block_out_channels=[8],
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
        num_class_embeds=4,
    )
    scheduler = GaussianFlowScheduler(path="cosine", diffusion="memoryless")
    return FlowMatchingPipeline(unet, scheduler, null_label=3)


def text_pipeline():
    from test_pipeline_text import make_text_pipe

    return make_text_pipe("clip", autoencoder=True)


def transformer_pipeline():
    from test_pipeline_transformer import make_pipe, make_transformer

    return make_pipe(make_transformer(3), null_label=3)


def draw(pipe, **asked):
    import torch

    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    options = {"num_inference_steps": 3, "generator": generator, "output_type": "pt"}
    images = pipe(**asked or {"class_labels": [0, 2]}, **options).images
    return images.flatten().tolist()


def push():
    pipe = tiny_pipeline()
    commits = [pipe.push_to_hub("user/flow", private=True).oid for _ in range(2)]
    return {"commits": commits, "images": draw(pipe)}


def load():
    from fm_diffusers import FlowMatchingPipeline

    pipe = FlowMatchingPipeline.from_pretrained("user/flow")
    names = [type(pipe).__name__, type(pipe.scheduler).__module__, pipe.scheduler.config.path]
    return {"names": names, "null_label": pipe.config.null_label, "images": draw(pipe)}


def load_as_a_diffusion_pipeline():
    from diffusers import DiffusionPipeline

    try:
        DiffusionPipeline.from_pretrained("user/flow")
        refused = False
    except ValueError as error:
        refused = "trust_remote_code" in str(error)
    pipe = DiffusionPipeline.from_pretrained("user/flow", trust_remote_code=True)
    return {"refused": refused, "images": draw(pipe)}


def draw_with_blocks(pipe):
    import torch

    pipe.load_components()
    asked = {"class_labels": [0, 2], "num_inference_steps": 3, "output_type": "pt"}
    generator = torch.Generator().manual_seed(1)
    return pipe(**asked, generator=generator, output="images").flatten().tolist()


def load_as_blocks_and_push_these():
    from diffusers import ModularPipeline

    pipe = ModularPipeline.from_pretrained("user/flow", trust_remote_code=True)
    images = draw_with_blocks(pipe)
    pipe.push_to_hub("user/blocks")
    again = ModularPipeline.from_pretrained("user/blocks", trust_remote_code=True)
    return [images, draw_with_blocks(again)]


def load_with_diffusers_own_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    from fm_diffusers import FlowMatchingPipeline

    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = FlowMatchingPipeline.from_pretrained("user/flow", scheduler=scheduler)
    return type(pipe.scheduler).__name__


def save_and_load_a_folder():
    from fm_diffusers import FlowMatchingPipeline

    with TemporaryDirectory() as folder:
        tiny_pipeline().save_pretrained(folder)
        return draw(FlowMatchingPipeline.from_pretrained(folder))


def test_a_pushed_pipeline_loads_without_trust_flags_and_draws_the_same(hub):
    pushed = run(push, hub.env)
    repo = hub.repos["model", "user/flow"]
    assert repo.private
    assert pushed["commits"] == [repo.refs["main"]] * 2  # the second push changes nothing
    assert set(repo.files) == {
        "README.md",
        "model_index.json",
        "modular_config.json",
        "modular_flow_matching.py",
        "modular_model_index.json",
        "pipeline_flow_matching.py",
        "scheduler/scheduler_config.json",
        "scheduler/scheduling_gaussian_flow.py",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    card = repo.files["README.md"].decode()
    assert "library_name: diffusers" in card and "- flow-matching" in card
    assert 'FlowMatchingPipeline.from_pretrained("user/flow")' in card

    expected = {
        "names": ["FlowMatchingPipeline", "fm_diffusers.scheduler", "cosine"],
        "null_label": 3,
        "images": pushed["images"],
    }
    assert run(load, hub.env) == expected
    requests = len(hub.requests)
    assert run(load, hub.env | {"HF_HUB_OFFLINE": "1"}) == expected
    assert len(hub.requests) == requests
    trusted = {"refused": True, "images": pushed["images"]}
    assert run(load_as_a_diffusion_pipeline, hub.env) == trusted
    assert run(load_as_blocks_and_push_these, hub.env) == [pushed["images"]] * 2
    assert run(load_with_diffusers_own_scheduler, hub.env) == "FlowMatchEulerDiscreteScheduler"
    assert run(save_and_load_a_folder, hub.env) == pushed["images"]


PROMPTS = {"prompt": ["seven", "a zero"], "guidance_scale": 2.0}


def push_the_other_kinds():
    text, transformer = text_pipeline(), transformer_pipeline()
    text.push_to_hub("user/text")
    transformer.push_to_hub("user/transformer")
    return [draw(text, **PROMPTS), draw(transformer)]


def load_the_other_kinds():
    from diffusers import DiffusionPipeline

    from fm_diffusers import FlowMatchingPipeline

    return [
        [draw(load("user/text"), **PROMPTS), draw(load("user/transformer"))]
        for load in (
            FlowMatchingPipeline.from_pretrained,
            partial(DiffusionPipeline.from_pretrained, trust_remote_code=True),
        )
    ]


def test_pipelines_of_text_codes_and_transformers_are_pushed_and_loaded(hub):
    expected = run(push_the_other_kinds, hub.env)
    folders = {
        name: {
            Path(file).parts[0] for file in hub.repos["model", f"user/{name}"].files if "/" in file
        }
        for name in ("text", "transformer")
    }
    assert folders["text"] == {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    assert folders["transformer"] == {"scheduler", "transformer"}
    assert run(load_the_other_kinds, hub.env) == [expected, expected]


def push_an_adapter():
    import torch
    from huggingface_hub import create_repo, upload_folder
    from peft import LoraConfig

    from fm_diffusers.pipelines.lora import lora_layers

    pipe = transformer_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
    for name, weight in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    with TemporaryDirectory() as folder:
        pipe.save_lora_weights(folder, **lora_layers(transformer=pipe.transformer))
        create_repo("user/adapter")
        upload_folder(repo_id="user/adapter", folder_path=folder)
    return draw(pipe)


def load_an_adapter():
    pipe = transformer_pipeline()
    plain = draw(pipe)
    pipe.load_lora_weights("user/adapter", adapter_name="style")
    adapted = draw(pipe)
    pipe.unload_lora_weights()
    return {"adapted": adapted, "plain": plain, "unloaded": draw(pipe)}


def test_an_adapter_is_pushed_and_loaded_into_its_base(hub):
    expected = run(push_an_adapter, hub.env)
    assert set(hub.repos["model", "user/adapter"].files) == {"pytorch_lora_weights.safetensors"}
    found = run(load_an_adapter, hub.env)
    assert found["adapted"] == expected
    assert found["unloaded"] == found["plain"] != expected


def mnist_repository():
    """Return a few images in the layout of the Hub's MNIST."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL.Image import fromarray

    features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
    rows = 40
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 28, 28), dtype=np.uint8)
    images = Dataset.from_dict(
        {"image": [fromarray(image) for image in pixels], "label": [i % 10 for i in range(rows)]},
        features=features,
    )
    file = BytesIO()
    images.to_parquet(file)
    return Repo({"mnist/train-00000-of-00001.parquet": file.getvalue()})


def test_the_script_trains_on_the_hub_and_pushes_what_belongs_there(hub, tmp_path):
    hub.repos["dataset", "ylecun/mnist"] = mnist_repository()
    command = (
        f"{sys.executable} -m accelerate.commands.launch --num_processes 1 --num_machines 1 "
        f"--mixed_precision no --dynamo_backend no {SCRIPT} --output_dir {tmp_path / 'out'} "
        "--block_out_channels 8 8 8 --train_batch_size 8 --max_train_steps 2 "
        "--checkpointing_steps 1 --push_to_hub --hub_model_id user/mnist --hub_private_repo "
        f"--hub_token {hub.token}"
    )
    done = subprocess.run(command.split(), env=hub.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["model", "user/mnist"]
    assert repo.private
    assert set(repo.files) == {
        "README.md",
        "model_index.json",
        "modular_config.json",
        "modular_flow_matching.py",
        "modular_model_index.json",
        "pipeline_flow_matching.py",
        "samples.png",
        "scheduler/scheduler_config.json",
        "scheduler/scheduling_gaussian_flow.py",
        "training.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    card = repo.files["README.md"].decode()
    assert "- ylecun/mnist" in card and "--max_train_steps=2" in card
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not any(hub.token.encode() in file.read_bytes() for file in written)

    repo.files.clear()  # as if the push had failed: the finished run is pushed, not trained again
    again = [*command.split(), "--resume_from_checkpoint", "latest"]
    done = subprocess.run(again, env=hub.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing is left to do" in done.stdout and "pushed to" in done.stdout
    assert "unet/diffusion_pytorch_model.safetensors" in repo.files
    assert not any(name.startswith("checkpoint") for name in repo.files)
