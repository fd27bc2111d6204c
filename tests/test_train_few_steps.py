"""Flow maps from the command line: of any teacher, and from data by mean flow."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.models.embeddings import LabelEmbedding
from hub_server import HubServer
from processes import LAUNCH_TWO
from safetensors.torch import load_file
from test_pipeline_text import make_text_pipe
from test_train_tuning import make_base, make_vae

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.flow_map_networks import with_two_times
from fm_diffusers.pipelines.cards import card
from fm_diffusers.training.states import read_state

pytest.importorskip("datasets")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "report_to": "none",
    "lr_warmup_steps": 1,
    "validation_steps": 10**6,
    "checkpointing_steps": 10**6,
    "train_batch_size": 8,
    "max_train_steps": 2,
}
FEW = TINY | {"num_trajectories": 24, "trajectory_steps": 3, "sample_batch_size": 10}
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
pytestmark = [
    pytest.mark.usefixtures("few_digits"),
    pytest.mark.filterwarnings("ignore:.*lie beyond the:UserWarning"),
]


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def distil(examples, tmp_path):
    """Return a function that trains a flow map of a saved teacher and returns its folder."""
    script, output = examples("train_few_steps"), tmp_path / "few"

    def run(model, **flags):
        flags = FEW | {"output_dir": str(output), "model": str(model)} | flags
        script.main(script.FewStepsArguments(**flags))
        return Path(flags["output_dir"])

    return run


@pytest.fixture
def teacher(tmp_path):
    return make_base(tmp_path / "teacher")


def load(folder):
    pipe = FlowMatchingPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.solver == "flow_map"
    return pipe


def draw(pipe, steps=1, diffusion=None, **asked):
    pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion=diffusion)
    generator, options = torch.Generator().manual_seed(0), {"num_inference_steps": steps}
    return pipe(**asked, **options, output_type="pt", generator=generator).images


def check_draws(folder, shape=(2, 1, 8, 8), **asked):
    """Return a saved pipeline that draws in any number of evaluations, as an ODE and an SDE."""
    pipe = load(folder)
    assert draw(pipe, **asked).shape == shape
    sde = draw(pipe, 4, "memoryless", **asked)
    assert sde.isfinite().all() and not torch.equal(sde, draw(pipe, 4, **asked))
    return pipe


def slow(*values, **more):
    """Return parameters of a test that is run with the slow ones: each is a whole training."""
    return pytest.param(*values, marks=pytest.mark.slow, **more)


def codes(card):
    return re.findall(r"```python\n(.*?)```", card, flags=re.S)


# --- what is learned -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "guidance", "learned"),
    [
        ("trajectory", [1.0], None),
        ("mean_flow", [2.0], 2.0),
        ("self_consistency", [1.0, 4.0], [1.0, 4.0]),
    ],
)
def test_a_teacher_of_classes_becomes_a_flow_map(objective, guidance, learned, distil, teacher):
    output = distil(teacher, objective=objective, guidance_scale=guidance, validation_split="0.3")
    pipe = check_draws(output, class_labels=[3, 7])
    assert pipe.unet.config.distilled_guidance == learned
    record = json.loads((output / "training.json").read_text())
    assert record["teacher"] == "teacher" and record["sampler"] == "flow_map"
    assert record["validation_loss"] > 0 and record["objective"] == objective
    (code,) = codes((output / "README.md").read_text())
    told = ", guidance_scale=4.0" * (learned == [1.0, 4.0])
    assert f"pipe([0, 1, 2, 3]{told}, num_inference_steps=1)" in code
    assert f"pipe([0, 1, 2, 3]{told}, num_inference_steps=4)" in code
    if learned == 2.0:
        assert torch.equal(
            draw(pipe, class_labels=[1]), draw(pipe, class_labels=[1], guidance_scale=2.0)
        )
        with pytest.raises(ValueError, match="is not the one that the network has learned"):
            draw(pipe, class_labels=[1], guidance_scale=3.0)


def test_a_range_of_guidance_without_1_is_told_by_the_cards(distil, teacher, tmp_path):
    output = distil(teacher, guidance_scale=[2.0, 5.0])
    (code,) = codes((output / "README.md").read_text())
    assert code.count("guidance_scale=5.0") == 2
    (by_hand,) = codes(card(FlowMatchingPipeline.from_pretrained(output), "user/few"))
    assert "pipe([0, 1, 2, 3], guidance_scale=5.0, num_inference_steps=1)" in by_hand
    with pytest.raises(ValueError, match="guidance_scale=1.0 is not among those"):
        draw(load(output), class_labels=[1])


@pytest.fixture(scope="module")
def trained(few_digits, tmp_path_factory):
    """Train a small flow of digits for a few seconds."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        script = importlib.import_module("train_mnist")
        flags = TINY | LEARNING | {"dataset_name": "digits", "block_out_channels": [8, 16]}
        script.main(script.Arguments(**flags | {"output_dir": str(output)}))
    return output


