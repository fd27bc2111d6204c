"""Components and callbacks that return something else than they should: refused or told of."""

import re
import warnings

import numpy as np
import pytest
import torch
from covers import covering
from diffusers.models.unets.unet_2d import UNet2DOutput
from test_pipeline import CLASSES, STEPS, draw, generators, make_pipe, make_unet
from test_pipeline_text import LENGTH, WIDTH, make_text_pipe
from test_pipeline_transformer import make_pipe as make_transformer_pipe
from test_pipeline_transformer import make_transformer
from tiny_networks import vae
from transformers.modeling_outputs import BaseModelOutput

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler


@pytest.fixture(autouse=True)
def strict():
    """Let no warning of ours pass unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def returning(change, component="unet", method="forward", make=make_pipe, **config):
    """Return a pipeline of which a component's result goes through `change`."""
    pipe = make(**config)
    part = getattr(pipe, component)
    usual = getattr(part, method)
    # with the signature of the method, by which a pipeline knows how a network is called
    bound = {"forward": _forward, "decode": _decode}[method]
    setattr(part, method, bound(usual, change))
    return pipe


def _forward(usual, change):
    def forward(sample=None, timestep=None, condition=None, return_dict=True, input_ids=None):
        if input_ids is not None:
            return change(usual(input_ids=input_ids))
        return change(usual(sample, timestep, condition, return_dict=False)[0])

    return forward


def _decode(usual, change):
    return lambda codes, return_dict=True: change(usual(codes, return_dict=False)[0])


# --- what a network returns ----------------------------------------------------------------------

WAYS = {
    "tuple": lambda x: (x,),
    "list": lambda x: [x, None],
    "tensor": lambda x: x,
    "output": lambda x: UNet2DOutput(sample=x),
    "variance": lambda x: (torch.cat([x, x + 1], 1),),
}


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("way", WAYS)
def test_a_prediction_is_found_alone_or_first(way, guidance_scale):
    asked = {"class_labels": [0, 2], "guidance_scale": guidance_scale}
    assert torch.equal(draw(returning(WAYS[way]), **asked), draw(make_pipe(), **asked))


