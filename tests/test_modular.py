"""The blocks draw what the pipeline draws, bit for bit, and diffusers' own tools load them."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from covers import covering
from diffusers import (
    ComponentsManager,
    FlowMatchEulerDiscreteScheduler,
    ModularPipeline,
    ModularPipelineBlocks,
)
from test_pipeline import CLASSES, STEPS, assert_same, generators, make_pipe
from test_pipeline_latent import SCALES
from test_pipeline_latent import make_pipe as make_latent_pipe
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_pipe as make_transformer_pipe
from test_pipeline_transformer import make_transformer
from tiny_networks import vae

from fm_diffusers import (
    FlowMatchingBlocks,
    FlowMatchingModularPipeline,
    FlowMatchingPipeline,
    GaussianFlowScheduler,
)
from fm_diffusers.training.finished import clear

diffusers.utils.logging.set_verbosity_error()

LABELS = {"class_labels": [2, 0], "num_images_per_label": 2}
PROMPTS = {"prompt": ["seven", "a dark zero"]}
GUIDED = {"guidance_scale": 2.5}
PIPES = {
    "unconditional": lambda **config: make_pipe("unconditional", **config),
    "labels": make_pipe,
    "labels without null": lambda **config: make_pipe("conditional", **config),
    "labels, codes": lambda **config: make_latent_pipe(vae(**SCALES["shifted"]), **config),
    "transformer": lambda **config: make_transformer_pipe(make_transformer(), CLASSES, **config),
    "transformer, codes": lambda **config: make_transformer_pipe(
        make_transformer(CLASSES, 4), CLASSES, vae(scaling_factor=0.4).eval(), **config
    ),
    "text": make_text_pipe,
    "text, codes": lambda **config: make_text_pipe(autoencoder=True, **config),
}
ASKED = {
    "unconditional": [{}, {"batch_size": 2}],
    "labels": [LABELS, LABELS | GUIDED, {"batch_size": 2}],
    "labels without null": [LABELS],
    "labels, codes": [LABELS | GUIDED],
    "transformer": [LABELS, LABELS | GUIDED],
    "transformer, codes": [LABELS | GUIDED],
    "text": [PROMPTS, PROMPTS | GUIDED | {"negative_prompt": "digit"}, {"batch_size": 2}],
    "text, codes": [PROMPTS | GUIDED],
}
CONFIGS = {
    "ode": {},
    "sde": {"diffusion": "memoryless", "path": "cosine"},
    "heun": {"solver": "heun"},
}


def modular(pipe, manager=None):
    """Return the modular pipeline of a pipeline's components."""
    made = FlowMatchingBlocks().init_pipeline(components_manager=manager)
    made.update_components(**{**pipe.components, "null_label": pipe.config.null_label})
    made.set_progress_bar_config(disable=True)
    return made


def draw(pipe, output_type="latent", **asked):
    given = {"num_inference_steps": STEPS, "generator": generators(0)[0]}
    given |= {"output_type": output_type} | asked
    if isinstance(pipe, FlowMatchingPipeline):
        return pipe(**given).images
    return pipe(**given, output="images")


@pytest.fixture
def saved(tmp_path):
    """Return a saved pipeline, and where."""
    pipe = make_transformer_pipe(make_transformer(), CLASSES, diffusion="memoryless")
    pipe.save_pretrained(tmp_path / "saved")
    return pipe, tmp_path / "saved"


def loaded(pipe):
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- the same images -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "config"), covering(PIPES, CONFIGS))
def test_the_blocks_draw_what_the_pipeline_draws_bit_for_bit(name, config):
    pipe = PIPES[name](**CONFIGS[config])
    blocks = modular(pipe)
    for asked in ASKED[name]:
        expected = draw(pipe, **asked)
        assert torch.equal(draw(blocks, **asked), expected)
        assert torch.equal(blocks.scheduler.timesteps, pipe.scheduler.timesteps)


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
@pytest.mark.parametrize("name", ["labels", "text, codes"])
def test_images_are_decoded_as_the_pipeline_decodes_them(name, output_type):
    pipe, asked = PIPES[name](), ASKED[name][-1]
    ours, theirs = (draw(p, output_type, **asked) for p in (modular(pipe), pipe))
    assert type(ours) is type(theirs)
    if output_type == "pil":
        ours, theirs = ([x.tobytes() for x in images] for images in (ours, theirs))
    assert (ours == theirs) if output_type == "pil" else (ours == theirs).all()


GIVEN = {
    "timesteps": {"timesteps": [900.0, 400.0, 10.0], "num_inference_steps": None},
    "latents": {"latents": torch.randn(2, 1, 8, 8, generator=generators(1)[0])},
    "generators": {"generator": generators(4, 5)},
    "default steps": {"num_inference_steps": None},
    "size": {"height": 16, "width": 16},
}


@pytest.mark.parametrize("given", GIVEN)
def test_other_arguments_mean_what_they_mean_for_the_pipeline(given):
    pipe = make_pipe(diffusion="memoryless")

    def asked():
        fresh = {"generator": generators(4, 5)} if given == "generators" else {}
        return {"class_labels": [0, 2]} | GIVEN[given] | fresh

    assert torch.equal(draw(modular(pipe), **asked()), draw(pipe, **asked()))


def test_embeddings_stand_for_prompts():
    pipe = make_text_pipe()
    embeds, negative = pipe.encode_prompt(PROMPTS["prompt"], 1, True)
    states = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    expected = draw(pipe, **PROMPTS, **GUIDED)
    assert torch.equal(draw(modular(pipe), **states, **GUIDED), expected)


def test_diffusers_schedulers_are_stepped_as_the_pipeline_steps_them():
    pipe = make_pipe(prediction_type="flow_prediction")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    assert torch.equal(draw(modular(pipe), **LABELS), draw(pipe, **LABELS))


