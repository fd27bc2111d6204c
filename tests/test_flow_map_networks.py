"""Networks of two times: they begin as those of one, and are pipelines like any other."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.guiders import ClassifierFreeGuidance
from peft import LoraConfig
from test_modular import modular
from test_pipeline import CLASSES, draw, make_unet
from test_pipeline_text import WIDTH, text_parts
from test_pipeline_transformer import make_transformer
from tiny_networks import unet

from fm_diffusers import FlowMatchingModularPipeline, FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.calibration import calibrate
from fm_diffusers.flow_map_networks import (
    distilled_guidance,
    is_of_two_times,
    with_two_times,
)
from fm_diffusers.pipelines.lora import lora_layers
from fm_diffusers.rl import transition
from fm_diffusers.second_time import FEATURES, features, step_features

NETWORKS = {
    "labels": lambda: make_unet(CLASSES + 1),
    "unconditional": lambda: make_unet(channels=1),
    "transformer": lambda: make_transformer(),
    "text": lambda: unet(cross_attention_dim=WIDTH, sample_size=8, in_channels=1, out_channels=1),
}
STATES = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(3))
CONDITIONS = {"labels": torch.tensor([0, 3]), "transformer": torch.tensor([0, 3]), "text": STATES}
ASKED = {
    "labels": {"class_labels": [2, 0]},
    "unconditional": {"batch_size": 2},
    "transformer": {"class_labels": [2, 0]},
    "text": {"prompt": ["seven", "a dark zero"]},
}
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([900.0, 250.0])
every = pytest.mark.parametrize("kind", NETWORKS)


def stirred(network, seed=0):
    """Let what begins at zero say something: as if the network were trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if "features.linear_2" in name or "cond_proj" in name:
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return network


