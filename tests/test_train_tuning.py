"""Fine-tuning in full: what a saved pipeline says of itself holds, and the rest is as ever."""

import importlib
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.data import load_images
from fm_diffusers.training.networks import BACKBONES, NetworkArguments, choose_widths

pytest.importorskip("datasets")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "dataset_name": "digits",
    "report_to": "none",
    "train_batch_size": 256,
    "max_train_steps": 1,
    "lr_warmup_steps": 0,
}
STILL = {"learning_rate": 0.0}  # the weights stay what they were
pytestmark = pytest.mark.filterwarnings("ignore:.*lie beyond the:UserWarning")


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def make_base(folder, backbone="unet", classes=10, null=True, vae=None, **config):
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    args = NetworkArguments(backbone=backbone, block_out_channels=[8, 16], **sizes)
    shape = (1, 8, 8) if vae is None else (2, 4, 4)
    network = BACKBONES[backbone](args, shape, classes if null else classes - 1)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    label = classes if null and (classes or backbone == "transformer") else None
    scheduler = GaussianFlowScheduler(**config)
    parts = {backbone: network, "scheduler": scheduler, "null_label": label, "vae": vae}
    FlowMatchingPipeline(**parts).save_pretrained(folder)
    return str(folder)


def make_vae():
    blocks = {"down_block_types": 2 * ["DownEncoderBlock2D"], "block_out_channels": [8, 8]}
    blocks |= {"up_block_types": 2 * ["UpDecoderBlock2D"], "norm_num_groups": 4}
    return AutoencoderKL(1, 1, **blocks, latent_channels=2, sample_size=8, scaling_factor=0.7)


def weights(folder, name):
    return load_file(Path(folder, name, "diffusion_pytorch_model.safetensors"))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("backbone", "config"),
    [
        ("unet", {"path": "cosine", "prediction_type": "epsilon"}),
        ("unet", {"path": "polynomial", "path_kwargs": {"power": 2.0}}),
        ("transformer", {"num_train_timesteps": 500, "prediction_type": "flow_prediction"}),
    ],
)
def test_the_network_and_its_scheduler_are_those_of_the_pipeline(
    backbone, config, examples, tmp_path
):
    if "path_kwargs" in config:
        config = {"path": "polynomial", "path_kwargs": None}
    base, script = make_base(tmp_path / "base", backbone, **config), examples("train_mnist")
    output = tmp_path / "out"
    script.main(script.Arguments(**TINY | STILL, init_from=base, output_dir=str(output)))
    assert_equal(weights(output, backbone), weights(base, backbone))
    old, new = (FlowMatchingPipeline.from_pretrained(folder) for folder in (base, output))
    assert dict(new.scheduler.config) == dict(old.scheduler.config)
    assert new.config.null_label == old.config.null_label == 10

    script.main(script.Arguments(**TINY, init_from=base, output_dir=str(tmp_path / "more")))
    moved, start = weights(tmp_path / "more", backbone), weights(base, backbone)
    assert max((moved[name] - start[name]).abs().max() for name in start) > 1e-4
    record = (tmp_path / "more" / "README.md").read_text()
    assert "| init from | base |" in record  # not where it lies


def test_the_loss_is_that_of_the_pipeline_on_its_own_path(examples, tmp_path, monkeypatch):
    base, script = make_base(tmp_path / "base", path="cosine"), examples("train_mnist")
    seen = []
    monkeypatch.setattr(
        script,
        "flow_loss",
        lambda args, scheduler, network, *rest: (
            seen.append((scheduler.config.path, type(network).__name__))
            or sum(weight.sum() for weight in network.parameters())
        ),
    )
    script.main(script.Arguments(**TINY, init_from=base, output_dir=str(tmp_path / "out")))
    assert seen == [("cosine", "UNet2DModel")]


