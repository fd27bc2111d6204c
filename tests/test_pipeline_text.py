"""Text: states of prompts are independent of their batch, and the loop is Stable Diffusion's."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from test_pipeline import assert_same, draw, generators, make_unet
from tiny_networks import unet, vae
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.pipelines.conditions import Asked, encode_text

WIDTH, LENGTH, STEPS = 8, 6, 4
WORDS = "<pad> <unk> <start> <end> a handwritten zero seven digit dark".split()
SIZES = {"vocab_size": len(WORDS), "hidden_size": WIDTH, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "num_hidden_layers": 2, "max_position_embeddings": LENGTH}
TEXT_ENCODERS = {
    "clip": lambda: CLIPTextModel(
        CLIPTextConfig(**SIZES, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    ),
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "t5": lambda: T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    ),
}


def make_tokenizer(length=LENGTH):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", 2), ("<end>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ends
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    limit = {} if length is None else {"model_max_length": length}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **limit)


def text_parts(kind="clip"):
    torch.manual_seed(1)
    encoder = TEXT_ENCODERS[kind]().eval()
    for weight in encoder.parameters():  # as drawn, prompts differ by a hair
        torch.nn.init.normal_(weight, std=0.5) if weight.ndim > 1 else None
    return {"text_encoder": encoder, "tokenizer": make_tokenizer()}


def make_text_pipe(kind="clip", autoencoder=False, encoder=True, **config):
    pipe = FlowMatchingPipeline(
        unet=unet(cross_attention_dim=WIDTH, sample_size=8).eval(),
        scheduler=GaussianFlowScheduler(**config),
        vae=vae(scaling_factor=0.4).eval() if autoencoder else None,
        **text_parts(kind) if encoder else {},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clip():
    return make_text_pipe()


# --- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", TEXT_ENCODERS)
def test_an_image_does_not_depend_on_the_other_prompts(kind, guidance_scale):
    pipe, prompts = make_text_pipe(kind), ["seven", "a handwritten dark zero", "zero"]
    seeds = range(3)
    batch = draw(pipe, prompt=prompts, guidance_scale=guidance_scale, generator=generators(*seeds))
    for i, prompt in enumerate(prompts):
        alone = draw(pipe, prompt=prompt, guidance_scale=guidance_scale, generator=generators(i))
        assert_same(alone[0], batch[i])
    other = draw(pipe, prompt="dark", guidance_scale=guidance_scale, generator=generators(0))
    assert not torch.allclose(other[0], batch[0], atol=1e-2)


@pytest.mark.parametrize("kind", TEXT_ENCODERS)
def test_states_do_not_depend_on_the_batch_and_tell_prompts_apart(kind):
    parts, prompts = text_parts(kind), ["seven", "a handwritten dark zero", ""]
    with torch.no_grad():
        states = encode_text(parts["tokenizer"], parts["text_encoder"], prompts)
        for prompt, expected in zip(prompts, states, strict=True):
            alone = encode_text(parts["tokenizer"], parts["text_encoder"], [prompt])
            torch.testing.assert_close(alone[0], expected, rtol=1e-5, atol=1e-5)
    assert states.shape == (3, LENGTH, WIDTH)
    assert (states[0] - states[1]).norm() > 0.1 * states[0].norm()


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.parametrize("diffusion", [None, "memoryless"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_pipeline_is_stable_diffusions_over_the_same_components(guidance_scale, diffusion):
    pipe = make_text_pipe(autoencoder=True, diffusion=diffusion)
    ours = ("transformer", "guider")
    parts = {name: part for name, part in pipe.components.items() if name not in ours}
    theirs = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    negative = {"negative_prompt": ["dark", "a zero"]} if guidance_scale != 1 else {}
    asked = {"prompt": ["seven", "a handwritten zero"], "guidance_scale": guidance_scale}
    asked |= negative | {"num_images_per_prompt": 2, "height": 8, "width": 16}
    for output_type in ("latent", "pt"):
        found, expected = (
            call(
                **asked,
                num_inference_steps=STEPS,
                generator=torch.Generator().manual_seed(0),
                output_type=output_type,
            ).images
            for call in (pipe, theirs)
        )
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_embeddings_that_encode_prompt_returns_stand_for_the_prompts(clip):
    prompts, negative = ["seven", "a zero"], "dark"
    embeds, negative_embeds = clip.encode_prompt(
        prompts, do_classifier_free_guidance=True, negative_prompt=negative
    )
    assert embeds.shape == negative_embeds.shape == (2, LENGTH, WIDTH)
    assert clip.encode_prompt("seven")[1] is None
    by_text = {"prompt": prompts, "negative_prompt": negative}
    by_states = {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
    more = {"guidance_scale": 2.0, "num_images_per_prompt": 2}
    expected = draw(clip, **by_text, **more)
    assert torch.equal(draw(clip, **by_states, **more), expected)
    without = make_text_pipe(encoder=False)
    assert torch.equal(draw(without, **by_states, **more), expected)


def test_images_of_a_prompt_lie_next_to_each_other(clip):
    several = draw(clip, prompt=["seven", "zero"], num_images_per_prompt=2)
    assert torch.equal(several, draw(clip, prompt=["seven", "seven", "zero", "zero"]))
    assert not torch.allclose(several, draw(clip, prompt=["seven", "zero"] * 2), atol=1e-4)


# --- guidance ------------------------------------------------------------------------------------


def test_one_step_is_affine_in_the_guidance_away_from_the_negative_prompt():
    pipe, one = make_text_pipe(solver="euler"), {"num_inference_steps": 1}
    away, towards = draw(pipe, prompt="dark", **one), draw(pipe, prompt="seven", **one)
    assert (away - towards).abs().max() > 1e-2
    guided = {"prompt": "seven", "negative_prompt": "dark", "guidance_scale": 3.0}
    assert_same(draw(pipe, **guided, **one), away + 3 * (towards - away))
    assert_same(draw(pipe, **guided | {"guidance_scale": 0.0}, **one), away)


def test_without_a_prompt_the_empty_one_is_drawn_and_guidance_starts_from_it(clip):
    nothing = draw(clip, prompt=["", ""])
    assert torch.equal(draw(clip, batch_size=2), nothing)
    assert_same(draw(clip, prompt=["seven", "zero"], guidance_scale=0.0), nothing)


# --- the loop ------------------------------------------------------------------------------------


def test_embeddings_of_the_callback_are_used():
    pipe = make_text_pipe(solver="euler")
    first, second = (pipe.encode_prompt(word)[0] for word in ("seven", "dark"))
    seen = []

    def replace(pipe, i, t, tensors):
        seen.append(tensors["prompt_embeds"])
        return {"prompt_embeds": second} if i == 1 else {}

    found = draw(
        pipe,
        prompt="seven",
        callback_on_step_end=replace,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    assert [torch.equal(x, first) for x in seen] == [True, True, False, False]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for i, t in enumerate(pipe.scheduler.timesteps):
            output = pipe.unet(x, t, first if i < 2 else second).sample
            x = pipe.scheduler.step(output, t, x).prev_sample
    assert_same(found, x)


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ({}, [""] * 5),
        ({"prompt": ["seven", "zero"]}, ["seven", "zero", "seven", "zero", "seven"]),
        ({"prompt": "seven", "guidance_scale": 2.0}, ["seven"] * 5),
    ],
)
def test_the_field_that_is_calibrated_is_the_network_with_the_prompts_in_turn(asked, texts, clip):
    field, noise = clip.calibration_field(5, torch.Generator().manual_seed(0), **asked)
    assert noise.shape == (5, 4, 8, 8)
    part = slice(1, 4)
    with torch.no_grad():
        found = field(noise[part], torch.tensor(0.3), part)
        cond, uncond = (
            clip.unet(noise[part], 700.0, clip.encode_prompt(words)[0]).sample
            for words in (texts[part], [""] * 3)
        )
    assert_same(found, uncond + asked.get("guidance_scale", 1.0) * (cond - uncond))


def test_conditions_are_counted_and_cycled():
    asked = Asked(prompt=["a", "b"], num_images_per_prompt=3, negative_prompt="c")
    assert (asked.count, asked.items, asked.negative_prompt) == (6, ["a", "b"], ["c"])
    states = torch.arange(2.0)[:, None, None].expand(2, 3, 4)
    cycled = Asked(prompt_embeds=states).cycled(5)
    assert cycled.prompt_embeds[:, 0, 0].tolist() == [0, 1, 0, 1, 0]
    assert Asked(prompt=["a", "b"], negative_prompt="c").cycled(3).negative_prompt == ["c"] * 3
    assert asked.cycled(8).prompt == ["a", "a", "a", "b", "b", "b", "a", "a"]
    assert asked.cycled(8).count == 8 and Asked().cycled(7).count == 7


LONG = "a handwritten dark zero seven digit"


@pytest.mark.parametrize("kind", TEXT_ENCODERS)
def test_a_long_prompt_is_drawn_as_its_beginning_and_says_what_is_lost(kind):
    pipe = make_text_pipe(kind)
    with pytest.warns(UserWarning, match=f"=6 tokens, '{LONG}' has more: 'seven digit' is cut"):
        found = draw(pipe, LONG, guidance_scale=2.0)
    assert_same(found, draw(pipe, "a handwritten dark zero", guidance_scale=2.0))
    with pytest.warns(UserWarning, match="'seven digit' is cut off"):
        draw(pipe, "zero", negative_prompt=LONG, guidance_scale=2.0)


def test_what_is_lost_is_shown_as_it_was_written_even_in_unknown_words():
    pipe, text = make_text_pipe(), "a dark zero on Emmental,  with HOLES"
    with pytest.warns(UserWarning, match="'Emmental,  with HOLES' is cut off"):
        pipe.encode_prompt(["zero", text])
    pipe.tokenizer.truncation_side = "left"
    with pytest.warns(UserWarning, match="'a dark zero on' is cut off"):
        pipe.encode_prompt(text)


def test_prompts_that_just_fit_are_whole(clip, recwarn):
    clip.encode_prompt(["a handwritten dark zero", "seven"])
    assert not recwarn.list


# --- components and errors -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEXT_ENCODERS)
def test_saved_pipelines_draw_the_same_images(kind, tmp_path):
    pipe = make_text_pipe(kind, autoencoder=True, path="cosine")
    pipe.save_pretrained(tmp_path)
    again = FlowMatchingPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.text_encoder) is type(pipe.text_encoder)
    assert again.tokenizer.model_max_length == LENGTH
    asked = {"prompt": ["seven", "a zero"], "guidance_scale": 2.0}
    torch.testing.assert_close(draw(again, **asked), draw(pipe, **asked), rtol=1e-5, atol=1e-5)


def test_pipelines_without_a_text_encoder_are_saved_and_take_embeddings(tmp_path):
    pipe = make_text_pipe(encoder=False)
    pipe.save_pretrained(tmp_path)
    again = FlowMatchingPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    states = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
    asked = {"prompt_embeds": states}
    torch.testing.assert_close(draw(again, **asked), draw(pipe, **asked))
    complete = FlowMatchingPipeline.from_pretrained(tmp_path, **text_parts())
    assert complete.text_encoder is not None and complete.tokenizer is not None


STATES = torch.zeros(1, LENGTH, WIDTH)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"class_labels": 0}, "class_labels was given, but the network takes text: pass prompt"),
        ({"prompt": 7}, "prompt must be a text or a list of texts, got 7"),
        ({"prompt": ["a", 7]}, r"prompt must be a text or a list of texts, got \['a', 7\]"),
        ({"prompt": []}, "give prompt, at least one, or batch_size"),
        ({"prompt": "a", "batch_size": 2}, r"got \['a'\] and 2; num_images_per_prompt draws"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1"),
        ({"prompt": "a", "num_images_per_label": 2}, "num_images_per_label was given, but"),
        ({"num_images_per_prompt": 2}, "2 images of nothing: pass prompt"),
        ({"prompt": "a", "prompt_embeds": STATES}, "give prompt or prompt_embeds, not both"),
        ({"prompt_embeds": STATES[0]}, r"shape \(prompts, tokens, 8\), got \(6, 8\)"),
        ({"prompt_embeds": STATES[..., :4]}, r"shape \(prompts, tokens, 8\), got \(1, 6, 4\)"),
        ({"guidance_scale": 2.0}, "needs a prompt, and a text_encoder or negative_prompt_embeds"),
        ({"prompt": "a", "negative_prompt": "b"}, "does nothing at guidance_scale=1: drop it"),
        (
            {"prompt": "a", "negative_prompt": ["b", "c"], "guidance_scale": 2.0},
            "one text or one for each of the 1 prompts, got 2",
        ),
        (
            {"prompt": ["a", "b"], "negative_prompt_embeds": STATES, "guidance_scale": 2.0},
            r"must have the shape of the prompts' \(2, 6, 8\), got \(1, 6, 8\)",
        ),
        ({"prompt": "a", "height": 0}, "height must be a multiple of 1 pixels, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(asked, message, clip):
    with pytest.raises(ValueError, match=message):
        draw(clip, **asked)


@pytest.mark.parametrize("asked", [{}, {"prompt": "a"}, {"batch_size": 2}])
def test_prompts_need_a_text_encoder(asked):
    with pytest.raises(ValueError, match="has no text_encoder: pass prompt_embeds"):
        draw(make_text_pipe(encoder=False), **asked)


def test_guidance_of_embeddings_needs_negative_ones_where_there_is_no_text_encoder():
    with pytest.raises(ValueError, match="or negative_prompt_embeds; 1 is no guidance"):
        draw(make_text_pipe(encoder=False), prompt_embeds=STATES, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "text_encoder and tokenizer together, or neither"),
        ({"unet": unet(cross_attention_dim=4)}, "states have width 8, but the network takes 4"),
        ({"unet": make_unet()}, "states have width 8, but the network takes no text"),
        ({"null_label": 3}, "null_label must be the last .* got 3 for 0 labels"),
    ],
)
def test_components_that_do_not_fit_are_refused(change, message, clip):
    with pytest.raises(ValueError, match=message):
        FlowMatchingPipeline(**clip.components | change)


def test_a_tokenizer_must_say_how_many_states_a_text_has():
    pipe = make_text_pipe()
    pipe.tokenizer = make_tokenizer(length=None)
    with pytest.raises(ValueError, match="set tokenizer.model_max_length, 77 for example"):
        draw(pipe, prompt="a")