def make_pipe(kind, guidance=None, scheduler=None, **config):
    network = stirred(with_two_times(NETWORKS[kind]().eval(), guidance))
    name = "transformer" if kind == "transformer" else "unet"
    scheduler = scheduler or GaussianFlowScheduler(**{"solver": "flow_map"} | config)
    null = {"labels": CLASSES, "transformer": CLASSES}.get(kind)
    parts = text_parts() if kind == "text" else {}
    pipe = FlowMatchingPipeline(**{name: network}, scheduler=scheduler, null_label=null, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(kind, pipe, **asked):
    return draw(pipe, **ASKED[kind] | asked)


# --- features ------------------------------------------------------------------------------------


def test_features_are_zero_for_a_step_of_no_length_and_for_no_guidance():
    steps, scales = torch.tensor([0.0, 0.5]), torch.tensor([3.0, 1.0])
    told = step_features(steps, scales)
    assert told.shape == (2, 2 * FEATURES) and told.dtype == torch.float32
    assert told[0, :FEATURES].abs().max() == told[1, FEATURES:].abs().max() == 0
    assert told[1, :FEATURES].norm() > 1 and told[0, FEATURES:].norm() > 1
    assert torch.equal(step_features(steps), features(steps))


# --- networks ------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("guidance", [None, 2.0, [1.0, 4.0]])
def test_a_new_network_of_two_times_predicts_what_the_one_of_one_time_does(kind, guidance):
    one, given = NETWORKS[kind]().eval(), (X, TIMES, CONDITIONS.get(kind))
    two = with_two_times(one, guidance)
    assert not two.training and is_of_two_times(two) and not is_of_two_times(one)
    assert distilled_guidance(two) == guidance and distilled_guidance(one) is None
    scales = torch.tensor([2.0, 3.0]) if isinstance(guidance, list) else None
    told = step_features(torch.tensor([0.3, 0.7]), scales)
    expected = one(*given).sample
    for options in ({}, {"timestep_cond": told}):
        assert torch.equal(two(*given, **options).sample, expected)
    found = stirred(two)(*given, timestep_cond=told, return_dict=False)[0]
    assert (found - expected).abs().max() > 1e-3


@every
def test_precision_mode_and_weights_are_those_of_the_network_it_begins_as(kind):
    one = NETWORKS[kind]().to(torch.bfloat16).train()
    two = with_two_times(one)
    assert two.training and two.dtype == torch.bfloat16
    own = dict(two.named_parameters())
    for weight in one.parameters():
        assert any(w.shape == weight.shape and torch.equal(w, weight) for w in own.values())
    again = with_two_times(two)
    assert again is not two and type(again) is type(two)


@pytest.mark.parametrize("make", [make_unet, make_transformer])
def test_labels_are_whole_numbers_in_half_precision_too(make):
    two, seen = with_two_times(make(1001).eval().to(torch.bfloat16)), []
    two.told[0].labels.register_forward_pre_hook(lambda _, given: seen.append(given[0].tolist()))
    told = step_features(torch.tensor([0.3, 0.7]))
    given = (X.to(torch.bfloat16), TIMES, torch.tensor([257, 999]))
    assert two(*given, timestep_cond=told).sample.dtype == torch.bfloat16
    assert seen[0] == [257, 999]


@every
def test_a_network_is_saved_and_loaded(kind, tmp_path):
    two = stirred(with_two_times(NETWORKS[kind]().eval(), [1.0, 4.0]))
    two.save_pretrained(tmp_path)
    loaded = type(two).from_pretrained(tmp_path)
    assert loaded.config.distilled_guidance == [1.0, 4.0]
    assert loaded.config.time_cond_proj_dim == 2 * FEATURES
    told = step_features(torch.tensor([0.3, 0.7]), torch.tensor([2.0, 3.0]))
    given = (X, TIMES, CONDITIONS.get(kind), told)
    outputs = [
        net(*given[:3], timestep_cond=given[3], return_dict=False)[0] for net in (two, loaded)
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", ["labels", "transformer", "text"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    two = stirred(with_two_times(NETWORKS[kind]().train()))
    told, gradients = step_features(torch.tensor([0.3, 0.7])), []
    for way in (lambda: None, two.enable_gradient_checkpointing):
        way()
        two.zero_grad()
        torch.manual_seed(0)
        two(X, TIMES, CONDITIONS[kind], timestep_cond=told).sample.square().sum().backward()
        gradients.append([w.grad.clone() for w in two.parameters() if w.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("learned, other", [(2.0, 3.0), (2.0, None), (None, 2.0)])
def test_a_network_of_one_scale_begins_another(learned, other):
    one = stirred(with_two_times(make_unet(), learned))
    two = with_two_times(one, other)
    assert (one.config.distilled_guidance, two.config.distilled_guidance) == (learned, other)
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=0)


def test_what_is_no_network_of_two_times_is_refused():
    with pytest.raises(ValueError, match="Linear cannot be given a second time"):
        with_two_times(torch.nn.Linear(1, 1))
    for learned, other in ((2.0, [1.0, 4.0]), ([1.0, 4.0], 2.0), ([1.0, 4.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="contradicts the network.*begin with a network of"):
            with_two_times(with_two_times(make_unet(), learned), other)
    for bad in ("two", [4.0, 1.0], [1.0], [1.0, 2.0, 3.0], True):
        with pytest.raises(ValueError, match="distilled_guidance must be"):
            with_two_times(make_unet(), bad)
    config = {k: v for k, v in make_unet().config.items() if not k.startswith("_")}
    timed = type(make_unet())(**config | {"class_embed_type": "timestep"})
    with pytest.raises(ValueError, match="class_embed_type='timestep' leaves no place"):
        with_two_times(timed)


def test_labels_and_features_of_another_shape_are_refused():
    two = with_two_times(make_unet(CLASSES + 1))
    with pytest.raises(ValueError, match="class_labels must be given"):
        two(X, TIMES)
    with pytest.raises(ValueError, match="class_labels must be left out"):
        with_two_times(make_unet())(X, TIMES, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shape \(2, 64\), got \(2, 128\)"):
        two(X, TIMES, torch.tensor([0, 1]), torch.zeros(2, 128))


# --- pipelines -----------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_a_pipeline_tells_the_network_where_the_step_leads(kind, diffusion):
    """The loop by hand, with the features of `scheduler.advance`."""
    pipe = make_pipe(kind, diffusion=diffusion)
    found = images(kind, pipe, num_inference_steps=3)
    scheduler, generator = copy.deepcopy(pipe.scheduler), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(3)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    condition = CONDITIONS.get(kind)
    if kind == "text":
        condition = pipe.encode_prompt(ASKED[kind]["prompt"])[0]
    elif condition is not None:
        condition = torch.tensor(ASKED[kind]["class_labels"])
    for t in scheduler.timesteps:
        advance = scheduler.advance(t)
        told = step_features(advance.expand(2))
        with torch.no_grad():
            q = pipe.network(x, t.expand(2), condition, timestep_cond=told).sample
        x = scheduler.step(q, t, x, generator=generator, advance=advance).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
    blind = with_two_times(NETWORKS[kind]().eval())
    pipe.register_modules(**{"transformer" if kind == "transformer" else "unet": blind})
    assert (images(kind, pipe, num_inference_steps=3) - found).abs().max() > 1e-3


def test_without_labels_the_null_label_is_drawn():
    pipe, told = make_pipe("labels"), []
    pipe.network.register_forward_pre_hook(lambda _, args: told.append(args[2].tolist()))
    drawn = draw(pipe, batch_size=2)
    assert told == [[CLASSES] * 2] * 4 and drawn.shape == (2, 1, 8, 8)


@every
def test_under_other_solvers_it_is_the_network_of_the_ode(kind):
    pipe = make_pipe(kind, solver="predictor_corrector")
    plain = NETWORKS[kind]().eval()
    for scheduler in (pipe.scheduler, FlowMatchEulerDiscreteScheduler()):
        pipe.scheduler = scheduler
        bare = FlowMatchingPipeline(**pipe.components | {pipe_name(pipe): plain})
        bare.set_progress_bar_config(disable=True)
        stirless = with_two_times(plain)
        pipe.register_modules(**{pipe_name(pipe): stirless})
        assert torch.equal(images(kind, pipe), images(kind, bare))


def pipe_name(pipe):
    return "unet" if pipe.unet is not None else "transformer"


def test_diffusers_flow_map_scheduler_draws_the_same():
    ours = make_pipe("labels", prediction_type="flow_prediction", grid="uniform")
    theirs = make_pipe("labels", scheduler=FlowMapEulerDiscreteScheduler())
    for steps in (1, 3):
        asked = {"num_inference_steps": steps}
        found, expected = (images("labels", pipe, **asked) for pipe in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_network_of_one_time_is_refused():
    pipe = FlowMatchingPipeline(make_unet(), GaussianFlowScheduler(solver="flow_map"))
    for scheduler in (pipe.scheduler, FlowMapEulerDiscreteScheduler()):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match="examples/train_few_steps.py.*another solver"):
            draw(pipe, batch_size=1)


# --- guidance that was learned -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["labels", "text"])
def test_a_learned_guidance_is_one_evaluation(kind):
    pipe, calls = make_pipe(kind, 2.0), []
    pipe.network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    plain = images(kind, pipe)
    assert torch.equal(images(kind, pipe, guidance_scale=2.0), plain)
    assert calls == [2] * 8
    for other in (1.0, 3.0):
        with pytest.raises(ValueError, match=f"guidance_scale={other} is not .*learned, 2.0"):
            images(kind, pipe, guidance_scale=other)


def test_one_of_several_learned_guidances_is_told():
    pipe, calls = make_pipe("labels", [1.0, 4.0]), []
    pipe.network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    none, two, four = (images("labels", pipe, guidance_scale=w) for w in (1.0, 2.0, 4.0))
    assert calls == [2] * 12
    assert torch.equal(images("labels", pipe), none)
    assert min((none - two).abs().max(), (two - four).abs().max()) > 1e-4
    for bad in (0.5, 4.5):
        with pytest.raises(ValueError, match="which go from 1.0 to 4.0"):
            images("labels", pipe, guidance_scale=bad)
    pipe.scheduler = GaussianFlowScheduler()  # the ODE is told it too
    ode = [images("labels", pipe, guidance_scale=w) for w in (1.0, 4.0)]
    assert not torch.equal(*ode)


def test_a_guider_would_guide_once_more():
    pipe = make_pipe("labels", 2.0)
    with pytest.raises(ValueError, match="ClassifierFreeGuidance would guide it once more"):
        images("labels", pipe, guider=ClassifierFreeGuidance(guidance_scale=2.0))


def test_a_guidance_that_was_not_learned_is_made_of_two_predictions():
    pipe, calls = make_pipe("labels"), []
    plain = images("labels", pipe)
    pipe.network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    guided = images("labels", pipe, guidance_scale=2.0)
    assert calls == [4] * 4 and (guided - plain).abs().max() > 1e-4


# --- what pipelines can do -----------------------------------------------------------------------


@every
def test_a_pipeline_is_saved_and_loaded_without_flags(kind, tmp_path):
    pipe = make_pipe(kind, 2.0)
    expected = images(kind, pipe)
    pipe.save_pretrained(tmp_path)
    loaded = FlowMatchingPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.network) is type(pipe.network)
    assert torch.equal(images(kind, loaded), expected)
    blocks = FlowMatchingModularPipeline.from_pretrained(tmp_path)
    blocks.load_components()
    blocks.set_progress_bar_config(disable=True)
    asked = ASKED[kind] | {"generator": torch.Generator().manual_seed(0), "output": "images"}
    found = blocks(**asked, num_inference_steps=4, output_type="latent", guidance_scale=2.0)
    assert torch.equal(found, expected)


AFRESH = """
import sys
import numpy, torch
from diffusers import DiffusionPipeline, ModularPipeline

folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
blocks = ModularPipeline.from_pretrained(folder, trust_remote_code=True)
blocks.load_components(trust_remote_code=True)
given = {"class_labels": [2, 0], "num_inference_steps": 4, "output_type": "latent"}
found = [
    pipe(**given, generator=torch.Generator().manual_seed(0)).images,
    blocks(**given, generator=torch.Generator().manual_seed(0), output="images"),
]
numpy.save(folder + "/found.npy", torch.stack(found).numpy())
"""


@pytest.mark.slow
def test_a_process_that_knows_diffusers_alone_loads_it(tmp_path):
    pipe = make_pipe("labels")
    pipe.save_pretrained(tmp_path)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", AFRESH, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    expected = images("labels", pipe)
    for found in torch.from_numpy(np.load(tmp_path / "found.npy")):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every
def test_a_modular_pipeline_draws_the_same(kind):
    pipe = make_pipe(kind, diffusion="memoryless")
    made = modular(pipe)
    asked = ASKED[kind] | {"num_inference_steps": 3, "output_type": "latent"}
    found = made(**asked, generator=torch.Generator().manual_seed(0), output="images")
    assert torch.equal(found, images(kind, pipe, num_inference_steps=3))


@pytest.mark.parametrize("kind", ["labels", "transformer", "text"])
def test_adapters_are_saved_and_loaded(kind, tmp_path):
    pipe = make_pipe(kind)
    plain, name = images(kind, pipe), pipe_name(pipe)
    pipe.network.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"]))
    assert torch.equal(images(kind, pipe), plain)
    generator = torch.Generator().manual_seed(0)
    for key, weight in pipe.network.named_parameters():
        if "lora_B" in key:
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    adapted = images(kind, pipe)
    assert (adapted - plain).abs().max() > 1e-3
    FlowMatchingPipeline.save_lora_weights(tmp_path, **lora_layers(**{name: pipe.network}))
    other = make_pipe(kind)
    other.load_lora_weights(tmp_path)
    assert torch.equal(images(kind, other), adapted)


def test_callbacks_see_every_step():
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append((index, tensors["model_output"].shape))
        return {"latents": tensors["latents"]}

    pipe = make_pipe("labels", diffusion="memoryless")
    names = ["latents", "model_output"]
    found = images(
        "labels", pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names
    )
    assert [index for index, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(found, images("labels", pipe))


@pytest.mark.parametrize("diffusion", [None, "memoryless"])
def test_an_image_is_changed(diffusion):
    pipe = make_pipe("labels", diffusion=diffusion)
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    given = {"class_labels": [2, 0], "image": image, "output_type": "pt"}
    given |= {"num_inference_steps": 4}

    def change(**asked):
        return pipe(**given | asked, generator=torch.Generator().manual_seed(0)).images

    kept, half = change(strength=0.0), change(strength=0.5)
    torch.testing.assert_close(torch.as_tensor(kept), image, rtol=0, atol=1e-5)
    assert (torch.as_tensor(half) - image).abs().max() > 1e-2
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    held = torch.as_tensor(change(mask_image=mask))
    torch.testing.assert_close(held[..., :4], image[..., :4], rtol=0, atol=1e-5)


def test_what_runs_the_ode_asks_for_its_slope():
    """Inversion and likelihood: the network is told no step."""
    pipe, told = make_pipe("labels"), []
    pipe.network.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs.get("timestep_cond")), with_kwargs=True
    )
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    pipe.invert(image, class_labels=[2, 0], num_inference_steps=3)
    # back by the ODE, and forth by the map, which says how far the round trip is
    assert [one is None for one in told] == [True] * 3 + [False] * 3
    told.clear()
    ode = make_pipe("labels", solver="predictor_corrector")
    given = {"class_labels": [2, 0], "num_probes": 1, "num_inference_steps": 2}
    densities = [
        p.log_likelihood(image, **given, generator=torch.Generator().manual_seed(0))
        for p in (pipe, ode)
    ]
    assert torch.equal(densities[0].log_likelihood, densities[1].log_likelihood)
    assert all(one is None for one in told)


def test_the_ends_of_an_interpolation_are_drawn_by_the_map():
    pipe = make_pipe("labels")
    given = {"num_inference_steps": 2, "output_type": "latent"}
    found = pipe.interpolate(X[:1], X[1:], 3, class_labels=1, **given).images
    for latents, end in ((X[:1], found[:1]), (X[1:], found[2:])):
        expected = pipe(class_labels=1, latents=latents, **given).images
        torch.testing.assert_close(end, expected, rtol=1e-4, atol=1e-5)


def test_a_step_cache_remembers_with_features_too():
    pipe = make_pipe("transformer")
    plain = images("transformer", pipe)
    pipe.network.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(images("transformer", pipe), plain, rtol=1e-5, atol=1e-5)
    pipe.network.disable_cache()


def test_a_flow_map_is_not_calibrated():
    pipe = make_pipe("labels")
    with pytest.raises(ValueError, match="nothing to calibrate"):
        calibrate(pipe.scheduler, pipe, 4)
    with pytest.raises(ValueError, match="nothing to calibrate"):
        calibrate(pipe.scheduler, lambda x, t: x, 4, noise=torch.randn(8, 1))


def test_a_trainers_step_takes_the_slope_whatever_the_solver():
    """It is asked for without features, as `predict` does: the scheduler's solver is not used."""
    found = []
    for solver in ("flow_map", "predictor_corrector"):
        scheduler = GaussianFlowScheduler(solver=solver, grid="uniform")
        scheduler.set_timesteps(4)
        found.append(transition(scheduler, 0.3 * X, scheduler.timesteps[1], X, "flow_grpo"))
    assert torch.equal(found[0].mean, found[1].mean)
    assert torch.equal(torch.as_tensor(found[0].std), torch.as_tensor(found[1].std))
