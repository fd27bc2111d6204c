"""The scripts that look at a trained pipeline."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from hub_server import HubServer
from PIL import Image
from test_publishing import TRAINING

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import with_two_times
from fm_diffusers.likelihood import dequantize
from fm_diffusers.training.pictures import processes

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

COUPLED = TRAINING | {"title": "outputs/digits", "coupling": "reflow"}


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

    pipe = FlowMatchingPipeline.from_pretrained(silent)
    images = evaluate.load_all(arguments, pipe)[2].images[:20]
    x = dequantize(images, torch.Generator().manual_seed(0))
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
        ({"push_to_hub": True}, "has no training.json: push from the folder of the training"),
    ],
)
def test_what_cannot_be_measured_is_refused(examples, untrained, flags, message):
    evaluate, given = examples("evaluate"), {"model": str(untrained), "dataset_name": "digits"}
    with pytest.raises(ValueError, match=message):
        evaluate.main(evaluate.EvaluationArguments(**given | flags))


@pytest.mark.parametrize(
    ("learned", "given", "taken"),
    [
        (None, None, [1.0]),
        (None, [1.0, 3.0], [1.0, 3.0]),
        (2.0, None, [2.0]),
        (2.0, [2.0], [2.0]),
        ([1.0, 4.0], None, [4.0]),
        ([1.0, 4.0], [1.5], [1.5]),
        (2.0, [1.0], None),
        (2.0, [2.0, 3.0], None),
    ],
)
def test_a_flow_map_is_measured_with_the_guidance_that_it_has_learned(
    learned, given, taken, examples, untrained
):
    evaluate, pipe = examples("evaluate"), FlowMatchingPipeline.from_pretrained(untrained)
    pipe.unet = pipe.unet if learned is None else with_two_times(pipe.unet, learned)
    args = evaluate.EvaluationArguments(str(untrained), guidance_scales=given)
    if taken is None:
        with pytest.raises(ValueError, match="has learned 2.0 and draws with no other: leave the"):
            evaluate.completed(args, pipe)
    else:
        assert evaluate.completed(args, pipe).guidance_scales == taken


def test_parameters_stay_with_the_solver_and_the_coefficient_that_they_are_of(examples, untrained):
    evaluate, solvers = examples("evaluate"), ["euler", "unipc"]
    pipe = FlowMatchingPipeline.from_pretrained(untrained)
    own = {"solver_kwargs": {"solver_order": 3}, "diffusion_kwargs": {"scale": 0.5}}
    pipe.scheduler = GaussianFlowScheduler(solver="unipc", diffusion="constant", **own)
    diffusions = ["none", "memoryless", "constant"]
    arguments = {"model": str(untrained), "solvers": solvers, "diffusions": diffusions}
    made = evaluate.schedulers(pipe, evaluate.EvaluationArguments(**arguments))
    found = {(each.config.solver, each.config.diffusion): each.config for each in made}
    assert list(found) == [(s, d) for s in solvers for d in (None, "memoryless", "constant")]
    for (solver, diffusion), config in found.items():
        assert config.solver_kwargs == (own["solver_kwargs"] if solver == "unipc" else None)
        constant = diffusion == "constant"
        assert config.diffusion_kwargs == (own["diffusion_kwargs"] if constant else None)


def test_no_sde_is_drawn_from_a_network_of_coupled_noise(examples, silent):
    evaluate = examples("evaluate")
    (silent / "training.json").write_text(json.dumps(COUPLED))
    with pytest.raises(ValueError, match=r"coupled \(reflow\).*pass --diffusions none"):
        evaluate.main(evaluate.EvaluationArguments(str(silent), dataset_name="digits"))


@pytest.mark.slow
def test_what_was_measured_is_pushed_with_its_card(silent):
    (silent / "training.json").write_text(json.dumps(COUPLED))
    (silent / "checkpoint-1").mkdir()
    (silent / "checkpoint-1" / "optimizer.bin").touch()
    with HubServer() as hub:
        command = (
            f"{Path(__file__).parents[1] / 'examples' / 'evaluate.py'} --model {silent} "
            "--dataset_name digits --num_samples 20 --num_inference_steps 2 --diffusions none "
            "--num_likelihood_images 0 --push_to_hub --hub_model_id user/digits "
            f"--hub_token {hub.token}"
        )
        done = subprocess.run(
            [sys.executable, *command.split()], env=hub.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        pushed = hub.repos["model", "user/digits"].files
    assert {"README.md", "evaluation.json", "evaluation.png", "training.json"} < set(pushed)
    assert not any(name.startswith("checkpoint") for name in pushed)
    card, (row,) = pushed["README.md"].decode(), json.loads(pushed["evaluation.json"])["rows"]
    assert 'from_pretrained("user/digits")' in card and f"{row['recall']:.3g}" in card
    written = [file for file in silent.rglob("*") if file.is_file()]
    assert not any(hub.token.encode() in file.read_bytes() for file in written)


def test_pictures_show_both_processes(examples, untrained, tmp_path):
    sample, folder = examples("sample_mnist"), tmp_path / "made" / "for them"
    sample.main(sample.SamplingArguments(str(untrained), str(folder), ode_steps=2, sde_steps=3))
    for name in ("ode_and_sde.png", "trajectories.png"):
        picture = Image.open(folder / name).convert("L")
        assert len(set(picture.resize((64, 64)).tobytes())) > 50  # neither blank nor flat


def test_images_are_edited_and_joined(examples, untrained, tmp_path, capsys):
    edit = examples("edit_images")
    asked = {"dataset_name": "digits", "indices": [0, 5], "num_inference_steps": 4}
    edit.main(edit.EditingArguments(str(untrained), **asked, output_dir=str(tmp_path), side=32))
    side = 32 + 4
    names = {"edits.png": edit.EDITS, "interpolation.png": 8 * [""]}
    for name, columns in names.items():
        picture = Image.open(tmp_path / name)
        assert picture.width == len(columns) * side + 4 and picture.height > 2 * side
    assert capsys.readouterr().out.count("returns from its noise") == 2


@pytest.mark.parametrize(
    "script, arguments, more",
    [
        ("sample_mnist", "SamplingArguments", {}),
        ("edit_images", "EditingArguments", {"dataset_name": "digits"}),
    ],
)
def test_pictures_of_a_model_of_the_hub_ask_for_a_folder(script, arguments, more, examples):
    module = examples(script)
    with pytest.raises(ValueError, match="is no folder: say by --output_dir"):
        module.main(getattr(module, arguments)("someone/something", **more))


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


def test_each_row_of_trajectories_has_the_name_of_its_class(examples, untrained, monkeypatch):
    sample = examples("sample_mnist")
    pipe = FlowMatchingPipeline.from_pretrained(untrained)
    pipe.register_to_config(id2label={i: f"digit {i}" for i in range(10)})
    shown = []
    keep = lambda parts, names: shown.append((parts, names))  # noqa: E731
    monkeypatch.setattr(sample, "contact_sheet", keep)
    sample.trajectories(pipe, sample.SamplingArguments(str(untrained), ode_steps=2, sde_steps=3))
    ((parts, names),) = shown
    of_ode, of_sde = [*parts][:4], [*parts][4:]
    assert of_ode == [f"ODE, 2 steps, class digit {i}" for i in (0, 2, 5, 7)]
    assert of_sde == [f"SDE (memoryless), 3 steps, class digit {i}" for i in (0, 2, 5, 7)]
    assert {len(part) for part in parts.values()} == {len(names)} == {11}


@pytest.mark.parametrize("steps", [{"ode_steps": 0}, {"sde_steps": -1}])
def test_no_steps_are_not_the_default_number(steps, untrained):
    pipe, (name,) = FlowMatchingPipeline.from_pretrained(untrained), steps
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
        next(processes(pipe, **steps))


def test_images_take_the_size_of_the_network(examples, tmp_path):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    unet = UNet2DModel(
        12, 1, 1, block_out_channels=[8], norm_num_groups=4, num_class_embeds=11, **blocks
    )
    pipe = FlowMatchingPipeline(unet, GaussianFlowScheduler(), null_label=10)
    edit = examples("edit_images")
    for resolution, side in ((None, 12), (16, 16)):
        args = edit.EditingArguments("", dataset_name="digits", resolution=resolution)
        assert edit.chosen(pipe, args)[0].shape == (4, 1, side, side)
