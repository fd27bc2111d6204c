"""What a flow map is trained on: exact teachers give exact targets, exact maps have no loss."""

import warnings
from typing import NamedTuple

import pytest
import torch
from accelerate import Accelerator
from exact_network import exact_pipe, mixture
from test_pipeline_text import make_text_pipe
from torch import nn

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.flow_map_networks import with_two_times
from fm_diffusers.flow_maps import exact_average_slope, mapped, trajectory_target
from fm_diffusers.paths import PATHS, Linear
from fm_diffusers.predictions import CANONICAL, conversion
from fm_diffusers.training import flow_maps, teachers
from fm_diffusers.training.distillation import OBJECTIVES, Distillation, random_pairs
from fm_diffusers.training.flow import FlowArguments, flow_loss
from fm_diffusers.training.flow_maps import (
    MAGNIFIED,
    MapObjective,
    Slope,
    clock_of,
    landings,
    last_start,
    loss_of_slopes,
    part_of,
    time_of,
    warn_of_rounding,
)
from fm_diffusers.training.networks import BACKBONES, NetworkArguments
from fm_diffusers.training.teachers import Guided, Runs, conditions_of, guided, moved

GAUSSIANS = [mixture(0, 1), mixture(1, 1, 0.8), mixture(2, 1, 1.5)]  # two classes, and no class


def uniform(*shape, low=0.0, high=1.0, dtype=torch.float64):
    return low + (high - low) * torch.rand(*shape, dtype=dtype)


# --- a teacher's runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "cosine", "variance_preserving"])
@pytest.mark.parametrize("prediction", ["velocity", "v_prediction"])
def test_pairs_of_states_of_a_run_have_the_exact_average_slope(path, prediction):
    pipe = exact_pipe(path, prediction, GAUSSIANS)
    runs = Runs(7, 25, (1.0, 1.0), 0.3, 4, 0).draw(pipe, conditions_of(pipe), Accelerator())
    states, u, numbers, _ = runs.tensors
    assert states.shape == (7, 26, 1, 2, 2) and {*numbers.tolist()} == {0, 1, 2}
    torch.manual_seed(0)
    each, (a, b) = torch.arange(7), random_pairs(u, 0.3, 0.25)
    y, ends, start, stop = states[each, a].flatten(1), states[each, b], u[each, a], u[each, b]
    found = trajectory_target(y, ends.flatten(1), start, stop).double()
    for i, number in enumerate(numbers):
        one = [value[i : i + 1].double() for value in (y, start, stop)]
        off = found[i : i + 1] - exact_average_slope(GAUSSIANS[number])(*one)
        assert ((one[2] - one[1]) * off).abs().max() < 3e-3  # the solver is off by half of it


def test_a_guided_teacher_has_the_slope_that_guidance_says():
    pipe = exact_pipe("cosine", "v_prediction", GAUSSIANS)
    y, u = torch.randn(5, 1, 2, 2), torch.full((5,), 0.6)
    numbers, scale = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([1.0, 2.0, 4.0, 0.5, 3.0])
    found = guided(pipe, conditions_of(pipe), numbers, scale)(y, u)
    flat, t = y.flatten(1).double(), torch.tensor(u[0].item(), dtype=torch.float64)
    own = torch.stack([data.field(Linear())(flat, t) for data in GAUSSIANS])
    exact = torch.lerp(own[2], own[numbers, torch.arange(5)], scale[:, None].double())
    torch.testing.assert_close(found.flatten(1).double(), exact, rtol=0, atol=1e-4)


def test_runs_are_drawn_again_alike_and_their_ends_are_theirs():
    pipe = exact_pipe("linear", "velocity", GAUSSIANS)

    def draw(**more):
        runs = Runs(6, 5, (1.0, 3.0), 0.5, 4, 7, **more)
        return runs.draw(pipe, conditions_of(pipe), Accelerator()).tensors

    first, again, ends = draw(), draw(), draw(ends=True)
    assert all(map(torch.equal, first, again))
    assert torch.equal(ends[0], first[0][:, [0, -1]]) and torch.equal(
        ends[1], first[1][:, [0, -1]]
    )
    assert 1 <= first[3].min() < first[3].max() <= 3
    assert len(first[1][:, 1].unique()) == 2  # every batch has nodes of its own


