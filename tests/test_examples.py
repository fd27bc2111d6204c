"""The scripts that look at a trained pipeline."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    return importlib.import_module


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    unet = UNet2DModel(
        8, 1, 1, block_out_channels=[8], norm_num_groups=4, num_class_embeds=11, **blocks
    )
    folder = tmp_path_factory.mktemp("untrained")
    FlowMatchingPipeline(unet, GaussianFlowScheduler(), null_label=10).save_pretrained(folder)
    return folder


def test_a_classifier_knows_real_digits_and_not_those_of_an_untrained_network(examples, untrained):
    evaluate = examples("evaluate")
    arguments = evaluate.EvaluationArguments(
        str(untrained), dataset_name="digits", num_samples=60, ode_steps=2, sde_steps=2
    )
    figures = evaluate.main(arguments)
    real, ode, sde = figures.values()
    assert real > 0.95 and ode < 0.4 and sde < 0.4
    written = json.loads((untrained / "evaluation.json").read_text())
    assert written == figures | {"arguments": vars(arguments)}


def test_pictures_show_both_processes(examples, untrained, tmp_path):
    sample = examples("sample_mnist")
    sample.main(sample.SamplingArguments(str(untrained), str(tmp_path), ode_steps=2, sde_steps=3))
    for name in ("ode_and_sde.png", "trajectories.png"):
        picture = Image.open(tmp_path / name).convert("L")
        assert len(set(picture.resize((64, 64)).tobytes())) > 50  # neither blank nor flat


def test_a_pipeline_is_drawn_before_and_after_the_swap(examples, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    unet = UNet2DModel(8, 1, 1, block_out_channels=[8], norm_num_groups=4, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    swap, file = examples("swap_scheduler"), tmp_path / "swap.png"
    swap.main(
        swap.SwapArguments(
            str(tmp_path),
            call_kwargs='{"batch_size": 2}',
            num_inference_steps=[2, 3],
            output=str(file),
        )
    )
    assert len(set(Image.open(file).convert("L").resize((64, 64)).tobytes())) > 20
