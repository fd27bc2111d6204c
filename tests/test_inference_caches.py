"""Step caches: what they keep is of one trajectory of one call, and none does nothing."""

import copy
import re

import pytest
import test_pipeline
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
)
from diffusers.guiders import ClassifierFreeGuidance, SkipLayerGuidance
from diffusers.hooks import apply_first_block_cache
from test_pipeline import CLASSES, assert_same, draw
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_pipe, make_transformer
from tiny_networks import vae

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

STEPS = 6
PARTS = [r"transformer_blocks\.\d+\.(attn1|ff)"]
PIPES = {
    "labels": lambda **config: make_pipe(make_transformer(num_layers=3), CLASSES, **config),
    "unconditional": lambda **config: make_pipe(make_transformer(0, num_layers=3), 0, **config),
    "latent": lambda **config: make_pipe(
        make_transformer(channels=4, num_layers=3), CLASSES, vae().eval(), **config
    ),
    "unet": lambda **config: test_pipeline.make_pipe("guided", **config),
    "unconditional unet": lambda **config: test_pipeline.make_pipe("unconditional", **config),
    "text": lambda **config: make_text_pipe(**config),
}
ASKED = {
    "labels": {"class_labels": [0, 1], "guidance_scale": 2.0},
    "unconditional": {"batch_size": 2},
    "latent": {"class_labels": [0, 1], "guidance_scale": 2.0},
    "unet": {"class_labels": [0, 1], "guidance_scale": 2.0},
    "unconditional unet": {"batch_size": 2},
    "text": {"prompt": ["a seven", "dark"], "guidance_scale": 2.0},
}
TRANSFORMERS = ("labels", "unconditional", "latent")


def mag(threshold=1.0, **config):
    config = {"retention_ratio": 0.2, "mag_ratios": [1.01] * STEPS} | config
    return MagCacheConfig(threshold=threshold, num_inference_steps=STEPS, **config)


def taylor(interval, **config):
    return TaylorSeerCacheConfig(
        cache_interval=interval, taylor_factors_dtype=torch.float32, **config
    )


def taylor_unet(interval):
    kept = [r".*resnets\.\d+"]
    return taylor(interval, cache_identifiers=kept)


def broadcast(every, **config):
    return PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=every, **config)


#: Caches that keep something, the same ones that keep nothing, and the pipelines that take them.
CACHES = {
    "first block": (
        lambda: FirstBlockCacheConfig(0.5),
        lambda: FirstBlockCacheConfig(0.0),
        TRANSFORMERS,
    ),
    "mag": (mag, lambda: mag(0.0), TRANSFORMERS),
    "taylor": (
        lambda: taylor(3, cache_identifiers=PARTS),
        lambda: taylor(1, cache_identifiers=PARTS),
        TRANSFORMERS,
    ),
    "taylor whole": (
        lambda: taylor(
            3,
            cache_identifiers=["proj_out_2"],
            skip_predict_identifiers=[r"transformer_blocks\.\d+"],
        ),
        lambda: taylor(
            1,
            cache_identifiers=["proj_out_2"],
            skip_predict_identifiers=[r"transformer_blocks\.\d+"],
        ),
        TRANSFORMERS,
    ),
    "taylor unet": (
        lambda: taylor_unet(3),
        lambda: taylor_unet(1),
        ("unet", "unconditional unet", "text"),
    ),
    "broadcast": (lambda: broadcast(2), lambda: broadcast(1), tuple(PIPES)),
    "faster": (
        lambda: FasterCacheConfig(is_guidance_distilled=True),
        lambda: FasterCacheConfig(
            is_guidance_distilled=True, spatial_attention_timestep_skip_range=(-2, -1)
        ),
        TRANSFORMERS,
    ),
}
CASES = [("first block", "labels", "memoryless"), ("taylor unet", "text", "memoryless")]
#: In the fast run the first and the last; test_inference_features.py runs caches on the others.
CASES += [
    pytest.param(cache, pipe, None, marks=pytest.mark.slow if pipe in pipes[1:-1] else ())
    for cache, (_, _, pipes) in CACHES.items()
    for pipe in pipes
]


def work(pipe, **asked):
    """Return final samples, and how many rows layers with weights computed for them."""
    computed = []
    layers = [
        x for x in pipe.network.modules() if isinstance(x, torch.nn.Linear | torch.nn.Conv2d)
    ]
    hooks = [
        layer.register_forward_hook(lambda m, x, out: computed.append(len(out)))
        for layer in layers
    ]
    samples = draw(pipe, num_inference_steps=STEPS, **asked)
    for hook in hooks:
        hook.remove()
    return samples, sum(computed)