#: Enough to learn something, for a few digits.
LEARNING = {
    "train_batch_size": 64,
    "max_train_steps": 100,
    "learning_rate": 3e-3,
    "ema_decay": 0.98,
    "lr_warmup_steps": 2,
}


@pytest.mark.slow  # trains for a while
@pytest.mark.parametrize(
    ("objective", "share"),
    [("trajectory", 0.4), ("mean_flow", 0.8), ("self_consistency", 0.6)],
)
def test_one_step_comes_nearer_to_where_the_teacher_goes(objective, share, distil, trained):
    flags = LEARNING | {"num_trajectories": 256, "trajectory_steps": 8, "train_batch_size": 32}
    student = load(distil(trained, objective=objective, **flags))
    teacher = FlowMatchingPipeline.from_pretrained(trained)
    teacher.set_progress_bar_config(disable=True)
    asked = {"class_labels": 5 * [*range(10)], "output_type": "latent"}
    asked["latents"] = teacher.prepare_latents(50, torch.Generator().manual_seed(9), None)
    end, one = (teacher(**asked, num_inference_steps=n).images for n in (30, 1))
    found = student(**asked, num_inference_steps=1).images
    assert (found - end).square().mean() < share * (one - end).square().mean()


# --- which teachers ------------------------------------------------------------------------------


KINDS = {
    "dit-nothing": ({"backbone": "transformer", "classes": 0}, {"batch_size": 2}, {}),
    "vp": ({"path": "variance_preserving", "prediction_type": "v_prediction"}, {}, {}),
}
MORE_KINDS = {
    "dit": ({"backbone": "transformer"}, {}, {"guidance_scale": [2.0]}),
    "nothing": ({"classes": 0}, {"batch_size": 2}, {"objective": "mean_flow"}),
    "no-null": ({"null": False}, {}, {}),
    "cosine": (
        {"path": "cosine", "prediction_type": "v_prediction", "solver": "heun"},
        {},
        {"objective": "self_consistency"},
    ),
    "ve": ({"path": "variance_exploding", "grid": "uniform"}, {}, {"objective": "mean_flow"}),
    "sample": ({"prediction_type": "sample"}, {}, {"trajectory_steps": 60}),
    "sample-mean-flow": ({"prediction_type": "sample"}, {}, {"objective": "mean_flow"}),
}


@pytest.mark.parametrize("kind", [*KINDS, *(slow(name) for name in MORE_KINDS)])
def test_teachers_of_all_kinds_are_distilled(kind, distil, tmp_path):
    made, asked, flags = (KINDS | MORE_KINDS)[kind]
    output = distil(make_base(tmp_path / "teacher", **made), **flags)
    pipe = check_draws(output, **asked or {"class_labels": [3, 7]})
    config = FlowMatchingPipeline.from_pretrained(tmp_path / "teacher").scheduler.config
    assert pipe.scheduler.config.path == config.path
    assert pipe.scheduler.config.prediction_type == config.prediction_type


