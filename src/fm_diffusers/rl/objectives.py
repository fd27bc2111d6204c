r"""Group-relative policy optimization (GRPO): advantages, ratios, the clipped objective.

Several samples of one condition form a group, and a sample is as good as its reward is above the
mean of its group; no value network is learned. The new policy may leave the one that has drawn the
samples only so far as ratios of their probabilities stay near 1, and the KL divergence to the
start of the training holds it there:

.. math:: L = -\frac1n \sum_i \min\big(r_i A_i,\; \mathrm{clip}(r_i, 1 - c, 1 + c) A_i\big)
              + \frac{\beta}{n} \sum_i KL_i.

Each function here takes one step of the samples, what the sampler knew of it and what the trained
network says of it now; the mean over the noisy steps is the objective.

References: Shao et al., "DeepSeekMath" (GRPO), https://arxiv.org/abs/2402.03300; Liu et al.,
"Flow-GRPO", https://arxiv.org/abs/2505.05470; Wang et al., "GRPO-Guard",
https://arxiv.org/abs/2510.22319; Schulman et al., "PPO", https://arxiv.org/abs/1707.06347.
"""

import torch
from torch import Tensor

from fm_diffusers.scheduling.checks import check_one_shape
from fm_diffusers.tables import look_up

#: What the distance of a reward from the mean of its group is divided by, from the standard
#: deviation in its group and that of all rewards.
SCALES = {
    "group": lambda group, batch: group,
    "batch": lambda group, batch: batch.expand_as(group),
    "none": None,
}


def group_advantages(
    rewards: Tensor, groups: Tensor, scale: str = "group", epsilon: float = 1e-4
) -> Tensor:
    r"""Return how far rewards are above the mean of their groups, in standard deviations.

    .. math:: A_i = \frac{R_i - \mathrm{mean}_{g(i)} R}{\mathrm{std}_{g(i)} R + \epsilon}

    Args:
        rewards: shape `(n,)`.
        groups: the group of each, any numbers, shape `(n,)`.
        scale: `group` divides by the standard deviation in the group (GRPO), `batch` by that of
            all rewards (Flow-GRPO's code for several rewards), `none` not at all (Dr. GRPO,
            https://arxiv.org/abs/2503.20783). It is the root of the mean square, as numpy's.
        epsilon: keeps rounding in a group of equal rewards from being taken for a difference.

    Raises:
        ValueError: for a group of one, in which nothing is relative, a reward that is not finite,
            or unequal lengths.

    Example:
        >>> rewards, groups = torch.tensor([0.0, 2.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1])
        >>> group_advantages(rewards, groups, epsilon=0.0).nan_to_num()
        tensor([-1.,  1.,  0.,  0.])
    """
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(
            "rewards and groups must be vectors of one length, got shapes "
            f"{tuple(rewards.shape)} and {tuple(groups.shape)}"
        )
    if not rewards.isfinite().all():
        raise ValueError(f"rewards must be finite, got {rewards[~rewards.isfinite()].tolist()}")
    _, member = torch.unique(groups, return_inverse=True)
    count = torch.bincount(member)
    if (count < 2).any():
        raise ValueError(
            "a group must have at least two samples, whose rewards are compared; got groups of "
            f"{count.tolist()}"
        )
    r = rewards.double() if rewards.device.type == "cpu" else rewards.float()
    zero = r.new_zeros(len(count))
    above = r - (zero.index_add(0, member, r) / count)[member]
    std = (zero.index_add(0, member, above.square()) / count).sqrt()[member]
    divisor = look_up("scale", SCALES, scale)
    if divisor is not None:
        above = above / (divisor(std, r.std(correction=0)) + epsilon)
    return above.to(rewards.dtype)


def importance_ratio(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    r"""Return :math:`e^{\ell - \ell_\mathrm{old}}`, PPO's ratio.

    That is the ratio of two probabilities where log-probabilities are sums over the dimensions,
    and its d-th root where they are means, as in Flow-GRPO.

    Args:
        log_prob: of the trained network, shape `(batch,)`.
        old_log_prob: of the network that has drawn the samples.

    Raises:
        ValueError: for unequal shapes.
    """
    check_one_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    return torch.exp(log_prob - old_log_prob)


def guarded_ratio(
    log_prob: Tensor, old_log_prob: Tensor, mean: Tensor, old_mean: Tensor, std: float | Tensor
) -> Tensor:
    r"""Return GRPO-Guard's ratio, whose logarithm has the mean 0 and one scale at every step.

    .. math:: r = \exp\Big[(\ell - \ell_\mathrm{old})\, s
                           + \frac{|\mu - \mu_\mathrm{old}|^2}{2 s\, d}\Big]
                = \exp\Big[\frac1d\, \xi \cdot (\mu - \mu_\mathrm{old})\Big]

    for log-probabilities that are means over the d dimensions and a sample
    :math:`x' = \mu_\mathrm{old} + s \xi`. The plain ratio has the mean square of the difference of
    the means in its logarithm, so that it is below 1 on average and clipping from above idles.

    Args:
        log_prob: of the trained network, shape `(batch,)`, the `mean` over dimensions.
        old_log_prob: of the network that has drawn the samples, likewise.
        mean: of the trained network's step, shape `(batch, ...)`.
        old_mean: of the step that has drawn the samples.
        std: standard deviation of the step, a number or one for each sample.

    Raises:
        ValueError: if the step has no noise, or for unequal shapes.
    """
    check_one_shape(log_prob=log_prob, old_log_prob=old_log_prob)
    check_one_shape(mean=mean, old_mean=old_mean)
    std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device).reshape(-1)
    if not (std > 0).all():
        raise ValueError("the ratio of a step without noise (std = 0) does not exist")
    moved = (mean - old_mean).square().flatten(1).mean(1)
    return torch.exp((log_prob - old_log_prob) * std + moved / (2 * std))


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float = 1e-4) -> Tensor:
    r"""Return :math:`-\min(r A, \mathrm{clip}(r, 1 - c, 1 + c) A)` of each sample.

    Args:
        ratio: shape `(batch,)`.
        advantages: likewise.
        clip_range: c; Flow-GRPO's is small, since its log-probabilities are means.

    Raises:
        ValueError: for a negative range, or unequal shapes.
    """
    check_one_shape(ratio=ratio, advantages=advantages)
    if not clip_range >= 0:
        raise ValueError(f"clip_range must be at least 0, got {clip_range}")
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def group_relative_loss(
    ratio: Tensor,
    advantages: Tensor,
    clip_range: float = 1e-4,
    kl: Tensor | None = None,
    kl_weight: float = 0.0,
) -> Tensor:
    r"""Return Flow-GRPO's loss of one step, a mean over the samples; see the module.

    Args:
        ratio: `importance_ratio` or `guarded_ratio`, shape `(batch,)`.
        advantages: likewise; see `group_advantages`.
        clip_range: see `clipped_surrogate`.
        kl: divergence of the trained network's step from that of the network at the start, shape
            `(batch,)`: `transition.kl(reference)`, which is
            :math:`|\mu - \mu_\mathrm{ref}|^2/(2 s^2)`.
        kl_weight: beta.

    Raises:
        ValueError: for a weight without a divergence.
    """
    if kl is None and kl_weight:
        raise ValueError(f"kl_weight={kl_weight} needs kl, the divergence from the start")
    loss = clipped_surrogate(ratio, advantages, clip_range).mean()
    return loss if kl is None else loss + kl_weight * kl.mean()
