"""The pipelines in the repository load, draw digits, and one is the flow map of the other."""

from pathlib import Path

import pytest
import torch

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

FOLDER = Path(__file__).parents[1] / "pretrained"
NAMES = ("mnist", "mnist-one-step")


@pytest.fixture(scope="module")
def pipes():
    found = [FlowMatchingPipeline.from_pretrained(FOLDER / name) for name in NAMES]
    for pipe in found:
        pipe.set_progress_bar_config(disable=True)
    return found


def draw(pipe, noise, **asked):
    return pipe(list(range(10)), latents=noise, output_type="pt", **asked).images


def test_one_step_of_the_map_is_many_of_its_teacher(pipes):
    teacher, student = pipes
    noise = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    many = draw(teacher, noise, num_inference_steps=20, guidance_scale=2.0)
    one = draw(student, noise, num_inference_steps=1)
    assert (one - many).square().mean().sqrt() < 0.15  # of pixels from 0 to 1
    assert (one - many.roll(1, 0)).square().mean().sqrt() > 0.3  # digits of other classes
    for images in (one, many):
        assert 0.05 < images.mean() < 0.25  # white on black
        assert ((images < 0.1) | (images > 0.9)).float().mean() > 0.8


def test_an_sde_draws_other_digits_of_the_same_kind(pipes):
    teacher = pipes[0]
    noise = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    ode = draw(teacher, noise, num_inference_steps=20)
    config = teacher.scheduler.config
    teacher.scheduler = GaussianFlowScheduler.from_config(config, diffusion="memoryless")
    sde = draw(teacher, noise, num_inference_steps=30, generator=torch.Generator().manual_seed(1))
    teacher.scheduler = GaussianFlowScheduler.from_config(config)
    assert (ode - sde).square().mean().sqrt() > 0.1
    assert abs(ode.mean() - sde.mean()) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_whole_and_tells_no_path_of_a_machine(name):
    files = [file for file in (FOLDER / name).rglob("*") if file.is_file()]
    assert {"README.md", "training.json", "samples.png"} < {file.name for file in files}
    assert sum(file.stat().st_size for file in files if file.suffix == ".safetensors") < 4e6
    for file in files:
        if file.suffix in (".md", ".json", ".py"):
            assert "/tmp/" not in file.read_text()