def test_a_teacher_of_prompts_is_distilled_on_those_of_a_file(distil, tmp_path):
    make_text_pipe().save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a red circle\n\na square\n")
    with pytest.raises(ValueError, match="the teacher takes text: --prompts names a file"):
        distil(tmp_path / "teacher")
    prompts = str(tmp_path / "prompts.txt")
    output = distil(tmp_path / "teacher", prompts=prompts, guidance_scale=[1.0, 3.0])
    shape = draw(load(output), prompt=["a square"], guidance_scale=2.0).shape
    check_draws(output, shape, prompt="a red circle")
    (code,) = codes((output / "README.md").read_text())
    assert 'pipe(["a red circle", "a square"], guidance_scale=3.0, num_inf' in code


@pytest.mark.slow
def test_a_teacher_of_codes_is_distilled_in_its_codes(distil, tmp_path):
    output = distil(make_base(tmp_path / "teacher", vae=make_vae()), guidance_scale=[2.0])
    pipe = check_draws(output, class_labels=[3, 7])
    assert pipe.unet.config.sample_size == 4 and pipe.vae is not None


def test_a_flow_map_is_a_teacher_by_its_slope_unless_it_has_learned_guidance(distil, tmp_path):
    base = FlowMatchingPipeline.from_pretrained(make_base(tmp_path / "base"))
    base.scheduler = GaussianFlowScheduler.from_config(base.scheduler.config, solver="flow_map")
    one = base.unet
    base.unet = with_two_times(one)
    base.save_pretrained(tmp_path / "map")
    check_draws(distil(tmp_path / "map"), class_labels=[3, 7])
    guided = distil(tmp_path / "map", guidance_scale=[2.0], overwrite_output_dir=True)
    check_draws(guided, class_labels=[3, 7])
    with pytest.raises(ValueError, match=r"distilled_guidance=\[1.0, 4.0\] contradicts the netw"):
        distil(tmp_path / "map", guidance_scale=[1.0, 4.0], overwrite_output_dir=True)
    base.unet = with_two_times(one, 2.0)
    base.save_pretrained(tmp_path / "guided")
    with pytest.raises(ValueError, match="has learned guidance_scale=2.0 itself: name its own"):
        distil(tmp_path / "guided", overwrite_output_dir=True)