@pytest.mark.parametrize("path", ["linear", "variance_preserving", "variance_exploding"])
def test_nodes_are_moved_over_all_times_and_stay_in_order(path):
    scheduler, generator = GaussianFlowScheduler(path=path), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(40)
    times = scheduler._plan.times
    drawn = torch.stack([moved(times, generator) for _ in range(400)])
    assert (drawn.diff() > 0).all()
    assert (drawn[:, 0] == times[0]).all() and (drawn[:, -1] == times[-1]).all()
    lowest, highest = drawn.min(0).values, drawn.max(0).values
    gaps = (lowest[2:-1] - highest[1:-2]) / times.diff()[1:-1]  # of neighbours, 0 to rounding
    assert gaps.abs().max() < 0.02


# --- conditions ----------------------------------------------------------------------------------


def make_pipe(classes, backbone="unet", null=True, **config):
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    args = NetworkArguments(backbone=backbone, block_out_channels=[8, 16], **sizes)
    network = BACKBONES[backbone](args, (1, 8, 8), classes).eval()
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.1)
    label = classes if null and (classes or backbone == "transformer") else None
    parts = {backbone: network, "scheduler": GaussianFlowScheduler(**config)}
    pipe = FlowMatchingPipeline(**parts, null_label=label)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("classes", "backbone", "null", "table", "count", "number"),
    [
        (3, "unet", True, [0, 1, 2, 3], 3, 3),
        (3, "transformer", False, [0, 1, 2], 3, None),
        (0, "unet", True, None, 1, None),
        (0, "transformer", True, [0], 1, None),
    ],
)
def test_conditions_are_all_that_a_network_knows(classes, backbone, null, table, count, number):
    found = conditions_of(make_pipe(classes, backbone, null))
    assert (found.table if table is None else found.table.tolist()) == table
    assert (found.count, found.null) == (count, number)


def test_prompts_are_those_of_the_file_and_nothing(tmp_path, monkeypatch):

    pipe, file = make_text_pipe(), tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a square \na triangle\n")
    monkeypatch.setattr(teachers, "PROMPTS", 2)
    found = conditions_of(pipe, str(file))
    states, null = pipe.encode_prompt(["a red circle", "a square", "a triangle", ""])
    assert null is None and found.null == found.count == 3
    torch.testing.assert_close(found.table, states)
    assert torch.equal(found[torch.tensor([2, 0])], found.table[[2, 0]])
    with pytest.raises(ValueError, match="the teacher takes text: --prompts names a file of"):
        conditions_of(pipe)
    with pytest.raises(ValueError, match="the teacher takes labels: drop --prompts"):
        conditions_of(make_pipe(3), str(file))
    file.write_text(" \n")
    with pytest.raises(ValueError, match="holds no prompt: write one a line"):
        conditions_of(pipe, str(file))


# --- losses --------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """The average slope of a Gaussian, or for the wrong one the slope at the start of a step."""

    data: GaussianMixture
    wrong: bool = False

    def __call__(self, y, u, v=None):
        return exact_average_slope(self.data)(y, u, u if v is None or self.wrong else v)


