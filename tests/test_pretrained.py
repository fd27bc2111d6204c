"""The pipelines in the repository load and draw digits; two of them are flow maps."""

from pathlib import Path

import pytest
import torch

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

FOLDER = Path(__file__).parents[1] / "pretrained"
NAMES = ("mnist", "mnist-one-step", "mnist-mean-flow")


@pytest.fixture(scope="module")
def pipes():
    found = {name: FlowMatchingPipeline.from_pretrained(FOLDER / name) for name in NAMES}
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
    return found


def draw(pipe, noise, **asked):
    return pipe(list(range(10)), latents=noise, output_type="pt", **asked).images


@pytest.mark.parametrize(
    "flow, flow_map, guidance",
    [("mnist", "mnist-one-step", 2.0), ("mnist-mean-flow", "mnist-mean-flow", 1.0)],
    ids=["of a teacher", "of the same network"],
)
def test_one_step_of_a_map_is_many_of_its_flow(flow, flow_map, guidance, pipes):
    noise = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    one = draw(pipes[flow_map], noise, num_inference_steps=1)
    teacher = pipes[flow]
    saved = teacher.scheduler
    teacher.scheduler = GaussianFlowScheduler.from_config(
        saved.config, solver="predictor_corrector"
    )
    many = draw(teacher, noise, num_inference_steps=20, guidance_scale=guidance)
    teacher.scheduler = saved
    assert (one - many).square().mean().sqrt() < 0.15  # of pixels from 0 to 1
    assert (one - many.roll(1, 0)).square().mean().sqrt() > 0.3  # digits of other classes
    for images in (one, many):
        assert 0.05 < images.mean() < 0.25  # white on black
        assert ((images < 0.1) | (images > 0.9)).float().mean() > 0.8


def test_an_sde_draws_other_digits_of_the_same_kind(pipes):
    teacher = pipes["mnist"]
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
