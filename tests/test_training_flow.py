"""What a training script learns, as its flags say."""

from dataclasses import dataclass

import diffusers
import pytest
import torch
from torch import nn

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.training.arguments import ImageArguments
from fm_diffusers.training.flow import (
    OBJECTIVES,
    FlowArguments,
    coupled_noise,
    flow_loss,
    scaled,
)


@dataclass
class Arguments(ImageArguments, FlowArguments):
    def __post_init__(self):
        FlowArguments.__post_init__(self)
        ImageArguments.__post_init__(self)


class Spy(nn.Module):
    """Returns its input times a weight, and remembers what it was given."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), device=device))

    def forward(self, x, timestep, condition, return_dict):
        self.given = x, timestep, condition
        return (self.weight * x,)


def batch(n=256, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(2, n, 1, 4, 4).to(device)


@pytest.mark.parametrize("objective", ["flow_matching", "score_matching"])
def test_the_loss_is_the_squared_error_of_the_target(objective):
    """On the linear path it is eps - z less x; the score's error is t^2 times it."""
    args, (z, eps), spy = Arguments(objective=objective), batch(), Spy()
    label = torch.arange(256)
    loss = flow_loss(args, args.scheduler(), spy, z, eps, label)
    x_t, timestep, condition = spy.given
    t = 1 - timestep[:, None, None, None] / 1000
    torch.testing.assert_close(x_t, t * z + (1 - t) * eps)
    weight = t**2 if objective == "score_matching" else 1
    torch.testing.assert_close(loss, (weight * (x_t - (eps - z)) ** 2).mean())
    assert torch.equal(condition, label)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_pair_says_what_is_regressed_and_not_where(objective):
    flags = {"map_share": 0.0} if objective == "mean_flow" else {}
    args, (z, eps), asked = Arguments(objective=objective, **flags), batch(), []

    def network(x, timestep, condition, **options):
        asked.append((x, 1 - timestep[:, None, None, None] / 1000))
        return (2 * eps - 3 * z,)

    def pair(path, z, eps, t):
        return 3 * z, 2 * eps

    assert flow_loss(args, args.scheduler(), network, z, eps, None, pair) < 1e-10
    [(x, t)] = asked
    torch.testing.assert_close(x, t * z + (1 - t) * eps, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscrete", "UniPCMultistep", "DPMSolverMultistep"]
)
def test_diffusers_flow_schedulers_sample_what_is_trained_by_default(name):
    """The sign and the timesteps are theirs: an exact network of N(.7, .5^2) says so."""
    ours = Arguments().scheduler()
    theirs = getattr(diffusers, f"{name}Scheduler").from_config(ours.config)
    theirs.set_timesteps(50)
    x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    for timestep in theirs.timesteps:
        t = ours.to_time(timestep)
        variance = (t * 0.5) ** 2 + (1 - t) ** 2
        z = 0.7 + t * 0.25 * (x - t * 0.7) / variance
        eps = (1 - t) * (x - t * 0.7) / variance
        x = theirs.step(eps - z, timestep, x).prev_sample
    assert abs(x.mean() - 0.7) < 0.02 and abs(x.std() - 0.5) < 0.025
    assert Arguments(path="cosine").scheduler().config.prediction_type == "velocity"


def test_times_of_a_flow_are_uniform_and_those_of_its_map_logit_normal_unless_named():
    found = {objective: Arguments(objective=objective).time_sampler for objective in OBJECTIVES}
    assert found == {
        "flow_matching": "low_discrepancy",
        "score_matching": "low_discrepancy",
        "mean_flow": "logit_normal",
    }
    named = Arguments(objective="mean_flow", time_sampler="low_discrepancy")
    assert named.time_sampler == "low_discrepancy"


def test_times_are_those_of_the_sampler_scaled_into_the_range():
    flags = {"time_sampler": "logit_normal", "time_sampler_kwargs": '{"mean": 2.0, "std": 0.5}'}
    args, (z, eps), spy = Arguments(**flags, t_min=0.2, t_max=0.6), batch(20_000), Spy()
    flow_loss(args, args.scheduler(), spy, z, eps)
    t = 1 - spy.given[1] / 1000
    expected = 0.2 + 0.4 * torch.sigmoid(torch.tensor([1.5, 2.0, 2.5]))
    quantiles = t.quantile(torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0])))
    torch.testing.assert_close(quantiles, expected, rtol=0, atol=0.005)