def exact_runs(count, nodes=6):
    data, u = mixture(3, 1, 0.5), uniform(count, nodes).sort(1).values
    u[:, 0], u[:, -1] = 0, 1
    noise, slope = torch.randn(count, 4, dtype=torch.float64), exact_average_slope(data)
    return (
        data,
        torch.stack([mapped(noise, u[:, 0], v, slope(noise, u[:, 0], v)) for v in u.T], 1),
        u,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("slope_share", [0.0, 0.2, 1.0])
def test_the_exact_map_has_no_loss_and_another_has(objective, slope_share):
    torch.manual_seed(0)
    data, states, u = exact_runs(100)
    learn = Distillation(objective, slope_share)
    loss = learn(Exact(data), Exact(data), states, u)
    # the difference quotient is exact to the square of its step
    assert loss < (1e-6 if objective == "mean_flow" else 1e-20)
    wrong = learn(Exact(data, wrong=True), Exact(data), states, u)
    if slope_share == 1:
        assert wrong < 1e-20  # the slope itself is right
    elif objective != "self_consistency":  # which any slope without a second time almost is
        assert wrong > 1e-2


class Asked(NamedTuple):
    """The exact map of a Gaussian, which is never to be asked about no samples at all."""

    u: torch.Tensor

    def __call__(self, y, u, v=None):
        assert len(y) > 0
        return exact_average_slope(mixture(3, 1, 0.5))(y, u, u if v is None else v)


@pytest.mark.parametrize("objective", ["mean_flow", "self_consistency"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_networks_are_not_asked_about_no_samples(objective, conditional, share):
    """Attention refuses an empty batch."""
    torch.manual_seed(0)
    y, u = torch.randn(8, 4, dtype=torch.float64), uniform(8, high=0.9)
    slope = Asked(u)

    def exact(part):
        return slope(y[part], u[part])

    loss = MapObjective(objective, share)(slope, y, u, torch.ones_like(u), exact, conditional)
    assert loss < 1e-6


def test_the_posterior_mean_of_the_conditional_target_is_that_of_the_exact_map():
    """At one state and time the residual of mean flow averages to 0 over the data."""
    torch.manual_seed(0)
    data, y, u = GaussianMixture(torch.zeros(1, 1).double(), 0.5), 0.4, 0.3
    count = 400_000
    variance = (u * 0.5) ** 2 + (1 - u) ** 2
    mean, std = u * 0.25 / variance * y, 0.5 * (1 - u) / variance**0.5
    z = mean + std * torch.randn(count, 1, dtype=torch.float64)
    eps = (y - u * z) / (1 - u)
    exact = exact_average_slope(data)

    class Same(NamedTuple):
        offset: torch.Tensor

        def __call__(self, y, u, v):
            return exact(y, u, v) + self.offset

    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    start, end = (torch.full((count,), v, dtype=torch.float64) for v in (u, 1.0))
    slope, at = Same(offset.expand(count, 1)), torch.full_like(z, y)
    given = (at, start, end, (z - eps).__getitem__)
    loss = MapObjective("mean_flow", share=0.9)(slope, *given, conditional=True)
    (gradient,) = torch.autograd.grad(loss, offset)
    assert abs(gradient / 2) < 4 * (z - eps).std() / count**0.5


def test_pairs_are_drawn_by_their_distance():
    torch.manual_seed(0)
    u, count = torch.tensor([0.0, 0.25, 1.0]), 40_000
    a, b = random_pairs(u.expand(count, 3), 0.0, 0.0)
    for pair, share in (((0, 1), 0.125), ((1, 2), 0.375), ((0, 2), 0.5)):
        found = ((a == pair[0]) & (b == pair[1])).double().mean().item()
        assert abs(found - share) < 4 * (share * (1 - share) / count) ** 0.5
    a, b = random_pairs(u.expand(count, 3), 1.0, 0.0)
    assert (b == 2).all() and abs((a == 0).double().mean() - 1 / 1.75) < 0.01
    a, b = random_pairs(u.expand(count, 3), 0.0, 1.0)
    assert (a == 0).all() and abs((b == 2).double().mean() - 1 / 1.25) < 0.01
    a, b = random_pairs(u.expand(count, 3), 1.0, 1.0)
    assert (a == 0).all() and (b == 2).all()


def test_pairs_begin_no_later_than_they_may():
    torch.manual_seed(0)
    u = torch.tensor([0.0, 0.5, 0.9, 0.99, 1.0]).expand(4000, 5)
    a, b = random_pairs(u, 0.3, 0.25, last=0.98)
    assert {*a.tolist()} == {0, 1, 2} and {*b.tolist()} == {1, 2, 3, 4}
    assert not random_pairs(u, 0.3, 0.25, last=-1.0)[0].any()  # the first always may


class OfData(nn.Module):
    """A network that knows the data, all at 1 here, up to an error; `fed` are its timesteps."""

    def __init__(self, error):
        super().__init__()
        self.error, self.fed = nn.Parameter(torch.tensor(error)), []

    def forward(self, x, timestep, condition, timestep_cond=None, return_dict=True):
        self.fed.append(timestep)
        return (torch.ones_like(x) + self.error,)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_a_network_that_predicts_the_data_learns_a_map_where_its_slope_is_of_use(path):
    torch.manual_seed(0)
    args = FlowArguments(
        objective="mean_flow",
        path=path,
        prediction_type="sample",
        time_sampler="low_discrepancy",
        map_power=0.0,
    )
    z, eps, scheduler = torch.ones(2000, 1, 2, 2), torch.randn(2000, 1, 2, 2), args.scheduler()
    right, wrong = OfData(0.0), OfData(0.01)
    assert flow_loss(args, scheduler, right, z, eps) < 1e-6
    loss = flow_loss(args, scheduler, wrong, z, eps)
    loss.backward()
    assert 1e-4 < loss < 2500 * 1e-4 and wrong.error.grad.isfinite()
    last = scheduler.to_timestep(time_of(scheduler.path, torch.tensor(0.991)))  # half way from .98
    assert min(fed.min() for fed in wrong.fed) > last  # timesteps descend towards the data


def test_steps_land_between_their_start_and_the_data():
    torch.manual_seed(0)
    u, end = uniform(20_000, high=0.8), torch.full((20_000,), 0.9, dtype=torch.float64)
    v = landings(u, end, 15_000, 0.3)
    assert torch.equal(v[15_000:], u[15_000:]) and (v >= u).all() and (v <= end).all()
    at_end = v[:15_000] == 0.9
    assert abs(at_end.double().mean() - 0.3) < 4 * (0.21 / 15_000) ** 0.5
    share = ((v - u) / (end - u))[:15_000][~at_end]
    assert abs(share.mean() - 0.5) < 4 * (1 / 12 / len(share)) ** 0.5


def test_a_part_of_a_batch_is_told_what_its_samples_are():
    whole = Guided("pipe", torch.arange(4), None, torch.arange(4.0))
    part = part_of(whole, slice(1, 3))
    assert part.pipe == "pipe" and part.null is None
    assert part.condition.tolist() == [1, 2] and part.guidance_scale.tolist() == [1, 2]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_samples_weigh_by_their_error_in_the_gradient_and_not_in_the_value(power):
    found, target = torch.tensor([[1.0], [3.0]], requires_grad=True), torch.zeros(2, 1)
    loss = loss_of_slopes(found, target, power)
    assert loss.item() == pytest.approx(5.0)
    (gradient,) = torch.autograd.grad(loss, found)
    expected = [1 / 1.001**power, 3 / 9.001**power]  # 2 x / (|x|^2 + c)^p / 2
    assert gradient.flatten().tolist() == pytest.approx(expected)


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("path", "prediction"),
    [("linear", "flow_prediction"), ("cosine", "v_prediction"), ("variance_preserving", "edm")],
)
def test_what_is_trained_is_what_a_pipeline_steps_by(path, prediction, steps):
    pipe = make_pipe(3, path=path, prediction_type=prediction, solver="flow_map")
    pipe.unet = with_two_times(pipe.unet, [1.0, 4.0]).eval()
    nn.init.normal_(pipe.unet.class_embedding.features.linear_2.weight)
    x = pipe.prepare_latents(2, torch.Generator().manual_seed(0), None)
    asked = {"class_labels": [0, 2], "guidance_scale": 3.0, "output_type": "latent"}
    end = pipe(**asked, latents=x, num_inference_steps=steps).images
    slope = Slope(pipe.unet, pipe.scheduler, torch.tensor([0, 2]), torch.full((2,), 3.0))
    u = clock_of(pipe.scheduler.path, pipe.scheduler._plan.times).float()
    sizes = [sum(pipe.scheduler.path(t)[:2]).item() for t in pipe.scheduler._plan.times]
    y = x / sizes[0]
    with torch.no_grad():
        for a, b in zip(u.unbind(), u[1:].unbind(), strict=False):
            y = mapped(y, a.expand(2), b.expand(2), slope(y, a.expand(2), b.expand(2)))
    torch.testing.assert_close(sizes[-1] * y, end, rtol=1e-4, atol=1e-4)
    other = pipe(**asked | {"guidance_scale": 1.0}, latents=x, num_inference_steps=steps).images
    assert not torch.allclose(other, end, atol=1e-3)


class Twice(nn.Module):
    """A network that returns a variance beside its prediction."""

    def forward(self, x, timestep, condition, timestep_cond=None, return_dict=True):
        return (torch.cat([2 * x, 99 + x], 1),)


def test_a_learned_variance_is_left_out():
    scheduler, y, u = GaussianFlowScheduler(), torch.randn(2, 1, 2, 2), torch.tensor([0.2, 0.5])
    assert torch.equal(Slope(Twice(), scheduler)(y, u, u), 2 * y)


@pytest.mark.parametrize("path", [*PATHS])
def test_the_clock_of_a_path_is_read_both_ways(path):
    path, t = PATHS[path](), torch.linspace(0, 1, 21)
    torch.testing.assert_close(time_of(path, clock_of(path, t)), t, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "prediction", "t"),
    [
        ("linear", "epsilon", "0"),
        ("linear", "score", "0"),
        ("discrete", "epsilon", "0, which is 158"),
        ("polynomial", "velocity", "0"),
    ],
)
def test_networks_without_a_slope_at_the_noise_are_refused(path, prediction, t):
    with pytest.raises(ValueError, match=f"needs a slope at t = {t}.* predicts '{prediction}'"):
        last_start(GaussianFlowScheduler(path=path, prediction_type=prediction))
    assert last_start(GaussianFlowScheduler(path=path, prediction_type="v_prediction")) == 1


@pytest.mark.parametrize("path", ["linear", "cosine", "variance_exploding"])
def test_maps_of_networks_that_predict_the_data_depart_a_little_before_it(path):
    scheduler = GaussianFlowScheduler(path=path, prediction_type="sample")
    last = last_start(scheduler)
    t = time_of(scheduler.path, torch.tensor(last))
    factor = conversion(scheduler.path, "sample", CANONICAL, t)[1]
    assert last < 1 and factor == pytest.approx(MAGNIFIED, rel=1e-3)


def test_differences_in_half_precision_are_warned_of():
    with pytest.warns(UserWarning, match="two outputs 0.03 apart in time, of which bf16 leaves"):
        warn_of_rounding("mean_flow", "bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for told in (("mean_flow", "no"), ("trajectory", "bf16"), ("mean_flow", "fp16", "jvp")):
            warn_of_rounding(*told)


# --- on a device ---------------------------------------------------------------------------------


class Spy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), device="meta"))

    def forward(self, x, timestep, condition, timestep_cond=None, return_dict=True):
        return (self.weight * x,)