WRONG = {
    "nothing": (lambda x: None, "got None"),
    "empty tuple": (lambda x: (), "got an empty tuple"),
    "empty list": (lambda x: [], "got an empty list"),
    "tuple of None": (lambda x: (None, x), "got a tuple that begins with None"),
    "dictionary": (lambda x: {"sample": x}, r"got a dict with the keys \['sample'\]"),
    "empty dictionary": (lambda x: {}, r"got a dict with the keys \[\]"),
    "tuple of a dictionary": (lambda x: ({"a": x},), "begins with a dict with the keys"),
    "number": (lambda x: (0.0,), "got a tuple that begins with a float"),
    "text": (lambda x: "sample", "got a str"),
    "array": (lambda x: x.numpy(), "got a ndarray"),
    "integers": (lambda x: (x.long(),), r"a tensor of torch.int64 of the shape \({n}, 1, 8, 8\)"),
    "truths": (lambda x: (x > 0,), "tensor of torch.bool"),
    "complex": (lambda x: (x.cfloat(),), "tensor of torch.complex64"),
    "half the batch": (lambda x: (x[: len(x) // 2],), r"the shape \({half}, 1, 8, 8\)"),
    "twice the batch": (lambda x: (torch.cat([x, x]),), r"the shape \({twice}, 1, 8, 8\)"),
    "mean of the batch": (lambda x: (x.mean(0, keepdim=True),), r"the shape \(1, 1, 8, 8\)"),
    "no batch": (lambda x: (x[0],), r"the shape \(1, 8, 8\)"),
    "narrow": (lambda x: (x[..., :4],), r"the shape \({n}, 1, 8, 4\)"),
    "one pixel": (lambda x: (x[..., :1, :1],), r"the shape \({n}, 1, 1, 1\)"),
    "no channels": (lambda x: (x[:, :0],), r"the shape \({n}, 0, 8, 8\)"),
    "three channels": (lambda x: (x.expand(-1, 3, -1, -1),), r"the shape \({n}, 3, 8, 8\)"),
    "channels last": (lambda x: (x.movedim(1, -1),), r"the shape \({n}, 8, 8, 1\)"),
    "tokens": (lambda x: (x.flatten(2),), r"the shape \({n}, 1, 64\)"),
    "one number": (lambda x: (x.mean(),), r"the shape \(\)"),
}


@pytest.mark.parametrize(("wrong", "guidance_scale"), covering(WRONG, [1.0, 2.0]))
def test_what_is_no_prediction_for_each_sample_is_refused(wrong, guidance_scale):
    change, got = WRONG[wrong]
    n = 4 if guidance_scale == 1 else 8
    got = got.replace("{n}", str(n)).replace("{half}", str(n // 2)).replace("{twice}", str(2 * n))
    needed = rf"network must return .* of the shape \({n}, 1, 8, 8\) or \({n}, 2, 8, 8\), .*{got}"
    with pytest.raises(ValueError, match=needed):
        draw(returning(change), [0, 1, 2, 0], guidance_scale=guidance_scale)


def test_the_field_of_a_calibration_is_checked_too():
    field, noise = returning(lambda x: (x[:1],)).calibration_field(4)
    with pytest.raises(ValueError, match=r"network must return .* got a tuple that begins with"):
        field(noise, torch.tensor(0.5), slice(0, 4))


def test_a_transformer_is_checked_too():
    pipe = make_transformer_pipe(make_transformer(), CLASSES)
    pipe.transformer.forward = _forward(pipe.transformer.forward, lambda x: x[:, :, :4])
    with pytest.raises(ValueError, match=r"network must return .* of the shape \(1, 1, 4, 8\)"):
        draw(pipe, 0)


# --- numbers that are not finite -----------------------------------------------------------------


def broken_from(step, value, evaluations=None):
    """Return a change of outputs into `value` from an evaluation on."""
    seen = []

    def change(x):
        seen.append(None)
        broken = len(seen) - 1 >= step and (evaluations is None or len(seen) - 1 in evaluations)
        return (x.clone().index_fill_(0, torch.tensor([0]), value) if broken else x,)

    return change


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 0.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [0, 2, STEPS - 1])
def test_the_first_step_that_is_not_finite_is_named_once(step, value, guidance_scale):
    pipe = returning(broken_from(step, value))
    with pytest.warns(RuntimeWarning) as told:
        draw(pipe, [0, 1], guidance_scale=guidance_scale)
    assert len(told) == 1
    timestep = f"{pipe.scheduler.timesteps[step].item():g}"
    count = STEPS - step
    assert re.search(
        rf"output is not finite .* at step {step}, timestep {re.escape(timestep)}, the first of "
        rf"{count} such steps, .*float32",
        str(told[0].message),
    )


@pytest.mark.parametrize(
    "config",
    [
        {"solver": "heun"},
        {"diffusion": "memoryless"},
        {"clip_sample": True},
        {"path": "cosine", "prediction_type": "sample"},
    ],
    ids=str,
)
def test_every_solver_tells_of_it(config):
    pipe = returning(broken_from(1, float("inf")), **config)
    with pytest.warns(RuntimeWarning, match="at step 1, timestep"):
        draw(pipe, 0)


def test_one_bad_step_is_told_of_where_later_ones_are_finite():
    pipe = returning(broken_from(1, float("inf"), evaluations=[1]), clip_sample=True)
    with pytest.warns(RuntimeWarning, match="at step 1, timestep .* the first of 1 such steps"):
        draw(pipe, 0)


def test_numbers_beyond_the_scheduler_are_told_of():
    pipe, large = returning(lambda x: (torch.full_like(x, 3e38),)), torch.full((1, 1, 8, 8), 3e38)
    with pytest.warns(RuntimeWarning, match="samples are not finite .* although every output"):
        draw(pipe, 0, latents=large)


def test_finite_numbers_are_drawn_without_a_word():
    draw(returning(lambda x: (torch.full_like(x, 1e30),)), 0)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_black_images_are_told_of(output_type):
    asked = {"num_inference_steps": 2, "output_type": output_type}
    with pytest.warns(RuntimeWarning, match="at step 1, timestep"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="invalid value encountered in cast")
            returning(broken_from(1, float("nan")))(0, **asked)


def test_flags_are_read_once_after_the_loop(monkeypatch):
    pipe, reads = make_pipe(), []
    for name in ("item", "tolist", "__bool__"):
        usual = getattr(torch.Tensor, name)

        def read(tensor, *args, name=name, usual=usual):
            if tensor.dtype == torch.bool:
                reads.append(name)
            return usual(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, read)
    at_steps = []
    draw(pipe, 0, callback_on_step_end=lambda p, i, t, k: at_steps.append(len(reads)))
    assert at_steps == [at_steps[0]] * STEPS and len(reads) == at_steps[0] + 1


# --- the autoencoder -----------------------------------------------------------------------------


def make_latent_pipe():
    pipe = FlowMatchingPipeline(
        make_unet(CLASSES + 1, channels=4), GaussianFlowScheduler(), CLASSES, vae=vae().eval()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


DECODED = {
    "nothing": (lambda x: None, "got None"),
    "empty tuple": (lambda x: (), "got an empty tuple"),
    "dictionary": (lambda x: {"sample": x}, "got a dict"),
    "integers": (lambda x: (x.to(torch.uint8),), "tensor of torch.uint8"),
    "one image": (lambda x: (x[:1],), r"shape \(1, 3, 16, 16\)"),
    "no batch": (lambda x: (x[0],), r"shape \(3, 16, 16\)"),
    "size of the codes": (lambda x: (x[..., ::2, ::2],), r"shape \(2, 3, 8, 8\)"),
    "alpha": (lambda x: (torch.cat([x, x[:, :1]], 1),), r"shape \(2, 4, 16, 16\)"),
    "channels last": (lambda x: (x.movedim(1, -1),), r"shape \(2, 16, 16, 3\)"),
}


@pytest.mark.parametrize("wrong", DECODED)
def test_what_is_no_image_for_each_sample_is_refused(wrong):
    change, got = DECODED[wrong]
    pipe = returning(change, "vae", "decode", make_latent_pipe)
    with pytest.raises(ValueError, match=rf"vae must return .* \(2, 3, 16, 16\), .*{got}"):
        pipe([0, 1], num_inference_steps=1)
    draw(pipe, [0, 1])  # samples are not decoded


@pytest.mark.parametrize("way", ["tuple", "list", "tensor"])
def test_an_image_is_found_alone_or_first(way):
    asked = {"num_inference_steps": 1, "output_type": "pt"}
    pipe = returning(WAYS[way], "vae", "decode", make_latent_pipe)
    found, expected = (
        p([0, 1], generator=generators(0, 1), **asked).images for p in (pipe, make_latent_pipe())
    )
    # weights of the two autoencoders differ, their images' shape does not
    assert found.shape == expected.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_autoencoder_that_overflows_is_named(value):
    def change(x):
        return (torch.full_like(x, value),)

    pipe = returning(change, "vae", "decode", make_latent_pipe)
    with pytest.warns(
        RuntimeWarning, match="images that the vae makes .* in torch.float32"
    ) as told:
        pipe(0, num_inference_steps=1, output_type="pt")
    assert len(told) == 1


def test_samples_that_are_not_finite_are_told_of_once_though_decoded():
    pipe = returning(broken_from(0, float("nan")), make=make_latent_pipe)
    with pytest.warns(RuntimeWarning, match="network's output") as told:
        pipe(0, num_inference_steps=2, output_type="pt")
    assert len(told) == 1


# --- the text encoder ----------------------------------------------------------------------------

STATES = {
    "nothing": (lambda out: None, "got None"),
    "empty tuple": (lambda out: (), "got an empty tuple"),
    "dictionary": (lambda out: {"states": out.last_hidden_state}, "got a dict"),
    "output without states": (lambda out: BaseModelOutput(), "got None"),
    "one text": (lambda out: (out.last_hidden_state[:1],), r"shape \(1, 6, 8\)"),
    "pooled": (lambda out: (out.last_hidden_state[:, 0],), r"shape \(2, 8\)"),
    "one token": (lambda out: (out.last_hidden_state[:, :1],), r"shape \(2, 1, 8\)"),
    "narrow": (lambda out: (out.last_hidden_state[..., :4],), r"shape \(2, 6, 4\)"),
    "integers": (lambda out: (out.last_hidden_state.long(),), "tensor of torch.int64"),
}


@pytest.mark.parametrize("wrong", STATES)
def test_what_is_no_state_for_each_token_is_refused(wrong):
    change, got = STATES[wrong]
    pipe = returning(change, "text_encoder", make=make_text_pipe)
    needed = rf"text_encoder must return .* \(2, {LENGTH}, {WIDTH}\), .*{got}"
    with pytest.raises(ValueError, match=needed):
        draw(pipe, prompt=["seven", "zero"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_refused(value):
    def change(out):
        return (torch.full_like(out.last_hidden_state, value),)

    pipe = returning(change, "text_encoder", make=make_text_pipe)
    with pytest.raises(ValueError, match=r"text_encoder's states must be finite, .* \['seven'\]"):
        draw(pipe, prompt="seven")


def test_states_are_found_alone_or_first():
    expected = draw(make_text_pipe(), prompt="seven")
    for change in (lambda out: out.last_hidden_state, lambda out: (out.last_hidden_state, None)):
        pipe = returning(change, "text_encoder", make=make_text_pipe)
        assert torch.equal(draw(pipe, prompt="seven"), expected)


def test_components_that_are_swapped_for_others_that_do_not_fit_are_refused():
    pipe = make_latent_pipe()
    pipe.vae = vae(16)
    with pytest.raises(ValueError, match="vae has latent_channels=16, but the network has in_"):
        draw(pipe, 0)
    pipe.vae, pipe.unet = None, make_unet(CLASSES + 3)
    with pytest.raises(ValueError, match="null_label must be the last .* got 3 for 6 labels"):
        draw(pipe, 0)
    pipe.unet = None
    with pytest.raises(ValueError, match="a pipeline needs a scheduler, and a unet or a transf"):
        draw(pipe, 0)


class Plain(torch.nn.Module):
    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return (sample,)


class Short(torch.nn.Module):
    def forward(self, sample, timestep):
        return (sample,)


class WithoutReturnDict(torch.nn.Module):
    def forward(self, sample, timestep, class_labels=None):
        return (sample,)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Plain(), "must have a config with in_channels and sample_size, .* but Plain has none"),
        (Short(), r"return_dict=False\), but Short is as \('sample', 'timestep'\): wrap it"),
        (WithoutReturnDict(), "return_dict=False.*, but WithoutReturnDict is as"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_that_are_no_networks_of_ours_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchingPipeline(network, GaussianFlowScheduler())


# --- callbacks -----------------------------------------------------------------------------------


def test_a_callback_may_return_nothing():
    calls = []
    found = draw(make_pipe(), 0, callback_on_step_end=lambda p, i, t, k: calls.append(i))
    assert calls == list(range(STEPS)) and torch.equal(found, draw(make_pipe(), 0))


X = torch.zeros(2, 1, 8, 8)
RETURNED = {
    "tensor": (X, "must return None or a dictionary with tensors of .*latents.* got a tensor"),
    "truth": (True, "got a bool"),
    "list": ([X], "got a list that begins with a tensor"),
    "unknown name": ({"noise": X}, r"dictionary with tensors .* got \['noise'\]"),
    "embeddings of labels": ({"prompt_embeds": X}, r"got \['prompt_embeds'\]"),
    "one of two": (
        {"latents": X[:1]},
        r"shape \(2, 1, 8, 8\) on cpu, got a tensor .*\(1, 1, 8, 8",
    ),
    "another size": ({"latents": X[..., :4]}, r"got a tensor .* \(2, 1, 8, 4\)"),
    "no batch": ({"latents": X[0]}, r"got a tensor .* \(1, 8, 8\)"),
    "integers": ({"latents": X.long()}, "must be floating-point numbers .* of torch.int64"),
    "array": ({"latents": np.zeros(X.shape)}, "got a ndarray"),
    "None": ({"latents": None}, "got None"),
    "elsewhere": ({"latents": X.to("meta")}, "on cpu, got a tensor"),
}


@pytest.mark.parametrize("wrong", RETURNED)
def test_what_a_callback_cannot_return_is_refused(wrong):
    returned, message = RETURNED[wrong]
    with pytest.raises(ValueError, match=message):
        draw(make_pipe(), [0, 1], callback_on_step_end=lambda p, i, t, k: returned)


@pytest.mark.parametrize(
    ("embeds", "message"),
    [
        (torch.zeros(3, LENGTH, WIDTH), r"shape \(2, 6, 8\) on cpu, got .* \(3, 6, 8\)"),
        (torch.zeros(2, LENGTH, 4), r"shape \(2, 6, 8\) on cpu, got .* \(2, 6, 4\)"),
        (torch.zeros(2, LENGTH), r"got .* \(2, 6\)"),
    ],
)
def test_embeddings_of_a_callback_must_fit(embeds, message):
    asked = {"prompt": "seven", "guidance_scale": 2.0}
    with pytest.raises(ValueError, match=message):
        draw(
            make_text_pipe(),
            **asked,
            callback_on_step_end=lambda p, i, t, k: {"prompt_embeds": embeds},
        )


def test_embeddings_of_a_callback_may_have_another_number_of_tokens():
    pipe = make_text_pipe()
    longer = pipe.encode_prompt(["dark"])[0].repeat(1, 2, 1)
    draw(pipe, prompt="seven", callback_on_step_end=lambda *a: {"prompt_embeds": longer})
