"""Arguments of a call that mean nothing are refused, by name and before anything is drawn."""

import re

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from test_pipeline import FLOW, draw, generators, make_pipe
from test_pipeline_text import LENGTH, WIDTH, make_text_pipe

from fm_diffusers.pipelines.conditions import Asked

NAN, INF = float("nan"), float("inf")
STATES = torch.zeros(1, LENGTH, WIDTH)
X = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def pipes():
    """Return pipelines whose networks must not be asked."""
    pipes = {
        "guided": make_pipe("guided"),
        "unconditional": make_pipe("unconditional"),
        "text": make_text_pipe(),
    }

    def forward(sample, timestep, condition=None, return_dict=True):
        raise AssertionError("the network was asked")

    for pipe in pipes.values():
        pipe.unet.forward = forward
    return pipes


def shown(value):
    """Return a value for the name of a test, the same in every process."""
    return re.sub(r"(?: object)? at 0x[0-9a-f]*", "", repr(value))[:40]


def listed(name, values, message, kind="guided", **more):
    return [pytest.param(kind, more | {name: v}, message, id=f"{name}={shown(v)}") for v in values]


NO_NUMBERS = ["2", "", [2], [], {}, (), "nan", 1j, X, np.zeros(2), object]
NO_COUNTS = ["1", 1.5, 1.0, NAN, INF, True, False, [1], [], {}, 1j, torch.tensor(1)]
LABEL = {"class_labels": 0}
CALLS = [
    *listed(
        "guidance_scale",
        [NAN, INF, -INF, 1e300, 10**400, True, np.float64("nan"), *NO_NUMBERS],
        "guidance_scale must be a finite number, got .*: 1 is no guidance",
        **LABEL,
    ),
    *listed(
        "num_inference_steps",
        [0, -1, *NO_COUNTS],
        "num_inference_steps must be an integer of at least 1, got",
        **LABEL,
    ),
    *listed("batch_size", [0, -1], "batch_size must be at least 1, got"),
    *listed("batch_size", NO_COUNTS, "batch_size must be an integer of at least 1, got"),
    *listed("num_images_per_label", [0, -1], "num_images_per_label must be at least 1", **LABEL),
    *listed(
        "num_images_per_label",
        [None, *NO_COUNTS],
        "num_images_per_label must be an integer of at least 1, got",
        **LABEL,
    ),
    *listed(
        "num_images_per_prompt",
        [None, *NO_COUNTS],
        "num_images_per_prompt must be an integer of at least 1, got",
        "text",
        prompt="seven",
    ),
    *listed(
        "class_labels",
        ["0", "seven", 0.0, 1.5, NAN, [0, 1.0], [0, None], ["a"], {0}, {0: 1}, 3, -1, [0, 2**70]],
        r"class_labels must be integers in 0\.\.2, got",
    ),
    *listed(
        "class_labels",
        [torch.tensor([0.0]), torch.tensor([0, 3]), np.array([0.0]), np.array(["0"]), b"0"],
        r"class_labels must be integers in 0\.\.2, got",
    ),
    *listed(
        "class_labels",
        [True, [True], [True, 2], [0, False], (np.bool_(True),)],
        "class_labels must be integers",
    ),
    *listed("class_labels", [torch.tensor([True])], "class_labels must be integers"),
    *listed(
        "class_labels",
        [[[0, 1]], [[0, 1], [2]], torch.zeros(2, 2).long(), np.zeros((1, 2), int), [[0], 1]],
        "class_labels must be a label or a flat list of labels, got",
    ),
    *listed(
        "class_labels",
        [[], (), torch.zeros(0).long(), np.zeros(0, int)],
        "give class_labels, at least one, or batch_size, got",
    ),
    *listed("class_labels", [0, [0, 1]], "the network is unconditional: drop", "unconditional"),
    *listed(
        "timesteps",
        [[], (), torch.zeros(0), np.zeros(0), "1000", 1000, 500.0, {1000.0}, True, INF],
        "timesteps must be a list of at least one number, got .*: leave them out",
        **LABEL,
    ),
    *listed(
        "timesteps",
        [[NAN], [1000.0, INF], ["1000"], [None], [True], [[1000.0], [500.0]], torch.zeros(2, 2)],
        "each of timesteps must be a finite number, got",
        **LABEL,
    ),
    *listed(
        "num_inference_steps",
        [1, 3, 50, "2", 2.0, np.ones(2)],
        "num_inference_steps=.* contradicts 2 timesteps: leave it out",
        timesteps=[1000.0, 500.0],
        **LABEL,
    ),
    *listed(
        "generator",
        [0, 42, "cpu", True, torch.Generator, (torch.Generator(),), {}, ["a"], [0], [None]],
        r"generator must be a torch\.Generator or a list of them, .*: torch\.Generator",
        **LABEL,
    ),
    *listed(
        "generator",
        [[], generators(0, 1), generators(0, 1, 2)],
        "a list of generators must have one for each of the 1 images, got",
        **LABEL,
    ),
    *listed(
        "latents",
        [np.zeros((1, 1, 8, 8)), [[0.0]], "noise", 0, True, X.long(), X > 0, X.cfloat()],
        "latents must be a tensor of floating-point numbers, got",
        **LABEL,
    ),
    *listed("latents", [X + NAN, X - INF], "latents must be finite, got", **LABEL),
    *listed(
        "latents",
        [X[0], X[None], X.repeat(2, 1, 1, 1), X.repeat(1, 2, 1, 1), X.mean()],
        r"latents must have the shape \(1, 1, 8, 8\), got",
        **LABEL,
    ),
    *listed(
        "height",
        ["8", 8.0, True, NAN, 0, -8, [8], X],
        "height must be a multiple of 1 pixels, got",
        **LABEL,
    ),
    *listed("width", [8.5, "", -1, ()], "width must be a multiple of 1 pixels, got", **LABEL),
    *listed(
        "output_type",
        ["PIL", "", None, 0, True, ["pil"], np.array(["pil", "np"])],
        "output_type must be one of",
        **LABEL,
    ),
    *listed(
        "return_dict", ["false", 0, 1, None, []], "return_dict must be True or False", **LABEL
    ),
    *listed(
        "callback_on_step_end",
        [True, "print", 0, [], {}, [print]],
        "callback_on_step_end must be a function of",
        **LABEL,
    ),
    *listed(
        "callback_on_step_end_tensor_inputs",
        ["latents", None, "noise", 0, {"latents"}, [0], [None], ["latents", "noise"], [[]]],
        r"callback_on_step_end_tensor_inputs must be among \['latents', .*\], got .*: pass a list",
        **LABEL,
    ),
    *listed(
        "prompt",
        [7, True, b"seven", ["a", None], [["a"]], {"a": 1}, {"a"}, X, np.array(["a"])],
        "prompt must be a text or a list of texts, got",
        "text",
    ),
    *listed("prompt", [[], ()], "give prompt, at least one, or batch_size", "text"),
    *listed(
        "negative_prompt",
        [[], (), ["a", "b"]],
        "negative_prompt must be one text or one for each of the 1 prompts, got",
        "text",
        prompt="seven",
        guidance_scale=2.0,
    ),
    *listed(
        "negative_prompt",
        [0, True, ["a", 0]],
        "negative_prompt must be a text or a list of texts, got",
        "text",
        prompt="seven",
        guidance_scale=2.0,
    ),
    *listed(
        "negative_prompt",
        ["a", ["a", "b"]],
        "(needs a prompt, and|one for each of the 0 prompts)",
        "text",
        guidance_scale=2.0,
    ),
    *listed(
        "prompt_embeds",
        [STATES.numpy(), STATES.tolist(), "seven", 0, STATES.long(), STATES > 0],
        "prompt_embeds must be a tensor of floating-point numbers, got",
        "text",
    ),
    *listed("prompt_embeds", [STATES + NAN, STATES + INF], "prompt_embeds must be finite", "text"),
    *listed("prompt_embeds", [STATES[:0]], "give prompt, at least one, or batch_size", "text"),
    *listed(
        "negative_prompt_embeds",
        [STATES + NAN, STATES.long(), "dark", STATES[0], STATES[..., :4]],
        "negative_prompt_embeds must",
        "text",
        prompt="seven",
        guidance_scale=2.0,
    ),
]