def test_a_flow_map_is_trained_further_and_only_with_its_own_teacher(distil, teacher, tmp_path):
    first = distil(teacher, guidance_scale=[2.0], max_train_steps=3)
    told = {"guidance_scale": [2.0], "init_from": str(first), "output_dir": str(tmp_path / "more")}
    more = distil(teacher, **told, max_train_steps=1, learning_rate=1e-9)
    before, after = load_file(first / WEIGHTS), load_file(more / WEIGHTS)
    assert all((before[name] - after[name]).abs().max() < 1e-6 for name in before)
    assert json.loads((more / "training.json").read_text())["init_from"]
    stronger = distil(teacher, **told | {"guidance_scale": [3.0]}, overwrite_output_dir=True)
    assert json.loads((stronger / "unet/config.json").read_text())["distilled_guidance"] == 3.0
    other = str(make_base(tmp_path / "other", path="cosine"))
    for own, flags, message in (
        (other, {}, "no flow map of .*other: its path is 'linear' in place of 'cosine'"),
        (str(teacher), {"guidance_scale": [1.0, 3.0]}, "distilled_guidance=.1.0, 3.0. contradict"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(own, **told | flags, overwrite_output_dir=True)


@pytest.mark.parametrize(
    ("made", "flags", "message"),
    [
        ({"prediction_type": "epsilon"}, {}, "slope at t = 0.*'epsilon'.*another --prediction_ty"),
        ({"null": False}, {"guidance_scale": [2.0]}, "has no label for 'no class', from which"),
        ({"classes": 0}, {"guidance_scale": [1.0, 2.0]}, "has no condition; leave it out"),
        ({}, {"prompts": "some.txt"}, "the teacher takes labels: drop --prompts some.txt"),
        (
            {"path_kwargs": {"coupled": True}},
            {"objective": "mean_flow"},
            "trained with coupled noise, and --objective mean_flow draws noise of its own",
        ),
    ],
    ids=["epsilon", "no-null", "nothing", "prompts", "coupled"],
)
def test_teachers_that_have_no_such_map_are_refused(made, flags, message, distil, tmp_path):
    with pytest.raises(ValueError, match=message):
        distil(make_base(tmp_path / "teacher", **made), **flags)


def test_the_map_of_a_flow_of_coupled_noise_refuses_an_sde_too(distil, tmp_path):
    coupled = make_base(tmp_path / "coupled", path_kwargs={"coupled": True})
    pipe = load(distil(coupled, guidance_scale=[2.0]))
    assert draw(pipe, class_labels=[3, 7]).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="noise and data were paired in the training"):
        draw(pipe, 4, "memoryless", class_labels=[3, 7])


def test_a_guider_is_refused_by_name(distil, teacher):
    pipe = FlowMatchingPipeline.from_pretrained(teacher)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=2.0)
    pipe.save_pretrained(teacher)
    with pytest.raises(ValueError, match="has a guider, ClassifierFreeGuidance, which is not"):
        distil(teacher)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"objective": "distill"}, "unknown --objective 'distill': choose one of trajectory, me"),
        ({"derivative": "exact"}, "unknown --derivative 'exact': choose one of jvp, difference"),
        (
            {"guidance_scale": []},
            r"one number, or the lowest and the highest of several, got \[\]",
        ),
        ({"guidance_scale": [4.0, 1.0]}, r"the lowest and the highest of several, got \[4.0, 1.0"),
        ({"guidance_scale": [1.0, 2.0, 3.0]}, "the lowest and the highest of several"),
        ({"guidance_scale": [float("nan")]}, "the lowest and the highest of several, got .nan"),
        ({"to_data": 1.5}, r"--to_data must lie in \[0, 1\], got 1.5"),
        ({"from_noise": 2.0}, r"--from_noise must lie in \[0, 1\], got 2.0"),
        (
            {"from_noise": 0.5, "objective": "mean_flow"},
            "--from_noise 0.5 is of --objective trajectory, and mean_flow has no use for it: drop",
        ),
        ({"derivative": "jvp"}, "--derivative jvp is of --objective mean_flow, and trajectory"),
        ({"slope_share": -0.1}, r"--slope_share must lie in \[0, 1\], got -0.1"),
        ({"num_trajectories": 4}, "--num_trajectories 4 are fewer than --train_batch_size 8"),
        ({"trajectory_steps": 0}, "--trajectory_steps must be at least 1, got 0"),
        ({"validation_split": "test"}, "--validation_split test: what is drawn has no splits"),
    ],
)
def test_impossible_flags_are_refused(flags, message, distil, teacher):
    with pytest.raises(ValueError, match=message):
        distil(teacher, **flags)


# --- one run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["trajectory", slow("mean_flow")])
def test_a_resumed_run_draws_the_same_runs_and_ends_bit_for_bit(
    objective, distil, teacher, tmp_path
):
    flags = {"max_train_steps": 4, "objective": objective, "guidance_scale": [1.0, 3.0]}
    whole = distil(teacher, **flags, checkpointing_steps=2)
    rest = tmp_path / "rest"
    shutil.copytree(whole / "checkpoint-2", rest / "checkpoint-2")
    torch.rand(7)  # whatever the process has drawn before
    latest = {"resume_from_checkpoint": "latest", "checkpointing_steps": 2}
    distil(teacher, **flags, **latest, output_dir=str(rest))
    for file in (WEIGHTS, Path("checkpoint-4", "model.safetensors")):
        ours, theirs = load_file(rest / file), load_file(whole / file)
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    average = read_state(whole / "checkpoint-4" / "ema.safetensors")
    saved = FlowMatchingPipeline.from_pretrained(whole).unet.parameters()
    assert all(map(torch.equal, saved, average["shadow_params"]))