@pytest.mark.parametrize(
    ("base", "flags", "message"),
    [
        ({"path": "cosine"}, {"path": "linear"}, "--path linear contradicts .*, which has cosine"),
        (
            {},
            {"prediction_type": "epsilon"},
            "epsilon contradicts .*, which has velocity: drop",
        ),
        ({}, {"backbone": "transformer"}, "--backbone transformer contradicts .* has unet"),
        ({"backbone": "transformer"}, {"backbone": "unet"}, "--backbone unet contradicts"),
        ({"backbone": "transformer"}, {"num_layers": 6}, "--num_layers 6 contradicts .* has 1"),
        ({}, {"block_out_channels": [8, 8]}, r"\[8, 8\] contradicts .*has .8, 16.: drop it"),
        ({}, {"dropout": 0.1}, "--dropout 0.1 contradicts .*, which has 0.0"),
        ({"classes": 12}, {}, "has 10 classes, the network of .* knows 12: choose another"),
        ({"classes": 0}, {}, r"has 10 classes, the network of .* knows 0: .*\('' is for networks"),
        ({}, {"label_column": ""}, "has 0 classes, the network of .* knows 10"),
        ({}, {"image_mode": "RGB"}, "takes 1 channels, the images have 3: drop --image_mode RGB"),
        ({"vae": True}, {}, "is not a pipeline of train_mnist.py: train it by train_latent.py"),
        ({"prediction_type": "score"}, {"objective": "flow_matching"}, "'score' is unbounded"),
    ],
)
def test_what_contradicts_the_pipeline_is_refused(base, flags, message, examples, tmp_path):
    base = base | ({"vae": make_vae()} if "vae" in base else {})
    folder, script = make_base(tmp_path / "base", **base), examples("train_mnist")
    given = TINY | {"init_from": folder, "output_dir": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=message):
        script.main(script.Arguments(**given | flags))
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_a_pipeline_of_coupled_noise_says_so_and_refuses_an_sde(examples, tmp_path):
    pytest.importorskip("ot")
    script, first, more = examples("train_mnist"), tmp_path / "first", tmp_path / "more"
    flags = TINY | {"coupling": "optimal_transport", "block_out_channels": [8, 16]}
    script.main(script.Arguments(**flags, output_dir=str(first), path="cosine"))
    told = {"init_from": str(first), "output_dir": str(more)}
    with pytest.warns(UserWarning, match="first was trained with coupled no.* refuses an SDE"):
        script.main(script.Arguments(**TINY | told))
    base = make_base(tmp_path / "base")
    flags = TINY | {"coupling": "optimal_transport", "init_from": base}
    script.main(script.Arguments(**flags, output_dir=str(tmp_path / "late")))
    for folder in (first, more, tmp_path / "late"):
        scheduler = FlowMatchingPipeline.from_pretrained(folder).scheduler
        assert scheduler.path.coupled
        with pytest.raises(ValueError, match="diffusion must be None on .*: noise and data were"):
            GaussianFlowScheduler.from_config(scheduler.config, diffusion="memoryless")


def test_flags_that_agree_are_taken(examples, tmp_path):
    base, script = make_base(tmp_path / "base", path="cosine"), examples("train_mnist")
    agreeing = {"path": "cosine", "backbone": "unet", "block_out_channels": [8, 16]}
    given = {"init_from": base, "output_dir": str(tmp_path / "out"), "dropout": 0.0}
    args = script.Arguments(**TINY | agreeing | given)
    script.main(args)
    again = script.parse(script.Arguments, args.command().split())
    assert again.path == "cosine" and again.init_from == base


def test_a_network_without_a_null_label_says_that_no_label_is_dropped(examples, tmp_path):
    base, script = make_base(tmp_path / "base", null=False), examples("train_mnist")
    pipe = FlowMatchingPipeline.from_pretrained(base)
    assert pipe.config.null_label is None and pipe.num_classes == 10
    with pytest.warns(UserWarning, match="no label for 'no class': --label_dropout 0.1 drops no"):
        script.main(script.Arguments(**TINY, init_from=base, output_dir=str(tmp_path / "out")))


