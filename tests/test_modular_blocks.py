"""Blocks of one's own stand between ours; what cannot be drawn or saved is refused by name."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    FirstBlockCacheConfig,
    ModularPipeline,
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.guiders.magnitude_aware_guidance import MagnitudeAwareGuidance
from diffusers.modular_pipelines import InputParam
from peft import LoraConfig
from test_modular import GUIDED, LABELS, PROMPTS, draw, loaded, modular
from test_pipeline import CLASSES, STEPS, assert_same, generators, make_pipe, make_unet
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_pipe as make_transformer_pipe
from test_pipeline_transformer import make_transformer
from tiny_inputs import noise

from fm_diffusers import (
    FlowMatchingBlocks,
    FlowMatchingModularPipeline,
    FlowMatchingPipeline,
    GaussianFlowScheduler,
)
from fm_diffusers.pipelines.lora import lora_layers

diffusers.utils.logging.set_verbosity_error()


class Halved(ModularPipelineBlocks):
    """A block of the loop: the network's prediction is halved from a step on."""

    @property
    def inputs(self):
        return [InputParam("halved_from", default=0)]

    def __call__(self, components, block_state, i, t):
        if i >= block_state.halved_from:
            block_state.noise_pred = block_state.noise_pred / 2
        return components, block_state


class Reversed(ModularPipelineBlocks):
    """A block between denoising and decoding: samples are turned upside down."""

    def __call__(self, components, state):
        state.set("latents", state.get("latents").flip(2))
        return components, state


def with_blocks(pipe, blocks):
    made = blocks.init_pipeline()
    made.update_components(**{**pipe.components, "null_label": pipe.config.null_label})
    made.set_progress_bar_config(disable=True)
    return made


def loop_of(blocks):
    return blocks.sub_blocks["denoise"].sub_blocks["denoise"].sub_blocks


# --- blocks --------------------------------------------------------------------------------------


def test_a_block_of_the_loop_changes_what_is_stepped_with():
    pipe, blocks = make_pipe(solver="euler"), FlowMatchingBlocks()
    loop_of(blocks).insert("halved", Halved(), 2)
    assert "halved_from" in blocks.doc
    made = with_blocks(pipe, blocks)
    predict = pipe.predict
    whole = draw(pipe, **LABELS)
    pipe.predict = lambda *args: predict(*args) / 2
    assert torch.equal(draw(made, **LABELS), draw(pipe, **LABELS))
    assert torch.equal(draw(made, halved_from=STEPS, **LABELS), whole)


def test_a_block_stands_between_denoising_and_decoding():
    pipe, blocks = make_pipe(), FlowMatchingBlocks()
    blocks.sub_blocks.insert("reversed", Reversed(), 2)
    assert torch.equal(draw(with_blocks(pipe, blocks), **LABELS), draw(pipe, **LABELS).flip(2))