@pytest.mark.parametrize(("cache", "name", "diffusion"), CASES)
def test_a_cache_saves_work_and_one_that_keeps_nothing_changes_nothing(cache, name, diffusion):
    pipe, asked = PIPES[name](diffusion=diffusion), ASKED[name]
    plain, all_work = work(pipe, **asked)
    keeps, keeps_nothing, _ = CACHES[cache]
    pipe.network.enable_cache(keeps_nothing())
    found, same_work = work(pipe, **asked)
    assert_same(found, plain)
    assert same_work == all_work
    pipe.network.disable_cache()
    pipe.network.enable_cache(keeps())
    found, less_work = work(pipe, **asked)
    assert less_work < all_work and not torch.allclose(found, plain, atol=1e-5)
    # nothing is left over, neither in the cache nor of it
    assert torch.equal(work(pipe, **asked)[0], found)
    one = {key: value[:1] if isinstance(value, list) else value for key, value in asked.items()}
    work(pipe, **one | ({"batch_size": 1} if "batch_size" in asked else {}))
    assert torch.equal(work(pipe, **asked)[0], found)
    pipe.network.disable_cache()
    found, same_work = work(pipe, **asked)
    assert torch.equal(found, plain) and same_work == all_work


@pytest.mark.parametrize("cache", ["first block", "mag", "taylor"])
def test_with_guidance_each_condition_has_a_memory_of_its_own(cache):
    """The loop of a call equals one of two networks, each with a cache, asked for one each."""
    pipe, (keeps, _, _) = PIPES["labels"](), CACHES[cache]
    networks = [copy.deepcopy(pipe.transformer) for _ in range(2)]
    for network in (*networks, pipe.transformer):
        network.enable_cache(keeps())
    found = draw(pipe, [0, 1], guidance_scale=2.0, num_inference_steps=STEPS)
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(STEPS)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.full((2,), CLASSES), torch.tensor([0, 1])
    with torch.no_grad():
        for t in scheduler.timesteps:
            outputs = []
            for network, label in zip(networks, labels, strict=True):
                with network.cache_context("only"):
                    outputs.append(network(x, t.expand(2), label).sample)
            x = scheduler.step(torch.lerp(*outputs, 2.0), t, x).prev_sample
    assert torch.equal(found, x)


def test_a_call_that_broke_off_leaves_no_memory():
    pipe, asked = PIPES["labels"](), ASKED["labels"] | {"num_inference_steps": STEPS}
    pipe.transformer.enable_cache(mag())
    expected = draw(pipe, **asked)

    def fail(pipe, i, t, tensors):
        if i == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, callback_on_step_end=fail, **asked)
    assert torch.equal(draw(pipe, **asked), expected)


def test_a_cache_of_diffusers_own_function_is_served_too():
    pipe = PIPES["labels"]()
    draw(pipe, **ASKED["labels"])  # diffusers remembers which layers had hooks
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(0.5))
    other = PIPES["labels"]()
    other.transformer.enable_cache(FirstBlockCacheConfig(0.5))
    expected, found = (work(p, **ASKED["labels"]) for p in (other, pipe))
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]


def test_calibrated_ratios_are_those_of_the_residuals(capsys):
    """MagCache prints mean ratios of norms of what all blocks add, from step to step."""
    pipe = PIPES["labels"]()
    residuals = []
    blocks = pipe.transformer.transformer_blocks
    begin = []
    hooks = [
        blocks[0].register_forward_pre_hook(lambda m, a: begin.append(a[0])),
        blocks[-1].register_forward_hook(lambda m, a, out: residuals.append(out - begin[-1])),
    ]
    draw(pipe, [0, 1], num_inference_steps=STEPS)
    for hook in hooks:
        hook.remove()
    pipe.transformer.enable_cache(mag(mag_ratios=None, calibrate=True))
    draw(pipe, [0, 1], num_inference_steps=STEPS)
    (line,) = re.findall(r"^\[(.*\d)\]$", capsys.readouterr().out, flags=re.M)
    norms = [residual.norm(dim=-1) for residual in residuals]
    expected = [1.0] + [(b / a).mean().item() for a, b in zip(norms, norms[1:], strict=False)]
    assert [float(x) for x in line.split(",")] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_magcache_counts_evaluations_and_refuses_another_number(solver):
    pipe = PIPES["labels"](solver=solver)
    pipe.scheduler.set_timesteps(5)
    count = len(pipe.scheduler.timesteps)
    for steps, message in ((count, None), (28, f"must be {count}, the evaluations .* got 28")):
        config = MagCacheConfig(num_inference_steps=steps, mag_ratios=[1.0] * steps)
        pipe.transformer.enable_cache(config)
        if message is None:
            draw(pipe, 0, num_inference_steps=5)
        else:
            with pytest.raises(ValueError, match=message):
                draw(pipe, 0, num_inference_steps=5)
        pipe.transformer.disable_cache()