def test_the_one_level_above_a_pipeline_is_told(examples, tmp_path):
    make_base(tmp_path / "outputs" / "base")
    script = examples("train_mnist")
    given = TINY | {"init_from": str(tmp_path / "outputs"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ValueError, match="is not a saved pipeline, but .*base below it is"):
        script.main(script.Arguments(**given))


# --- the other scripts ---------------------------------------------------------------------------


def test_codes_are_those_of_the_pipelines_own_autoencoder(examples, tmp_path):
    base, script = make_base(tmp_path / "base", vae=make_vae()), examples("train_latent")
    given = TINY | STILL | {"init_from": base, "output_dir": str(tmp_path / "out")}
    script.main(script.LatentArguments(**given))
    for part in ("unet", "vae"):
        assert_equal(weights(tmp_path / "out", part), weights(base, part))
    with pytest.raises(ValueError, match="--vae x contradicts --init_from"):
        script.LatentArguments(**given, vae="x")
    pixels = make_base(tmp_path / "pixels")
    with pytest.raises(ValueError, match="--init_from .* holds no autoencoder"):
        script.main(script.LatentArguments(**given | {"init_from": pixels}))


def test_an_autoencoder_is_trained_further(examples, tmp_path):
    make_vae().save_pretrained(tmp_path / "vae")
    script, output = examples("train_autoencoder"), tmp_path / "out"
    given = TINY | STILL | {"init_from": str(tmp_path / "vae"), "output_dir": str(output)}
    script.main(script.AutoencoderArguments(**given))
    assert_equal(weights(output, ""), weights(tmp_path / "vae", ""))
    for flags, message in (
        ({"latent_channels": 4}, "--latent_channels 4 contradicts .*, which has 2"),
        ({"block_out_channels": [8, 16]}, "contradicts .*, which has .8, 8."),
        ({"image_mode": "RGB"}, "takes 1 channels, the images have 3"),
        ({"resolution": 9}, "images of 9 x 9 cannot be halved"),
        ({"init_from": str(tmp_path)}, r"holds no autoencoder, .* such as \['out', 'vae'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            script.main(
                script.AutoencoderArguments(**given | {"output_dir": str(tmp_path / "no")} | flags)
            )


@pytest.mark.parametrize("along", [False, True])
def test_prompts_go_on_with_their_own_encoder(along, examples, tmp_path):
    script = examples("train_text_to_image")
    given = TINY | {"block_out_channels": [8, 16], "output_dir": str(tmp_path / "base")}
    script.main(script.TextArguments(**given))
    given = TINY | {"init_from": str(tmp_path / "base"), "output_dir": str(tmp_path / "out")}
    given |= {"train_text_encoder": along, "template": "a strange {}"}
    with pytest.warns(UserWarning, match="10 captions have words that .* such as 'a strange zero"):
        script.main(script.TextArguments(**given, prompt_dropout=0.0))
    encoders = [
        load_file(tmp_path / f / "text_encoder/model.safetensors") for f in ("base", "out")
    ]
    same = all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])
    assert same != along
    with pytest.raises(ValueError, match="--text_encoder x contradicts --init_from"):
        script.TextArguments(**given, text_encoder="x")
    with pytest.raises(
        ValueError, match="is not a pipeline of train_mnist.py: train it by train_t"
    ):
        mnist = examples("train_mnist")
        given = TINY | {"init_from": str(tmp_path / "base"), "output_dir": str(tmp_path / "no")}
        mnist.main(mnist.Arguments(**given))


# --- sizes that fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "widths"), [(28, (32, 64, 64)), (14, (64, 64)), (7, (64,)), (8, (32, 64, 64))]
)
def test_a_network_that_is_not_described_fits_its_images(side, widths):
    assert choose_widths(None, (side, side)) == widths
    unet = BACKBONES["unet"](NetworkArguments(), (1, side, side), 0)
    assert unet(torch.zeros(1, 1, side, side), 500.0).sample.shape == (1, 1, side, side)


def test_the_documented_commands_of_a_flow_in_codes_run(examples, tmp_path, quick_datasets):
    """28 x 28 images: the default autoencoder makes codes of side 7, which cannot be halved."""
    import datasets
    from PIL import Image

    images = load_images("digits", resolution=28).images[:64, 0].numpy()
    rows = {"image": [Image.fromarray(image) for image in images], "label": [0, 1] * 32}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    given = TINY | {"dataset_name": str(tmp_path / "data"), "train_batch_size": 16}
    autoencoder, latent = examples("train_autoencoder"), examples("train_latent")
    vae, output = str(tmp_path / "autoencoder"), str(tmp_path / "latent")
    autoencoder.main(autoencoder.AutoencoderArguments(**given, output_dir=vae))
    latent.main(latent.LatentArguments(**given, vae=vae, output_dir=output))
    pipe = FlowMatchingPipeline.from_pretrained(output)
    assert pipe.network.config.sample_size == 7
    pipe.set_progress_bar_config(disable=True)
    assert pipe(class_labels=[0, 1], num_inference_steps=1, output_type="pt").images.shape == (
        2, 1, 28, 28,
    )  # fmt: skip
    with pytest.raises(ValueError, match="multiple of --patch_size 2, got 7 x 7.*--patch_size 1"):
        again = {"output_dir": str(tmp_path / "dit"), "backbone": "transformer"}
        latent.main(latent.LatentArguments(**given, vae=vae, **again))
    for wrong, said in ((tmp_path, "holds no autoencoder"), ("no/such", "train_autoencoder.py")):
        again = {"output_dir": str(tmp_path / "dit"), "vae": str(wrong)}
        with pytest.raises(ValueError, match=f"--vae {wrong}.* {said}"):
            latent.main(latent.LatentArguments(**given | again))


def test_a_calibration_is_dropped_with_the_network_that_it_was_of(examples, tmp_path):
    from fm_diffusers.calibration import calibrate

    base = make_base(tmp_path / "base")
    pipe = FlowMatchingPipeline.from_pretrained(base)
    calibrate(pipe.scheduler, pipe, num_inference_steps=2, num_samples=4, progress=False)
    pipe.save_pretrained(base)
    script = examples("train_mnist")
    with pytest.warns(UserWarning, match="the calibration of .* was of its network"):
        script.main(script.Arguments(**TINY, init_from=base, output_dir=str(tmp_path / "out")))
    with warnings.catch_warnings():
        config = FlowMatchingPipeline.from_pretrained(tmp_path / "out").scheduler.config
    assert config.calibration is None