def test_any_sequence_of_our_blocks_makes_our_pipeline(tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    blocks = SequentialPipelineBlocks.from_blocks_dict(dict(FlowMatchingBlocks().sub_blocks))
    made = loaded(blocks.init_pipeline(str(tmp_path)))
    assert type(made) is FlowMatchingModularPipeline
    assert_same(draw(made, **LABELS), draw(pipe, **LABELS))


def test_the_blocks_that_run_are_a_pipeline_of_their_own():
    pipe = make_pipe(diffusion="memoryless")
    flat = FlowMatchingBlocks().get_execution_blocks(class_labels=[0])
    assert {*flat.sub_blocks} > {"condition", "denoise.set_timesteps", "denoise.denoise"}
    assert "denoise.set_timesteps" in repr(flat)
    assert torch.equal(draw(with_blocks(pipe, flat), **LABELS), draw(pipe, **LABELS))


def test_prompts_are_encoded_in_a_pipeline_of_their_own(tmp_path):
    pipe = make_text_pipe(autoencoder=True)
    pipe.save_pretrained(tmp_path)
    blocks = FlowMatchingBlocks()
    first = blocks.sub_blocks.pop("condition").init_pipeline(tmp_path)
    last = blocks.sub_blocks.pop("decode").init_pipeline(tmp_path)
    assert {*last.pretrained_component_names} == {"vae"}  # needs no network
    middle, first, last = map(loaded, (blocks.init_pipeline(tmp_path), first, last))
    assert not hasattr(middle, "text_encoder")
    state = first(**PROMPTS, **GUIDED)
    told = {name: state.get(name) for name in ("condition", "num_images")}
    options = {"num_inference_steps": STEPS, "latents": noise(2, 4, 8, 8)}
    latents = middle(**told, **GUIDED, **options, output="latents")
    images = last(latents=latents, output_type="pt", output="images")
    assert_same(images, draw(pipe, "pt", **PROMPTS, **GUIDED, latents=options["latents"]))
    told["condition"] = told["condition"][2:]
    assert_same(
        middle(**told, **options, output="latents"),
        draw(pipe, **PROMPTS, latents=options["latents"]),
    )
    with pytest.raises(ValueError, match="guidance_scale of the loop"):
        middle(**told, **GUIDED, **options)


def test_the_documentation_names_what_the_blocks_need_and_are_told():
    blocks = FlowMatchingBlocks()
    for word in ("unet", "guider", "null_label", "class_labels", "guidance_scale", "images"):
        assert word in blocks.doc
    named = {i.name for i in blocks.inputs}
    beside = {"return", "return_dict", "condition"}
    called = {*FlowMatchingPipeline.__call__.__annotations__} - beside
    component, editing = {"guider"}, {"image", "strength", "mask_image"}  # of the pipeline alone
    assert named == {n for n in called if not n.startswith("callback")} - component - editing
    assert blocks.output_names == ["images"]


def test_calls_may_run_in_threads():
    pipe = modular(make_pipe(diffusion="memoryless"))

    def one(seed):
        return draw(
            pipe,
            class_labels=[seed % 3],
            num_inference_steps=2 + seed % 3,
            generator=generators(seed)[0],
        )

    with ThreadPoolExecutor(4) as pool:
        together = [*pool.map(one, range(16))]
    assert all(torch.equal(x, one(seed)) for seed, x in enumerate(together))


# --- components ----------------------------------------------------------------------------------


GUIDERS = {
    "cfg": lambda: ClassifierFreeGuidance(2.5),
    "original": lambda: ClassifierFreeGuidance(1.5, use_original_formulation=True),
    "early": lambda: ClassifierFreeGuidance(2.5, stop=0.5),
    "between": lambda: ClassifierFreeGuidance(2.5, start=0.25, stop=0.75),
    "disabled": lambda: ClassifierFreeGuidance(2.5, enabled=False),
    "rescaled": lambda: ClassifierFreeGuidance(2.5, guidance_rescale=0.5),
    "zero star": lambda: diffusers.ClassifierFreeZeroStarGuidance(2.5),
    "projected": lambda: diffusers.AdaptiveProjectedGuidance(
        2.5, adaptive_projected_guidance_momentum=-0.5
    ),
    "tangential": lambda: diffusers.TangentialClassifierFreeGuidance(2.5),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_the_guider_guides_as_it_guides_the_pipeline(name):
    pipe = make_pipe(path="cosine")
    made = modular(pipe)
    made.update_components(guider=GUIDERS[name]())
    expected = draw(pipe, **LABELS, guider=GUIDERS[name]())
    for _ in range(2):  # a loop leaves no trace in it
        assert torch.equal(draw(made, **LABELS), expected)
    scaled = draw(made, **LABELS, guidance_scale=3.0)
    assert torch.equal(scaled, draw(pipe, **LABELS, guidance_scale=3.0))


def test_the_guider_that_a_pipeline_is_saved_with_is_loaded(tmp_path):
    pipe = make_pipe()
    pipe.guider = diffusers.AdaptiveProjectedGuidance(2.5)
    pipe.save_pretrained(tmp_path)
    made = loaded(FlowMatchingModularPipeline.from_pretrained(tmp_path))
    assert_same(draw(made, **LABELS), draw(pipe, **LABELS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made.save_pretrained(tmp_path / "again")
    again = loaded(FlowMatchingModularPipeline.from_pretrained(tmp_path / "again"))
    assert type(again.guider) is diffusers.AdaptiveProjectedGuidance
    assert torch.equal(draw(again, **LABELS), draw(made, **LABELS))


def test_a_scheduler_is_replaced():
    pipe = make_pipe()
    made = modular(pipe)
    sde = GaussianFlowScheduler.from_config(made.scheduler.config, diffusion="memoryless")
    made.update_components(scheduler=sde)
    pipe.scheduler = sde
    assert torch.equal(draw(made, **LABELS), draw(pipe, **LABELS))


def test_adapters_are_loaded(tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "saved")
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]))
    FlowMatchingPipeline.save_lora_weights(tmp_path / "lora", **lora_layers(unet=pipe.unet))
    made = loaded(FlowMatchingModularPipeline.from_pretrained(tmp_path / "saved"))
    plain = draw(made, **LABELS)
    made.load_lora_weights(tmp_path / "lora")
    assert_same(draw(made, **LABELS), draw(pipe, **LABELS))
    assert (draw(made, **LABELS) - plain).norm() > 1e-3 * plain.norm()
    with pytest.raises(ValueError, match="unload_lora_weights"):
        made.save_pretrained(tmp_path / "again")
    made.unload_lora_weights()
    assert torch.equal(draw(made, **LABELS), plain)


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"class_labels": [CLASSES]}, "class_labels must be integers in 0..2"),
        ({"prompt": "seven"}, "takes class labels"),
        ({"class_labels": [0], "guidance_scale": "2"}, "guidance_scale must be a finite number"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels"),
        ({"num_inference_steps": 0}, "num_inference_steps must be"),
        ({"output_type": "jpg"}, "output_type must be one of"),
        ({"generator": generators(0, 1)}, "one for each of the 1 images"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents must have the shape"),
    ],
)
def test_what_the_pipeline_refuses_the_blocks_refuse(asked, message):
    pipe = make_pipe()
    for call in (lambda **kw: pipe(**kw), modular(pipe)):
        with pytest.raises(ValueError, match=message):
            call(**asked)