# --- loaded from a saved pipeline ----------------------------------------------------------------


def from_blocks(folder):
    return FlowMatchingBlocks().init_pipeline(folder)


def from_saved_blocks(folder):
    blocks = ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=True)
    assert type(blocks) is FlowMatchingBlocks
    return blocks.init_pipeline(folder)


def as_a_modular_pipeline(folder):
    return ModularPipeline.from_pretrained(folder, trust_remote_code=True)


def as_ours(folder):
    return FlowMatchingModularPipeline.from_pretrained(folder)


WAYS = (from_blocks, from_saved_blocks, as_a_modular_pipeline, as_ours)
ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_every_way_loads_a_saved_pipeline(way, saved):
    pipe, folder = saved
    found = loaded(way(str(folder)))
    assert type(found) is FlowMatchingModularPipeline
    assert found.config.null_label == CLASSES
    assert found.unet is None and found.vae is None
    assert_same(draw(found, **LABELS, **GUIDED), draw(pipe, **LABELS, **GUIDED))


@ways
@pytest.mark.parametrize("kind", ["text, codes", "unconditional"])
def test_other_kinds_are_loaded(kind, way, tmp_path):
    pipe, asked = PIPES[kind](), ASKED[kind][0]
    pipe.save_pretrained(tmp_path)
    assert_same(draw(loaded(way(str(tmp_path))), **asked), draw(pipe, **asked))


@ways
def test_what_the_blocks_saved_is_loaded_again_from_where_it_was_moved(way, saved, tmp_path):
    pipe, folder = saved
    first = loaded(as_ours(folder))
    scheduler = GaussianFlowScheduler.from_config(first.scheduler.config, solver="heun")
    first.update_components(scheduler=scheduler)
    first.save_pretrained(tmp_path / "again")
    expected = draw(first, **LABELS)
    shutil.rmtree(folder)
    moved = shutil.move(tmp_path / "again", tmp_path / "moved")
    index = json.loads(Path(moved, "modular_model_index.json").read_text())
    assert str(tmp_path) not in json.dumps(index)
    found = loaded(way(moved))
    assert found.scheduler.config.solver == "heun"
    assert_same(draw(found, **LABELS), expected)
    pipe.scheduler = scheduler
    assert_same(expected, draw(pipe, **LABELS))


@pytest.mark.parametrize("way", [from_blocks, as_ours])
def test_folders_that_were_saved_without_blocks_are_loaded_too(way, saved):
    pipe, folder = saved
    for file in Path(folder).glob("modular_*"):
        file.unlink()
    assert_same(draw(loaded(way(folder)), **LABELS), draw(pipe, **LABELS))


def test_diffusers_own_class_loads_no_folder_that_was_saved_without_blocks(saved):
    _, folder = saved
    for file in Path(folder).glob("modular_*"):
        file.unlink()
    with pytest.raises(TypeError):  # it looks for the class among its own by a string
        as_a_modular_pipeline(str(folder))


def test_the_pipeline_says_what_a_folder_of_blocks_is(saved, tmp_path):
    _, folder = saved
    loaded(as_ours(folder)).save_pretrained(tmp_path / "blocks")
    with pytest.raises(ValueError, match="FlowMatchingModularPipeline.from_pretrained takes it"):
        FlowMatchingPipeline.from_pretrained(tmp_path / "blocks")


def test_a_finished_run_is_cleared_with_its_blocks(saved):
    _, folder = saved
    clear(folder)
    assert not [*Path(folder).iterdir()]


def test_a_pipeline_of_the_components_is_the_pipeline(saved):
    pipe, folder = saved
    found = loaded(as_ours(folder))
    saved_names = [name for name in found.components if name in pipe.components]
    again = FlowMatchingPipeline(
        **{name: found.components[name] for name in saved_names},
        null_label=found.config.null_label,
    )
    again.set_progress_bar_config(disable=True)
    assert_same(draw(again, **LABELS), draw(pipe, **LABELS))


def test_code_of_a_repository_is_run_with_trust_only(saved):
    _, folder = saved
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        ModularPipeline.from_pretrained(str(folder))
    config = {"_class_name": "Mine", "auto_map": {"ModularPipelineBlocks": "mine.Mine"}}
    Path(folder, "modular_config.json").write_text(json.dumps(config))
    Path(folder, "mine.py").write_text(
        "from fm_diffusers import FlowMatchingBlocks\nclass Mine(FlowMatchingBlocks): pass\n"
    )
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        as_ours(folder)
    found = FlowMatchingModularPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(found.blocks).__name__ == "Mine"


def test_components_are_loaded_in_the_precision_that_is_asked_for(saved):
    _, folder = saved
    found = as_ours(folder)
    found.load_components(dtype=torch.bfloat16)
    assert found.transformer.dtype == torch.bfloat16
    for cls in (ModularPipeline, FlowMatchingModularPipeline):
        with pytest.raises(ValueError, match="dtype.*load_components"):
            cls.from_pretrained(str(folder), trust_remote_code=True, dtype=torch.bfloat16)


def test_components_are_shared_by_a_manager(saved):
    pipe, folder = saved
    manager = ComponentsManager()
    first = FlowMatchingBlocks().init_pipeline(folder, components_manager=manager)
    loaded(first)
    second = FlowMatchingBlocks().init_pipeline(folder, components_manager=manager)
    second.update_components(**manager.get_components_by_names(["transformer", "scheduler"]))
    second.set_progress_bar_config(disable=True)
    assert second.transformer is first.transformer is manager.get_one(name="transformer")
    assert_same(draw(second, **LABELS), draw(pipe, **LABELS))