def test_a_loss_never_waits_for_the_device():
    """Tensors without values cannot be looked at: a sync would raise."""
    args, (z, eps), spy = Arguments(), batch(device="meta"), Spy("meta")
    loss = flow_loss(args, args.scheduler(), spy, z, eps, None)
    loss.backward()
    assert loss.is_meta and spy.weight.grad.is_meta


def test_images_are_scaled_and_half_of_them_mirrored():
    images = torch.arange(256, dtype=torch.uint8).reshape(16, 1, 4, 4).repeat(250, 1, 1, 1)
    plain = scaled(Arguments(), images)
    assert plain.min() == -1 and plain.max() == 1
    torch.manual_seed(0)
    flipped = scaled(Arguments(random_flip=True), images)
    kept = (flipped == plain).flatten(1).all(1)
    assert torch.equal(flipped[~kept], plain[~kept].flip(-1))
    assert abs(kept.double().mean() - 0.5) < 4 * 0.5 / len(images) ** 0.5


def test_a_coupling_shortens_the_way_and_respects_the_condition():
    pytest.importorskip("ot")
    z, _ = batch()
    label = torch.arange(256) % 4
    args = Arguments(coupling="optimal_transport")
    torch.manual_seed(1)
    eps = torch.randn_like(z)
    torch.manual_seed(1)
    coupled = coupled_noise(args, z, label)
    assert (z - coupled).square().mean() < 0.95 * (z - eps).square().mean()
    for k in range(4):
        mine = {tuple(row) for row in eps[label == k].flatten(1).tolist()}
        assert {tuple(row) for row in coupled[label == k].flatten(1).tolist()} == mine


def test_the_scheduler_is_what_the_flags_say():
    scheduler = Arguments(
        path="polynomial", path_kwargs='{"degree": 2.0}', prediction_type="sample"
    ).scheduler()
    same = GaussianFlowScheduler(
        path="polynomial", path_kwargs={"degree": 2.0}, prediction_type="sample"
    )
    assert dict(scheduler.config) == dict(same.config)


def test_likelihood_weights_need_times_below_one():
    with pytest.raises(ValueError, match="'likelihood' loss .* unbounded at t = 1: .* --t_max"):
        Arguments(weighting="likelihood")
    args, (z, eps) = Arguments(weighting="likelihood", t_max=0.99), batch()
    assert flow_loss(args, args.scheduler(), Spy(), z, eps).isfinite()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"objective": "elbo"}, "unknown --objective 'elbo': choose one of flow_matching, score"),
        ({"weighting": "p2"}, "unknown weighting 'p2': choose one of uniform"),
        ({"weighting_kwargs": "gamma=5"}, r"--weighting_kwargs must be a JSON object, such as"),
        ({"time_sampler_kwargs": "[1]"}, r"--time_sampler_kwargs must be a JSON object"),
        ({"weighting": "min_snr", "weighting_kwargs": '{"gamm": 5}'}, "gamm"),
        ({"t_min": 0.5, "t_max": 0.5}, r"must ascend in \[0, 1\], got 0.5 and 0.5"),
        ({"t_max": 1.5}, r"must ascend in \[0, 1\], got 0.0 and 1.5"),
        (
            {"objective": "score_matching", "weighting": "min_snr"},
            "--weighting min_snr needs --objective flow_matching",
        ),
        (
            {"objective": "score_matching", "coupling": "optimal_transport"},
            "with --coupling optimal_transport x_t is not Gaussian given the data",
        ),
        ({"prediction_type": "score"}, "predicts 'score' is unbounded at t = 1"),
        ({"time_sampler": "sobol"}, "unknown time sampler 'sobol': choose one of uniform"),
        (
            {"time_sampler": "cosmap", "time_sampler_kwargs": '{"std": 1}'},
            r"time_sampler_kwargs \['std'\] are no parameters of 'cosmap'; it has: none",
        ),
        (
            {"time_sampler": "logit_normal", "time_sampler_kwargs": '{"std": "wide"}'},
            "cannot be made with time_sampler_kwargs={'std': 'wide'}",
        ),
        ({"coupling": "greedy"}, "unknown coupling 'greedy': choose one of independent"),
        ({"path": "geodesic"}, "unknown path 'geodesic'"),
    ],
)
def test_impossible_flags_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**flags)