def words(**flags):
    for name, value in flags.items():
        yield from (f"--{name}", *map(str, value if isinstance(value, list) else [value]))


@pytest.mark.slow  # a launch
@pytest.mark.parametrize("objective", ["trajectory", "mean_flow"])
def test_two_processes_draw_runs_of_their_own_and_train_as_one(objective, teacher, tmp_path):
    output, flags = tmp_path / "few", FEW | {"model": teacher, "objective": objective}
    flags |= {"num_trajectories": 33, "guidance_scale": [1, 3], "validation_split": 0.2}
    with HubServer() as hub:
        done = subprocess.run(
            [
                *(sys.executable, *LAUNCH_TWO.split(), str(EXAMPLES / "train_few_steps.py")),
                *words(**flags, output_dir=output),
            ],
            env=hub.env | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((output / "training.json").read_text())
    assert (figures["processes"], figures["batch_size"]) == (2, 16)
    check_draws(output, class_labels=[3, 7], guidance_scale=3.0)


@pytest.mark.slow  # two processes
def test_what_is_pushed_is_drawn_by_its_card(teacher, tmp_path):
    script, flags = EXAMPLES / "train_few_steps.py", FEW | {"guidance_scale": [2, 4]}
    with HubServer() as hub:
        flags |= {"model": teacher, "output_dir": tmp_path / "few", "hub_model_id": "user/few"}
        command = [sys.executable, str(script), "--push_to_hub", *words(**flags)]
        done = subprocess.run(command, env=hub.env, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        (code,) = codes(hub.repos["model", "user/few"].files["README.md"].decode())
        assert code.count("guidance_scale=4.0") == 2
        check = "\nassert len(ode) == len(sde) == 4 and ode[0].size == (8, 8)"
        command = [sys.executable, "-c", code + check]
        done = subprocess.run(command, env=hub.env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


# --- mean flow from data -------------------------------------------------------------------------

DATA = TINY | {"dataset_name": "digits", "objective": "mean_flow", "block_out_channels": [8, 16]}
SIZES = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}


@pytest.fixture
def train(examples, tmp_path):
    def run(script="train_mnist", arguments="Arguments", **flags):
        script = examples(script)
        flags = DATA | {"output_dir": str(tmp_path / "out")} | flags
        script.main(getattr(script, arguments)(**flags))
        return Path(flags["output_dir"])

    return run


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ({"validation_split": "0.1"}, {"class_labels": [3, 7]}),
        slow({"label_column": "", "path": "cosine"}, {"batch_size": 2}),
        slow(
            {"backbone": "transformer", **SIZES}, {"class_labels": [3, 7], "guidance_scale": 2.0}
        ),
        ({"backbone": "transformer", "label_column": "", **SIZES}, {"batch_size": 2}),
        (
            {"prediction_type": "sample", "reference_batch_size": 8},
            {"class_labels": [3, 7]},
        ),
    ],
    ids=["classes", "nothing", "dit", "dit-nothing", "sample"],
)
def test_a_flow_map_is_learned_from_data(flags, asked, train):
    output = train(**flags)
    pipe = check_draws(output, **asked)
    assert pipe.network.config.distilled_guidance is None
    figures = json.loads((output / "training.json").read_text())
    assert figures["objective"] == "mean_flow"
    assert ("validation_loss" in figures) == ("validation_split" in flags)
    assert "num_inference_steps=1)" in (output / "README.md").read_text()


def test_labels_of_a_transformer_are_dropped_once(examples, train, monkeypatch):
    """Its blocks would draw again in training, each another label."""
    script, seen = examples("train_mnist"), []

    def stop(args, accelerator, network, *rest, **more):
        seen.extend(m.dropout_prob for m in network.modules() if isinstance(m, LabelEmbedding))

    monkeypatch.setattr(script, "train", stop)
    train(backbone="transformer", **SIZES)
    assert seen == [0.0]