@pytest.mark.parametrize("objective", ["mean_flow", "self_consistency"])
def test_only_derivatives_of_a_teachers_map_are_weighted(objective, monkeypatch):
    """Unweighted, mean flow of the digits diverges to losses of 50, of .3 at its beginning."""
    powers = []

    def note(found, target, power=0.0):
        powers.append(power)
        return found.sum()

    monkeypatch.setattr(flow_maps, "loss_of_slopes", note)
    pipe, spy = make_pipe(3), Spy()
    states, u = torch.randn(8, 5, 1, 4, 4, device="meta"), torch.rand(8, 5, device="meta")
    numbers, scale = torch.zeros(8, dtype=torch.long, device="meta"), torch.ones(8, device="meta")
    slope = Slope(spy, pipe.scheduler, numbers, scale)
    Distillation(objective)(slope, Guided(pipe.to("meta"), numbers, numbers, scale), states, u)
    assert powers == [1.0 if objective == "mean_flow" else 0.0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_never_waits_for_the_device(objective):
    """Tensors without values cannot be looked at: a sync would raise."""
    pipe, spy = make_pipe(3), Spy()
    pipe.scheduler = GaussianFlowScheduler(path="cosine", prediction_type="v_prediction")
    states, u = torch.randn(8, 5, 1, 4, 4, device="meta"), torch.rand(8, 5, device="meta")
    numbers, scale = torch.zeros(8, dtype=torch.long, device="meta"), torch.ones(8, device="meta")
    slope = Slope(spy, pipe.scheduler, numbers, scale)
    teacher = Guided(pipe.to("meta"), numbers, numbers, scale)
    loss = Distillation(objective)(slope, teacher, states, u)
    loss.backward()
    assert loss.is_meta and spy.weight.grad.is_meta


def test_mean_flow_from_data_never_waits_for_the_device():
    args, spy = FlowArguments(objective="mean_flow"), Spy()
    z, eps = torch.randn(2, 8, 1, 4, 4, device="meta")
    loss = flow_loss(args, args.scheduler(), spy, z, eps, None)
    loss.backward()
    assert spy.weight.grad.is_meta
