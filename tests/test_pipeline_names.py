"""Classes have names, the first argument is the condition, and components carry both."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from test_pipeline import CLASSES, draw, make_pipe, make_unet
from test_pipeline_text import make_text_pipe
from test_pipeline_transformer import make_transformer
from tiny_networks import vae

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.calibration import calibrate
from fm_diffusers.pipelines.conditions import Asked

NAMES = {0: "circle", 1: "square", 2: "triangle, three-sided, cut in half"}
IMAGENET = {0: "tench, Tinca tinca", 1: "crane", 2: "crane", 3: "maillot", 4: "maillot, suit"}


def named(kind="guided", names=NAMES, **config):
    return FlowMatchingPipeline(**make_pipe(kind, **config).components, id2label=names)


@pytest.fixture(scope="module")
def pipe():
    pipe = named()
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ("circle", [0]),
        (["circle", 2], [0, 2]),
        ([1, "circle", np.int64(2)], [1, 0, 2]),
        (("triangle", "three-sided", "cut in half"), [2, 2, 2]),
        ("triangle, three-sided, cut in half", [2]),
        (np.array(["square", "circle"]), [1, 0]),
        (range(3), [0, 1, 2]),
        ([torch.tensor(2), "square"], [2, 1]),
    ],
    ids=str,
)
def test_names_and_numbers_ask_for_the_same(asked, numbers, pipe):
    expected = draw(pipe, class_labels=numbers)
    assert torch.equal(draw(pipe, class_labels=asked), expected)
    assert torch.equal(draw(pipe, asked), expected)
    assert pipe.encode_labels(asked, 1, len(numbers), False).tolist() == numbers
    assert Asked(class_labels=asked).count == len(numbers)


@pytest.mark.parametrize("kind", ["guided", "conditional"])
def test_guidance_and_repetition_hold_for_names(kind):
    pipe = named(kind)
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_images_per_label": 2} | ({"guidance_scale": 3.0} if kind == "guided" else {})
    names, numbers = (draw(pipe, x, **asked) for x in (["square", "circle"], [1, 0]))
    assert torch.equal(names, numbers)


def test_labels_are_those_of_diffusers_dit_pipeline():
    transformer = make_transformer(CLASSES)
    theirs = DiTPipeline(transformer, vae(), GaussianFlowScheduler(), NAMES)
    ours = FlowMatchingPipeline(
        transformer=transformer, scheduler=GaussianFlowScheduler(), id2label=NAMES
    )
    assert theirs.labels.items() <= ours.labels.items()
    assert set(ours.labels) - set(theirs.labels) == {NAMES[2]}  # which the comma is part of
    asked = ["cut in half", "circle"]
    assert ours.get_label_ids(asked) == theirs.get_label_ids(asked) == [2, 0]


def test_a_name_of_two_classes_asks_for_neither_unless_it_is_the_whole_of_one():
    unet = make_unet(len(IMAGENET))
    pipe = FlowMatchingPipeline(unet, GaussianFlowScheduler(), id2label=IMAGENET)
    assert pipe.get_label_ids(["maillot", "suit", "Tinca tinca", "tench"]) == [3, 4, 0, 0]
    assert "crane" not in pipe.labels and pipe.labels["maillot"] == 3
    with pytest.raises(ValueError, match="'crane' is the name of the classes 1 and 2: ask .* num"):
        pipe("crane")


@pytest.mark.parametrize("folder", [False, True], ids=["memory", "folder"])
def test_names_are_saved(folder, tmp_path):
    pipe = named(names={str(k): v for k, v in NAMES.items()})
    if folder:
        pipe.save_pretrained(tmp_path)
        pipe = FlowMatchingPipeline.from_pretrained(tmp_path)
    assert pipe.config.id2label == NAMES and list(pipe.config.id2label) == [0, 1, 2]
    assert pipe.labels["square"] == 1


def test_more_than_ten_names_keep_their_numbers(tmp_path):
    names = {i: f"class {i}" for i in range(12)}
    FlowMatchingPipeline(
        make_unet(13), GaussianFlowScheduler(), 12, id2label=names
    ).save_pretrained(tmp_path)
    assert FlowMatchingPipeline.from_pretrained(tmp_path).config.id2label == names


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("Circle", "'Circle' is the name of no class, the closest is 'circle': choose one of ci"),
        (["circle", "sqare"], "'sqare' is the name of no class, the closest is 'square'"),
        ("", "'' is the name of no class, .* a number in 0..2"),
        (["circle", 3], r"must be integers in 0\.\.2, got \[3\]"),
        (["circle", True], "must be integers or names, got"),
        ([["circle"], "square"], "must be a label or a flat list of labels, got"),
        (["circle", 1.0], r"must be integers in 0\.\.2, got \[1\.0\]"),
    ],
)
def test_names_that_are_none_are_refused(asked, message, pipe):
    with pytest.raises(ValueError, match=f"class_labels {message}"):
        pipe(asked)


def test_names_need_id2label():
    with pytest.raises(ValueError, match=r"in 0\.\.2, got \['a'\]: .* no names, id2label would"):
        make_pipe()("a")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["circle"], r"must be a dictionary of the names .*, got \['circle'\]"),
        ({3: "nothing"}, r"0\.\.2, got 3: 'nothing'; the label for 'no class' has no name"),
        ({-1: "a"}, "got -1: 'a'"),
        ({"x": "a"}, "got 'x': 'a'"),
        ({1.0: "a"}, r"got 1\.0: 'a'"),
        ({True: "a"}, "got True: 'a'"),
        ({0: ""}, "must hold names, got 0: ''"),
        ({0: " , "}, "must hold names, got 0: ' , '"),
        ({0: 7}, "must hold names, got 0: 7"),
        ({0: "a", "0": "b"}, "names the class 0 twice, 'a' and 'b'"),
    ],
    ids=str,
)
def test_names_that_do_not_fit_are_refused(names, message):
    with pytest.raises(ValueError, match=f"id2label .*{message}"):
        named(names=names)


@pytest.mark.parametrize("make", [lambda: make_pipe("unconditional"), make_text_pipe])
def test_networks_without_labels_have_no_names(make):
    with pytest.raises(ValueError, match="none: it takes no labels, got 0: 'a'"):
        FlowMatchingPipeline(**make().components, id2label={0: "a"})


def test_a_calibration_takes_names(pipe):
    fields = [
        pipe.calibration_field(4, torch.Generator().manual_seed(0), class_labels=labels)
        for labels in (["circle", 2], [0, 2])
    ]
    outputs = [field(noise, torch.tensor(0.5), slice(None)) for field, noise in fields]
    assert torch.equal(*outputs)
    sizes = {"num_samples": 4, "reference_steps": 4, "num_inference_steps": 2, "progress": False}
    scheduler = GaussianFlowScheduler()
    assert calibrate(scheduler, pipe, class_labels="circle", **sizes).config.calibration


# --- the first argument --------------------------------------------------------------------------


def test_the_first_argument_is_the_prompt_or_the_labels(pipe):
    text = make_text_pipe()
    for asked in ("seven", ["seven", "zero"]):
        assert torch.equal(draw(text, asked), draw(text, prompt=asked))
    for asked in (2, [0, 2], torch.tensor([1, 0])):
        assert torch.equal(draw(pipe, asked), draw(pipe, class_labels=asked))
    assert torch.equal(draw(pipe, 2, 3), draw(pipe, class_labels=2, num_images_per_label=3))
    assert len(draw(pipe)) == len(draw(text)) == 1


@pytest.mark.parametrize(
    ("kind", "args", "kwargs", "message"),
    [
        ("guided", [0], {"class_labels": 1}, "class_labels was given twice, .* 0, and by name 1"),
        ("guided", ["a"], {"prompt": "b"}, "prompt was given, but the network takes class labels"),
        ("text", ["a"], {"prompt": "b"}, "prompt was given twice, .* 'a', and by name 'b'"),
        ("text", ["a"], {"class_labels": 0}, "class_labels was given, but the network takes text"),
        ("text", ["a"], {"prompt_embeds": torch.zeros(1, 6, 8)}, "prompt or prompt_embeds, not"),
        ("text", [3], {}, "prompt must be a text or a list of texts, got 3"),
        ("unconditional", [3], {}, "the condition 3 was given, but .* is unconditional: drop"),
        ("unconditional", ["a"], {}, "the condition 'a' was given, but .* unconditional: drop"),
    ],
)
def test_conditions_that_cannot_be_meant_are_refused(kind, args, kwargs, message):
    pipe = make_text_pipe() if kind == "text" else make_pipe(kind)
    with pytest.raises(ValueError, match=message):
        pipe(*args, **kwargs)


def test_the_first_argument_has_no_name(pipe):
    with pytest.raises(TypeError, match="condition"):
        pipe(condition=0)


# --- components ----------------------------------------------------------------------------------

PIPES = {
    "guided": named,
    "conditional": lambda: named("conditional"),
    "unconditional": lambda: make_pipe("unconditional"),
    "text": make_text_pipe,
}
ASKED = {
    "guided": {"class_labels": "square", "guidance_scale": 2.0},
    "conditional": {"class_labels": "square"},
    "unconditional": {},
    "text": {"prompt": "seven", "guidance_scale": 2.0},
}
AGAIN = {
    "components": lambda pipe: FlowMatchingPipeline(**pipe.components),
    "components and parameters": lambda pipe: FlowMatchingPipeline(
        **pipe.components, **pipe.parameters
    ),
    "from_pipe": FlowMatchingPipeline.from_pipe,
    "moved": lambda pipe: pipe.to("cpu", torch.float32),
    "sliced": lambda pipe: pipe.enable_attention_slicing() or pipe,
    "hooks removed": lambda pipe: pipe.remove_all_hooks() or pipe,
    "device map reset": lambda pipe: pipe.reset_device_map() or pipe,
}


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("kind", PIPES)
def test_what_diffusers_does_with_components_keeps_the_pipeline(kind, again):
    pipe = PIPES[kind]()
    expected = draw(pipe, **ASKED[kind])
    other = AGAIN[again](pipe)
    torch.testing.assert_close(draw(other, **ASKED[kind]), expected, rtol=1e-5, atol=1e-5)
    assert other.labels == pipe.labels and other.config.null_label == pipe.config.null_label


@pytest.mark.parametrize("kind", PIPES)
def test_a_copy_is_saved_as_the_original_is(kind, tmp_path):
    pipe = PIPES[kind]()
    pipe.save_pretrained(tmp_path / "a")
    FlowMatchingPipeline(**pipe.components).save_pretrained(tmp_path / "b")
    indices = [(tmp_path / name / "model_index.json").read_text() for name in "ab"]
    assert indices[0] == indices[1]
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "b", trust_remote_code=True)
    torch.testing.assert_close(draw(loaded, **ASKED[kind]), draw(pipe, **ASKED[kind]))


def test_the_names_go_to_diffusers_pipeline_and_the_null_label_comes_back():
    parts = {"transformer": make_transformer(CLASSES, 4), "vae": vae()}
    ours = FlowMatchingPipeline(**parts, scheduler=GaussianFlowScheduler(), null_label=CLASSES)
    ours = FlowMatchingPipeline(**ours.components, id2label=NAMES)
    theirs = DiTPipeline.from_pipe(ours)
    assert theirs.labels["square"] == 1
    back = FlowMatchingPipeline.from_pipe(theirs)
    assert back.config.null_label == CLASSES  # names, DiTPipeline does not keep in its config


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
@pytest.mark.parametrize("how", ["model", "sequential"])
def test_an_offloaded_pipeline_keeps_its_guidance(how):
    pipe = named()
    expected = draw(pipe, **ASKED["guided"])
    getattr(pipe, f"enable_{how}_cpu_offload")()
    torch.testing.assert_close(draw(pipe, **ASKED["guided"]).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_group_offload_passes_over_what_is_no_module():
    pipe = named()
    expected = draw(pipe, **ASKED["guided"])
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    torch.testing.assert_close(draw(pipe, **ASKED["guided"]), expected)


def test_components_hold_what_is_set_and_nothing_else():
    assert named().components.keys() - make_pipe("unconditional").components.keys() == {
        "null_label",
        "id2label",
    }
    assert make_text_pipe().components.keys() == make_pipe("unconditional").components.keys()