def test_a_flow_map_of_prompts_is_learned_from_data(train):
    output = train("train_text_to_image", "TextArguments")
    check_draws(output, prompt=["a handwritten seven", "a handwritten two"], guidance_scale=2.0)


@pytest.mark.slow
def test_a_flow_map_of_codes_is_learned_from_data(train, tmp_path):
    make_vae().save_pretrained(tmp_path / "vae")
    output = train("train_latent", "LatentArguments", vae=str(tmp_path / "vae"))
    check_draws(output, class_labels=[3, 7])


def test_mean_flow_goes_on_from_a_flow_and_from_a_flow_map(train, tmp_path):
    base, more = make_base(tmp_path / "base"), {"block_out_channels": None, "learning_rate": 0.0}
    output = train(**more, init_from=base)
    check_draws(output, class_labels=[3, 7])
    start, found = load_file(Path(base, WEIGHTS)), load_file(output / WEIGHTS)
    kept = {
        name.replace("class_embedding.", "class_embedding.labels."): v for name, v in start.items()
    }
    assert all(torch.equal(found[name], value) for name, value in kept.items())
    with pytest.raises(ValueError, match="is a flow map, of which this training would change the"):
        train(
            **more,
            init_from=str(output),
            output_dir=str(tmp_path / "no"),
            objective="flow_matching",
        )
    again = train(**more, init_from=str(output), output_dir=str(tmp_path / "again"))
    ours = load_file(again / WEIGHTS)
    assert ours.keys() == found.keys() and all(torch.equal(ours[k], found[k]) for k in ours)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"prediction_type": "epsilon", "path": "cosine"}, "slope at t = 0.*'epsilon'"),
        ({"guidance": 2.0}, "has learned guidance_scale=2.0, which --objective mean_flow would"),
    ],
)
def test_what_mean_flow_cannot_go_on_from_is_refused(made, message, train, tmp_path):
    guidance = made.pop("guidance", None) if "guidance" in made else None
    base = make_base(tmp_path / "base", **made)
    if guidance:
        pipe = FlowMatchingPipeline.from_pretrained(base)
        pipe.unet = with_two_times(pipe.unet, guidance)
        pipe.save_pretrained(base)
    with pytest.raises(ValueError, match=message):
        train(init_from=base, block_out_channels=None)


def test_what_would_leave_the_map_as_it_was_is_refused(examples, tmp_path):
    pipe = FlowMatchingPipeline.from_pretrained(make_base(tmp_path / "map"))
    pipe.unet = with_two_times(pipe.unet)
    pipe.save_pretrained(tmp_path / "map")
    with pytest.raises(ValueError, match="is a flow map, which draws in one evaluation as it is"):
        examples("reflow").load(str(tmp_path / "map"))
    pytest.importorskip("peft")
    lora, flags = examples("train_lora"), TINY | {"dataset_name": "digits"}
    flags |= {"model": str(tmp_path / "map"), "output_dir": str(tmp_path / "lora")}
    with pytest.raises(ValueError, match="is a flow map, of which this training would change the"):
        lora.main(lora.LoraArguments(**flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prediction_type": "epsilon", "path": "cosine"}, "needs a slope at t = 0"),
        ({"weighting": "min_snr"}, "drop --weighting min_snr"),
        ({"coupling": "optimal_transport"}, "drop --coupling optimal_transport"),
        ({"t_max": 0.9}, "all times from noise to data: drop --t_max 0.9"),
        (
            {"map_share": 0.3, "objective": "flow_matching"},
            "--map_share 0.3 is of --objective mean_flow, and flow_matching has no use for it",
        ),
        ({"map_share": 2.0}, r"--map_share must lie in \[0, 1\], got 2.0"),
        ({"map_to_data": -0.1}, r"--map_to_data must lie in \[0, 1\], got -0.1"),
    ],
)
def test_flags_that_mean_flow_has_no_use_for_are_refused(flags, message, train):
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        train(**flags)
