"""The scripts that look at a trained pipeline."""

import importlib
import json
import math
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


@pytest.fixture
def silent(untrained, tmp_path):
    """A pipeline whose network says 0: its samples are its noise, of density N(0, 1)."""
    pipe = FlowMatchingPipeline.from_pretrained(untrained)
    torch.nn.init.zeros_(pipe.unet.conv_out.weight), torch.nn.init.zeros_(pipe.unet.conv_out.bias)
    pipe.save_pretrained(tmp_path)
    return tmp_path


def test_noise_is_told_from_digits_and_its_likelihood_is_exact(examples, silent):
    evaluate = examples("evaluate")
    arguments = evaluate.EvaluationArguments(
        str(silent),
        dataset_name="digits",
        num_samples=60,
        solvers=["predictor_corrector", "heun"],
        num_inference_steps=[2, 3],
        num_likelihood_images=20,
    )
    figures = evaluate.main(arguments)
    real, rows = figures["real"], figures["rows"]
    assert real["accuracy"] > 0.95 and real["precision"] > 0.8
    assert all(row["accuracy"] < 0.4 for row in rows)
    assert all(row["frechet_distance"] > 3 * real["frechet_distance"] for row in rows)
    keys = ("solver", "diffusion", "num_inference_steps", "evaluations")
    assert [tuple(row[key] for key in keys) for row in rows if row["diffusion"] is None] == [
        ("predictor_corrector", None, 2, 2),
        ("predictor_corrector", None, 3, 3),
        ("heun", None, 2, 4),
        ("heun", None, 3, 6),
    ]
    assert [row["diffusion"] for row in rows].count("memoryless") == 4

    images = evaluate.load_all(arguments)[2].images[:20]
    x = evaluate.dequantize(images, torch.Generator().manual_seed(0))
    bits = ((x.square().mean() + math.log(2 * math.pi)) / 2).item() / math.log(2)
    found = figures["bits_per_dimension"]
    assert found["value"] == pytest.approx(bits + math.log2(127.5), abs=1e-4)
    assert 0 < found["standard_error"] < 0.1 and found["num_images"] == 20

    assert json.loads((silent / "evaluation.json").read_text()) == figures
    picture = Image.open(silent / "evaluation.png").convert("L")
    assert len(set(picture.resize((64, 64)).tobytes())) > 20


def test_a_pipeline_without_classes_is_measured_too(examples, tmp_path):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    unet = UNet2DModel(8, 1, 1, block_out_channels=[8], norm_num_groups=4, **blocks)
    FlowMatchingPipeline(unet, GaussianFlowScheduler()).save_pretrained(tmp_path)
    evaluate, sizes = examples("evaluate"), {"num_samples": 20, "num_inference_steps": [2]}
    figures = evaluate.main(
        evaluate.EvaluationArguments(
            str(tmp_path), dataset_name="digits", num_likelihood_images=0, **sizes
        )
    )
    assert [row["accuracy"] for row in figures["rows"]] == [None, None]
    assert figures["real"]["accuracy"] > 0.9
    assert figures["bits_per_dimension"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_samples": 3}, "--num_samples must be at least 4, got 3"),
        ({"num_likelihood_images": 1}, "--num_likelihood_images must be 0, or at least 2"),
        ({"label_column": ""}, "must have labels, .*--label_column"),
        ({"diffusions": ["loud"]}, "unknown diffusion 'loud'"),
        ({"model": "someone/something"}, "is no folder: say by --output_dir"),
    ],
)
def test_what_cannot_be_measured_is_refused(examples, untrained, flags, message):
    evaluate, given = examples("evaluate"), {"model": str(untrained), "dataset_name": "digits"}
    with pytest.raises(ValueError, match=message):
        evaluate.main(evaluate.EvaluationArguments(**given | flags))


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
