"""Two processes that share one network by FSDP2 train what one process trains, and go on exactly.

They are CPU processes, which `sharded_probe.py` lets Accelerate take for those of GPUs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import LAUNCH
from safetensors.torch import load_file
from test_train_distributed import assert_equal
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.training.states import read_state

pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).with_name("sharded_probe.py")
CONFIG = ROOT / "examples" / "accelerate_configs" / "fsdp2.yaml"
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
#: An epoch is 28 batches, 6 steps take 24: the same, in the same order, on one process and on two.
FLAGS = (
    "--dataset_name digits --block_out_channels 16 32 --lr_warmup_steps 2 --report_to none "
    "--validation_steps 2 --train_batch_size 64 --max_grad_norm 0.5 --random_flip "
    "--validation_split 0.02 --checkpointing_steps 3"
)
#: How states are kept, and of which layers each is gathered by itself; by default all at once.
WAYS = {
    "SHARDED_STATE_DICT": "--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP "
    "--fsdp_transformer_layer_cls_to_wrap ResnetBlock2D",
    "FULL_STATE_DICT": "",
}
pytestmark = pytest.mark.slow


def train(folder, *words, way=None, script="train_mnist", flags=FLAGS, precision="no"):
    """Train on two processes that share the network in a way, or on one; return what each saw."""
    launch = []
    if way is not None:
        launch = [*LAUNCH.split(), CONFIG, "--num_processes", 2, "--mixed_precision", precision]
        launch += ["--fsdp_state_dict_type", way]
        launch += WAYS[way].split()
    folder.mkdir(exist_ok=True)
    words = [*flags.split(), "--output_dir", folder / "out", *words]
    shared = {"ACCELERATE_USE_CPU": "true"} if way is not None else {}
    done = subprocess.run(
        [sys.executable, *map(str, [*launch, PROBE, folder, script, *words])],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **shared},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank-*.json"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of 6 steps of 4 batches on one process."""
    folder = tmp_path_factory.mktemp("alone")
    seen = train(folder, "--max_train_steps", 6, "--gradient_accumulation_steps", 4)
    return folder / "out", seen


@pytest.fixture(scope="module", params=WAYS)
def shared(request, tmp_path_factory):
    """A run of 6 steps of 2 batches on each of two processes."""
    folder, way = tmp_path_factory.mktemp("shared"), request.param
    words = ["--max_train_steps", 6, "--gradient_accumulation_steps", 2]
    return folder / "out", train(folder, *words, way=way), (way, words)


def read(file):
    return torch.load(file, weights_only=False)


def state(checkpoint, scratch):
    """Return what a run goes on from: weights, their average, optimizer, rate and place."""
    names = ("ema", "lr_scheduler", "progress")
    found = {name: read_state(checkpoint / f"{name}.safetensors") for name in names}
    found["progress"].pop("seconds")
    for parts in sorted(file.parent for file in checkpoint.glob("*/.metadata")):
        dcp_to_torch_save(parts, scratch / parts.name)
        found[parts.name] = read(scratch / parts.name)
    found |= {file.name: read(file) for file in checkpoint.glob("*.bin")}
    for group in found.get("optimizer.bin", {}).get("param_groups", []):
        group["betas"] = list(group["betas"])  # a tuple, which torch takes over as a list
    return found


def test_every_process_holds_a_part_of_every_weight(shared):
    _, (first, second), _ = shared
    assert first["divided"] and second["divided"]
    assert first["held"] + second["held"] == first["all"] == second["all"]
    assert 0.5 <= first["held"] / first["all"] < 0.51


def test_it_trains_what_one_process_trains(shared, alone):
    """Gradients are averaged in another order: equal to float32, in steps and in pictures."""
    (out, seen, _), (own, (expected,)) = shared, alone
    for process in seen:
        torch.testing.assert_close(process["norms"], expected["norms"], rtol=1e-5, atol=0)
        assert min(process["norms"]) > 0.5  # so that they are clipped
    trained, plain = load_file(out / WEIGHTS), load_file(own / WEIGHTS)
    torch.testing.assert_close(trained, plain, rtol=0, atol=1e-5)
    for step in (3, 6):
        kept = [f / f"checkpoint-{step}" / "ema.safetensors" for f in (out, own)]
        averages = [read_state(file)["shadow_params"] for file in kept]
        torch.testing.assert_close(*averages, rtol=0, atol=1e-5)
    for name in ("samples-2.png", "samples-4.png", "samples.png"):
        pictures = [np.array(Image.open(folder / name), dtype=int) for folder in (out, own)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    figures = [json.loads((folder / "training.json").read_text()) for folder in (out, own)]
    for name in ("parameters", "steps", "batch_size"):
        assert figures[0][name] == figures[1][name]
    assert figures[0]["validation_loss"] == pytest.approx(figures[1]["validation_loss"], rel=1e-5)


def test_its_pipeline_is_that_of_one_process(shared, alone):
    def draw(folder):
        pipe = FlowMatchingPipeline.from_pretrained(folder)
        asked = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 4}
        return pipe([3, 7], output_type="pt", **asked).images

    torch.testing.assert_close(draw(shared[0]), draw(alone[0]), rtol=0, atol=1e-4)


def test_a_stopped_run_goes_on_bit_for_bit(shared, tmp_path):
    out, _, (way, words) = shared
    train(tmp_path, *words, "--resume_from_checkpoint", out / "checkpoint-3", way=way)
    one, other = (state(f / "checkpoint-6", tmp_path) for f in (out, tmp_path / "out"))
    assert len(one) == 5
    assert_equal(one, other)
    assert_equal(load_file(out / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))


def test_half_precision_leaves_the_times_as_they_are(tmp_path):
    words = ["--max_train_steps", 2, "--gradient_accumulation_steps", 1]
    for process in train(tmp_path, *words, way="FULL_STATE_DICT", precision="bf16"):
        assert process["times"] == ["torch.float32"]


def test_a_network_whose_layers_are_called_by_themselves_is_drawn_too(tmp_path):
    """Pictures of an autoencoder call its halves, not the module that is trained."""
    flags = (
        "--dataset_name digits --block_out_channels 8 16 --report_to none --train_batch_size 64"
    )
    words = ["--max_train_steps", 2, "--validation_steps", 1]
    seen = train(tmp_path, *words, way="FULL_STATE_DICT", script="train_autoencoder", flags=flags)
    assert all(process["divided"] for process in seen)
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").exists()
    assert (tmp_path / "out" / "samples-1.png").exists()
