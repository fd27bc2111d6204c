"""Our pipeline on the Hub: what one process pushes, another loads without trust flags.

A client is a function of this file that runs in a process of its own and returns plain data.
"""

import runpy
import sys
from contextlib import redirect_stdout
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hub_server import HubServer, Repo, run

SCRIPT = Path(__file__).parents[1] / "examples" / "train_mnist.py"


PROMPTS = {"prompt": ["seven", "a zero"], "guidance_scale": 2.0}


@pytest.fixture(scope="module")
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
    text, transformer = text_pipeline(), transformer_pipeline()
    text.push_to_hub("user/text")
    transformer.push_to_hub("user/transformer")
    images = {"flow": draw(pipe), "text": draw(text, **PROMPTS), "transformer": draw(transformer)}
    return {"commits": commits, "images": images | {"adapter": push_an_adapter(transformer)}}


def push_an_adapter(pipe):
    import torch
    from huggingface_hub import create_repo, upload_folder
    from peft import LoraConfig

    from fm_diffusers.pipelines.lora import lora_layers

    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"]))
    for name, weight in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    with TemporaryDirectory() as folder:
        pipe.save_lora_weights(folder, **lora_layers(transformer=pipe.transformer))
        create_repo("user/adapter")
        upload_folder(repo_id="user/adapter", folder_path=folder)
    return draw(pipe)


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


def load_an_adapter():
    pipe = transformer_pipeline()
    plain = draw(pipe)
    pipe.load_lora_weights("user/adapter", adapter_name="style")
    adapted = draw(pipe)
    pipe.unload_lora_weights()
    return {"adapted": adapted, "plain": plain, "unloaded": draw(pipe)}


def load_the_other_kinds():
    from diffusers import DiffusionPipeline

    from fm_diffusers import FlowMatchingPipeline

    return [
        {"text": draw(load("user/text"), **PROMPTS), "transformer": draw(load("user/transformer"))}
        for load in (
            FlowMatchingPipeline.from_pretrained,
            partial(DiffusionPipeline.from_pretrained, trust_remote_code=True),
        )
    ]


def load_in_every_way():
    ways = (
        load,
        load_as_a_diffusion_pipeline,
        load_as_blocks_and_push_these,
        load_with_diffusers_own_scheduler,
        load_the_other_kinds,
        load_an_adapter,
    )
    return {way.__name__: way() for way in ways}


def push_and_train():
    return {"pipelines": push(), "script": train_and_push_twice()}


@pytest.fixture(scope="module")
def told(hub):
    """What one process says that pushes pipelines, and then trains one and pushes that."""
    hub.repos["dataset", "ylecun/mnist"] = mnist_repository()
    return run(push_and_train, hub.env)


@pytest.fixture(scope="module")
def pushed(told):
    return told["pipelines"]


@pytest.fixture(scope="module")
def loaded(hub, pushed):
    """What another process loads, which has not seen the pipelines that were pushed."""
    return run(load_in_every_way, hub.env)


def test_a_pushed_pipeline_has_what_its_page_needs_and_nothing_else(hub, pushed):
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


def test_a_pushed_pipeline_loads_without_trust_flags_and_draws_the_same(hub, pushed, loaded):
    images = pushed["images"]["flow"]
    expected = {
        "names": ["FlowMatchingPipeline", "fm_diffusers.scheduler", "cosine"],
        "null_label": 3,
        "images": images,
    }
    assert loaded["load"] == expected
    requests = len(hub.requests)
    assert run(load, hub.env | {"HF_HUB_OFFLINE": "1"}) == expected
    assert len(hub.requests) == requests
    assert loaded["load_as_a_diffusion_pipeline"] == {"refused": True, "images": images}
    assert loaded["load_as_blocks_and_push_these"] == [images] * 2
    assert loaded["load_with_diffusers_own_scheduler"] == "FlowMatchEulerDiscreteScheduler"


def test_pipelines_of_text_codes_and_transformers_are_pushed_and_loaded(hub, pushed, loaded):
    expected = {name: pushed["images"][name] for name in ("text", "transformer")}
    folders = {
        name: {
            Path(file).parts[0] for file in hub.repos["model", f"user/{name}"].files if "/" in file
        }
        for name in expected
    }
    assert folders["text"] == {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}
    assert folders["transformer"] == {"scheduler", "transformer"}
    assert loaded["load_the_other_kinds"] == [expected, expected]


def test_an_adapter_is_pushed_and_loaded_into_its_base(hub, pushed, loaded):
    expected, found = pushed["images"]["adapter"], loaded["load_an_adapter"]
    assert set(hub.repos["model", "user/adapter"].files) == {"pytorch_lora_weights.safetensors"}
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


def train_and_push_twice():
    from huggingface_hub import HfApi, get_token

    told = {}
    with TemporaryDirectory() as folder:
        words = (
            f"{SCRIPT} --output_dir {folder} --block_out_channels 8 8 8 --train_batch_size 8 "
            "--max_train_steps 2 --checkpointing_steps 1 --push_to_hub --hub_model_id user/mnist "
            f"--hub_private_repo --hub_token {get_token()}"
        ).split()
        for time, more in {"first": [], "again": ["--resume_from_checkpoint", "latest"]}.items():
            sys.argv = [*words, *more]
            with redirect_stdout(StringIO()) as said:
                runpy.run_path(str(SCRIPT), run_name="__main__")
            told[time] = {"said": said.getvalue(), "files": HfApi().list_repo_files("user/mnist")}
            if time == "first":
                told["private"] = HfApi().model_info("user/mnist").private
                told["card"] = HfApi().hf_hub_download("user/mnist", "README.md")
                told["card"] = Path(told["card"]).read_text()
                # as if the push had failed: the finished run is pushed, not trained again
                HfApi().delete_repo("user/mnist")
        written = [file for file in Path(folder).rglob("*") if file.is_file()]
        token = get_token().encode()
        told["token_in"] = [str(file) for file in written if token in file.read_bytes()]
    return told


def test_the_script_trains_on_the_hub_and_pushes_what_belongs_there(told):
    told = told["script"]
    assert told["private"] and told["token_in"] == []
    assert set(told["first"]["files"]) == {
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
    assert "- ylecun/mnist" in told["card"] and "--max_train_steps=2" in told["card"]
    again = told["again"]
    assert "nothing is left to do" in again["said"] and "pushed to" in again["said"]
    assert "unet/diffusion_pytorch_model.safetensors" in again["files"]
    assert not any(name.startswith("checkpoint") for name in again["files"])
