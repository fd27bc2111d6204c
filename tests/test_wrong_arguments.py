"""What calls beside drawing are given: refused by name; the next call is as if it had not been."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from covers import covering
from test_pipeline import CLASSES, draw, make_pipe

from fm_diffusers import FlowMatchingBlocks, GaussianFlowScheduler
from fm_diffusers.calibration import calibrate

X = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
NAN = float("nan")


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


IMAGES = {
    "number": 3,
    "nothing": None,
    "text": "a",
    "NaN": X * NAN,
    "beyond": X * 2,
    "channels": X.expand(-1, 3, -1, -1),
    "odd": X[..., :7, :7],
    "none of them": [],
    "meta": X.to("meta"),
    "complex": X.cfloat(),
}
OPTIONS = {
    "class_labels": [-1, CLASSES + 5, 1.5, "x"],
    "num_inference_steps": [0, -1, 1.5, "a"],
    "tolerance": [NAN, -1, "a", 0],
    "guidance_scale": [NAN, "a"],
    "evil": [1],
}
MEASURED = {"num_probes": [0, -1, 1.5], "generator": [3, [torch.Generator()]]}
CALLS = [(name, "image", value) for name in ("invert", "log_likelihood") for value in IMAGES]
CALLS += [
    (name, option, str(i))
    for name in ("invert", "log_likelihood")
    for option, values in (OPTIONS | (MEASURED if name == "log_likelihood" else {})).items()
    for i in range(len(values))
]


@pytest.mark.parametrize(("name", "option", "value"), CALLS)
def test_what_no_image_has_is_refused(name, option, value, pipe):
    told = {"image": X, "class_labels": 0, "num_inference_steps": 2}
    told[option] = IMAGES[value] if option == "image" else (OPTIONS | MEASURED)[option][int(value)]
    with pytest.raises(ValueError, match="must|condition|label|class"):
        getattr(pipe, name)(told.pop("image"), **told)


NETWORKS = {
    "nothing": lambda x, t: None,
    "text": lambda x, t: "a",
    "half the batch": lambda x, t: x[:1],
    "empty tuple": lambda x, t: (),
    "dictionary": lambda x, t: {"a": x},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_calibrated_returns_a_prediction(name):
    with pytest.raises(ValueError, match="the network must return its prediction"):
        given = {"noise": torch.randn(8, 2), "progress": False, "reference_steps": 2}
        calibrate(GaussianFlowScheduler(), NETWORKS[name], 2, **given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_inference_steps": NAN},
        {"num_inference_steps": [4, "a"]},
        {"num_inference_steps": True},
        {"reference_steps": "a"},
        {"reference_steps": NAN},
        {"batch_size": 1.5},
        {"noise": 3},
        {"evil": 1},
    ],
    ids=str,
)
def test_what_no_calibration_takes_is_refused(wrong, pipe):
    usual = {"num_inference_steps": 2, "num_samples": 8, "reference_steps": 2, "progress": False}
    with pytest.raises(ValueError):
        calibrate(GaussianFlowScheduler(), pipe, **usual | wrong)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (3, "must be a torch.Generator, or a list of them, got 3"),
        ("a", "must be a torch.Generator, or a list"),
        ((torch.Generator(),), "must be a torch.Generator, or a list"),
        ([3], "must be a torch.Generator, or a list"),
        ([torch.Generator()] * 2, "one for each of the 3 samples, got 2"),
        ([torch.Generator()] * 4, "one for each of the 3 samples, got 4"),
        ([], "one for each of the 3 samples, got 0"),
    ],
    ids=["number", "text", "tuple", "list of a number", "two", "four", "none"],
)
def test_generators_of_a_step_are_one_or_one_for_each(generator, message, noise):
    pytest.importorskip("torchsde")
    scheduler = GaussianFlowScheduler(diffusion="memoryless", noise=noise)
    scheduler.set_timesteps(3)
    x = torch.zeros(3, 1, 2, 2)
    with pytest.raises(ValueError, match=message):
        scheduler.step(x, scheduler.timesteps[0], x, generator=generator)


@pytest.mark.parametrize(
    "told",
    [
        *((None, X, 5.0), (X, None, 5.0), (X, X, "a"), (X, X, None), (3, X, 1.0)),
        *((X, X[..., :4], 5.0), (X[:, :1], X.expand(-1, 3, -1, -1), 5.0), (X[:, 0], X, 5.0)),
    ],
    ids=["no data", "no noise", "text", "no time", "number", "size", "channels", "no channels"],
)
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_what_is_noised_are_tensors_of_one_shape(method, told):
    with pytest.raises(ValueError, match="must be"):
        getattr(GaussianFlowScheduler(), method)(*told)


@pytest.mark.parametrize("given", [[3, 2], (3, 2), range(3, 1, -1), np.array([3, 2])], ids=repr)
def test_the_timestep_before_several_is_one_for_each_before_there_is_a_plan(given):
    before = GaussianFlowScheduler().previous_timestep(given)
    assert torch.equal(before, torch.tensor([2, 1]))
    assert GaussianFlowScheduler().previous_timestep(True) == 0


@pytest.mark.parametrize("given", [np.ones(2), torch.ones(0), None, "no"], ids=repr)
def test_what_is_no_answer_to_return_dict_is_refused_before_the_step(given):
    scheduler = GaussianFlowScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="return_dict must be True or False, got "):
        scheduler.step(X, scheduler.timesteps[0], X, return_dict=given)
    assert scheduler.step_index is None


# --- after an error, and in copies ---------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "config", "at"),
    covering(
        ["pipeline", "blocks"], [{}, {"solver": "heun"}, {"diffusion": "memoryless"}], [0, 1, 2]
    ),
)
def test_a_call_after_one_that_raised_in_mid_loop_is_as_any(kind, config, at):
    pipe = make_pipe(**config)
    expected, calls = draw(make_pipe(**config), 0), []
    if kind == "blocks":
        blocks = FlowMatchingBlocks().init_pipeline()
        parts = {"unet": pipe.unet, "scheduler": pipe.scheduler}
        blocks.update_components(**parts, null_label=pipe.config.null_label)

    def call():
        if kind == "pipeline":
            return draw(pipe, 0)
        told = {"class_labels": [0], "output_type": "latent", "num_inference_steps": 4}
        return blocks(**told, generator=torch.Generator().manual_seed(0), output="images")

    first = call()

    def stop(*args):
        calls.append(None)
        if len(calls) == at + 1:
            raise Stop

    pipe.unet.register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        call()
    assert torch.equal(call(), first)
    if kind == "pipeline":
        assert torch.equal(first, expected)


def loop(scheduler, x, begin, end):
    """Return a sample that a plain model leads through some steps."""
    for i, t in enumerate(scheduler.timesteps[begin:end]):
        output = (x.float() * 0.9 + torch.cos(t / 300)).to(x.dtype)
        generator = torch.Generator().manual_seed(i + begin)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    return x


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
}


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"solver": "heun"},
        {"solver": "unipc", "carry_rounding": True},
        {"solver": "dpm_solver++", "diffusion": "memoryless"},
        {"solver": "adams_bashforth", "thresholding": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_made_in_mid_loop_goes_on_bit_for_bit(way, config, dtype, memory):
    scheduler = GaussianFlowScheduler(**config)
    scheduler.set_timesteps(6)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = loop(scheduler, x.contiguous(memory_format=memory), 0, 3)
    other = COPIES[way]((scheduler, x))
    assert torch.equal(loop(scheduler, x, 3, None), loop(*other, 3, None))


@pytest.mark.parametrize("config", [{}, {"diffusion": "memoryless"}, {"solver": "heun"}], ids=str)
def test_copies_in_threads_draw_what_one_draws(config):
    pipe = make_pipe(**config)
    copies = [copy.deepcopy(pipe) for _ in range(3)]
    alone = [draw(pipe, i % CLASSES, seed=i) for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = [*pool.map(lambda i: draw(copies[i], i % CLASSES, seed=i), range(3))]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