def test_components_that_are_missing_or_do_not_fit_are_named(tmp_path):
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    made = FlowMatchingBlocks().init_pipeline(tmp_path)
    with pytest.raises(ValueError, match="load_components"):
        made(class_labels=[0])
    made.load_components(["unet"])
    with pytest.raises(ValueError, match="needs a scheduler"):
        made(class_labels=[0])
    made.update_components(null_label=7, scheduler=pipe.scheduler)
    with pytest.raises(ValueError, match="null_label must be the last"):
        made(class_labels=[0])


def test_guiders_that_cannot_serve_are_refused_by_name():
    made = modular(make_pipe())
    made.update_components(guider=MagnitudeAwareGuidance(2.0))
    with pytest.raises(ValueError, match="MagnitudeAwareGuidance cannot guide"):
        made(class_labels=[0])


def test_blocks_and_guiders_that_are_not_saved_are_named(tmp_path):
    blocks = FlowMatchingBlocks()
    blocks.save_pretrained(tmp_path / "blocks")
    loop_of(blocks).insert("halved", Halved(), 2)
    with pytest.raises(ValueError, match="denoise.denoise.halved"):
        blocks.save_pretrained(tmp_path / "mine")
    made = with_blocks(make_pipe(), blocks)
    made.update_components(guider=ClassifierFreeGuidance(3.0))
    with pytest.warns(UserWarning, match="denoise.denoise.halved.*guider"):
        made.save_pretrained(tmp_path / "pipe")


def test_blocks_of_a_class_of_their_own_are_kept(tmp_path, monkeypatch):
    code = """
from fm_diffusers import FlowMatchingBlocks
from fm_diffusers.pipelines.blocks.steps import ConditionStep
from fm_diffusers.pipelines.blocks.loop import DenoiseStep

class Undecoded(FlowMatchingBlocks):
    block_classes = [ConditionStep, DenoiseStep]
    block_names = ["condition", "denoise"]
"""
    (tmp_path / "undecoded.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    from undecoded import Undecoded

    folder = f"{tmp_path}/"  # also with a slash
    made = with_blocks(make_pipe(), Undecoded())
    Undecoded().save_pretrained(folder)
    with pytest.warns(UserWarning, match="blocks.*decode"):
        made.save_pretrained(folder)
    assert str(tmp_path) not in (tmp_path / "modular_model_index.json").read_text()
    again = loaded(ModularPipeline.from_pretrained(folder, trust_remote_code=True))
    assert [*again.blocks.sub_blocks] == ["condition", "denoise"]
    asked = {"class_labels": [0, 2], "num_inference_steps": 2, "output": "latents"}
    first, second = (p(**asked, generator=generators(0)[0]) for p in (made, again))
    assert_same(first, second)


def test_predictions_that_are_not_finite_warn():
    pipe = make_pipe()
    made = modular(pipe)
    broken = make_unet(CLASSES + 1)
    broken.conv_out.weight.data.fill_(float("nan"))
    made.update_components(unet=broken)
    with pytest.warns(RuntimeWarning, match="not finite.*at step 0"):
        draw(made, **LABELS)


def test_a_step_cache_begins_anew_with_every_call():
    pipe = make_transformer_pipe(make_transformer(), CLASSES)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(1e9))
    asked = {"class_labels": [0, 2], "guidance_scale": 2.0, "num_inference_steps": 6}
    expected, found = (
        [draw(one, **asked, generator=generators(seed, seed + 1)) for seed in (0, 5)]
        for one in (pipe, modular(pipe))
    )
    assert all(map(torch.equal, found, expected))