@pytest.mark.parametrize(("kind", "asked", "message"), CALLS)
def test_what_means_nothing_is_refused_by_name(kind, asked, message, pipes):
    with pytest.raises(ValueError, match=message):
        pipes[kind](**asked)


def test_timesteps_are_refused_for_a_scheduler_that_takes_none():
    pipe = make_pipe(prediction_type="flow_prediction")
    pipe.scheduler = UniPCMultistepScheduler(**FLOW)
    with pytest.raises(ValueError, match="cannot be chosen for UniPC.*: pass num_inference_steps"):
        draw(pipe, 0, timesteps=[900.0, 500.0], num_inference_steps=None)


GIVEN = {
    "numpy integers": {"num_inference_steps": np.int64(4), "class_labels": np.array([1, 0])},
    "numpy numbers": {"guidance_scale": np.float32(2.0), "num_images_per_label": np.int32(1)},
    "an integer": {"guidance_scale": 2},
    "tensors": {"class_labels": [torch.tensor(1), torch.tensor(0)]},
    "range": {"class_labels": range(1, -1, -1)},
    "sizes": {"height": np.int64(8), "width": 8},
    "timesteps": {"timesteps": (1000.0, 789.47368421, 555.55555556, 294.11764706)},
    "array": {"timesteps": np.array([1000.0, 789.47368421, 555.55555556, 294.11764706])},
    "counted": {
        "timesteps": torch.tensor([1000.0, 789.4736938, 555.5555420, 294.1176453]),
        "num_inference_steps": 4,
    },
    "tuple of inputs": {"callback_on_step_end_tensor_inputs": ("latents",)},
}