#: What cannot be cached: pipeline, configuration, and what the error says.
REFUSED = {
    "first block of a unet": (
        "unet",
        FirstBlockCacheConfig,
        r"row of at least 2 .* are 0: .*Tayl",
    ),
    "first block of a text unet": ("text", FirstBlockCacheConfig, "at least 2 transformer blocks"),
    "mag of a unet": ("unet", mag, "at least 1 transformer blocks, and here are 0"),
    "taylor by default": ("labels", TaylorSeerCacheConfig, r"pass cache_identifiers.*attn1\|ff"),
    "taylor by default of a unet": ("text", TaylorSeerCacheConfig, r"example .*resnets"),
    "taylor lite": ("labels", lambda: taylor(2, use_lite_mode=True), "pass cache_identifiers"),
    "only skipped": (
        "labels",
        lambda: taylor(2, skip_predict_identifiers=PARTS, cache_identifiers=PARTS),
        "no layer has a name that it extrapolates",
    ),
    "tuples": (
        "text",
        lambda: taylor(2, cache_identifiers=[r".*attentions\.\d+"]),
        r"\['down_blocks.1.attentions.0', .*\] return tuples",
    ),
    "no such layer": ("unet", lambda: taylor(2, cache_identifiers=["nothing"]), "no layer has"),
    "no cross attention": (
        "labels",
        lambda: PyramidAttentionBroadcastConfig(cross_attention_block_skip_range=2),
        "found no layer",
    ),
    "half a batch": ("labels", FasterCacheConfig, "pass is_guidance_distilled=True"),
    "faster of a unet": (
        "unet",
        lambda: FasterCacheConfig(is_guidance_distilled=True),
        "found no layer of UNet2DModel",
    ),
    "video": ("labels", SeaCacheConfig, "must be one of .*FirstBlock.* got SeaCacheConfig"),
    "text keys": ("labels", TextKVCacheConfig, "got TextKVCacheConfig"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cache_that_would_do_nothing_is_refused_and_leaves_nothing(case):
    name, make, message = REFUSED[case]
    pipe = PIPES[name]()
    plain = draw(pipe, **ASKED[name])
    with pytest.raises(ValueError, match=message):
        pipe.network.enable_cache(make())
    assert not pipe.network.is_cache_enabled
    assert torch.equal(draw(pipe, **ASKED[name]), plain)


def test_one_layer_is_no_row():
    with pytest.raises(ValueError, match="at least 2 transformer blocks, and here are 1"):
        make_transformer(num_layers=1).enable_cache(FirstBlockCacheConfig())


def test_memories_of_attention_begin_anew_where_guidance_is_cut_off():
    pipe = PIPES["labels"]()
    pipe.transformer.enable_cache(broadcast(2))
    t = torch.tensor(500.0)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipe.predict(x, t, torch.tensor([CLASSES, 0]), 2.0)
        found = pipe.predict(x, t, torch.tensor([0]), 1.0)
        pipe.transformer.disable_cache()
        assert torch.equal(found, pipe.predict(x, t, torch.tensor([0]), 1.0))


def test_a_calibration_refuses_a_cache():
    pipe = PIPES["labels"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="a calibration needs the network itself"):
        pipe.calibration_field(2)
    pipe.transformer.disable_cache()
    pipe.calibration_field(2)


def test_the_networks_stay_what_is_saved(tmp_path):
    pipe = PIPES["labels"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(0.5))
    pipe.save_pretrained(tmp_path)
    again = FlowMatchingPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert not again.transformer.is_cache_enabled
    pipe.transformer.disable_cache()
    assert_same(draw(again, 0), draw(pipe, 0))


@pytest.mark.parametrize("cache", ["first block", "mag", "taylor", "broadcast"])
def test_a_guider_is_served_as_the_scale_is(cache):
    pipe, asked = PIPES["labels"](), ASKED["labels"]
    pipe.transformer.enable_cache(CACHES[cache][0]())
    expected = draw(pipe, num_inference_steps=STEPS, **asked)
    guider = ClassifierFreeGuidance(guidance_scale=2.0, use_original_formulation=False)
    del asked
    found = draw(pipe, [0, 1], num_inference_steps=STEPS, guider=guider)
    assert_same(found, expected)


def test_a_guider_that_skips_layers_has_memories_by_name():
    pipe = PIPES["labels"]()
    guider = SkipLayerGuidance(guidance_scale=2.0, skip_layer_guidance_layers=[1])
    plain = draw(pipe, [0, 1], num_inference_steps=STEPS, guider=guider)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(0.0))
    assert_same(draw(pipe, [0, 1], num_inference_steps=STEPS, guider=guider), plain)


def test_a_log_likelihood_refuses_a_cache():
    pipe = PIPES["labels"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="a log-likelihood needs the network itself"):
        pipe.log_likelihood(torch.zeros(1, 1, 8, 8), class_labels=[0])
