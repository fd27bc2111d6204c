"""The objectives of reinforcement learning: advantages, ratios, losses in closed form."""

import math

import pytest
import torch
from test_rl import LEVELS, drawn, planned, seeded

from fm_diffusers.rl import (
    DYNAMICS,
    clipped_surrogate,
    group_advantages,
    group_relative_loss,
    guarded_ratio,
    importance_ratio,
    transition,
)

# --- advantages ----------------------------------------------------------------------------------


def test_advantages_are_relative_to_their_group():
    rewards = torch.tensor([1.0, 5.0, 2.0, 8.0, 3.0, 8.0])
    groups = torch.tensor([7, -1, 7, -1, 7, -1])
    root = math.sqrt(2 / 3)
    expected = torch.tensor([-1 / root, -2 / math.sqrt(2), 0.0, 1 / math.sqrt(2), 1 / root])
    found = group_advantages(rewards, groups, epsilon=0.0)
    torch.testing.assert_close(found[:5], expected)
    mean = group_advantages(rewards, groups, "none")
    torch.testing.assert_close(mean, torch.tensor([-1.0, -2.0, 0.0, 1.0, 1.0, 1.0]))
    batch = group_advantages(rewards, groups, "batch", epsilon=0.0)
    torch.testing.assert_close(batch, mean / rewards.std(correction=0))
    for shift, factor in ((10.0, 1.0), (0.0, 3.0)):
        moved = group_advantages(factor * rewards + shift, groups, epsilon=0.0)
        torch.testing.assert_close(moved, found)


def test_equal_rewards_have_no_advantage():
    found = group_advantages(torch.full((6,), 0.1), torch.zeros(6))
    assert found.abs().max() < 1e-9


@pytest.mark.parametrize(
    ("rewards", "groups", "message"),
    [
        ([1.0, 2.0, 3.0], [0, 0, 1], r"at least two samples, .* groups of \[2, 1\]"),
        ([1.0, math.nan], [0, 0], r"rewards must be finite, got \[nan\]"),
        ([1.0, 2.0], [0, 0, 0], "vectors of one length"),
    ],
)
def test_groups_in_which_nothing_is_relative_are_refused(rewards, groups, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.tensor(rewards), torch.tensor(groups))


# --- ratios and losses ---------------------------------------------------------------------------


def test_the_guarded_ratio_is_the_noise_times_the_way_of_the_mean():
    """For x' = mean_old + s xi it is exp(xi . (mean - mean_old)/d): its logarithm is centred."""
    scheduler, (x, v) = planned(), drawn(1000)
    t = scheduler.timesteps[3]
    old = transition(scheduler, v, t, x, "precise", 0.5)
    new = transition(scheduler, v + 0.3, t, x, "precise", 0.5)
    following = old.sample(seeded())
    log_probs = [step.log_prob(following, "mean") for step in (new, old)]
    guarded = guarded_ratio(*log_probs, new.mean, old.mean, new.std)
    xi = (following - old.mean) / old.std
    expected = torch.exp((xi * (new.mean - old.mean)).flatten(1).mean(1))
    torch.testing.assert_close(guarded, expected, rtol=1e-9, atol=1e-9)
    spread = guarded.log().std() / math.sqrt(1000)
    assert abs(guarded.log().mean()) < 4 * spread
    assert importance_ratio(*log_probs).log().mean() < -4 * spread  # the plain one is not
    with pytest.raises(ValueError, match="ratio of a step without noise"):
        guarded_ratio(*log_probs, new.mean, old.mean, 0.0)


@pytest.mark.parametrize("advantage", [-2.0, 0.5])
@pytest.mark.parametrize("ratio", [0.7, 0.85, 1.0, 1.15, 1.3])
def test_the_surrogate_is_flat_where_a_step_would_go_too_far(ratio, advantage):
    r, a = torch.tensor([ratio], requires_grad=True), torch.tensor([advantage])
    loss = clipped_surrogate(r, a, 0.2)
    too_far = ratio > 1.2 if advantage > 0 else ratio < 0.8
    bound = 1.2 if advantage > 0 else 0.8
    assert math.isclose(loss.item(), -advantage * (bound if too_far else ratio), rel_tol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), r)
    assert gradient.item() == (0 if too_far else -advantage)


@pytest.mark.parametrize("name", [name for name in DYNAMICS if name != "ode"])
@pytest.mark.parametrize("guarded", [False, True])
def test_the_gradient_of_the_loss_is_the_policy_gradient_of_a_linear_gaussian(name, guarded):
    """Of v = a x: mean m_0 + w a x, so grad log p = w x . (x' - mean)/s^2, at ratio 1."""
    scheduler, level = planned(), LEVELS[name] * 0.5
    t, x = scheduler.timesteps[2], drawn(6)[0]
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    reference = transition(scheduler, 0.1 * x, t, x, name, level)
    old = transition(scheduler, a.detach() * x, t, x, name, level)
    way = old.mean - transition(scheduler, 0 * x, t, x, name, level).mean  # w a x
    following, s = old.sample(seeded()), old.std.item()
    advantages = group_advantages(torch.arange(6.0).double(), torch.tensor([0, 0, 0, 1, 1, 1]))

    step = transition(scheduler, a * x, t, x, name, level)
    log_prob, old_log_prob = (one.log_prob(following, "mean") for one in (step, old))
    ratio = importance_ratio(log_prob, old_log_prob)
    if guarded:
        ratio = guarded_ratio(log_prob, old_log_prob, step.mean, old.mean, s)
    loss = group_relative_loss(ratio, advantages, 1e-4, step.kl(reference), kl_weight=0.3)
    (gradient,) = torch.autograd.grad(loss, a)

    score = (way / 0.4 * (following - old.mean)).flatten(1).mean(1) / s**2
    policy = (advantages * score).mean() * (s if guarded else 1)
    apart = ((old.mean - reference.mean) * way / 0.4).flatten(1).sum(1).mean() / s**2
    torch.testing.assert_close(gradient, -policy + 0.3 * apart, rtol=1e-9, atol=1e-12)
    distance = (old.mean - reference.mean).square().flatten(1).sum(1) / (2 * s**2)
    expected = -advantages.mean() + 0.3 * distance.mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-9, atol=1e-12)


def test_a_weight_of_no_divergence_and_a_negative_range_are_refused():
    one = torch.ones(2)
    with pytest.raises(ValueError, match=r"kl_weight=0.1 needs kl"):
        group_relative_loss(one, one, kl_weight=0.1)
    with pytest.raises(ValueError, match="clip_range must be at least 0, got -1"):
        clipped_surrogate(one, one, -1)


def test_what_would_broadcast_to_all_pairs_of_samples_is_refused():
    row, column, mean = torch.zeros(4), torch.zeros(4, 1), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"one shape, got \(4,\) and \(4, 1\)"):
        importance_ratio(row, column)
    with pytest.raises(ValueError, match=r"one shape, got \(4, 1\) and \(4,\)"):
        guarded_ratio(column, row, mean, mean, 1.0)
    with pytest.raises(ValueError, match=r"mean and old_mean .* got \(4, 3\) and \(1, 3\)"):
        guarded_ratio(row, row, mean, mean[:1], 1.0)
    with pytest.raises(ValueError, match=r"ratio and advantages .* got \(4,\) and \(4, 1\)"):
        group_relative_loss(row, column)