@pytest.mark.parametrize("way", GIVEN)
def test_what_means_the_same_draws_the_same(way):
    pipe, usual = make_pipe(), {"class_labels": [1, 0], "guidance_scale": 2.0}
    asked = GIVEN[way]
    steps = {"num_inference_steps": None if "timesteps" in asked else 4}
    expected, found = draw(pipe, **usual), draw(pipe, **usual | steps | asked)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fifty_steps_are_the_default():
    pipe, calls = make_pipe("unconditional", solver="euler"), []
    pipe(callback_on_step_end=lambda p, i, t, k: calls.append(i), output_type="latent")
    assert len(calls) == 50


def test_embeddings_may_be_guided_away_from_a_text():
    pipe = make_text_pipe()
    embeds = pipe.encode_prompt(["seven", "zero"])[0]
    asked = {"negative_prompt": "dark", "guidance_scale": 2.0}
    found = draw(pipe, prompt_embeds=embeds, **asked)
    assert torch.equal(found, draw(pipe, prompt=["seven", "zero"], **asked))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give prompt or prompt_embeds, one of them"),
        ({"prompt": "a", "prompt_embeds": STATES}, "give prompt or prompt_embeds, one of them"),
        ({"prompt": "a", "negative_prompt": "b"}, "nothing without guidance: drop them, or pass"),
        ({"prompt": 3}, "prompt must be a text or a list of texts, got 3"),
    ],
)
def test_encode_prompt_refuses_what_it_would_not_use(asked, message):
    with pytest.raises(ValueError, match=message):
        make_text_pipe().encode_prompt(**asked)


@pytest.mark.parametrize("num_samples", [0, -1, 1.5, "4", True])
def test_a_calibration_is_asked_for_a_number_of_samples(num_samples):
    with pytest.raises(ValueError, match="batch_size must be"):
        make_pipe().calibration_field(num_samples)


def test_what_is_asked_is_frozen():
    asked = Asked(class_labels=np.array([1, 2]), guidance_scale=2)
    assert asked.class_labels == [1, 2] and type(asked.guidance_scale) is float
    with pytest.raises(AttributeError):
        asked.class_labels = 3


@pytest.mark.parametrize("null_label", [True, 3.0, "3", -1, 2, 4])
def test_a_null_label_is_the_last_label(null_label):
    parts = make_pipe().components
    with pytest.raises(ValueError, match=r"null_label must be the last .*, got .* for 4 labels"):
        type(make_pipe())(unet=parts["unet"], scheduler=parts["scheduler"], null_label=null_label)
